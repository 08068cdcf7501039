"""What is known of one kind of published checkpoint: its names, and what the authors' config says in ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlp.config import read_yaml
from vlp.errors import ConfigError
from vlp.models.blocks import unrolled
from vlp.models.convert.names import Shape, Table
from vlp.models.heads import ClassHead, FeatureHead, HeadConfig, VocabularyHead
from vlp.models.model import ModelConfig

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Official:
    """An authors' config: a section of the file at a time, with the file's name for messages."""

    path: Path
    whole: Values

    def section(self, *names: str) -> Values:
        """The first of these sections that the file has; the file itself if it has none (it is the section, then)."""
        found = next((self.whole[name] for name in names if isinstance(self.whole.get(name), dict)), self.whole)
        return Section(found, self.path)

    def counts(self, **keys: str) -> dict[str, int]:
        """Classes by head, from the keys of the file that it has."""
        return {head: int(self.whole[key]) for head, key in keys.items() if key in self.whole}


class Section(dict[str, Any]):
    """A part of an authors' config, whose keys must be there when they are asked for."""

    def __init__(self, values: Values, path: Path) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self.path}: key '{key}' is missing; is it the config of this kind of checkpoint?")


def read_official(path: Path) -> Official:
    """An authors' config, JSON or YAML.

    Raises:
        ConfigError: the file cannot be read, or holds no mapping.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no mapping of keys to values")
    return Official(path, values)


@dataclass(frozen=True)
class HeadNames:
    """A head that checkpoints of this kind may hold."""

    config: HeadConfig
    """Its class count or feature width stands for any: the checkpoint's own is taken."""
    table: Table
    """Their names to ours below the head."""
    inner: Table = field(default_factory=dict)
    """Those of the inner layers, where several heads share them: the first head that is there has them."""
    untied: Table | None = None
    """Instead of `table`, where the decoder is no second name of the word table but a weight of its own."""
    counted: str | None = None
    """Their tensor whose rows are the classes, or the numbers of a feature."""
    fits: Callable[[Mapping[str, Shape]], bool] = lambda shapes: True
    """Whether it is this head, where two kinds have the same names."""

    def names(self, own: HeadConfig) -> Table:
        """The table of a head of ours, which may use another's inner layers."""
        untied = isinstance(own, VocabularyHead) and not own.tied
        table = self.untied if untied and self.untied is not None else self.table
        return table if own.inner_of is not None else {**table, **self.inner}

    def sized(self, shapes: Mapping[str, Shape], *, untied: bool = False) -> HeadConfig:
        """The head at the checkpoint's size, with a decoder of its own if the checkpoint has one."""
        if untied and self.untied is not None:
            return self.config.model_copy(update={"tied": False})
        if self.counted is None or self.counted not in shapes:
            return self.config
        rows = shapes[self.counted][0]
        match self.config:
            case ClassHead():
                return self.config.model_copy(update={"classes": rows})
            case FeatureHead():
                return self.config.model_copy(update={"width": rows})
            case _:
                return self.config


@dataclass(frozen=True)
class Unused:
    """A tensor that our model has no use for."""

    shape: Shape
    reason: str


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint."""

    config: Callable[[Official], ModelConfig]
    """Ours from the authors' config, without heads."""
    table: Callable[[ModelConfig], Table]
    """Their names to ours, but for the heads."""
    heads: Callable[[ModelConfig], Mapping[str, HeadNames]]
    """The heads that there may be, by the names that ours have."""
    counts: Callable[[Official], Mapping[str, int]] = lambda official: {}
    """Classes of heads, where the authors' config says them."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Names that are in some files a second name of another tensor."""
    unused: Callable[[ModelConfig], Mapping[str, Unused]] = lambda config: {}
    """Tensors that the authors' code has and never uses."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Patterns of names that may be there and hold nothing that was learned, and what they are."""
    wrapper: str = ""
    """What the authors' training code puts before all names."""


def block_count(config: ModelConfig) -> int:
    """Blocks of the encoder, each with its weights."""
    return sum(1 for _ in unrolled(config.encoder))
