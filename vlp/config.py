"""The base of all configs: frozen, unknown keys refused, errors as one sentence with the key's path.

A config is a pydantic model beside the code it configures. This file knows how one is read from YAML, how
`section.key=value` overrides reach into it, and how pydantic's complaints become a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails
from typing_extensions import Self

from vlp.errors import ConfigError, nearest

Auto = Literal["auto"]
"""A size that the data fix: taken from tokenizer and index at start, written into the resolved config."""


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression, as text."""


class Config(BaseModel):
    """Base of every config section."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, values: Any) -> Any:
        # Pydantic reads true as 1; a config in which a number became `on` is a mistake. Not a validator of each field:
        # pydantic allows none on the key that tells a union's members apart.
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and not _takes_bool(field.annotation):
                raise ValueError(f"key '{name}' should not be true or false")
        return values

    @classmethod
    def parse(cls, values: Any, where: str = "config") -> Self:
        """Validate plain data.

        Args:
            values: what YAML or JSON gave.
            where: the file it came from, for the message.
        Raises:
            ConfigError: one sentence naming the key's path; for an unknown key also the nearest known one.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_sentence(cls, values, error.errors())}") from None

    def plain(self) -> dict[str, Any]:
        """The config as plain data, ready for YAML or JSON."""
        return self.model_dump(mode="json")


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads `1e-4` as a number (YAML 1.1 calls it a string)."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not where the mapping is made: `<<` may lay the keys of another mapping under its own.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_FLOAT = re.compile(
    r"""^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
               |[0-9][0-9_]*[eE][-+]?[0-9]+
               |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)$""",
    re.X,
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> Any:
    """Plain data of a YAML (or JSON) file of the user's.

    Raises:
        ConfigError: the file is missing, unreadable or not YAML; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return _yaml(text, str(path))


def read_json(path: Path) -> Any:
    """Plain data of a JSON file of a program's own making; whoever reads one knows what to say of it.

    Raises:
        OSError: the file is missing or unreadable.
        ValueError: it is not JSON, or nested without end.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: makes plain data only
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date with a thirteenth month
        raise ConfigError(f"{where}: not valid YAML: {error}") from None


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain data as YAML, keys in the order given."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100), encoding="utf-8")


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Plain data with `section.key=value` overrides applied; the value is read as YAML.

    A number names an item of a list (`data.train.0.weight=2`); a section that is missing is made.

    Raises:
        ConfigError: an override has no `=`, or reaches through something that is not a section.
    """
    result = deepcopy(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        steps = path.split(".")
        if not equals or not all(steps):
            raise ConfigError(f"override '{override}' is not of the form section.key=value")
        target: Any = result
        for number, step in enumerate(steps[:-1]):
            key = _key(target, step, override, steps[:number])
            if isinstance(target, dict) and target.get(key) is None:
                target[key] = {}
            target = target[key]
        target[_key(target, steps[-1], override, steps[:-1])] = _yaml(text, f"override '{override}'")
    return result


def _key(target: Any, step: str, override: str, above: Sequence[str]) -> str | int:
    """The key of a mapping or the number of a list's item that a step of an override names."""
    if isinstance(target, dict):
        return step
    place = f"'{'.'.join(above)}'" if above else "the config"
    if not isinstance(target, list):
        raise ConfigError(f"override '{override}': {place} is not a section")
    if not (step.isascii() and step.isdigit() and int(step) < len(target)):
        raise ConfigError(f"override '{override}': {place} is a list of {len(target)}, '{step}' is no item of it")
    return int(step)


_WORDS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "byte_size": "a number of bytes, as in 200GB",
    "byte_size_unit": "a number of bytes, as in 200GB",
    "dict_type": "a mapping of keys to values",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What a value should be, where pydantic's own words are about Python types."""


def _sentence(cls: type[BaseModel], values: Any, errors: Sequence[ErrorDetails]) -> str:
    """One sentence for the first complaint (and for those that the other members of its union make)."""
    # A union complains once for each member. The complaint that lies deepest in the data comes from the member that the
    # author meant; complaints at one place name alternatives.
    places = [_place(values, error) for error in errors]
    first = places[0]
    place = max((place for place in places if place[: len(first)] == first), key=len)
    alternatives = [error for error, its in zip(errors, places, strict=True) if its == place]
    return _complaint(cls, ".".join(place), alternatives)


def _complaint(cls: type[BaseModel], path: str, alternatives: Sequence[ErrorDetails]) -> str:
    error = alternatives[0]
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key '{path}'{nearest(str(error['loc'][-1]), _siblings(cls, error['loc'][:-1]))}"
    if kind == "missing":
        return f"key '{path}' is missing"
    if kind == "value_error":
        reason = error["msg"].removeprefix("Value error, ")
        return f"{path}: {reason}" if path else reason
    if kind.startswith("union_tag"):
        key = f"{path}.{error['ctx']['discriminator'].strip(chr(39))}".removeprefix(".")
        if kind == "union_tag_not_found":
            return f"key '{key}' is missing"
        return f"{key}: '{error['ctx']['tag']}' is not right, it should be one of {error['ctx']['expected_tags']}"
    wanted = [_WORDS.get(each["type"]) or each["msg"].removeprefix("Input should be ") for each in alternatives]
    return f"{path or 'the config'}: {value!r} is not right, it should be {' or '.join(dict.fromkeys(wanted))}"


def _place(values: Any, error: ErrorDetails) -> tuple[str, ...]:
    """The keys that lead to a complaint, as they stand in the data: without the tags that pydantic adds for unions."""
    loc = error["loc"]
    place: list[str] = []
    here = values
    for number, step in enumerate(loc, start=1):
        missing = error["type"] == "missing" and number == len(loc)
        if isinstance(here, Mapping) and step in here:
            below = here[step]
            # A union's tag may be called like a key that stands here; then the next step is found here, not below.
            if not isinstance(below, (Mapping, list)) and (error["type"] == "missing" or set(loc[number:]) & set(here)):
                continue
            here = below
        elif isinstance(here, list) and isinstance(step, int):
            here = here[step]
        elif not missing:
            continue
        place.append(str(step))
    return tuple(place)


def _siblings(cls: type[BaseModel], path: Sequence[int | str]) -> set[str]:
    """Names of the fields that may stand at `path`."""
    models = [cls]
    for step in path:
        fields = [model.model_fields[step] for model in models if step in model.model_fields]
        below = [model for field in fields for model in _models_in(field.annotation)]
        # A step that names no field with models in it is an index, or the tag that pydantic adds for a union's member.
        models = below or [model for model in models if _is_called(model, step)] or models
    return {name for model in models for name in model.model_fields}


def _is_called(model: type[BaseModel], tag: int | str) -> bool:
    return tag == model.__name__ or any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _takes_bool(annotation: Any) -> bool:
    arguments = get_args(annotation)
    return annotation in (bool, Any) or any(argument is True or _takes_bool(argument) for argument in arguments)
