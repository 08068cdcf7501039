"""Files of features that are damaged or hostile: a sentence that names the file, whatever is wrong; no pickle runs."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.feature_making import feature_folder
from vlp import Features
from vlp.errors import DataError
from vlp.features.files import FORMATS, SUFFIXES, Format, read, write
from vlp.features.kinds import parse_what
from vlp.features.rows import Layout, Row

FEATURES = parse_what("pooled,text,itm,attention")
LAYOUT = Layout(FEATURES, {"pooled": 3, "text": 3, "itm": 1, "attention": 2})


def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(5):
        tokens = number + 1
        arrays = {
            "pooled": rng.random(3, np.float32),
            "text": rng.random((tokens, 3), np.float32),
            "itm": rng.random((), np.float32),
            "attention": rng.random((2, tokens + 1, tokens + 1), np.float32),
        }
        made.append(Row(f"s/k{number // 2}#{number}", f"k{number // 2}", f"s/k{number // 2}", "red " * number, arrays))
    return made


def whole(format: Format, path: Path) -> bytes:
    write(format, path, rows(), LAYOUT)
    return path.read_bytes()


def failure(format: Format, path: Path) -> str | None:
    """What is said of a file; None if it can be read."""
    found = 0
    try:
        for row in read(format, path, LAYOUT):
            found += 1
            assert [row.arrays[name].ndim for name in ("pooled", "text", "itm", "attention")] == [1, 2, 0, 3]
            assert row.arrays["pooled"].shape == (3,)
    except DataError as error:
        said = str(error)
        assert str(path) in said, "the sentence names the file"
        assert "extract again" in said, "and what to do"
        assert "\n" not in said
        return said
    return None if found else "there is no row"  # the manifest knows that there should be: see below


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_cut_or_is_something_else_is_told(format: Format, tmp_path: Path) -> None:
    path = tmp_path / f"x{SUFFIXES[format]}"
    data = whole(format, path)
    assert failure(format, path) is None
    for cut in (0, 1, 7, 100, len(data) // 2, len(data) - 1 if format != "webdataset" else len(data) // 3):
        path.write_bytes(data[:cut])
        assert failure(format, path), f"{cut} of {len(data)} bytes"
    for other in (b"\0" * len(data), b"\xff" * len(data), b"not this at all " * 100, b"{" * 9999):
        path.write_bytes(other)
        assert failure(format, path), other[:10]
    path.unlink()
    assert "it is missing" in str(failure(format, path))
    path.mkdir()
    assert failure(format, path)


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_that_changed_end_in_rows_or_in_a_sentence(format: Format, tmp_path: Path) -> None:
    path = tmp_path / f"x{SUFFIXES[format]}"
    data = whole(format, path)
    rng = np.random.default_rng(3)
    said = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(len(data), size=3):
            changed[place] = int(rng.integers(256))
        path.write_bytes(changed)
        said += failure(format, path) is not None
    assert said > 30, "some of it is noticed"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def pickled(path: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(path)], object), allow_pickle=True)
    return buffer.getvalue()


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "has no 'pooled'": lambda a: a.pop("pooled"),
    "has no 'text.lengths'": lambda a: a.pop("text.lengths"),
    "has no 'rows'": lambda a: a.pop("rows"),
    "'rows' is not JSON": lambda a: a.update(rows=np.frombuffer(b"[" * 99_999, np.uint8)),
    "'rows' is not a JSON object": lambda a: a.update(rows=np.frombuffer(b"[1]", np.uint8)),
    "has no 'words'": lambda a: a.update(
        rows=np.frombuffer(b'{"ids": ["a"], "keys": ["a"], "images": [""]}', np.uint8)
    ),
    "or they are no texts": lambda a: a.update(rows=np.frombuffer(b'{"ids": 7}', np.uint8)),
    "has the shape": lambda a: a.update(pooled=a["pooled"][:3]),
    "holds float64": lambda a: a.update(pooled=a["pooled"].astype(np.float64)),
    "is one number": lambda a: a.update(itm=np.float32(1)),
    "not a whole number": lambda a: a.update({"text.lengths": a["text.lengths"].astype(np.float32)}),
    "lengths that 'text' has not": lambda a: a.update({"text.lengths": a["text.lengths"] - 3}),
    "lengths that 'attention' has not": lambda a: a.update({"attention.lengths": a["attention.lengths"] + 2**62}),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_arrays_that_do_not_fit_each_other_are_told(sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    whole("npz", path)
    given = arrays(path)
    WRONG[sentence](given)
    with path.open("wb") as file:
        np.savez(file, **given)
    assert sentence in str(failure("npz", path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_stands_twice_is_told(tmp_path: Path) -> None:
    whole("npz", tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("pooled.npy", archive.read("pooled.npy"))
    assert "'pooled' stands twice in it" in str(failure("npz", tmp_path / "x.npz"))


def test_no_pickle_runs(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    whole("npz", path)
    given = arrays(path)
    with path.open("wb") as file:
        np.savez(file, **{**given, "pooled": np.array([Bomb(tmp_path / "ran")], object)})
    assert "pickled Python objects, which are never loaded" in str(failure("npz", path))
    tar(tmp_path / "x.tar", {"k.json": about(), "k.pooled.npy": pickled(tmp_path / "ran")})
    assert "pickled Python objects, which are never loaded" in str(failure("webdataset", tmp_path / "x.tar"))
    assert not (tmp_path / "ran").exists()


def about(**more: Any) -> bytes:
    return json.dumps({"key": "k", "ids": ["k#0"], "images": [""], "words": [""], **more}).encode()


def tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name.rstrip("+"))
            member.size, member.type, member.linkname = len(data), kind, "../../x" if kind != tarfile.REGTYPE else ""
            archive.addfile(member, io.BytesIO(data))


def number(value: float = 1) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([value], np.float32))
    return buffer.getvalue()


def test_tars_of_other_making_are_told(tmp_path: Path) -> None:
    path, layout = tmp_path / "x.tar", Layout(parse_what("itm"), {"itm": 1})
    tar(path, {"k.json": about(), "k.itm.npy": number()})
    assert len(list(read("webdataset", path, layout))) == 1
    for members, sentence in (
        ({"k.json": about(), "k.itm.npy": number(), "k.itm.npy+": number(2)}, "'k.itm.npy' stands twice"),
        ({"k.itm.npy": number(), "k.json": about()}, "without a .json before it"),
        ({"k.json": about(), "j.itm.npy": number()}, "without a .json before it"),
        ({"k.json": about(ids="k")}, "or they are no texts"),
        ({"k.json": about(ids=["a", "b"])}, "has 1 'images' of 2 rows"),
        ({"k.json": b"[7]"}, "is not what stands beside features"),
        ({"k.json": about()}, "has no 'itm'"),
    ):
        tar(path, members)
        with pytest.raises(DataError, match=r"x\.tar: cannot be read as webdataset features") as caught:
            list(read("webdataset", path, layout))
        assert sentence in str(caught.value)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(DataError, match=r"x\.tar: cannot be read as webdataset features"):
        list(read("webdataset", path, layout))
    tar(path, {"k.json": b""}, tarfile.SYMTYPE)
    with pytest.raises(DataError, match="is no plain file"):
        list(read("webdataset", path, layout))


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cannot be read": lambda m: "{",
    "should be a mapping": lambda m: [],
    "'model'": lambda m: m.pop("model") and m,
    "is no plain name of a file": lambda m: {**m, "parts": [{**m["parts"][0], "file": "../x.npz"}]},
    "the parts have another sum of 'rows'": lambda m: {**m, "rows": 6},
    "'poled' cannot be extracted": lambda m: {**m, "what": ["poled"]},
    "'pooled' has no width": lambda m: {**m, "widths": {"pooled": -1}},
    "format: 'xml' is not right": lambda m: {**m, "format": "xml"},
}


@pytest.mark.parametrize("sentence", MANIFESTS)
def test_a_damaged_manifest_is_told(sentence: str, tmp_path: Path) -> None:
    given = feature_folder(tmp_path / "f", rows(), LAYOUT)
    assert len(list(Features(tmp_path / "f"))) == 5
    wrong = MANIFESTS[sentence](given)
    (tmp_path / "f" / "manifest.json").write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
    with pytest.raises(DataError, match=r"manifest\.json") as caught:
        Features(tmp_path / "f")
    assert sentence in str(caught.value)


def test_folders_that_hold_no_features_are_told_by_what_they_are(tmp_path: Path) -> None:
    given = feature_folder(tmp_path / "f", rows(), LAYOUT)
    for place, sentence in (
        ("nope", "nope: there is no such folder; give the one that `vlp extract --out` wrote"),
        ("f/x.npz", "is a file; give the folder"),
        (".", r"holds no features \(no manifest.json\)"),
    ):
        with pytest.raises(DataError, match=sentence):
            Features(tmp_path / place)
    (tmp_path / "half" / ".work").mkdir(parents=True)
    with pytest.raises(DataError, match="not finished; give the same `vlp extract` command again"):
        Features(tmp_path / "half")
    shutil.copy(tmp_path / "f" / "x.npz", tmp_path / "f" / "y.npz")
    own = {"bytes": 1, "quarantined": 0}
    given["parts"], given["rows"] = [{"file": "x.npz", "rows": 4, **own}, {"file": "y.npz", "rows": 6, **own}], 10
    (tmp_path / "f" / "manifest.json").write_text(json.dumps(given))
    with pytest.raises(DataError, match=r"x\.npz: holds 5 rows where manifest\.json says 4"):
        list(Features(tmp_path / "f"))
