"""`vlp describe`: what a config's model is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlp import resources
from vlp.config import apply_overrides, read_yaml
from vlp.errors import ConfigError, nearest
from vlp.models.encoder import BlockConfig
from vlp.models.model import (
    ModelConfig,
    Sizes,
    VisionLanguageModel,
    count_parameters,
    fill_sizes,
    meta_model,
    read_config,
)

_ASSUMED = Sizes(vocab_size=30522, region_width=2048, classes=1600)
"""What `auto` sizes are shown as, since there is no data to take them from."""


def describe_model(config: str, overrides: Sequence[str]) -> None:
    """Print the blocks of a model config, who looks at whom, and where the parameters are."""
    values = apply_overrides(_values(config), overrides)
    given = ModelConfig.parse(values, config)
    auto = given.text.vocab_size == "auto" or "auto" in (
        getattr(given.image.source, "width", None),
        getattr(given.image.source, "classes", None),
    )
    model = meta_model(fill_sizes(given, _ASSUMED) if auto else given)
    console = Console()
    console.print(_blocks(given, model))
    console.print(f"{count_parameters(model):,} parameters, heads not counted", highlight=False)
    if auto:
        console.print(f"auto sizes shown as {_ASSUMED.vocab_size} words, {_ASSUMED.region_width} numbers per region")


def _values(config: str) -> dict[str, object]:
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


def _blocks(config: ModelConfig, model: VisionLanguageModel) -> Table:
    table = Table("part", "stream", "repeat", "who looks at whom", "shared", "parameters")
    table.add_row(
        "embedding", "text", "", " + ".join(p.kind for p in config.text.parts), "", f"{count_parameters(model.text):,}"
    )
    kinds = " + ".join(p.kind for p in config.image.parts)
    source = config.image.source.kind
    table.add_row("embedding", "image", "", f"{kinds} of {source}", "", f"{count_parameters(model.image):,}")
    first = 0
    for block in config.encoder:
        size = sum(count_parameters(made) for made in model.encoder.blocks[first : first + block.repeat])
        first += block.repeat
        looks = ", ".join(_looks(name, block) for name in block.sublayers)
        table.add_row("block", block.stream, f"x {block.repeat}", looks, ", ".join(block.share) or "-", f"{size:,}")
    table.add_row(
        "pooler", "text", "", f"first token, {config.pooler.activation}", "", f"{count_parameters(model.pooler):,}"
    )
    return table


def _looks(sublayer: str, block: BlockConfig) -> str:
    if sublayer == "ffn":
        return "ffn"
    streams = block.streams
    if sublayer == "joint":
        return "text+image -> text+image"
    other = {"text": "image", "image": "text"}
    return " / ".join(f"{stream} -> {other[stream] if sublayer == 'cross' else stream}" for stream in streams)
