"""A VGG of any width, registered with timm: `backbone: vgg_small`, `arguments: {channels: [8, 16, 32]}`.

timm's own VGGs begin at 9 million weights. A few thousand do for drawings, and they learn from random weights within
minutes, since nothing in them waits: no norm that stays as it starts, no residual branch that is silent at first.
Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vgg import VGG

NAME = "vgg_small"

# What timm asks of every architecture; `.untrained` has no weights.
default_cfgs = generate_default_cfgs(
    {
        f"{NAME}.untrained": {
            "input_size": (3, 224, 224),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "features.0",
            "classifier": "head.fc",
        }
    }
)


@register_model
def vgg_small(pretrained: bool = False, channels: Sequence[int] = (16, 32, 64, 128), **arguments: Any) -> Any:
    """A stage per number: a convolution of 3 x 3 to so many channels, ReLU, and the largest of each 2 x 2 cells."""
    layers = [layer for width in channels for layer in (width, "M")]
    return build_model_with_cfg(
        VGG, NAME, pretrained, model_cfg=layers, feature_cfg={"flatten_sequential": True}, **arguments
    )
