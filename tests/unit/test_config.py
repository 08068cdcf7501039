from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from vlp.config import Auto, Config, apply_overrides, read_yaml, write_yaml
from vlp.errors import ConfigError


class Depth(Config):
    depth: int = 1


class Word(Config):
    kind: Literal["word"]
    width: int = 3
    inner: Depth | None = None


class Box(Config):
    kind: Literal["box"]
    linear: int = 4
    numbers: Literal[4, 5, 7] = 4


Part = Annotated[Word | Box, Field(discriminator="kind")]


class Row(Config):
    """Told apart by the key it has, as a block of an encoder is: the tag is called like the key."""

    linear: int
    to: str


def _kind(value: Any) -> str:
    return "linear" if "linear" in value else "word"


Line = Annotated[Annotated[Row, Tag("linear")] | Annotated[Word, Tag("word")], Discriminator(_kind)]


class Toy(Config):
    size: int | Auto = "auto"
    rate: float = 0.1
    name: str = "toy"
    on: bool = False
    model: str | Depth = "tiny"
    parts: tuple[Part, ...] = ()
    lines: tuple[Line, ...] = ()
    steps: tuple[int, ...] = ()
    weights: dict[str, Depth] = {}
    first: int = 0
    last: int = 9

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"first {self.first} lies behind last {self.last}")
        return self


def test_defaults_and_plain_data_survive_a_round_trip(tmp_path: Path) -> None:
    toy = Toy.parse({"parts": [{"kind": "word", "inner": {"depth": 2}}], "model": {"depth": 3}, "rate": 1e-4})
    write_yaml(tmp_path / "toy.yaml", toy.plain())
    assert Toy.parse(read_yaml(tmp_path / "toy.yaml")) == toy


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"nmae": "x"}, "f.yaml: unknown key 'nmae' (did you mean 'name'?)"),
        ({"model": {"dept": 1}}, "f.yaml: unknown key 'model.dept' (did you mean 'depth'?)"),
        ({"parts": [{"kind": "word", "widht": 1}]}, "f.yaml: unknown key 'parts.0.widht' (did you mean 'width'?)"),
        ({"parts": [{"kind": "box", "number": 4}]}, "f.yaml: unknown key 'parts.0.number' (did you mean 'numbers'?)"),
        ({"parts": [{"kind": "box", "xyz": 4}]}, "f.yaml: unknown key 'parts.0.xyz' (known: kind, linear, numbers)"),
        (
            {"parts": [{"kind": "word", "inner": {"dpth": 1}}]},
            "f.yaml: unknown key 'parts.0.inner.dpth' (did you mean 'depth'?)",
        ),
        ({"weights": {"a": {"dept": 1}}}, "f.yaml: unknown key 'weights.a.dept' (did you mean 'depth'?)"),
        ({"lines": [{"linear": 3}]}, "f.yaml: key 'lines.0.to' is missing"),
        ({"lines": [{"linear": 3, "to": "x", "too": 1}]}, "f.yaml: unknown key 'lines.0.too' (did you mean 'to'?)"),
        (
            {"lines": [{"linear": "x", "to": "y"}]},
            "f.yaml: lines.0.linear: 'x' is not right, it should be a whole number",
        ),
        ({"parts": [{"width": 1}]}, "f.yaml: key 'parts.0.kind' is missing"),
        (
            {"parts": [{"kind": "bax"}]},
            "f.yaml: parts.0.kind: 'bax' is not right, it should be one of 'word', 'box'",
        ),
        ({"size": "oto"}, "f.yaml: size: 'oto' is not right, it should be a whole number or 'auto'"),
        ({"size": 1.5}, "f.yaml: size: 1.5 is not right, it should be a whole number or 'auto'"),
        ({"rate": "fast"}, "f.yaml: rate: 'fast' is not right, it should be a number"),
        ({"rate": float("nan")}, "f.yaml: rate: nan is not right, it should be a finite number"),
        ({"rate": True}, "f.yaml: key 'rate' should not be true or false"),
        ({"on": "maybe"}, "f.yaml: on: 'maybe' is not right, it should be true or false"),
        ({"name": 5}, "f.yaml: name: 5 is not right, it should be text"),
        ({"model": 5}, "f.yaml: model: 5 is not right, it should be text or a mapping of keys to values"),
        ({"model": {"depth": "x"}}, "f.yaml: model.depth: 'x' is not right, it should be a whole number"),
        ({"steps": 3}, "f.yaml: steps: 3 is not right, it should be a list"),
        ({"steps": [1, "x"]}, "f.yaml: steps.1: 'x' is not right, it should be a whole number"),
        ({"first": 10}, "f.yaml: first 10 lies behind last 9"),
        (None, "f.yaml: the config: None is not right, it should be a mapping of keys to values"),
        ([1], "f.yaml: the config: [1] is not right, it should be a mapping of keys to values"),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Toy.parse(values, "f.yaml")
    assert str(caught.value) == sentence


