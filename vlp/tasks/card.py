"""The card of a model: what it is, what it was trained with, on what, and how it did, as Markdown for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from vlp.config import Config
from vlp.models.blocks import rows_of
from vlp.models.image import RegionSource
from vlp.models.model import ModelConfig, count_parameters, meta_model

CARD_FILE = "README.md"
TRAINING_FILE = "training.json"


class DataFacts(Config):
    """A dataset that a model was trained on."""

    name: str
    """The last part of its directory's path."""
    examples: int = Field(ge=0)
    """(image, text) pairs."""
    fingerprint: str
    """What its index calls it."""
    made_by: dict[str, Any] = {}
    """What its manifest says of where it comes from."""


class Training(Config):
    """How a model came to be."""

    steps: int = Field(ge=0)
    """Optimizer steps."""
    recipe: dict[str, Any]
    """The run's config, without the model (it is saved beside) and without paths of the machine."""
    data: tuple[DataFacts, ...]
    """What it was trained on."""
    judged_on: DataFacts | None = None
    """What the metrics are of."""
    metrics: dict[str, float] = {}
    """The last evaluation."""
    versions: dict[str, str] = {}
    """Of the packages."""


def model_card(config: ModelConfig, task: str | None, training: Training | None, name: str) -> str:
    """A model's card.

    Args:
        config: of the model.
        task: what it was trained for, if that is known.
        training: how, if that is known.
        name: what it is called.
    """
    parts = [_front(task, training), f"# {name}", _summary(config, task), _use(config, name), _architecture(config)]
    if training is not None:
        parts += [_training(training), _data(training), _metrics(training)]
    parts.append(_limits(training))
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(task: str | None, training: Training | None) -> str:
    """What the hub reads: tags and metrics."""
    values: dict[str, Any] = {
        "library_name": "vlp",
        "tags": ["vision-language", "safetensors", *([task] if task else [])],
    }
    if training is not None and training.metrics:
        values["metrics"] = sorted(training.metrics)
    return "---\n" + yaml.safe_dump(values, sort_keys=False) + "---"


def _summary(config: ModelConfig, task: str | None) -> str:
    source = config.image.source
    if isinstance(source, RegionSource):
        image = f"regions of a detector ({source.width} numbers each, {source.max_regions} at most)"
    else:
        image = f"pixels ({source.size} x {source.size})"
    if config.image.grid is not None:
        image += f" and a grid of {config.image.grid.source.backbone} over the whole picture"
    trained = f", trained for {task}" if task else ""
    parameters = count_parameters(meta_model(config))
    return (
        f"A vision-language transformer of {parameters:,} parameters{trained}. It reads texts of up to "
        f"{config.text.max_length} tokens and images as {image}. Made with vlp; the weights are safetensors."
    )


def _use(config: ModelConfig, name: str) -> str:
    regions = isinstance(config.image.source, RegionSource)
    image = 'regions=["photo.npz"]' if regions else 'images=["photo.jpg"]'
    if config.image.grid is not None:
        image = 'images=["photo.jpg"], regions=["photo.npz"]'
    return (
        "## Use\n\n```python\nfrom vlp import VisionLanguageModel\n\n"
        f'model = VisionLanguageModel.from_pretrained("{name}")\n'
        f'features = model.encode({image}, texts=["what the photo shows"])\n'
        "features.pooled  # [1, width]\n```"
    )


def _architecture(config: ModelConfig) -> str:
    rows = ["## Architecture", "", "| stream | repeat | sublayers | shared by both |", "|---|---|---|---|"]
    for block in rows_of(config.encoder):
        what = ([f"linear to {block.linear}"] if block.linear else []) + list(block.sublayers)
        rows.append(f"| {block.stream} | {block.repeat} | {', '.join(what)} | {', '.join(block.share) or '-'} |")
    return "\n".join(rows)


def _training(training: Training) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in training.versions.items())
    recipe = yaml.safe_dump(training.recipe, sort_keys=False, allow_unicode=True, width=100)
    with_versions = f" with {versions}" if versions else ""
    return f"## Training\n\n{training.steps:,} steps{with_versions}. The recipe:\n\n```yaml\n{recipe}```"


def _data(training: Training) -> str:
    rows = ["## Data", "", "| dataset | examples | fingerprint |", "|---|---|---|"]
    rows += [f"| {each.name} | {each.examples:,} | {each.fingerprint} |" for each in training.data]
    made = {each.name: each.made_by for each in training.data if each.made_by}
    if made:
        rows += ["", "Made by:", "", "```yaml", yaml.safe_dump(made, sort_keys=False).rstrip(), "```"]
    return "\n".join(rows)


def _metrics(training: Training) -> str:
    if not training.metrics:
        return ""
    on = training.judged_on
    said = f" on {on.name} ({on.examples:,} examples, fingerprint {on.fingerprint})" if on else ""
    rows = [f"## Metrics\n\nOf the last evaluation{said}.\n", "| metric | value |", "|---|---|"]
    return "\n".join([*rows, *(f"| {name} | {value:.4g} |" for name, value in training.metrics.items())])


def _limits(training: Training | None) -> str:
    judged = "the metrics above" if training is not None and training.metrics else "nothing that is recorded here"
    return (
        "## Limits\n\n"
        f"It was judged by {judged}; how it does on other images, words and tasks is not known. It repeats what its "
        "data hold, their errors and prejudices included."
    )


def shown(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data as a card shows it: of a path on this machine only the last part."""
    return {key: _shown(value) for key, value in values.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return shown(value)
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value]
    is_path = isinstance(value, str) and ("/" in value or "\\" in value) and Path(value).expanduser().exists()
    return Path(value).name if is_path or (isinstance(value, str) and Path(value).is_absolute()) else value
