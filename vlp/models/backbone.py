"""Pixels through a timm model: the cells of a feature map, or the model's own tokens, each with its box.

Shape suffixes: P images; L tokens of one image; D width of a feature.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Auto, Config
from vlp.data.pixels import Fit
from vlp.errors import ConfigError
from vlp.models.kernels import wide_products
from vlp.models.linear import Linear
from vlp.models.timmnetwork import KEY, known, make_network, output_of, set_checkpointing, untrained

Spread = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
_LAYER_SCALE = re.compile(r"(^|\.)(gamma(_?\d)?|layer_scale_?\d?\.scale)$")
"""What timm calls the learned gains of residual branches (Touvron et al. 2021, arXiv 2103.17239)."""


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
        elif not source.pretrained:
            _wake(network)
        self.network: nn.Module = freeze_batch_norm_2d(network)  # type: ignore[no-untyped-call]
        for module in self.network.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules()):
            raise ConfigError(
                f"{KEY}.backbone: '{source.backbone}' has batch norms that cannot be frozen, so a step would depend on "
                "how it is split; take another backbone"
            )
        set_checkpointing(self.network, source)
        frozen = unused | untrained(source, [name for name, _ in self.network.named_parameters()])
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
        with nullcontext() if self.source.checkpointing else wide_products(pixels_P3HW):
            output = output_of(self.network, self.source, pixels_P3HW)
        return output.flatten(1, 2) if output.ndim == 4 else output

    def _normalised(self, pixels_P3HW: Tensor) -> Tensor:
        """(x / 255 - mean) / std in fp32, then in the type of the weights."""
        mean, std = (torch.tensor(each, device=pixels_P3HW.device)[:, None, None] for each in self._normalisation)
        weights = next(self.network.parameters())
        return ((pixels_P3HW.float() / 255 - mean) / std).to(weights.dtype)


def _wake(network: nn.Module) -> None:
    """Give residual branches that random weights leave silent a voice of 1.

    Batch norms at their ends often start with gains of 0 (Goyal et al. 2017, arXiv 1706.02677, 5.1), which would be
    learned; frozen, they would stay so for ever. Layer scales start near 0 (ConvNeXt's at 1e-6), from where a training
    of a few thousand steps does not bring them.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            silent = not module.weight.is_meta and not module.weight.any()
            if silent:
                nn.init.ones_(module.weight)
    for name, parameter in network.named_parameters():
        if _LAYER_SCALE.search(name) and not parameter.is_meta and parameter.abs().max() < 1e-3:
            nn.init.ones_(parameter)


def grid_of(source: PixelSource) -> Grid:
    """The tokens of one image, found by running the backbone on the meta device.

    Raises:
        ConfigError: timm has no such backbone, or it takes no images of this size.
    """
    return _probe(source)[0]


def normalisation(source: PixelSource) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel, `auto` taken from what timm knows of the weights."""
    facts = known(source)
    mean: Triple = tuple(facts.mean) if source.mean == "auto" else source.mean
    std: Triple = tuple(facts.std) if source.std == "auto" else source.std
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
            output = output_of(network, source, torch.zeros(1, 3, source.size, source.size))
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
