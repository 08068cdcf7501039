"""`vlp-data folder`: photo.jpg beside photo.txt."""

from __future__ import annotations

from pathlib import Path

from data_tools.importing import Record, Target, import_records
from data_tools.options import Images, Out, Overwrite, RegionDir, SamplesPerShard, existing_directory
from data_tools.report import Report
from data_tools.writer import SAMPLES_PER_SHARD
from vlp.data.imagefile import IMAGE_EXTENSIONS


def folder(
    images: Images,
    out: Out,
    regions: RegionDir = None,
    samples_per_shard: SamplesPerShard = SAMPLES_PER_SHARD,
    overwrite: Overwrite = False,
) -> None:
    """Turn a folder of photos into shards. Beside photo.jpg lies photo.txt, one caption a line."""
    report = Report({"command": "folder", "images": str(images), "regions": str(regions or "")})
    records = read_folder(existing_directory(images, "--images"), report)
    import_records(records, Target(images, regions, out, samples_per_shard, overwrite), report)


def read_folder(images: Path, report: Report) -> list[Record]:
    """The images of a folder and of those below it, by name, with the captions of the text files beside them."""
    records = []
    texts = {path.relative_to(images).as_posix() for path in images.rglob("*.txt") if path.is_file()}
    for path in sorted(path for path in images.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS):
        file, text = path.relative_to(images).as_posix(), path.with_suffix(".txt")
        report.count("images")
        texts.discard(text.relative_to(images).as_posix())
        if not text.is_file():
            report.skip("image without a .txt beside it", file)
            continue
        try:
            lines = text.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            report.skip("caption file that is not UTF-8", text.relative_to(images).as_posix())
            continue
        # A text file ends in a line feed: the nothing after it is no caption.
        captions = tuple(line for line in lines if line.strip()) or ("",)
        report.count("captions", len(captions))
        records.append(Record(file, captions))
    for text_file in sorted(texts):
        report.skip("caption file without an image", text_file)
    return records
