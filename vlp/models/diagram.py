"""A model's blocks as a drawing for the terminal: text on the left, images on the right, from the input downwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap

from vlp.models.blocks import BlockConfig, GroupConfig
from vlp.models.model import ModelConfig
from vlp.types import Stream

OTHER: dict[Stream, Stream] = {"text": "image", "image": "text"}
ASCII = str.maketrans({"┌": "+", "┐": "+", "└": "+", "┘": "+", "─": "-", "│": "|", "═": "=", "→": ">", "×": "x"})
MIDDLE = 6
"""Columns between the two sides."""


def drawn(config: ModelConfig, width: int, *, ascii_only: bool = False) -> str:
    """The drawing, lines of at most `width` characters.

    Args:
        width: 40 at least.
        ascii_only: use no box characters.
    """
    side = (min(width, 100) - MIDDLE) // 2
    lines = _inputs(config, side)
    for band in _bands(config):
        lines.append(_sides("│", "│", side))
        lines += _wide(band, side) if isinstance(band, Wide) else _towers(band, side)
    lines += [_sides("│", "│", side), _sides(*_ends(config), side)]
    lines.append("→  looks at    ═══  one set of weights for both".center(2 * side + MIDDLE))
    drawing = "\n".join(line.rstrip() for line in lines)
    return drawing.translate(ASCII) if ascii_only else drawing


def looks(sublayer: str, stream: Stream) -> str:
    """What a stream does in a sublayer."""
    at = {"self": stream, "cross": OTHER[stream], "joint": "text + image"}.get(sublayer)
    return sublayer if at is None else f"{stream} → {at}"


@dataclass(frozen=True)
class Box:
    """A block, and how often it runs."""

    block: BlockConfig
    title: str


class Wide(Box):
    """A block of both streams."""


@dataclass(frozen=True)
class Towers:
    """A block of each stream side by side, or of one of them."""

    boxes: dict[Stream, Box]


def _bands(config: ModelConfig) -> Iterator[Wide | Towers]:
    waiting: dict[Stream, Box] = {}
    for block, title in _titled(config.encoder):
        stream = block.stream
        if stream == "both":
            if waiting:
                yield Towers(waiting)
                waiting = {}
            yield Wide(block, title)
        elif stream in waiting:
            yield Towers(waiting)
            waiting = {stream: Box(block, title)}
        else:
            waiting = {**waiting, stream: Box(block, title)}
    if waiting:
        yield Towers(waiting)


def _titled(lines: Sequence[BlockConfig | GroupConfig]) -> Iterator[tuple[BlockConfig, str]]:
    for line in lines:
        if isinstance(line, GroupConfig):
            for number, block in enumerate(line.blocks, start=1):
                inner = f"{block.repeat} × " if block.repeat > 1 else ""
                yield block, f"{inner}{number} of {len(line.blocks)}, all {line.repeat} ×"
        else:
            yield line, f"{line.repeat} ×" + (" one set" if line.one_set else "") if line.repeat > 1 else ""


def _inputs(config: ModelConfig, side: int) -> list[str]:
    """What the tokens of both streams are made of."""
    text = wrap("text: " + " + ".join(part.kind for part in config.text.parts), side)
    extra = [name for name, there in (("cls", config.image.cls), ("end", config.image.end)) if there]
    image = wrap("image: " + " + ".join([part.kind for part in config.image.parts] + extra), side)
    if config.image.grid is not None:
        image += wrap("then a grid: " + " + ".join(part.kind for part in config.image.grid.parts), side)
    return [_sides(left, right, side) for left, right in zip_longest(text, image, fillvalue="")]


def _ends(config: ModelConfig) -> tuple[str, str]:
    pooler = config.pooler
    said = [
        pooler.at,
        *(["linear"] if pooler.linear else []),
        *([pooler.activation] if pooler.activation != "none" else []),
    ]
    pooled = f"pooled: {', '.join(said)}"
    return (pooled, "") if pooler.fusion == "text" else (pooled, f"{pooler.fusion} with the image's")


def _wide(box: Box, side: int) -> list[str]:
    block, inner = box.block, 2 * side + MIDDLE - 4
    half = (inner - 5) // 2
    lines = [_top(box.title, inner)]
    if block.linear or block.add:
        lines.append(_filled(_before(block).center(inner), inner))
    for name in block.sublayers:
        if name == "joint" and name in block.share:
            lines.append(_filled("text + image → text + image".center(inner), inner))
            continue
        tie = " ═══ " if name in block.share else "     "
        lines.append(_filled(f"{looks(name, 'text')[:half]:^{half}}{tie}{looks(name, 'image')[:half]:^{half}}", inner))
    return [*lines, _bottom(inner)]


def _towers(band: Towers, side: int) -> list[str]:
    left, right = (_tower(band.boxes[s], s, side) if s in band.boxes else [] for s in ("text", "image"))
    height = max(len(left), len(right))
    pipe = "│".center(side)
    return [
        (left[row] if row < len(left) else pipe) + " " * MIDDLE + (right[row] if row < len(right) else pipe)
        for row in range(height)
    ]


def _tower(box: Box, stream: Stream, side: int) -> list[str]:
    inner = side - 4
    before = [_before(box.block)] if box.block.linear or box.block.add else []
    lines = [*before, *(looks(name, stream) for name in box.block.sublayers)]
    return [_top(box.title, inner), *(_filled(line.center(inner), inner) for line in lines), _bottom(inner)]


def _before(block: BlockConfig) -> str:
    """What happens before a block's sublayers."""
    added = [f"+ {block.add.kind}"] if block.add else []
    return ", ".join([*([f"linear to {block.linear}"] if block.linear else []), *added])


def _top(title: str, inner: int) -> str:
    return "┌" + (f"─ {title} " if title else "").ljust(inner + 2, "─")[: inner + 2] + "┐"


def _bottom(inner: int) -> str:
    return "└" + "─" * (inner + 2) + "┘"


def _filled(line: str, inner: int) -> str:
    return f"│ {line[:inner]:<{inner}} │"


def _sides(left: str, right: str, side: int) -> str:
    return f"{left[:side]:^{side}}{' ' * MIDDLE}{right[:side]:^{side}}"
