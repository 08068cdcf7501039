"""`vlp-data coco`: COCO captions (2014, 2017, or the like)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.importing import Record, Target, import_records
from data_tools.options import Images, Out, Overwrite, RegionDir, SamplesPerShard, existing_file
from data_tools.report import Report
from data_tools.writer import SAMPLES_PER_SHARD
from vlp.errors import DataError


def coco(
    captions: Annotated[Path, typer.Option("--captions", help="COCO captions JSON (images and annotations).")],
    images: Images,
    out: Out,
    regions: RegionDir = None,
    samples_per_shard: SamplesPerShard = SAMPLES_PER_SHARD,
    overwrite: Overwrite = False,
) -> None:
    """Turn COCO captions into shards. One sample per image, with all its captions."""
    report = Report(
        {"command": "coco", "captions": str(captions), "images": str(images), "regions": str(regions or "")}
    )
    records = read_coco(existing_file(captions, "--captions"), report)
    import_records(records, Target(images, regions, out, samples_per_shard, overwrite), report)


def read_coco(path: Path, report: Report) -> list[Record]:
    """The images of a COCO captions file, in its order, each with its captions in theirs.

    Raises:
        DataError: not a COCO captions file.
    """
    images, annotations = _load(path)
    report.count("images", len(images))
    report.count("captions", len(annotations))
    captions: dict[int | str, list[str]] = {}
    files: dict[int | str, str] = {}
    for number, image in enumerate(images):
        name, file = _entry(image, "id", "file_name")
        if name is None or file is None:
            report.skip("image without 'id' or 'file_name'", f"images[{number}]")
        elif name in files:
            report.skip("image id stands twice", file)
        else:
            files[name] = file
            captions[name] = []
    for number, annotation in enumerate(annotations):
        name, caption = _entry(annotation, "image_id", "caption")
        if name is None or caption is None:
            report.skip("annotation without 'image_id' or 'caption'", f"annotations[{number}]")
        elif name not in captions:
            report.skip("annotation of an image that the file does not list", f"image_id {name}")
        else:
            captions[name].append(caption)
    return [Record(file, tuple(captions[name]), metadata={"image_id": name}) for name, file in files.items()]


def _load(path: Path) -> tuple[list[Any], list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is not valid JSON; give COCO's captions_*.json") from None
    images, annotations = (content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise DataError(f"{path}: has no lists 'images' and 'annotations'; give COCO's captions_*.json")
    return images, annotations


def _entry(value: Any, name_key: str, text_key: str) -> tuple[int | str | None, str | None]:
    if not isinstance(value, dict):
        return None, None
    name, text = value.get(name_key), value.get(text_key)
    return name if isinstance(name, (int, str)) else None, text if isinstance(text, str) else None
