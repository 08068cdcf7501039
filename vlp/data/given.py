"""What users give: lists of pictures, texts and regions, one of each per pair; and counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlp.errors import ConfigError

_EMPTY = {"images": None, "texts": "", "regions": None}
"""What a pair has of a list that is not given."""


def pairs_of(door: str, **given: Any) -> list[tuple[Any, Any, Any]]:
    """An image, a text and regions for each pair.

    Args:
        door: what was called, for messages.
        given: `images`, `texts` and `regions`, each any kind of list, or None.
    Raises:
        ConfigError: one is no list, they are of unequal lengths, or there is none; or a text is no text.
    """
    lists = {name: _listed(door, name, values) for name, values in given.items() if values is not None}
    if not lists:
        raise ConfigError(f"{door}: give images, texts or regions")
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(f"{door}: the lists are of unequal lengths ({listed}); give one of each per pair")
    total = next(iter(sizes.values()))
    return list(zip(*(lists.get(name, [empty] * total) for name, empty in _EMPTY.items()), strict=True))


def _listed(door: str, name: str, values: Any) -> list[Any]:
    """The items of a list of any kind; of an array those of its first dimension."""
    single = isinstance(values, (str, bytes, Path, Image.Image, Mapping, Set)) or not isinstance(values, Iterable)
    if isinstance(values, np.ndarray):  # several pictures have a dimension more than one
        single = values.ndim < (3 if name == "images" and values.dtype.kind in "biuf" else 1)
    if single or (name == "images" and _is_picture(values)):
        raise ConfigError(f"{door}: {name} should be a list, with one item per pair")
    return list(values)


def _is_picture(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.ndim == 3 and values.shape[2] in (3, 4)


def count_of(name: str, value: Any, least: int = 1) -> int:
    """A whole number, of whatever type.

    Raises:
        ConfigError: it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} is {value!r}; it should be a whole number from {least} on")
    return int(value)
