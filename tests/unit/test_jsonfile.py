from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.importers import jsonfile
from data_tools.importers.jsonfile import elements, entries, load, load_lists, name, text
from vlp.errors import DataError

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_SPACING = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "_CHUNK", 3)


@given(values=st.lists(_VALUES, max_size=6), spacing=_SPACING)
def test_elements_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], spacing: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(values, **spacing), encoding="utf-8", errors="surrogatepass")
    assert list(elements(path, "a list")) == values


@given(values=st.dictionaries(st.text(max_size=6), _VALUES, max_size=6), spacing=_SPACING)
def test_entries_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], spacing: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(values, **spacing), encoding="utf-8", errors="surrogatepass")
    assert dict(entries(path, "an object")) == values


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    whole = '[{"a": [1, 23]}, -4.5, "six", null]'
    for end in range(1, len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(DataError, match=r"x\.json: is not valid JSON; give a list"):
            list(elements(path, "a list"))
    for content in ("[1 2]", "[1,]", "[,1]", "[1}", "[1.2.3]", "[tru]"):
        path.write_text(content)
        with pytest.raises(DataError, match="is not valid JSON"):
            list(elements(path, "a list"))
    for content in ('{"a" 1}', "{1: 2}", '{"a": 1,}', '{"a": }', '{"a": 1]'):
        path.write_text(content)
        with pytest.raises(DataError, match="is not valid JSON"):
            list(entries(path, "an object"))


def test_the_other_kind_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ("{}", "", "3", '"text"'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"x\.json: is not one JSON list; give easy-VQA's"):
            list(elements(path, "easy-VQA's"))
    path.write_text("[]")
    with pytest.raises(DataError, match="is not one JSON object"):
        list(entries(path, "x"))
    assert list(elements(path, "x")) == []


def test_bytes_that_are_no_text_and_depth_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in (b'["\xff"]', b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not valid JSON"):
            list(elements(path, "x"))
        with pytest.raises(DataError, match="is not valid JSON"):
            load(path, "x")


def test_a_value_that_never_ends_is_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "_MAX_VALUE", 1000)
    path = tmp_path / "x.json"
    path.write_text('["' + "a" * 100_000 + '"]')
    with path.open() as file:
        window = jsonfile._Window(file)
        with pytest.raises(ValueError, match="Unterminated"):
            list(window.members("["))
        assert file.tell() < 10_000


def test_a_large_value_is_tried_a_few_times_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(["a" * 100_000]))
    tries = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            tries.append(len(s))
            return super().raw_decode(s, idx)

    monkeypatch.setattr(jsonfile, "_DECODER", Counting())
    assert len(list(elements(path, "x"))) == 1
    assert len(tries) < 30  # windows of 3 letters, doubled each time


def test_lists_by_key_and_objects_made_lean(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('\ufeff{"a": [{"x": 1}, {"y": 2}], "b": []}', encoding="utf-8")
    assert load_lists(path, ("b", "a"), "x", lambda entry: entry.get("x", entry)) == ([], [1, {"y": 2}])
    with pytest.raises(DataError, match=r"x\.json: has no list 'c'; give VQA's"):
        load_lists(path, ("a", "c"), "VQA's")
    path.write_text("[]")
    with pytest.raises(DataError, match="has no list 'a'"):
        load_lists(path, ("a",), "x")


def test_ids_and_texts() -> None:
    entry = {"n": 7, "s": "x", "empty": "", "yes": True, "half": "a\ud83d", "whole": "😀", "f": 1.5}
    assert [name(entry, key) for key in entry] == [7, "x", None, None, "a\ud83d", "😀", None]
    assert [text(entry, key) for key in entry] == [None, "x", "", None, None, "😀", None]
    assert (name([], "n"), text(None, "s"), name(entry, "absent")) == (None, None, None)
