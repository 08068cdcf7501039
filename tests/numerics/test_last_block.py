"""The pooled vectors that come of a last block in which only the pooler's rows are worked out are the whole model's.

Measured in float64: at most 2e-15 on vectors of size up to 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.examples import batch_of, double, example, of_blocks, shaken, shipped
from tests.numerics.test_batch_independence import TINY, picture
from vlp.data.batch import collate
from vlp.models.halves import unimodal
from vlp.models.image import images_of
from vlp.models.lastblock import pooled
from vlp.models.model import Network
from vlp.types import Batch

TOLERANCE = 1e-12
SHARED: dict[str, Any] = {"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}
LASTS: dict[str, list[dict[str, Any]]] = {
    "joint": [SHARED, SHARED],
    "joint, pre": [{**SHARED, "norm": "pre"}],
    "joint of two modalities": [{"stream": "both", "sublayers": ["joint", "ffn"]}],
    "joint, then experts": [SHARED, {"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint"]}],
    "cross": [{"stream": "both", "sublayers": ["cross", "self", "ffn"], "share": ["cross"]}],
    "cross behind self": [{"stream": "both", "sublayers": ["self", "cross", "ffn"]}],
    "joint, then self": [{"stream": "both", "sublayers": ["joint", "self", "ffn"], "share": ["joint"]}],
    "self, then joint": [{"stream": "both", "sublayers": ["self", "joint", "norm"], "share": ["joint", "norm"]}],
    "text looks at the image": [
        {"stream": "image", "sublayers": ["self", "ffn"]},
        {"stream": "text", "sublayers": ["self", "cross", "ffn"]},
    ],
    "a tower behind": [SHARED, {"stream": "image", "sublayers": ["self", "ffn"]}],
    "one set of weights": [{**SHARED, "repeat": 3, "one_set": True}],
    "a bridge": [SHARED, {"stream": "both", "linear": 16, "sublayers": ["cross", "ffn"]}],
    "never met": [{"stream": "both", "sublayers": ["self", "ffn"]}],
}
POOLERS: dict[str, dict[str, Any]] = {
    "first": {},
    "mask": {"at": "mask"},
    "both": {"fusion": "product"},
}
SIZES = [(4, 3), (6, None), (3, 1), (5, 4)]


def found(model: Network, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled vectors of the whole model, and of the wanted rows alone."""
    with torch.inference_mode():
        return model(batch).pooled_BH, pooled(model, *unimodal(model, batch), batch)


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("last", LASTS)
def test_rows_alone_are_those_of_the_whole(last: str, pooler: str) -> None:
    model = shaken(Network(of_blocks(*LASTS[last], pooler=POOLERS[pooler]))).double().eval()
    whole, alone = found(model, double(batch_of(SIZES)))
    assert whole.std() > 0.01
    torch.testing.assert_close(alone, whole, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", TINY)
def test_of_every_shipped_model(name: str) -> None:
    torch.manual_seed(0)
    model = shaken(Network(shipped(name))).double().eval()
    images = images_of(model.config.image)
    made = [example(size, picture(images, 2 + size, size), size) for size in (4, 7, 5)]
    whole, alone = found(model, double(collate(made, images.form, {})))
    torch.testing.assert_close(alone, whole, rtol=0, atol=TOLERANCE)


def test_a_batch_of_nothing_has_no_vectors() -> None:
    model = Network(of_blocks(*LASTS["cross"])).eval()
    assert found(model, batch_of([]))[1].shape == (0, 16)


def test_a_text_read_from_left_to_right_is_not_cut_short() -> None:
    model = shaken(Network(of_blocks(*LASTS["joint"]))).double().eval()
    batch = double(batch_of([(4, 3), (5, 2)]))
    batch.text.causal_B = torch.tensor([True, False])
    whole, alone = found(model, batch)
    torch.testing.assert_close(alone, whole, rtol=0, atol=TOLERANCE)


def rows_of(model: Network, batch: Batch, module: nn.Module) -> int:
    """Rows that go through a module."""
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.inference_mode():
        pooled(model, *unimodal(model, batch), batch)
    handle.remove()
    return int(np.sum(seen))


def test_only_wanted_rows_go_through_the_last_block() -> None:
    batch = batch_of([(4, 3), (6, 5)])
    single = Network(of_blocks(SHARED, SHARED)).eval()
    first, last = (block.sublayers["ffn"].weights["both"].up for block in single.encoder.blocks)
    assert (rows_of(single, batch, first), rows_of(single, batch, last)) == (18, 2)
    dual = Network(of_blocks(*LASTS["cross"])).eval()
    sublayers = dual.encoder.blocks[0].sublayers
    assert rows_of(dual, batch, sublayers["ffn"].weights["text"].up) == 2
    assert rows_of(dual, batch, sublayers["self"].weights["image"].attention.query) == 0
    assert rows_of(dual, batch, sublayers["cross"].weights["both"].attention.query) == 10
