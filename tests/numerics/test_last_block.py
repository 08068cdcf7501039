"""A last block that works out only the rows that are read gives the states, losses and gradients of the whole model.

Measured in float64: at most 2e-15 on states of size up to 10, 2e-13 on gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.distributed.test_global_batch import module_of
from tests.examples import SMALL, Words, batch_of, double, example, of_blocks, sample, shaken, shipped
from tests.numerics.test_batch_independence import TINY, picture
from vlp.data.batch import collate, with_texts
from vlp.data.packing import pack
from vlp.models.halves import joined, unimodal
from vlp.models.image import images_of
from vlp.models.model import Network
from vlp.objectives.read import rows_read
from vlp.seeds import draw
from vlp.tasks.module import TaskModule
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.tasks.task import Setting
from vlp.types import Batch, Encoded, Pair, Read, Slot

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
    "norms behind": [
        {**SHARED, "norm": "pre"},
        {"stream": "both", "sublayers": ["norm"], "share": ["norm"]},
        {"stream": "text", "sublayers": ["ffn"]},
    ],
    "norm of the only block's": [{**SHARED, "sublayers": ["joint", "norm", "ffn"]}],
    "never met": [{"stream": "both", "sublayers": ["self", "ffn"]}],
}
POOLERS: dict[str, dict[str, Any]] = {
    "first": {},
    "mask": {"at": "mask"},
    "both": {"fusion": "product"},
}
SIZES = [(4, 3), (6, None), (3, 1), (5, 4)]
ROWS: dict[str, tuple[list[int], list[int]]] = {
    "of both": ([1, 4, 5, 9, 16], [0, 2, 7]),
    "all words": (list(range(18)), [3]),
    "all regions": ([0, 17], list(range(8))),
    "no region by chance": ([2, 5], []),
    "nothing": ([], []),
    "every row": (list(range(18)), list(range(8))),
}
"""Rows of text and image that are read, beside the pooler's."""
KINDS = ("some", "never", "whole")
"""What is known of images beforehand: that some may be read, that none ever is, that all are."""
FIRST = [0, 4, 10, 13]


def read(rows: tuple[list[int], list[int]], kind: str = "some") -> Batch:
    """A batch of which these rows are read, and the pooler's."""
    batch = double(batch_of(SIZES))
    batch.read = {}
    every = (sorted({*rows[0], *FIRST}), rows[1])
    for stream, own, packing in zip(("text", "image"), every, (batch.text.packing, batch.image.packing), strict=True):
        examples_N = np.arange(len(packing)).repeat(packing.lengths)
        lengths = np.bincount(examples_N[own], minlength=len(packing)).tolist()
        batch.read[stream] = Read(torch.tensor(own, dtype=torch.int64), pack(lengths))
    batch.read["image"].ever = kind != "never"
    if kind == "whole":
        del batch.read["image"]
    return batch


def gradients(model: Network, found: Encoded, rows: tuple[list[int], list[int]]) -> list[Tensor]:
    """The rows, and what a sum of their squares gives every parameter."""
    model.zero_grad()
    states = [found.text_NH[rows[0]], found.image_MH[rows[1]]]
    unread = found.text_NH[:0].sum() + found.image_MH[:0].sum() + found.pooled_BH[:0].sum()
    (unread + sum((each**2).sum() for each in states)).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in model.parameters())
    return [*states, *(parameter.grad for parameter in model.parameters())]  # type: ignore[list-item]


CASES = [(rows, kind) for rows in ROWS for kind in KINDS if kind != "never" or not ROWS[rows][1]]


@pytest.mark.parametrize(("rows", "kind"), CASES)
@pytest.mark.parametrize("last", LASTS)
def test_states_and_gradients_of_rows_that_are_read_are_those_of_the_whole(last: str, rows: str, kind: str) -> None:
    model = shaken(Network(of_blocks(*LASTS[last]))).double()
    whole = gradients(model, model(double(batch_of(SIZES))), ROWS[rows])
    narrow = gradients(model, model(read(ROWS[rows], kind)), ROWS[rows])
    for own, wanted in zip(narrow, whole, strict=True):
        torch.testing.assert_close(own, wanted, rtol=0, atol=TOLERANCE)
    if rows != "nothing":
        assert max(wanted.abs().max() for wanted in whole[2:]) > 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_that_nobody_reads_are_no_numbers(checkpointing: bool) -> None:
    model = shaken(Network(of_blocks(*LASTS["joint"], checkpointing=checkpointing))).double()
    found = model(read(text_and_image := ROWS["of both"]))
    for states, rows in zip((found.text_NH, found.image_MH), text_and_image, strict=True):
        numbers = {row for row in range(len(states)) if states[row].isfinite().all()}
        assert numbers == {*rows, *(FIRST if rows is text_and_image[0] else ())}


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("last", LASTS)
def test_pooled_vectors_are_those_of_the_whole(last: str, pooler: str) -> None:
    model = shaken(Network(of_blocks(*LASTS[last], pooler=POOLERS[pooler]))).double().eval()
    whole, alone = found(model, double(batch_of(SIZES)))
    assert whole.std() > 0.01
    torch.testing.assert_close(alone, whole, rtol=0, atol=TOLERANCE)


