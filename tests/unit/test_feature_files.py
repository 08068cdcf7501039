"""Files of features: what is written is read again, in every format; inputs of every kind; hostile ones."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from tests.unit.feature_making import other_model, pixel_model, samples, shards, trained, vqa
from tests.unit.folders import Killed, Renames, files_of
from tests.unit.hostile import large_png, pickled, png, scans_jpeg
from tests.unit.pictures import encoded, ramps
from vlp import Features, VisionLanguageModel
from vlp.distributed import world
from vlp.errors import ConfigError, DataError, VlpError
from vlp.extraction import Inputs, extract_features, open_source
from vlp.features.files import FORMATS, Format, read, write
from vlp.features.job import Extracted, Request, extract_to
from vlp.features.kinds import parse_what
from vlp.features.parts import cut
from vlp.features.preparing import Preparing
from vlp.features.progress import Progress
from vlp.features.rows import Layout, Row
from vlp.features.sources import ShardSource, Source
from vlp.features.tars import member_key

WHAT = "pooled,text,image,itm,text.vector,attention,attention.2"


def to(out: Path, model: VisionLanguageModel, source: Source, **request: Any) -> Extracted:
    means = {name: request.pop(name) for name in ("micro_tokens", "workers", "every") if name in request}
    with world() as ranks:
        return extract_to(out, model, source, Request(**request), ranks, **means)


def rows_of(out: Path) -> list[Row]:
    return list(Features(out))


def same(one: list[Row], other: list[Row], atol: float = 1e-5) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.id, mine.key, mine.image, mine.words) == (theirs.id, theirs.key, theirs.image, theirs.words)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.arrays.keys() == theirs.arrays.keys()
        for name in mine.arrays:
            assert mine.arrays[name].shape == theirs.arrays[name].shape, name
            np.testing.assert_allclose(mine.arrays[name], theirs.arrays[name], atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return trained()


@pytest.fixture(scope="module")
def source(model: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    return ShardSource(shards(tmp_path_factory.mktemp("data")), Preparing(model))


@pytest.fixture(scope="module")
def wanted(model: VisionLanguageModel, source: ShardSource, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    out = tmp_path_factory.mktemp("wanted") / "out"
    to(out, model, source, what=WHAT)
    return rows_of(out)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_holds_the_same(
    format: Format, model: VisionLanguageModel, source: ShardSource, wanted: list[Row], tmp_path: Path
) -> None:
    done = to(tmp_path / "out", model, source, what=WHAT, format=format, part_examples=3, micro_tokens=50, workers=1)
    same(rows_of(tmp_path / "out"), wanted)
    assert done.rows == len(wanted) == sum(len(sample.captions) for sample in samples(12))
    assert [row.words for row in wanted] == [caption for sample in samples(12) for caption in sample.captions]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["shapes"]["text"] == ["T", 8]
    assert manifest["shapes"]["attention"] == [7, "J", "J"]
    assert manifest["model"]["config"]["text"]["layer"]["width"] == 8
    assert manifest["data"] == source.fingerprint
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


def test_half_as_many_bytes(model: VisionLanguageModel, source: ShardSource, wanted: list[Row], tmp_path: Path) -> None:
    for format in FORMATS:
        to(tmp_path / format, model, source, what=WHAT, format=format, dtype="fp16")
        found = rows_of(tmp_path / format)
        assert all(array.dtype == np.float16 for row in found for array in row.arrays.values())
        same(found, wanted, atol=3e-3)
    to(tmp_path / "bf16", model, source, what=WHAT, format="safetensors", dtype="bf16")
    same(rows_of(tmp_path / "bf16"), wanted, atol=3e-2)
    from safetensors.torch import load_file

    stored = load_file(next((tmp_path / "bf16").glob("*.safetensors")))
    assert stored["pooled"].dtype == torch.bfloat16
    assert stored["text.lengths"].dtype == torch.int64


def test_a_tar_is_read_by_webdataset_under_the_shards_own_keys(
    model: VisionLanguageModel, source: ShardSource, wanted: list[Row], tmp_path: Path
) -> None:
    to(tmp_path / "out", model, source, what="pooled,text", format="webdataset", part_examples=3)
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert [Path(name).name for name in tars] == [path.name for path in sorted(Path(source.place).glob("*.tar"))]
    found = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in found] == [sample.key for sample in samples(12)]
    place = 0
    for sample in found:
        texts = len(sample["json"]["ids"])
        own, place = wanted[place : place + texts], place + texts
        np.testing.assert_allclose(sample["pooled.npy"], [row.arrays["pooled"] for row in own], atol=1e-5)
        joined = np.concatenate([row.arrays["text"] for row in own])
        np.testing.assert_allclose(sample["text.npy"], joined, atol=1e-5)
        assert sample["text.lengths.npy"].tolist() == [len(row.arrays["text"]) for row in own]


def test_parts_depend_on_nothing_but_the_request(model: VisionLanguageModel, source: ShardSource) -> None:
    features = parse_what("pooled,attention")
    parts = cut(source, features, {"pooled": 8, "attention": 7}, most=4)
    for group, entry in enumerate(source.groups):
        own = [part for part in parts if part.group == group]
        assert [part.first for part in own] == [0, *(part.last for part in own[:-1])]
        assert own[-1].last == entry.examples
        assert [part.name for part in own] == [f"{entry.name}-{number:03d}" for number in range(len(own))]
        sample_E = source.lengths(group).sample_E
        assert all(sample_E[part.first] != sample_E[part.first - 1] for part in own if part.first)
        assert all(len(part) <= 4 for part in own)
    import vlp.features.parts as module

    before, module.MAX_BYTES = module.MAX_BYTES, 4 * 7 * 12**2
    try:
        small = cut(source, features, {"pooled": 8, "attention": 7}, most=100)
    finally:
        module.MAX_BYTES = before
    assert len(small) > len(cut(source, features, {"pooled": 8, "attention": 7}, most=100)), "cut by memory too"


def test_a_finished_folder_is_left_alone_and_another_request_refused(
    model: VisionLanguageModel, source: ShardSource, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = to(out, model, source, part_examples=5)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert to(out, model, source, part_examples=5) == Extracted(first.rows, 0, len(times) - 1)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(ConfigError, match=r"another request \('what' is \[\"pooled\"\] there, and \[\"text\"\] now\)"):
        to(out, model, source, what="text", part_examples=5)
    with pytest.raises(ConfigError, match="another request \\('model' is"):
        to(out, other_model(), source, part_examples=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no extraction"):
        to(tmp_path / "mine", model, source)
    with pytest.raises(DataError, match="holds no features"):
        Features(tmp_path / "mine")


@pytest.fixture
def partly_bad(photos: Path) -> Path:
    """A table of nine rows in parts of two, of which three cannot be used."""
    rows = [("none.jpg" if number in (1, 2, 7) else "one.jpg", f"red {'blue ' * number}") for number in range(9)]
    (photos / "nine.csv").write_text("image,text\n" + "".join(f"{image},{text}\n" for image, text in rows))
    return photos / "nine.csv"


@pytest.mark.parametrize(
    "harm",
    [
        ["pairs-000.parquet"],
        ["pairs-003.parquet", "pairs-004.parquet"],
        ["cut pairs-002.parquet"],
        ["quarantine.jsonl"],
        ["quarantine.jsonl", "cut pairs-001.parquet"],
    ],
    ids=" ".join,
)
def test_what_is_gone_of_a_finished_folder_is_made_again(
    harm: list[str], partly_bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = pixel_model(), tmp_path / "out"
    source = open_source(Inputs(str(partly_bad)), model)
    first = to(out, model, source, part_examples=2)
    assert (first.rows, first.quarantined, first.before) == (6, 3, 0)
    wanted, times = files_of(out), {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    renames = Renames(monkeypatch)
    for life in (None, 0, 1, 3, 5, 7):  # killed after so many changes, again and again
        for each in harm if life in (None, 0) else ():
            path = out / each.removeprefix("cut ")
            if each.startswith("cut "):
                path.write_bytes(path.read_bytes()[:-9])
            else:
                path.unlink(missing_ok=True)
        renames.left = 1000 if life is None else life
        try:
            done = to(out, model, source, part_examples=2)
        except Killed:
            continue
        if life is None:
            made = 3 if "quarantine.jsonl" in harm else len(harm)
            assert done == Extracted(6, 3, 5 - made)
            assert files_of(out) == wanted
            kept = [name for name in times if (out / name).stat().st_mtime_ns == times[name]]
            assert len([name for name in kept if name.endswith(".parquet")]) == 5 - made
    renames.left = 1000
    assert to(out, model, source, part_examples=2).rows == 6
    assert files_of(out) == wanted


def test_a_tar_of_several_parts_is_made_again(tmp_path: Path, model: VisionLanguageModel, source: ShardSource) -> None:
    out, means = tmp_path / "out", {"part_examples": 3, "format": "webdataset"}
    whole = to(out, model, source, **means)
    wanted = files_of(out)
    tars = sorted(out.glob("*.tar"))
    assert whole.before == 0
    tars[1].unlink()
    again = to(out, model, source, **means)
    assert again.rows == whole.rows
    assert again.before > 0
    assert files_of(out) == wanted


def test_a_working_file_that_is_damaged_is_told(partly_bad: Path, tmp_path: Path) -> None:
    model = pixel_model()
    source = open_source(Inputs(str(partly_bad)), model)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out: .*/file is a file; give a folder"):
        to(tmp_path / "file", model, source)
    with pytest.raises(VlpError, match=r"/file"):
        to(tmp_path / "file" / "out", model, source)
    for text in ("[]", "{", "7", "null", "[" * 100_000):
        (tmp_path / "out" / ".work").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / ".work" / "request.json").write_text(text)
        with pytest.raises(VlpError, match=r"request.json: cannot be used .*; remove the folder"):
            to(tmp_path / "out", model, source, part_examples=2)


def test_choices_that_do_not_go_together_are_refused() -> None:
    for given, sentence in (
        ({"format": "csv"}, "--format: 'csv' is not known"),
        ({"dtype": "int8"}, "--dtype: 'int8' is not known"),
        ({"dtype": "bf16"}, "--dtype: parquet has no bf16; take --format safetensors"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Request(**given)  # type: ignore[arg-type]


def test_a_number_too_large_for_its_type_is_quarantined(tmp_path: Path) -> None:
    model = trained()
    with torch.no_grad():
        model.network.heads["itm"].output.weight[1] *= 1e7  # type: ignore[union-attr,operator,index]
    source = ShardSource(shards(tmp_path / "data"), Preparing(model))
    assert to(tmp_path / "whole", model, source, what="itm").quarantined == 0
    done = to(tmp_path / "half", model, source, what="itm", dtype="fp16")
    assert done.quarantined > 0
    (line, *_) = (tmp_path / "half" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "is not finite in fp16"


# ------------------------------------------------------------------------------------------------------------- inputs


def test_images_alone_of_shards(model: VisionLanguageModel, source: ShardSource, tmp_path: Path) -> None:
    alone = open_source(Inputs(source.place, texts="none"), model)
    to(tmp_path / "out", model, alone, what="image.vector")
    found = rows_of(tmp_path / "out")
    assert [row.key for row in found] == [sample.key for sample in samples(12)]
    assert found[0].id.endswith("/s000")
    to(tmp_path / "texts", model, source, what="image.vector")
    by_key = {row.key: row.arrays["image.vector"] for row in rows_of(tmp_path / "texts")}
    for row in found:
        np.testing.assert_allclose(row.arrays["image.vector"], by_key[row.key], atol=1e-5)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    ramps(30, 40).save(folder / "one.jpg")
    ramps(50, 20).save(folder / "deep" / "two.png")
    ramps(25, 25).save(folder / "deep" / "two.webp")
    (folder / "one.txt").write_text("red circle\n")
    (folder / "notes.pdf").write_text("no image")
    return folder


def test_a_folder_of_images(photos: Path, tmp_path: Path) -> None:
    model = pixel_model()
    to(tmp_path / "out", model, open_source(Inputs(str(photos)), model), what="pooled,image.vector")
    found = rows_of(tmp_path / "out")
    assert [row.id for row in found] == ["deep/two.png", "deep/two.webp", "one.jpg"]
    assert [row.key for row in found] == ["deep/two.png", "deep/two.webp", "one"]
    assert [row.words for row in found] == ["", "", "red circle"]
    encodings = model.encode([photos / row.id for row in found], [row.words for row in found])
    np.testing.assert_allclose([row.arrays["pooled"] for row in found], encodings.pooled, atol=1e-5)


def test_a_folder_that_changed_is_another_request(photos: Path, tmp_path: Path) -> None:
    """Its texts and regions too: an extraction never goes on with others than it began with."""
    model = pixel_model()
    to(tmp_path / "out", model, open_source(Inputs(str(photos)), model))
    for change in ("one.txt", "deep/two.txt"):
        before = open_source(Inputs(str(photos)), model).fingerprint
        (photos / change).write_text("something else")
        changed = open_source(Inputs(str(photos)), model)
        assert changed.fingerprint != before
        with pytest.raises(ConfigError, match="another request \\('data' is"):
            to(tmp_path / "out", model, changed)
    (tmp_path / "regions").mkdir()
    regions = Inputs(str(photos), regions=tmp_path / "regions")
    seen = set()
    for size in (1, 2):
        (tmp_path / "regions" / "one.npz").write_bytes(bytes(size))
        seen.add(open_source(regions, trained()).fingerprint)
    assert len(seen) == 2


def test_links_to_nothing_are_told(photos: Path, tmp_path: Path) -> None:
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "round.png").symlink_to("round.png")
    (photos / "two.jpg").symlink_to("deep/two.png")
    model = pixel_model()
    done = to(tmp_path / "out", model, open_source(Inputs(str(photos)), model))
    assert (done.rows, done.quarantined) == (4, 2)
    records = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["gone.jpg", "round.png"]
    assert "No such file" in records[0]["error"]


def test_tables_of_pairs_are_the_same_whatever_their_kind(photos: Path, tmp_path: Path) -> None:
    model = pixel_model()
    pairs = [("one.jpg", 'red, "round"\ncircle'), ("deep/two.png", "blue"), ("one.jpg", "grün")]
    quoted = [(image, '"' + text.replace('"', '""') + '"') for image, text in pairs]
    header = "\ufefffile,title,other\n"
    (photos / "pairs.csv").write_text(header + "".join(f"{i},{t},x\n" for i, t in quoted) + "\n", "utf-8")
    lines = [json.dumps({"file": image, "title": text, "other": 3}) for image, text in pairs]
    (photos / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    found = []
    for name in ("pairs.csv", "pairs.jsonl"):
        inputs = Inputs(str(photos / name), columns="image=file,text=title")
        done = to(tmp_path / name, model, open_source(inputs, model), what="pooled,itm", part_examples=2, workers=1)
        assert (done.rows, done.quarantined) == (3, 0)
        found.append(rows_of(tmp_path / name))
    same(*found)
    assert [row.words for row in found[0]] == [text for _, text in pairs]
    encodings = model.encode([photos / image for image, _ in pairs], [text for _, text in pairs])
    np.testing.assert_allclose([row.arrays["pooled"] for row in found[0]], encodings.pooled, atol=1e-5)


def test_regions_beside_a_table(tmp_path: Path) -> None:
    model = trained()
    arrays = [sample.regions for sample in samples(3)]
    for number, regions in enumerate(arrays):
        assert regions is not None
        np.savez(tmp_path / f"p{number}.npz", features=regions.features_RD, boxes=regions.boxes_R4)
    (tmp_path / "pairs.csv").write_text("key,text\n" + "".join(f"p{n},red\n" for n in range(4)))
    source = open_source(Inputs(str(tmp_path / "pairs.csv"), regions=tmp_path), model)
    done = to(tmp_path / "out", model, source, what="image")
    assert (done.rows, done.quarantined) == (3, 1)
    assert [row.id for row in rows_of(tmp_path / "out")] == ["p0", "p1", "p2"]


WRONG_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"data": "nowhere"}, "--data: nowhere is no directory and no table"),
    ({"data": "{photos}", "texts": "both"}, "--texts: .* holds no shards"),
    ({"data": "{photos}", "columns": "image=x"}, "--columns: .* is a folder of images, which does not take it"),
    ({"data": "{photos}/one.txt"}, "ends in .csv, .tsv, .jsonl"),
    ({"data": "{photos}/bad.csv"}, "has no column 'image' or 'text'"),
    ({"data": "{photos}/bad.csv", "columns": "text=titel"}, "has no column 'titel' .*did you mean 'title'"),
    ({"data": "{photos}/bad.csv", "columns": "txt=title"}, "--columns: 'txt=title' is not right"),
    ({"data": "{photos}/empty.jsonl"}, "has no row"),
    (
        {"data": "{photos}/good.jsonl", "columns": "text=titel"},
        "--columns: .* no column 'titel' .*did you mean 'title'",
    ),
    (
        {"data": "{photos}/good.jsonl"},
        "has no column 'image', without which .* no 'pooled'; name",
    ),
    (
        {"data": "{photos}/texts.csv"},
        "has no column 'image', without which there is no 'pooled'; name its own with --col",
    ),
    ({"data": "{photos}/texts.csv", "images": "{photos}/nowhere"}, "--images: .*nowhere: there is no such folder"),
    ({"data": "{photos}/texts.csv", "images": "{photos}/none"}, "--images: .*none holds nothing"),
    ({"data": "{photos}/texts.csv", "regions": "{photos}"}, "--regions: the model reads photos, not regions"),
    ({"data": "{photos}", "regions": "{photos}"}, "--regions: the model reads photos, not regions"),
    ({"data": "{photos}/none"}, "holds neither shards nor an image"),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG_INPUTS, ids=[sentence[:30] for _, sentence in WRONG_INPUTS])
def test_inputs_that_are_none_are_refused(given: dict[str, Any], sentence: str, photos: Path) -> None:
    (photos / "bad.csv").write_text("file,title\nx,y\n")
    (photos / "empty.jsonl").write_text("\n \n")
    (photos / "none").mkdir()
    (photos / "good.jsonl").write_text('{"title": "red"}\n[]\n{"text": "blue"}\n')
    (photos / "texts.csv").write_text("text\nred\n")
    values = {name: value.replace("{photos}", str(photos)) for name, value in given.items()}
    values |= {name: Path(value) for name, value in values.items() if name in ("images", "regions")}
    with pytest.raises((ConfigError, DataError), match=sentence):
        open_source(Inputs(**values), pixel_model(), parse_what("pooled,text"))


def test_a_model_of_regions_is_given_regions(photos: Path, tmp_path: Path) -> None:
    (photos / "pairs.csv").write_text("image,text\none.jpg,red\n")
    for given, sentence in (
        (
            {"data": str(photos)},
            "--data: .* is a folder of images, and the model reads regions of a detector; give --reg",
        ),
        ({"data": str(photos), "regions": photos}, "--regions: .* holds no npz"),
        ({"data": str(photos), "regions": photos / "nowhere"}, "--regions: .*nowhere: there is no such folder"),
        (
            {"data": str(photos / "pairs.csv")},
            "no column 'regions', .* no 'image'; .*--columns regions=NAME, or give --reg",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            open_source(Inputs(**given), trained(), parse_what("image"))  # type: ignore[arg-type]
    words = open_source(Inputs(str(photos / "pairs.csv")), trained(), parse_what("text.vector"))
    (item,) = words.items(0, 0, 1)
    assert item.fault is not None, "the row has a photo, which the model cannot look at"


def test_a_model_of_photos_is_given_photos(source: ShardSource) -> None:
    """The shards hold regions alone."""
    with pytest.raises(DataError, match="the model reads photos, and these shards hold none"):
        open_source(Inputs(source.place), pixel_model(), parse_what("pooled"))
    assert open_source(Inputs(source.place), pixel_model(), parse_what("text.vector"))


def test_texts_that_shards_lack_are_told_with_the_way_out(source: ShardSource) -> None:
    model = trained(task=vqa())
    with pytest.raises(DataError, match=r"no sample has questions, .* say with --texts which to take"):
        open_source(Inputs(source.place), model)
    assert open_source(Inputs(source.place, texts="captions"), model).groups


def test_columns_that_only_some_rows_have_are_there(photos: Path) -> None:
    (photos / "pairs.jsonl").write_text("[" * 9 + '\n{"title": "red"}\n{"file": "one.jpg"}\n')
    inputs = Inputs(str(photos / "pairs.jsonl"), columns="image=file,text=title")
    assert open_source(inputs, pixel_model(), parse_what("itm")).groups[0].examples == 3


def test_a_file_url_is_a_path(photos: Path, source: ShardSource, model: VisionLanguageModel) -> None:
    (photos / "a b.png").write_bytes(encoded(ramps(), "PNG"))
    for url in (photos.as_uri(), f"file://localhost{photos}", f"file:{photos}"):
        opened = open_source(Inputs(url), pixel_model())
        assert opened.fingerprint == open_source(Inputs(str(photos)), pixel_model()).fingerprint
    assert open_source(Inputs(Path(source.place).as_uri()), model).fingerprint == source.fingerprint


def test_an_extraction_of_nothing_is_no_success(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixel_model().save_pretrained(tmp_path / "model")
    (photos / "pairs.csv").write_text("image,text\nnone.jpg,red\ngone.jpg,blue\n")

    def run(out: str) -> None:
        inputs = Inputs(str(photos / "pairs.csv"))
        extract_features(
            str(tmp_path / "model"), inputs, tmp_path / out, Request(), micro_tokens=99, precision="fp32", workers=0
        )

    with pytest.raises(DataError, match=r"pairs.csv: none of the examples can be used \(0+: image .*none.jpg: No such"):
        run("out")
    (photos / "pairs.csv").write_text("image,text\nnone.jpg,red\none.jpg,blue\n")
    run("some")
    assert "1 example cannot be used and was left out" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ hostile


def hostile(folder: Path) -> dict[str, str | None]:
    """Files that attack, in a folder and a table; what is said of each row, None for the good ones."""
    jpeg = encoded(ramps())
    files = {
        "good.jpg": jpeg,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "claims.png": png(60000, 60000),
        "scans.jpg": scans_jpeg(),
        "text.jpg": b"only words",
        "pickle.jpg": pickled(),
        "empty.jpg": b"",
        "black.png": large_png(),
        "gif.jpg": encoded(Image.new("RGB", (9, 9)), "GIF"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    good = {"image": "good.jpg", "text": "red"}
    rows: list[tuple[Any, str | None]] = [
        (good, None),
        ({"image": "cut.jpg", "text": "red"}, "does not decode"),
        ({"image": "claims.png"}, "pixels"),
        ({"image": "scans.jpg"}, "scans"),
        ({"image": "text.jpg"}, "is not a JPEG"),
        ({"image": "pickle.jpg"}, "is not a JPEG"),
        ({"image": "empty.jpg"}, "is not a JPEG"),
        ({"image": "gif.jpg"}, "is not a JPEG"),
        ({"image": "black.png"}, None),
        ({"image": "pipe.jpg"}, "is not a file"),
        ({"image": "folder.jpg"}, "is not a file"),
        ({"image": "/dev/zero"}, "is not a file"),
        ({"image": "x" * 5000}, "File name too long"),
        ({"image": "good.jpg\0.png"}, "zero byte"),
        ({"image": "good.jpg", "text": "red " * (10 << 18)}, "characters, more than"),
        ({"image": "good.jpg", "text": "a" * 500_000}, None),
        ({"image": "good.jpg", "text": "e" + "\u0301\u0316" * 200_000}, "combining marks"),
        ({"image": "good.jpg", "text": "\ud800"}, "half a surrogate pair"),
        ({"image": "good.jpg", "text": 7}, "has no text under 'text'"),
        ({"image": ["good.jpg"]}, "has no text under 'image'"),
        ([1, 2], "is not a JSON object"),
        ("[" * 100_000, "recursion"),
        ({"image": "good.jpg", "key": "../../../outside"}, None),
        ({"image": "good.jpg", "key": "/etc/passwd"}, None),
        ({"image": "good.jpg", "key": "a.b.c\\d\n"}, None),
        ({"image": "good.jpg", "key": "k" * 5000}, "key of 5000 characters"),
    ]
    lines = [row if isinstance(row, str) else json.dumps(row) for row, _ in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return {f"{number:09d}": fault for number, (_, fault) in enumerate(rows)}


@pytest.mark.parametrize("format", FORMATS)
def test_hostile_rows_end_nothing(format: Format, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    faults = hostile(folder)
    model = pixel_model()
    before = set(tmp_path.rglob("*"))
    source = open_source(Inputs(str(folder / "pairs.jsonl")), model)
    done = to(tmp_path / "out", model, source, what="pooled,itm,text", format=format, part_examples=7)
    good = [number for number, fault in faults.items() if fault is None]
    records = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    said = {record["id"]: record["error"] for record in records}
    wanted = {number: fault for number, fault in faults.items() if fault is not None}
    assert said.keys() == wanted.keys()
    for number, fault in wanted.items():
        assert fault in said[number], f"row {number}: {said[number]}"
    assert (done.rows, done.quarantined) == (len(good), len(wanted))
    assert len(rows_of(tmp_path / "out")) == len(good)
    made = set(tmp_path.rglob("*")) - before
    assert all(path == tmp_path / "out" or tmp_path / "out" in path.parents for path in made)


def test_keys_stay_inside_where_a_tar_is_unpacked(tmp_path: Path) -> None:
    keys = [
        "../../up",
        "/etc/passwd",
        "a/../../b",
        ".",
        "..",
        "",
        "x.y.z",
        "deep/er/k1",
        "a\\b\n",
        "./a",
        "grün",
        "a//b",
        "_",
        "x.y.z",
    ]
    layout = Layout(parse_what("itm"), {"itm": 1})
    rows = [Row(key, key, "", "", {"itm": np.float32(number)}) for number, key in enumerate(keys)]  # type: ignore[dict-item]
    write("webdataset", tmp_path / "x.tar", rows, layout)
    with tarfile.open(tmp_path / "x.tar") as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "deep" / "in", filter="data")  # refuses what would leave the folder
    assert len(set(names)) == len(names)
    assert [(row.id, float(row.arrays["itm"])) for row in read("webdataset", tmp_path / "x.tar", layout)] == [
        (key, float(number)) for number, key in enumerate(keys)
    ]
    assert member_key("deep/er/k1") == "deep/er/k1"
    assert "." not in member_key("x.y.z")


def test_a_bomb_costs_bounded_memory(tmp_path: Path) -> None:
    """Five images of 190 KB that unpack to 192 MB each; and a cell of 40 MB in a CSV."""
    import resource

    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(large_png())
    with (tmp_path / "pairs.csv").open("w") as file:
        file.write("image,text\n" + "".join(f"{number}.png,red\n" for number in range(5)))
        file.write('0.png,"' + "never ends " * (4 << 20))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            model = pixel_model()
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), hard))
            torch.set_num_threads(1)
            source = open_source(Inputs(str(tmp_path / "pairs.csv")), model)
            items = list(source.items(0, 0, source.groups[0].examples))
            bad = [item for item in items if item.example is None]
            code = 0 if len(items) - len(bad) == 5 and len(bad) >= 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_how_far_it_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = Progress(1000, ranks=2, every=10, clock=lambda: now[0])
    progress(50)
    assert not capsys.readouterr().err, "nothing in the first seconds"
    now[0] = 20.0
    progress(50)
    assert capsys.readouterr().err == "200 of 1,000 examples (20 %), 10.0 a second, 1 min 20 s left\n"
    now[0] = 25.0
    progress(50)
    assert not capsys.readouterr().err, "a line every ten seconds"
    now[0] = 7200.0
    assert progress.line(7200.0) == "300 of 1,000 examples (30 %), 0.0 a second, 4 h 40 min left"
