"""Files of features: what is written is read again, in every format and type."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from tests.unit.feature_making import extract, same_rows, samples, shards, trained
from tests.unit.folders import files_of
from vlp import Features, VisionLanguageModel
from vlp.data.build import checksum_of
from vlp.errors import ConfigError, DataError
from vlp.features.files import FORMATS, SUFFIXES, Format, read, write
from vlp.features.job import Request
from vlp.features.kinds import parse_what
from vlp.features.parts import cut
from vlp.features.preparing import Preparing
from vlp.features.progress import Progress
from vlp.features.rows import Layout, Row
from vlp.features.sources import ShardSource
from vlp.features.tars import member_key

WHAT = "pooled,text,image,itm,text.vector,attention,attention.2"


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return trained()


@pytest.fixture(scope="module")
def source(model: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    return ShardSource(shards(tmp_path_factory.mktemp("data")), Preparing(model))


@pytest.fixture(scope="module")
def wanted(model: VisionLanguageModel, source: ShardSource, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    out = tmp_path_factory.mktemp("wanted") / "out"
    extract(out, model, source, what=WHAT)
    return list(Features(out))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_holds_the_same(
    format: Format, model: VisionLanguageModel, source: ShardSource, wanted: list[Row], tmp_path: Path
) -> None:
    done = extract(
        tmp_path / "out", model, source, what=WHAT, format=format, part_examples=3, micro_tokens=50, workers=1
    )
    same_rows(list(Features(tmp_path / "out")), wanted)
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
        extract(tmp_path / format, model, source, what=WHAT, format=format, dtype="fp16")
        found = list(Features(tmp_path / format))
        assert all(array.dtype == np.float16 for row in found for array in row.arrays.values())
        same_rows(found, wanted, atol=3e-3)
    extract(tmp_path / "bf16", model, source, what=WHAT, format="safetensors", dtype="bf16")
    same_rows(list(Features(tmp_path / "bf16")), wanted, atol=3e-2)
    from safetensors.torch import load_file

    stored = load_file(next((tmp_path / "bf16").glob("*.safetensors")))
    assert stored["pooled"].dtype == torch.bfloat16
    assert stored["text.lengths"].dtype == torch.int64


@pytest.mark.parametrize("format", FORMATS)
def test_a_byte_that_changed_is_told_and_the_file_made_again(
    format: Format, model: VisionLanguageModel, source: ShardSource, tmp_path: Path
) -> None:
    out, asked = tmp_path / "out", {"what": "pooled,text", "format": format, "part_examples": 3}
    extract(out, model, source, **asked)
    wanted, path = files_of(out), sorted(out.glob(f"*{SUFFIXES[format]}"))[1]
    size = len(wanted[path.name])
    for place in (0, size // 3, size // 2, size - 1):
        changed = bytearray(wanted[path.name])
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DataError, match=rf"{path}: is damaged .*; remove it and give the same `vlp extract`"):
            list(Features(out))
    path.unlink()
    extract(out, model, source, **asked)
    assert files_of(out) == wanted


def test_a_folder_from_before_there_were_checksums_is_read(
    model: VisionLanguageModel, source: ShardSource, wanted: list[Row], tmp_path: Path
) -> None:
    out, asked = tmp_path / "out", {"what": WHAT, "part_examples": 3}
    extract(out, model, source, **asked)
    manifest = json.loads((out / "manifest.json").read_text())
    for part in manifest["parts"]:
        del part["checksum"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    same_rows(list(Features(out)), wanted)
    path = out / manifest["parts"][0]["file"]
    path.unlink()
    assert extract(out, model, source, **asked).before == len(manifest["parts"]) - 1
    same_rows(list(Features(out)), wanted)
    made = [part["checksum"] for part in json.loads((out / "manifest.json").read_text())["parts"]]
    assert made == [checksum_of(path)] + [None] * (len(made) - 1), "of what was not written now nothing is known"


def test_a_tar_is_read_by_webdataset_under_the_shards_own_keys(
    model: VisionLanguageModel, source: ShardSource, wanted: list[Row], tmp_path: Path
) -> None:
    extract(tmp_path / "out", model, source, what="pooled,text", format="webdataset", part_examples=3)
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
    assert extract(tmp_path / "whole", model, source, what="itm").quarantined == 0
    done = extract(tmp_path / "half", model, source, what="itm", dtype="fp16")
    assert done.quarantined > 0
    (line, *_) = (tmp_path / "half" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] == "is not finite in fp16"


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
