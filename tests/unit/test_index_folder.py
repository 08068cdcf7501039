"""The folder of a search index: what is in it once, what is left out, what is damaged, and what moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.feature_making import feature_folder
from tests.unit.folders import Killed, Renames, files_of
from vlp import Features, SearchIndex
from vlp.errors import ConfigError, DataError
from vlp.features.kinds import parse_what
from vlp.features.rows import Layout, Row
from vlp.search.building import build_index
from vlp.search.facts import FACTS, own_files
from vlp.search.vectors import KINDS, Kind, build, nearest, recall, widen

pytest.importorskip("faiss", reason="the extra `search` is not installed")

LAYOUT = Layout(parse_what("text.vector,image.vector"), {"text.vector": 8, "image.vector": 8})


def units(number: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((number, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


IMAGES, TEXTS = units(4, 1), units(6, 2)


def row(number: int, image: str, text: int, words: str) -> Row:
    arrays = {"image.vector": IMAGES[int(image[1]) if image else 0], "text.vector": TEXTS[text]}
    return Row(f"{number:09d}", f"{number:09d}", image, words, arrays)


ROWS = [
    row(0, "p0.jpg", 0, "red"),
    row(1, "p1.jpg", 1, "blue"),
    row(2, "p0.jpg", 2, "round"),
    row(3, "p2.jpg", 0, "red"),
    row(4, "p1.jpg", 3, ""),
    row(5, "", 4, "no photo"),
]


def features(path: Path, rows: Sequence[Row] = ROWS, **facts: Any) -> Features:
    table = {"source_kind": "pairs", "source": "/shop/pairs.csv", "images": "/shop/photos", **facts}
    feature_folder(path, rows, LAYOUT, **table)
    return Features(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_and_a_text_are_found_once(kind: Kind, tmp_path: Path) -> None:
    facts = build_index(features(tmp_path / "f"), tmp_path / "index", kind)
    assert (facts.sides["image"].count, facts.sides["text"].count, facts.left_out) == (3, 4, 0)
    index = SearchIndex(tmp_path / "index")
    (hits,) = index.search(TEXTS[:1], "image", 10)
    best = np.argsort(-(IMAGES[:3] @ TEXTS[0]))
    assert [hit.image for hit in hits] == [f"p{number}.jpg" for number in best]
    assert {hit.image: (hit.id, hit.path, hit.words) for hit in hits} == {
        "p0.jpg": ("000000000", "/shop/photos/p0.jpg", "red"),
        "p1.jpg": ("000000001", "/shop/photos/p1.jpg", "blue"),
        "p2.jpg": ("000000003", "/shop/photos/p2.jpg", "red"),
    }
    (hits,) = index.search(IMAGES[:1], "text", 10)
    assert sorted(hit.words for hit in hits) == ["blue", "no photo", "red", "round"]
    assert {hit.words: hit.image for hit in hits}["red"] == "p0.jpg", "the first photo that it stands with"
    assert {hit.words: hit.path for hit in hits}["no photo"] == ""


def test_a_side_without_anything_is_not_there(tmp_path: Path) -> None:
    facts = build_index(features(tmp_path / "f", [row(0, "p0.jpg", 0, " ")]), tmp_path / "index")
    assert list(facts.sides) == ["image"]
    with pytest.raises(ConfigError, match="has no texts to be found"):
        SearchIndex(tmp_path / "index").search(TEXTS[:1], "text")
    with pytest.raises(DataError, match="holds no row, so there is nothing to search in"):
        build_index(features(tmp_path / "none", []), tmp_path / "other")
    assert not (tmp_path / "other").exists(), "nothing is left of an index that could not be built"


def test_vectors_that_are_none_are_left_out_and_counted(tmp_path: Path) -> None:
    wrong = [np.full(8, np.nan), np.zeros(8), np.full(8, 1e30), np.array([np.inf, *[0] * 7]), TEXTS[0] * 0.5]
    bad = [
        Row(f"b{n}", "b", f"b{n}.jpg", f"bad {n}", {"image.vector": IMAGES[0], "text.vector": each.astype(np.float32)})
        for n, each in enumerate(wrong)
    ]
    facts = build_index(features(tmp_path / "f", [*bad, *ROWS]), tmp_path / "index")
    assert (facts.left_out, facts.sides["text"].count, facts.sides["image"].count) == (5, 4, 8)
    assert facts.sides["image"].recall == facts.sides["text"].recall == 1
    (hits,) = SearchIndex(tmp_path / "index").search(IMAGES[:1], "text", 99)
    assert all(np.isfinite(hit.score) and not hit.words.startswith("bad") for hit in hits)
    (tmp_path / "bad").mkdir()
    only = [Row(each.id, each.key, "", each.words, each.arrays) for each in bad]
    with pytest.raises(DataError, match=r"no row that can be used \(5 have no vectors of length 1\)"):
        build_index(features(tmp_path / "only", only), tmp_path / "bad")


# ------------------------------------------------------------------------------------------------- kinds of index


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 30, 700])
def test_vectors_that_are_all_the_same_are_all_found(kind: Kind, count: int) -> None:
    """The lists of an IVF are empty but for one, and a graph of the like has no ways."""
    same = np.repeat(units(1), count, 0)
    index = build(kind, 8, count, lambda: iter([same]))
    queries = units(20, 5)
    scores, numbers = nearest(index, queries, min(count, 40))
    assert (numbers >= 0).all()
    assert all(len(set(found)) == len(found) for found in numbers.tolist())
    np.testing.assert_allclose(scores, np.repeat(queries @ same[:1].T, min(count, 40), 1), atol=1e-5)
    assert recall(index, lambda: iter([same]), queries) == 1, "each is as near as the tenth"


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_few_vectors_are_all_looked_at(kind: Kind) -> None:
    few, queries = units(300, 3), units(50, 4)
    assert recall(build(kind, 8, 300, lambda: iter([few])), lambda: iter([few]), queries) == 1


def test_recall_counts_what_is_as_near() -> None:
    class Other:
        """Finds the second of each pair of twins."""

        def search(self, queries: Any, k: int) -> Any:
            order = np.argsort(-(queries @ pairs.T), axis=1, kind="stable")[:, :k]
            return np.take_along_axis(queries @ pairs.T, order, 1), order ^ 1

    pairs, queries = np.repeat(units(30), 2, 0), units(9, 7)
    chunks: Callable[[], Iterator[NDArray[np.float32]]] = lambda: iter([pairs])  # noqa: E731
    assert recall(Other(), chunks, queries, 1) == 1
    assert recall(Other(), chunks, queries, 5) == 1

    class Wrong:
        """Misses one of five."""

        def search(self, queries: Any, k: int) -> Any:
            scores, order = Other().search(queries, k + 5)
            return np.delete(scores, 4, 1)[:, :k] * 1, np.delete(order, 4, 1)[:, :k]

    assert recall(Wrong(), lambda: iter([units(99)]), queries, 5) < 1


@pytest.mark.parametrize("factor", [0, -1, 1e9, float("inf"), float("nan")])
def test_an_absurd_breadth_is_refused(factor: float) -> None:
    few = units(100)
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"--breadth: .* give a number above 0 and up to 1000"):
            widen(build(kind, 8, 100, lambda: iter([few])), factor)
    with pytest.raises(ConfigError, match="--breadth: an exact index looks at everything; leave it out"):
        widen(build("exact", 8, 100, lambda: iter([few])), 2)


# ---------------------------------------------------------------------------------------------------- the folder


def test_a_folder_with_other_things_in_it_keeps_them(tmp_path: Path) -> None:
    given = features(tmp_path / "f")
    build_index(given, tmp_path / "index")
    (tmp_path / "index" / "notes.txt").write_text("mine")
    (tmp_path / "index" / "deep").mkdir()
    (tmp_path / "index" / "deep" / "thesis.txt").write_text("mine too")
    only = Features(tmp_path / "f")
    build_index(only, tmp_path / "index", "hnsw")
    assert SearchIndex(tmp_path / "index").facts.kind == "hnsw"
    assert (tmp_path / "index" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "index" / "deep" / "thesis.txt").read_text() == "mine too"
    left = {path.name for path in (tmp_path / "index").iterdir()} - {"notes.txt", "deep"}
    assert left == set(own_files())
    build_index(features(tmp_path / "one", [row(0, "p0.jpg", 0, "")]), tmp_path / "index")
    assert not (tmp_path / "index" / "text.faiss").exists(), "a side that is gone leaves no file"


def test_a_build_that_fails_leaves_the_index_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(features(tmp_path / "f"), tmp_path / "index")
    before = files_of(tmp_path / "index")
    with pytest.raises(DataError, match="holds no row"):
        build_index(features(tmp_path / "none", []), tmp_path / "index")
    assert files_of(tmp_path / "index") == before
    monkeypatch.chdir(tmp_path / "index")
    build_index(Features(tmp_path / "f"), Path("."))
    Renames(monkeypatch, left=4)  # killed while the files are put in their place
    with pytest.raises(Killed):
        build_index(Features(tmp_path / "f"), tmp_path / "index")
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"search.json: is missing"):
        SearchIndex(tmp_path / "index")
    build_index(Features(tmp_path / "f"), tmp_path / "index")
    assert len(SearchIndex(tmp_path / "index")) == 7


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "key 'model' is missing": lambda f: f.pop("model") and f,
    "should be a mapping": lambda f: [],
    "cannot be read": lambda f: "{",
    "recursion": lambda f: "[" * 99_999,
    "kind": lambda f: {**f, "kind": "tree"},
    "width": lambda f: {**f, "width": "eight"},
    "sides": lambda f: {**f, "sides": {"sound": f["sides"]["text"]}},
    "image.faiss: is missing, or not as long": lambda f: f["sides"]["image"].update(bytes=7) or f,
    "image.faiss: is damaged": lambda f: f["sides"]["image"].update(checksum="0") or f,
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damaged_facts_are_told(sentence: str, tmp_path: Path) -> None:
    build_index(features(tmp_path / "f"), tmp_path / "index")
    path = tmp_path / "index" / FACTS
    wrong = DAMAGE[sentence](json.loads(path.read_text()))
    path.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
    with pytest.raises(DataError, match="build the index again with `vlp index --features DIR --out") as caught:
        SearchIndex(tmp_path / "index")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_changed_is_never_walked(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and links in it would lead faiss out of all memory; in a file too large to be read whole, too."""
    monkeypatch.setattr("vlp.search.facts.READ_WHOLE", 0)
    build_index(features(tmp_path / "f"), tmp_path / "index", kind)
    path = tmp_path / "index" / "image.faiss"
    data = path.read_bytes()
    for place in {*range(0, len(data) - 3 * 8 * 4, 7), 37, 40} if kind == "hnsw" else range(12):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        with pytest.raises(DataError, match=r"image\.faiss: is damaged"):
            SearchIndex(tmp_path / "index")


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_that_changed_in_an_index_is_told(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(features(tmp_path / "f"), tmp_path / "index", kind)
    for name in own_files()[1:]:
        path = tmp_path / "index" / name
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(DataError, match=rf"{path}: is damaged .* build the index again with `vlp index"):
                SearchIndex(tmp_path / "index")
        path.write_bytes(data)
    path = tmp_path / "index" / "image.faiss"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr("vlp.search.facts.READ_WHOLE", len(data) - 1)
    assert SearchIndex(tmp_path / "index"), "its vectors are not read"


def without_checksums(index: Path) -> None:
    """As an index from before there were any."""
    said = json.loads((index / FACTS).read_text())
    del said["files"]
    (index / FACTS).write_text(json.dumps(said))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "pickle", "gone"])
def test_a_damaged_file_of_an_index_is_told(damage: str, checked: bool, tmp_path: Path) -> None:
    build_index(features(tmp_path / "f"), tmp_path / "index")
    if not checked:
        without_checksums(tmp_path / "index")
    for name in own_files()[1:]:
        path = tmp_path / "index" / name
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage == "pickle":
            np.save(path.open("wb"), np.array([{}], object), allow_pickle=True)
        else:
            path.write_bytes({"empty": b"", "cut": data[:-3], "zeros": b"\0" * len(data)}[damage])
        if damage == "zeros" and name.endswith(".bytes") and not checked:
            assert SearchIndex(tmp_path / "index")  # texts of zeros are texts
        else:
            with pytest.raises(DataError, match="vlp index") as caught:
                SearchIndex(tmp_path / "index")
            assert name.split(".")[0] in str(caught.value)
        path.write_bytes(data)
    assert SearchIndex(tmp_path / "index")
