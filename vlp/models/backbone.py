"""Pixels through a timm model: the cells of a feature map, or the model's own tokens, each with its box.

Shape suffixes: P images; L tokens of one image; D width of a feature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Auto, Config
from vlp.data.pixels import Fit
from vlp.errors import ConfigError, nearest

Spread = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
KEY = "model.image.source"


class PixelSource(Config):
    """Pixels through a timm backbone."""

    kind: Literal["pixels"]
    backbone: str
    """Name of a timm model, for instance `resnet50` or `vit_base_patch16_224.augreg_in21k`."""
    pretrained: bool = False
    """Load timm's weights (from its cache or the hub)."""
    weights: str | None = None
    """A file of weights under timm's names (safetensors, or a checkpoint of plain tensors), instead of `pretrained`."""
    arguments: dict[str, Any] = {}
    """Further arguments of the backbone, as timm names them."""
    take: Literal["map", "tokens"] = "map"
    """`map`: one token per cell of a feature map. `tokens`: what the whole network makes before it pools, so a ViT's
    normed patches with its class token first (whose box is the whole image)."""
    level: int = -1
    """Which feature map: -1 the last (coarsest), -2 the one before."""
    size: int = Field(224, gt=0)
    """Images are resized to size x size pixels. A backbone whose weights were made at another size gets its table of
    positions interpolated."""
    fit: Fit = "squash"
    """How an image becomes a square: `squash` scales width and height by themselves, so that all of it is seen; `crop`
    cuts out the square in its middle. Training may look at other parts (`data.augment`)."""
    mean: Triple | Auto = "auto"
    """Mean per channel that is subtracted; `auto` is what the backbone's weights were trained with."""
    std: tuple[Spread, Spread, Spread] | Auto = "auto"
    """Standard deviation per channel that is divided by; `auto` likewise."""
    train: Literal["all", "none"] | Annotated[int, Field(gt=0)] = "all"
    """What of the backbone is trained along: all, none, or its last N stages (the blocks of a ViT, the stages of a
    ResNet, Swin or ConvNeXt). Batch norms keep their statistics and gains in any case."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Probability of skipping a residual branch, growing linearly from 0 (stochastic depth)."""
    checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    sample: int | None = Field(None, gt=0)
    """Pre-training takes this many random tokens of an image, drawn anew each epoch (Huang et al. 2020, arXiv
    2004.00849, 3.4); everything else takes all."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights:
            raise ValueError("pretrained and weights are both given; take one back")
        return self

    def without_downloads(self) -> Self:
        """The source of a backbone whose weights come from elsewhere."""
        return self.model_copy(update={"pretrained": False, "weights": None})

    def filled(self) -> Self:
        """The source with `auto` mean and standard deviation filled in."""
        mean, std = normalisation(self)
        return self.model_copy(update={"mean": mean, "std": std})


@dataclass(frozen=True, slots=True)
class Grid:
    """The tokens that a backbone makes of one image: some of the whole image, then cells in reading order."""

    rows: int
    columns: int
    prefix: int
    """Tokens of the whole image that come before the cells."""
    width: int
    """Numbers per token."""

    @property
    def tokens(self) -> int:
        return self.prefix + self.rows * self.columns

    def boxes(self) -> Tensor:
        """Where each token lies, [L, 4] as shares of the image."""
        rows, columns = self.rows, self.columns
        y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
        cells = torch.stack([x, y, x + 1 / columns, y + 1 / rows], dim=-1).flatten(0, 1)
        return torch.cat([torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(self.prefix, 4), cells])


class Backbone(nn.Module):
    """A timm model as a maker of image tokens.

    Batch norms are replaced by their frozen twins: a batch statistic would make the loss depend on how a step is split.
    Parameters that the tokens do not depend on (a pooling layer's, say) are frozen too, since ZeRO waits for a gradient
    of each trained one.

    Raises:
        ConfigError: timm has no such model, or cannot make it so.
    """

    def __init__(self, source: PixelSource) -> None:
        super().__init__()
        from timm.layers import freeze_batch_norm_2d  # type: ignore[attr-defined]

        self.grid, unused = _probe(source)
        self.source = source
        self._normalisation = normalisation(source)
        network: Any = make_network(source)
        if source.weights is not None:
            from vlp.models.backboneweights import load_backbone

            load_backbone(network, source)
        self.network: nn.Module = freeze_batch_norm_2d(network)  # type: ignore[no-untyped-call]
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules()):
            raise ConfigError(
                f"{KEY}.backbone: '{source.backbone}' has batch norms that cannot be frozen, so a step would depend on "
                "how it is split; take another backbone"
            )
        _set_checkpointing(self.network, source)
        frozen = unused | _untrained(source, [name for name, _ in self.network.named_parameters()])
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in frozen)

    def train(self, mode: bool = True) -> Self:
        """What is not trained drops nothing either."""
        super().train(mode)
        for module in self.network.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def forward(self, pixels_P3HW: Tensor) -> Tensor:
        """Tokens, [P, L, D], of bytes as decoded or of floats that are normalised already."""
        if not pixels_P3HW.is_floating_point():
            pixels_P3HW = self._normalised(pixels_P3HW)
        return _tokens(self.network, self.source, pixels_P3HW)

    def _normalised(self, pixels_P3HW: Tensor) -> Tensor:
        """(x / 255 - mean) / std in fp32, then in the type of the weights."""
        mean, std = (torch.tensor(each, device=pixels_P3HW.device)[:, None, None] for each in self._normalisation)
        weights = next(self.network.parameters())
        return ((pixels_P3HW.float() / 255 - mean) / std).to(weights.dtype)


def grid_of(source: PixelSource) -> Grid:
    """The tokens of one image, found by running the backbone on the meta device.

    Raises:
        ConfigError: timm has no such backbone, or it takes no images of this size.
    """
    return _probe(source)[0]


def normalisation(source: PixelSource) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel, `auto` taken from what timm knows of the weights."""
    known = _known(source)
    mean: Triple = tuple(known.mean) if source.mean == "auto" else source.mean
    std: Triple = tuple(known.std) if source.std == "auto" else source.std
    return mean, std


def _probe(source: PixelSource) -> tuple[Grid, frozenset[str]]:
    """The grid, and the names of the parameters that it does not depend on."""
    return _probed(source.without_downloads().model_dump_json())


@lru_cache(maxsize=64)
def _probed(text: str) -> tuple[Grid, frozenset[str]]:
    source = PixelSource.model_validate_json(text)
    with torch.device("meta"), torch.enable_grad():
        network = make_network(source).eval()
        parameters = dict(network.named_parameters())
        try:
            output = _output(network, source, torch.zeros(1, 3, source.size, source.size))
            gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{KEY}.size: '{source.backbone}' takes no images of {source.size} x {source.size} pixels: {error}"
            ) from None
    unused = frozenset(name for name, grad in zip(parameters, gradients, strict=True) if grad is None)
    return _grid(network, source, output), unused


