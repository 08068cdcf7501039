"""What can be extracted: the names that `--what` takes, and the shape that each has for one example.

Shape suffixes: H width, T text tokens, M image tokens, J = T + M, S attention sublayers, A heads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlp.errors import ConfigError, nearest

Form = Literal["number", "vector", "tokens", "map"]
"""`number` is one number, `vector` [H]; `tokens` [T, H] or [M, H]; `map` [S, J, J] (or [A, J, J])."""

_FORMS: dict[str, Form] = {
    "pooled": "vector",
    "text": "tokens",
    "image": "tokens",
    "text.unimodal": "tokens",
    "image.unimodal": "tokens",
    "text.layer.N": "tokens",
    "image.layer.N": "tokens",
    "text.vector": "vector",
    "image.vector": "vector",
    "itm": "number",
    "attention": "map",
    "attention.N": "map",
}
NAMES = tuple(_FORMS)
"""Every name that can be asked for; N stands for a number."""


@dataclass(frozen=True)
class Feature:
    """One thing that is extracted of each example."""

    name: str
    form: Form
    number: int | None = None
    """Of the layer (0 is the embedding) or of the attention sublayer (from 1)."""

    @property
    def side(self) -> Literal["text", "image"] | None:
        """Which stream's tokens or vector it is; None for what belongs to the pair."""
        first = self.name.split(".")[0]
        return first if first in ("text", "image") else None  # type: ignore[return-value]

    def floats(self, width: int, text: int, image: int) -> int:
        """Numbers that an example of so many tokens gives.

        Args:
            width: of a state; of a map, how many there are (sublayers or heads).
        """
        match self.form:
            case "number":
                return 1
            case "vector":
                return width
            case "tokens":
                return width * (text if self.side == "text" else image)
            case "map":
                return width * (text + image) ** 2


def feature(name: str) -> Feature:
    """The feature of a name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    pattern = _pattern(name)
    if pattern not in _FORMS or name.endswith(".N"):
        short = name if len(name) <= 60 else f"{name[:57]}..."
        raise ConfigError(f"--what: '{short}' cannot be extracted{nearest(short, NAMES)}")
    number = int(name.rpartition(".")[2]) if pattern != name else None
    if pattern == "attention.N" and number == 0:
        raise ConfigError("--what: attention sublayers are counted from 1, so there is no attention.0")
    return Feature(name, _FORMS[pattern], number)


def parse_what(what: str | Sequence[str]) -> tuple[Feature, ...]:
    """The features that a list of names (or names separated by commas) asks for, each once, in the order of `NAMES`.

    Raises:
        ConfigError: a name is not known, or there is none.
    """
    if not isinstance(what, str | Sequence) or not all(isinstance(name, str) for name in what):
        raise ConfigError(f"--what: {str(what)[:60]!r} is no list of names; give some of {', '.join(NAMES)}")
    names = [name.strip() for name in (what.split(",") if isinstance(what, str) else what)]
    found = {name: feature(name) for name in names if name}
    if not found:
        raise ConfigError(f"--what: give at least one of {', '.join(NAMES)}")
    order = {name: place for place, name in enumerate(NAMES)}
    return tuple(sorted(found.values(), key=lambda one: (order[_pattern(one.name)], one.number or 0)))


def _pattern(name: str) -> str:
    """The name with N for its number; no model has ten thousand layers."""
    return re.sub(r"\.(0|[1-9][0-9]{0,3})$", ".N", name)
