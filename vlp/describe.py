"""`vlp describe`: what a config's model is made of, as a drawing and a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlp import resources
from vlp.config import apply_overrides, read_yaml
from vlp.errors import ConfigError, nearest
from vlp.models.blocks import BlockConfig, GroupConfig
from vlp.models.diagram import drawn, looks
from vlp.models.flops import Flops, count_flops, head_flops
from vlp.models.image import RegionSource
from vlp.models.model import (
    ModelConfig,
    Network,
    Sizes,
    count_parameters,
    fill_sizes,
    meta_model,
    read_config,
)

_ASSUMED = Sizes(vocab_size=30522, region_width=2048, classes=1600)
"""What `auto` sizes are shown as, since there is no data to take them from."""
_NARROWEST = 60


def describe_model(config: str, overrides: Sequence[str], *, text_tokens: int = 20, regions: int = 36) -> None:
    """Print the blocks of a model config, who looks at whom, and where parameters and operations are.

    Args:
        config: a shipped model's name, the file of a model or a run, or a trained model's directory.
        overrides: `key=value` of the model.
        text_tokens: of the example whose operations are counted.
        regions: of its image, if the model reads regions.
    Raises:
        ConfigError: there is no such config, or it is not right.
    """
    values = apply_overrides(_values(config), overrides)
    given = ModelConfig.parse(values, config)
    auto = _auto(given)
    full = fill_sizes(given, _filling(given)) if auto else given
    model = meta_model(full)
    flops = count_flops(model, min(text_tokens, full.text.max_length), regions)
    console = Console()
    width = max(_NARROWEST, console.width)
    ascii_only = console.options.ascii_only
    print(drawn(full, width, ascii_only=ascii_only))
    console.print(_table(full, model, flops, ascii_only))
    for line in _notes(full, model, flops, auto):
        console.print(line, highlight=False)


def _auto(config: ModelConfig) -> bool:
    source = config.image.source
    sizes = (config.text.vocab_size, getattr(source, "width", None), getattr(source, "classes", None))
    return "auto" in sizes


def _filling(config: ModelConfig) -> Sizes:
    """The sizes that are given, and those assumed for `auto`."""
    source = config.image.source
    given = (config.text.vocab_size, getattr(source, "width", None), getattr(source, "classes", None))
    assumed = (_ASSUMED.vocab_size, _ASSUMED.region_width, _ASSUMED.classes)
    return Sizes(*(other if size == "auto" else size for size, other in zip(given, assumed, strict=True)))  # type: ignore[arg-type]


def _values(config: str) -> dict[str, Any]:
    """The model part of a model config, of a run's config, or of a trained model's directory."""
    if config in resources.names("model"):
        values = read_yaml(resources.shipped("model", config))
    elif Path(config).is_file():
        values = read_yaml(Path(config))
    elif (Path(config) / "config.json").is_file():
        return read_config(Path(config)).plain()
    else:
        raise ConfigError(f"no file or shipped model is called '{config}'{nearest(config, resources.names('model'))}")
    if not isinstance(values, dict):
        raise ConfigError(f"{config}: must hold a mapping")
    model = values.get("model", values)
    if not isinstance(model, str):
        return dict(model) if isinstance(model, dict) else values
    beside = Path(config).parent / model  # a path is relative to the config that holds it
    return _values(str(beside) if model not in resources.names("model") and beside.exists() else model)


# ------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class _Row:
    part: str
    looks: str
    shared: str
    parameters: int
    flops: int


def _table(config: ModelConfig, model: Network, flops: Flops, ascii_only: bool) -> Table:
    table = Table("part", "who looks at whom", "one set", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("MFLOP", justify="right", no_wrap=True)
    for row in _rows(config, model, flops):
        said = row.looks.replace("→", "->") if ascii_only else row.looks
        table.add_row(row.part, said, row.shared, f"{row.parameters:,}", f"{row.flops / 1e6:,.1f}")
    return table


def _rows(config: ModelConfig, model: Network, flops: Flops) -> Iterator[_Row]:
    text = " + ".join(part.kind for part in config.text.parts)
    yield _Row("text embedding", text, "", count_parameters(model.text), flops.of("text"))
    yield from _image_rows(config, model, flops)
    yield from _block_rows(config, model, flops)
    pooler = config.pooler
    said = f"{pooler.at} token" if pooler.fusion == "text" else f"{pooler.at} token, {pooler.fusion} with the image"
    yield _Row("pooler", said, "", count_parameters(model.pooler), flops.of("pooler"))
    for name, head in model.heads.items():
        reads = config.heads[name].reads
        per_row = head_flops(head, config.width(reads) * getattr(config.heads[name], "join", 1))
        yield _Row(f"head {name}", f"reads {reads} (MFLOP per row)", "", count_parameters(head), per_row)


def _image_rows(config: ModelConfig, model: Network, flops: Flops) -> Iterator[_Row]:
    backbones = model.image.backbones()
    sources = {"backbone": config.image.source, "grid.backbone": config.image.grid and config.image.grid.source}
    for name, backbone in backbones.items():
        label = f"{getattr(sources[name], 'backbone', '')}, {backbone.grid.tokens} tokens"
        size = count_parameters(backbone)
        trained = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
        label += "" if trained == size else f", {trained:,} trained"
        yield _Row("image backbone", label, "", size, flops.of(f"image.{name}"))
    image = " + ".join(part.kind for part in config.image.parts)
    if config.image.grid is not None:
        image += "; grid: " + " + ".join(part.kind for part in config.image.grid.parts)
    rest = count_parameters(model.image) - sum(count_parameters(backbone) for backbone in backbones.values())
    spent = flops.of("image") - sum(flops.of(f"image.{name}") for name in backbones)
    yield _Row("image embedding", image, "", rest, spent)


def _block_rows(config: ModelConfig, model: Network, flops: Flops) -> Iterator[_Row]:
    first = 0
    for line in config.encoder:
        blocks, times = (line.blocks, line.repeat) if isinstance(line, GroupConfig) else ((line,), 1)
        sets = [1 if block.one_set else block.repeat for block in blocks]
        for place, block in enumerate(blocks):
            begins = [first + sum(sets) * time + sum(sets[:place]) for time in range(times)]
            numbers = [begin + number for begin in begins for number in range(sets[place])]
            inner = f"{block.repeat} x " if times == 1 or block.repeat > 1 else ""
            yield _Row(
                (f"{times} x {place + 1}/{len(blocks)}: " if times > 1 else "") + f"{inner}{block.stream}",
                "\n".join(_said(block)),
                ", ".join([*block.share, *(["depth"] if block.one_set else [])]) or "-",
                sum(count_parameters(model.encoder.blocks[number]) for number in numbers),
                sum(flops.of(f"encoder.blocks.{number}") for number in numbers),
            )
        first += sum(sets) * times


def _said(block: BlockConfig) -> Iterator[str]:
    """What happens in a block, in order."""
    if block.linear:
        yield f"linear to {block.linear}"
    if block.add:
        yield f"+ {block.add.kind}"
    for name in block.sublayers:
        if name == "joint":
            yield "text + image → text + image"
        else:
            yield ", ".join(dict.fromkeys(looks(name, stream) for stream in block.streams))


def _notes(config: ModelConfig, model: Network, flops: Flops, auto: bool) -> Iterator[str]:
    total = count_parameters(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    heads = "" if config.heads else ", heads not counted"
    yield f"{total:,} parameters" + (f", {trained:,} of them trained" if trained != total else "") + heads
    yield (
        f"{flops.total / 1e9:.2f} GFLOP forward for one example of {flops.text_tokens} text and {flops.image_tokens} "
        "image tokens, about three times as many in training"
    )
    if auto:
        regions = f" and {_ASSUMED.region_width} numbers per region"
        source = regions if isinstance(config.image.source, RegionSource) else ""
        yield f"auto sizes shown as {_ASSUMED.vocab_size} words{source}"
