"""Tables of names: which tensors of a published checkpoint are which of ours.

A table is a literal dict from their names to ours. A name is that of a tensor, or of a module that has a weight and
perhaps a bias. Several names in a tuple stand one below the other (rows of the first, then rows of the second, all
of their parts being of one size): BERT's key and value are one matrix here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shape = tuple[int, ...]
Names = str | tuple[str, ...]


@dataclass(frozen=True)
class Shaped:
    """A tensor of ours that has another shape there, with the same numbers in the same order."""

    ours: str
    shape: Callable[[Shape], Shape]
    """From our shape to theirs."""


def leading(ours: str, ones: int) -> Shaped:
    """A tensor of ours that has so many axes of length 1 before its own there."""
    return Shaped(ours, lambda shape: (1,) * ones + shape)


def squares(ours: str) -> Shaped:
    """A projection of square patches of three channels, which is a convolution there."""

    def convolution(shape: Shape) -> Shape:
        side = round((shape[1] / 3) ** 0.5)
        return (shape[0], 3, side, side)

    return Shaped(ours, convolution)


Table = Mapping[Names, Names | Shaped]


@dataclass(frozen=True)
class Rule:
    """Tensors of theirs which, one below the other, are those of ours, one below the other."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    their_shapes: tuple[Shape, ...]
    our_shapes: tuple[Shape, ...]

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from theirs; views where nothing has to be joined."""
        joined = _stacked([tensors[name] for name in self.theirs])
        return self._cut(joined, self.ours, self.our_shapes)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Theirs from ours."""
        joined = _stacked([tensors[name] for name in self.ours])
        return self._cut(joined, self.theirs, self.their_shapes)

    def _cut(self, joined: Tensor, names: Sequence[str], shapes: Sequence[Shape]) -> dict[str, Tensor]:
        if len(names) == 1:
            return {names[0]: joined.reshape(shapes[0])}
        parts = torch.split(joined, [shape[0] for shape in shapes])
        return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def rules(table: Table, ours: Mapping[str, Shape]) -> Iterator[Rule]:
    """The rules of a table, a module's written out as its weight and its bias.

    Args:
        ours: the shapes of our model's tensors; entries of which the model has nothing are left out.
    """
    for their_names, our_names in table.items():
        shaped = our_names if isinstance(our_names, Shaped) else None
        own = (shaped.ours,) if shaped else _tuple(our_names)  # type: ignore[arg-type]
        theirs = _tuple(their_names)
        suffixes = [""] if own[0] in ours else [s for s in (".weight", ".bias") if own[0] + s in ours]
        for suffix in suffixes:
            shape = shaped.shape if shaped and suffix != ".bias" else None
            yield _rule(tuple(t + suffix for t in theirs), tuple(o + suffix for o in own), shape, ours)


def _rule(
    theirs: tuple[str, ...],
    own: tuple[str, ...],
    shape: Callable[[Shape], Shape] | None,
    ours: Mapping[str, Shape],
) -> Rule:
    our_shapes = tuple(ours[name] for name in own)
    if len(theirs) == len(own) == 1:
        return Rule(theirs, own, (shape(our_shapes[0]),) if shape else our_shapes, our_shapes)
    rows = sum(each[0] for each in our_shapes)
    return Rule(theirs, own, ((rows // len(theirs), *our_shapes[0][1:]),) * len(theirs), our_shapes)


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def below(table: Table, theirs: str, ours: str) -> dict[Names, Names | Shaped]:
    """The table with prefixes before all its names; a name of "" is the prefix itself."""

    def their(name: str) -> str:
        return f"{theirs}.{name}".strip(".")

    def own(name: str) -> str:
        return f"{ours}.{name}".strip(".")

    def both(names: Names, change: Callable[[str], str]) -> Names:
        return change(names) if isinstance(names, str) else tuple(change(name) for name in names)

    return {
        both(t, their): replace(o, ours=own(o.ours)) if isinstance(o, Shaped) else both(o, own)
        for t, o in table.items()
    }