def found(model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """The pooled vectors of the whole model, and of the pooler's rows alone, from states where the streams meet."""
    with torch.inference_mode():
        whole = model(batch).pooled_BH
        halves = unimodal(model, batch)
        batch.read = rows_read(batch, (), model.config.pooler)
        return whole, joined(model, *halves, batch).pooled_BH


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
    found(model, batch)
    handle.remove()
    return int(np.sum(seen[len(seen) // 2 :]))


def test_only_rows_that_are_read_go_through_the_last_block() -> None:
    single = Network(of_blocks(SHARED, SHARED)).eval()
    first, last = (block.sublayers["ffn"].weights["both"].up for block in single.encoder.blocks)
    assert [rows_of(single, batch_of([(4, 3), (6, 5)]), each) for each in (first, last)] == [18, 2]
    dual = Network(of_blocks(*LASTS["cross"])).eval()
    sublayers = dual.encoder.blocks[0].sublayers
    modules = {
        sublayers["ffn"].weights["text"].up: 2,
        sublayers["ffn"].weights["image"].up: 0,
        sublayers["self"].weights["image"].attention.key_value: 0,
        sublayers["cross"].weights["both"].attention.query: 10,
        sublayers["cross"].weights["both"].attention.key_value: 8,
    }
    assert [rows_of(dual, batch_of([(4, 3), (6, 5)]), each) for each in modules] == list(modules.values())


# ------------------------------------------------------------------------------------------- what objectives read

REGIONS = {"region_hiding": {"probability": 0.4}}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "words": {"objectives": {"mlm": {"kind": "masked_language"}}},
    "pairs": {"objectives": {"itm": {"kind": "matching"}}},
    "regions": {"objectives": {"mrfr": {"kind": "region_feature"}, "mrc": {"kind": "region_class"}}, **REGIONS},
    "alignment": {
        "objectives": {"itm": {"kind": "matching"}, "wra": {"kind": "word_region_alignment", "along_with": "itm"}}
    },
    "contrast": {"objectives": {"itc": {"kind": "contrast", "width": 8}, "mlm": {"kind": "masked_language"}}},
    "captions": {"objectives": {"lm": {"kind": "prefix_language"}}},
    "all": {
        "objectives": {
            "mlm": {"kind": "masked_language"},
            "itm": {"kind": "matching"},
            "obj": {"kind": "region_class", "over": "all"},
        },
        **REGIONS,
    },
}


def task_of(name: str, objectives: str) -> PretrainTask:
    setting = Setting(shipped(name, *SMALL, "pooler.dropout=0"), Words(), seed=0)  # type: ignore[arg-type]
    return PretrainTask(PretrainConfig.parse(OBJECTIVES[objectives]), setting)


def made(name: str, objectives: str) -> tuple[TaskModule, Batch]:
    task = task_of(name, objectives)
    module = module_of(task)
    examples = []
    for number in range(5):
        slot = Slot(0, number, dataset=0, epoch=0, block=0, group=0, example=number)
        record = sample(7, 4, number)
        pair = Pair(number, number, matched=number != 2)
        examples.append([task.example(slot, pair, record, record, 0, draw(0, "example", number), 0)])
    return module.double(), double(task.collate(examples, 0))


def losses(module: TaskModule, batch: Batch) -> dict[str, Tensor]:
    module.zero_grad()
    sums = module(batch).sums
    sum(sums.values()).backward()  # type: ignore[union-attr]
    return sums | {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["uniter_tiny", "lxmert_tiny", "vilbert_tiny"])
@pytest.mark.parametrize("objectives", sorted({*OBJECTIVES} - {"alignment"}))
def test_losses_and_gradients_are_those_of_the_whole(name: str, objectives: str) -> None:
    check(*made(name, objectives))


@pytest.mark.parametrize("name", ["uniter_tiny", "lxmert_tiny"])
def test_alignment_reads_all(name: str) -> None:
    check(*made(name, "alignment"))


def check(module: TaskModule, batch: Batch) -> None:
    narrow = losses(module, batch)
    batch.read = {}
    whole = losses(module, batch)
    assert narrow.keys() == whole.keys()
    for key, wanted in whole.items():
        torch.testing.assert_close(narrow[key], wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_what_objectives_read() -> None:
    _, batch = made("uniter_tiny", "words")
    first = batch.text.packing.starts_B1[:-1].tolist()
    assert batch.read["text"].rows_W.tolist() == sorted({*first, *batch.targets["mlm"].positions_K.tolist()})
    assert not batch.read["image"].ever
    assert batch.read["image"].rows_W.tolist() == []
    assert sum(batch.read["text"].packing.lengths) == len(batch.read["text"].rows_W)
    _, batch = made("uniter_tiny", "regions")
    assert batch.read["image"].rows_W.tolist() == batch.targets["mrc"].positions_K.tolist()
    assert {name: made("uniter_tiny", name)[1].read.keys() for name in ("all", "alignment", "captions")} == {
        "all": {"text"},
        "alignment": set(),
        "captions": set(),
    }


def test_what_is_known_beforehand_does_not_depend_on_the_batch() -> None:
    """Ranks whose gradients came in another order would have them added to those of other weights."""
    for name in OBJECTIVES:
        task = task_of("uniter_tiny", name)
        empty, full = task.collate([], 0), made("uniter_tiny", name)[1]
        assert {s: each.ever for s, each in empty.read.items()} == {s: each.ever for s, each in full.read.items()}


def test_other_texts_are_read_anew() -> None:
    _, batch = made("uniter_tiny", "words")
    assert batch.read
    other = with_texts(batch, [example(3, None)] * 5, {})
    assert not other.read
