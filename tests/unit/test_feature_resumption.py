"""An extraction into a folder that holds one: finished, begun, damaged, or of something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.feature_making import extract, other_model, photo_folder, pixel_model, shards, trained
from tests.unit.folders import Killed, Renames, files_of
from vlp import Features, VisionLanguageModel
from vlp.errors import ConfigError, DataError, VlpError
from vlp.extraction import Inputs, open_source
from vlp.features.job import Extracted
from vlp.features.preparing import Preparing
from vlp.features.sources import ShardSource


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return trained()


@pytest.fixture(scope="module")
def source(model: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    return ShardSource(shards(tmp_path_factory.mktemp("data")), Preparing(model))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_folder(tmp_path / "photos")


@pytest.fixture
def partly_bad(photos: Path) -> Path:
    """A table of nine rows in parts of two, of which three cannot be used."""
    rows = [("none.jpg" if number in (1, 2, 7) else "one.jpg", f"red {'blue ' * number}") for number in range(9)]
    (photos / "nine.csv").write_text("image,text\n" + "".join(f"{image},{text}\n" for image, text in rows))
    return photos / "nine.csv"


def test_a_finished_folder_is_left_alone_and_another_request_refused(
    model: VisionLanguageModel, source: ShardSource, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = extract(out, model, source, part_examples=5)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert extract(out, model, source, part_examples=5) == Extracted(first.rows, 0, len(times) - 1)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(ConfigError, match=r"another request \('what' is \[\"pooled\"\] there, and \[\"text\"\] now\)"):
        extract(out, model, source, what="text", part_examples=5)
    with pytest.raises(ConfigError, match="another request \\('model' is"):
        extract(out, other_model(), source, part_examples=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no extraction"):
        extract(tmp_path / "mine", model, source)
    with pytest.raises(DataError, match="holds no features"):
        Features(tmp_path / "mine")


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
    first = extract(out, model, source, part_examples=2)
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
            done = extract(out, model, source, part_examples=2)
        except Killed:
            continue
        if life is None:
            made = 3 if "quarantine.jsonl" in harm else len(harm)
            assert done == Extracted(6, 3, 5 - made)
            assert files_of(out) == wanted
            kept = [name for name in times if (out / name).stat().st_mtime_ns == times[name]]
            assert len([name for name in kept if name.endswith(".parquet")]) == 5 - made
    renames.left = 1000
    assert extract(out, model, source, part_examples=2).rows == 6
    assert files_of(out) == wanted


def test_a_tar_of_several_parts_is_made_again(tmp_path: Path, model: VisionLanguageModel, source: ShardSource) -> None:
    out, means = tmp_path / "out", {"part_examples": 3, "format": "webdataset"}
    whole = extract(out, model, source, **means)
    wanted = files_of(out)
    tars = sorted(out.glob("*.tar"))
    assert whole.before == 0
    tars[1].unlink()
    again = extract(out, model, source, **means)
    assert again.rows == whole.rows
    assert again.before > 0
    assert files_of(out) == wanted


def test_a_working_file_that_is_damaged_is_told(partly_bad: Path, tmp_path: Path) -> None:
    model = pixel_model()
    source = open_source(Inputs(str(partly_bad)), model)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out: .*/file is a file; give a folder"):
        extract(tmp_path / "file", model, source)
    with pytest.raises(VlpError, match=r"/file"):
        extract(tmp_path / "file" / "out", model, source)
    for text in ("[]", "{", "7", "null", "[" * 100_000):
        (tmp_path / "out" / ".work").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / ".work" / "request.json").write_text(text)
        with pytest.raises(VlpError, match=r"request.json: cannot be used .*; remove the folder"):
            extract(tmp_path / "out", model, source, part_examples=2)


def test_a_folder_that_changed_is_another_request(photos: Path, tmp_path: Path) -> None:
    """Its texts and regions too: an extraction never goes on with others than it began with."""
    model = pixel_model()
    extract(tmp_path / "out", model, open_source(Inputs(str(photos)), model))
    for change in ("one.txt", "deep/two.txt"):
        before = open_source(Inputs(str(photos)), model).fingerprint
        (photos / change).write_text("something else")
        changed = open_source(Inputs(str(photos)), model)
        assert changed.fingerprint != before
        with pytest.raises(ConfigError, match="another request \\('data' is"):
            extract(tmp_path / "out", model, changed)
    (tmp_path / "regions").mkdir()
    regions = Inputs(str(photos), regions=tmp_path / "regions")
    seen = set()
    for size in (1, 2):
        (tmp_path / "regions" / "one.npz").write_bytes(bytes(size))
        seen.add(open_source(regions, trained()).fingerprint)
    assert len(seen) == 2
