"""The timm model behind a backbone: how it is made, its stages, what timm's checkpoints call its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlp.errors import ConfigError, nearest

if TYPE_CHECKING:
    from vlp.models.backbone import PixelSource

KEY = "model.image.source"


def _timm() -> Any:
    """timm, which is slow to import, with the architecture that it knows from us."""
    import timm

    import vlp.models.smallvgg  # noqa: F401

    return timm


def make_network(source: PixelSource) -> Any:
    """The timm model, its weights random or timm's own.

    Raises:
        ConfigError: timm has no such model, or cannot make it so.
    """
    timm = _timm()
    form: dict[str, Any] = {"features_only": True, "out_indices": (source.level,)}
    if source.take == "tokens":
        form = {"num_classes": 0}
    arguments = _arguments(source) | form
    try:
        network = timm.create_model(source.backbone, pretrained=source.pretrained, **arguments)
    except (TypeError, RuntimeError, ValueError, AssertionError, LookupError, OSError) as error:
        raise ConfigError(f"{KEY}: timm cannot make '{source.backbone}' so: {error}") from None
    if source.drop_path == 0:  # some have a rate of their own: Swin's is 0.1
        for module in network.modules():
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0
    return network


def plain_network(source: PixelSource) -> Any:
    """The timm model without its classifier and as timm's checkpoints name its parameters, on the meta device."""
    timm = _timm()
    with torch.device("meta"):
        return timm.create_model(source.backbone, pretrained=False, num_classes=0, **_arguments(source))


def plain_names(names: Sequence[str], plain: Mapping[str, Any]) -> dict[str, str]:
    """For each of a network's names the one in timm's checkpoints: a taker of feature maps renames some.

    Raises:
        LookupError: a name has no counterpart.
    """
    found = {}
    for name in names:
        candidates = (name, name.removeprefix("model."), re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", name))
        match = next((candidate for candidate in candidates if candidate in plain), None)
        if match is None:
            raise LookupError(name)
        found[name] = match
    return found


def _arguments(source: PixelSource) -> dict[str, Any]:
    facts = known(source)
    arguments = dict(source.arguments)
    if facts.fixed_input_size and source.size != facts.input_size[-1]:
        arguments.setdefault("img_size", source.size)
    if source.drop_path:
        arguments.setdefault("drop_path_rate", source.drop_path)
    return arguments


def known(source: PixelSource) -> Any:
    """What timm knows of a backbone's weights: size, mean, ..."""
    timm = _timm()
    architecture, _, tag = source.backbone.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(source.backbone, timm.list_models())
        raise ConfigError(f"{KEY}.backbone: timm has no '{source.backbone}'{hint}")
    if tag and source.backbone not in timm.list_pretrained(f"{architecture}.*"):
        hint = nearest(source.backbone, timm.list_pretrained(f"{architecture}.*"))
        raise ConfigError(f"{KEY}.backbone: timm has no weights '{source.backbone}'{hint}")
    return timm.get_pretrained_cfg(source.backbone)


def set_checkpointing(network: Any, source: PixelSource) -> None:
    """Recompute activations in backward, if the config says so.

    Raises:
        ConfigError: the model cannot.
    """
    if not source.checkpointing:
        return
    owner = network if hasattr(network, "set_grad_checkpointing") else getattr(network, "model", None)
    try:
        owner.set_grad_checkpointing(True)  # type: ignore[union-attr]
    except (AttributeError, AssertionError):
        raise ConfigError(f"{KEY}.checkpointing: '{source.backbone}' cannot recompute; write false") from None


def untrained(source: PixelSource, names: Sequence[str]) -> frozenset[str]:
    """The names that `train` keeps as they are.

    Raises:
        ConfigError: the model has fewer stages, or timm does not say what they are.
    """
    if not isinstance(source.train, int):
        return frozenset(names) if source.train == "none" else frozenset()
    stages = _stages(source, names)
    last = max(stages.values())
    if source.train > last:
        raise ConfigError(f"{KEY}.train: '{source.backbone}' has {last} stages, not {source.train}; or write all")
    return frozenset(name for name in names if stages[name] <= last - source.train)


def _stages(source: PixelSource, names: Sequence[str]) -> dict[str, int]:
    """The stage of each parameter, 0 for the stem; what stands behind the last stage belongs to it."""
    from timm.models import group_parameters

    plain = plain_network(source)
    try:
        matcher = plain.group_matcher(coarse=True)
        groups = group_parameters(plain, matcher, reverse=True)
        patterns = [entry[0] for spec in matcher.values() for entry in ([(spec,)] if isinstance(spec, str) else spec)]
        last = max(stage for name, stage in groups.items() if any(re.match(pattern, name) for pattern in patterns))
        counterparts = plain_names(names, groups)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ConfigError(
            f"{KEY}.train: timm does not say what the stages of '{source.backbone}' are; write all or none"
        ) from None
    return {name: min(groups[own], last) for name, own in counterparts.items()}


def output_of(network: Any, source: PixelSource, pixels_P3HW: Tensor) -> Tensor:
    """What the network gives: a map [P, h, w, D], or tokens [P, L, D]."""
    output: Tensor = network.forward_features(pixels_P3HW) if source.take == "tokens" else network(pixels_P3HW)[-1]
    last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    return output if output.ndim != 4 or last else output.permute(0, 2, 3, 1)