def test_a_missing_key_is_named() -> None:
    class Needs(Config):
        data: str

    with pytest.raises(ConfigError, match=r"^config: key 'data' is missing$"):
        Needs.parse({})


def test_a_switch_stays_a_switch() -> None:
    assert Toy.parse({"on": True}).on is True


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Toy().size = 3  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------- YAML


def _read(folder: Path, text: str) -> Any:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-4", 1e-4), ("1e5", 1e5), ("-2.5E+3", -2500.0), ("1.", 1.0), (".5", 0.5), ("-.5", -0.5), ("1_0.5", 10.5)],
)
def test_numbers_are_read_as_numbers(tmp_path: Path, text: str, number: float) -> None:
    value = _read(tmp_path, f"x: {text}")["x"]
    assert isinstance(value, float)
    assert value == number


@pytest.mark.parametrize("text", ["._", "1e", "e5", "v1e4", "1.2.3", "--", "uniter_base"])
def test_words_are_read_as_words(tmp_path: Path, text: str) -> None:
    assert _read(tmp_path, f"x: {text}")["x"] == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_writes_is_read_back(number: float) -> None:
    assert apply_overrides({}, [f"x={number!r}"]) == {"x": number}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")


def test_a_folder_or_a_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "binary")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: [1, 2\n", r"run\.yaml line 3: not valid YAML"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"run\.yaml line 4: not valid YAML: key 'c' stands twice"),
        ("a: 1\na: 2\n", r"run\.yaml line 2: not valid YAML: key 'a' stands twice"),
        ("a: !!python/object:os.system {}\n", r"run\.yaml line 1: not valid YAML"),
        ("? [1]\n: 2\n", r"run\.yaml line 1: not valid YAML"),
        ("a: 2024-13-45\n", r"run\.yaml: not valid YAML"),
        ("[" * 10_000, r"run\.yaml: not valid YAML: maximum recursion depth"),
        ("a: \x07\n", r"run\.yaml: not valid YAML"),
    ],
)
def test_bad_yaml_is_refused_with_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        _read(tmp_path, text)


def test_merged_mappings_may_override_what_they_merge(tmp_path: Path) -> None:
    text = "z: &z {x: 0}\nbase: {inner: &a {<<: *z, x: 1}}\nderived: {<<: *a, x: 2}\n"
    assert _read(tmp_path, text) == {"z": {"x": 0}, "base": {"inner": {"x": 1}}, "derived": {"x": 2}}


# -------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("a=2", {"a": 2, "b": {"c": [1, {"d": 2}]}}),
        ("b.c=x", {"a": 1, "b": {"c": "x"}}),
        ("b.c.0=7", {"a": 1, "b": {"c": [7, {"d": 2}]}}),
        ("b.c.1.d=1e-3", {"a": 1, "b": {"c": [1, {"d": 0.001}]}}),
        ("b.c=[3, 4]", {"a": 1, "b": {"c": [3, 4]}}),
        ("new.deep.key={x: 1}", {"a": 1, "b": {"c": [1, {"d": 2}]}, "new": {"deep": {"key": {"x": 1}}}}),
        ("a=x=y", {"a": "x=y", "b": {"c": [1, {"d": 2}]}}),
        ("a=", {"a": None, "b": {"c": [1, {"d": 2}]}}),
    ],
)
def test_overrides_reach_into_the_config(override: str, changed: dict[str, Any]) -> None:
    values = {"a": 1, "b": {"c": [1, {"d": 2}]}}
    assert apply_overrides(values, [override]) == changed
    assert values == {"a": 1, "b": {"c": [1, {"d": 2}]}}  # the caller's stay as they were


def test_later_overrides_win() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


def test_an_empty_section_can_be_filled() -> None:
    assert apply_overrides({"a": None}, ["a.b=1"]) == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("a", "'a' is not of the form section.key=value"),
        ("=1", "is not of the form"),
        ("a..b=1", "is not of the form"),
        ("a.b=1", "'a' is not a section"),
        ("a.b.c=1", "'a' is not a section"),
        ("b.c.5=1", "'b.c' is a list of 2, '5' is no item of it"),
        ("b.c.x=1", "'b.c' is a list of 2, 'x' is no item of it"),
        ("b.c.-1=1", "'b.c' is a list of 2, '-1' is no item of it"),
        ("a=[1", "override 'a=\\[1' line 1: not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        apply_overrides({"a": 1, "b": {"c": [1, 2]}}, [override])


def test_an_override_of_something_that_is_no_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="the config is not a section"):
        apply_overrides(None, ["a=1"])  # type: ignore[arg-type]