def _grid(network: nn.Module, source: PixelSource, output: Tensor) -> Grid:
    if output.ndim == 4:
        return Grid(int(output.shape[1]), int(output.shape[2]), 0, int(output.shape[3]))
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    rows, columns = getattr(getattr(network, "patch_embed", None), "grid_size", (0, 0))
    if output.ndim != 3 or prefix + rows * columns != output.shape[1]:
        raise ConfigError(f"{KEY}.take: the tokens of '{source.backbone}' are no grid; write take: map")
    return Grid(rows, columns, prefix, int(output.shape[2]))


def make_network(source: PixelSource) -> Any:
    """The timm model, its weights random or timm's own.

    Raises:
        ConfigError: timm has no such model, or cannot make it so.
    """
    import timm

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
                module.drop_prob = 0.0  # type: ignore[assignment]
    return network


def plain_network(source: PixelSource) -> Any:
    """The timm model without its classifier and as timm's checkpoints name its parameters, on the meta device."""
    import timm

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
    known = _known(source)
    arguments = dict(source.arguments)
    if known.fixed_input_size and source.size != known.input_size[-1]:
        arguments.setdefault("img_size", source.size)
    if source.drop_path:
        arguments.setdefault("drop_path_rate", source.drop_path)
    return arguments


def _known(source: PixelSource) -> Any:
    """What timm knows of a backbone's weights: size, mean, ..."""
    import timm

    architecture, _, tag = source.backbone.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(source.backbone, timm.list_models())
        raise ConfigError(f"{KEY}.backbone: timm has no '{source.backbone}'{hint}")
    if tag and source.backbone not in timm.list_pretrained(f"{architecture}.*"):
        hint = nearest(source.backbone, timm.list_pretrained(f"{architecture}.*"))
        raise ConfigError(f"{KEY}.backbone: timm has no weights '{source.backbone}'{hint}")
    return timm.get_pretrained_cfg(source.backbone)


def _set_checkpointing(network: Any, source: PixelSource) -> None:
    if not source.checkpointing:
        return
    owner = network if hasattr(network, "set_grad_checkpointing") else getattr(network, "model", None)
    try:
        owner.set_grad_checkpointing(True)  # type: ignore[union-attr]
    except (AttributeError, AssertionError):
        raise ConfigError(f"{KEY}.checkpointing: '{source.backbone}' cannot recompute; write false") from None


def _untrained(source: PixelSource, names: Sequence[str]) -> frozenset[str]:
    """The names that `train` keeps as they are."""
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


def _output(network: Any, source: PixelSource, pixels_P3HW: Tensor) -> Tensor:
    """What the network gives: a map [P, h, w, D], or tokens [P, L, D]."""
    output: Tensor = network.forward_features(pixels_P3HW) if source.take == "tokens" else network(pixels_P3HW)[-1]
    last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    return output if output.ndim != 4 or last else output.permute(0, 2, 3, 1)


def _tokens(network: Any, source: PixelSource, pixels_P3HW: Tensor) -> Tensor:
    output = _output(network, source, pixels_P3HW)
    return output.flatten(1, 2) if output.ndim == 4 else output
