import gc
import pickle
from typing import Any

import pytest
import torch

from tests.unit.loader_making import FakeDataset, content, many_steps
from vlp.data import parcels
from vlp.data.parcels import Parcel, Pool, forget
from vlp.data.workers import in_order

MEGABYTE = 1 << 20


def test_a_parcel_holds_what_was_put_in() -> None:
    tensors = [torch.arange(5), torch.zeros(0, 3), torch.tensor([[True], [False]])]
    value = {"a": torch.tensor(3.5), "b": tensors, "c": "x"}
    found = Parcel.of(value, Pool()).open()
    assert found["c"] == "x"
    assert found["a"].item() == 3.5
    for tensor, expected in zip(found["b"], tensors, strict=True):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert Parcel.of("nothing to move", Pool()).open() == "nothing to move"


def test_a_tensor_keeps_its_order_in_memory_and_loses_its_gaps() -> None:
    pixels = torch.arange(120, dtype=torch.uint8).view(2, 4, 5, 3).permute(0, 3, 1, 2)
    gapped = torch.arange(12).view(3, 4)[:, ::2]
    for tensor, strides in ((pixels, pixels.stride()), (gapped, (2, 1))):
        found = Parcel.of(tensor, Pool()).open()
        assert torch.equal(found, tensor)
        assert found.stride() == strides


def sent(value: Any, pool: Pool) -> Parcel:
    """A parcel as it arrives."""
    from multiprocessing.reduction import ForkingPickler

    parcel: Parcel = pickle.loads(ForkingPickler.dumps(Parcel.of(value, pool)))
    return parcel


def test_a_buffer_is_used_again_once_nothing_of_it_is_left() -> None:
    pool = Pool()
    first = sent({"a": torch.arange(10), "b": torch.ones(3)}, pool).open()
    second = sent(torch.arange(10), pool).open()
    assert len(pool) == 2, "the first is still in use"
    kept = first["a"][2:5].view(1, 3)
    del first
    third = sent(torch.zeros(10), pool).open()
    assert len(pool) == 3, "a view of it is"
    assert kept.tolist() == [[2, 3, 4]]
    del kept, second
    gc.collect()
    fourth = sent(torch.full((10,), 7), pool).open()
    assert len(pool) == 3, "now there are two to choose from"
    assert third.tolist() == [0] * 10
    assert fourth.tolist() == [7] * 10


def test_a_larger_record_gets_a_larger_buffer_in_place_of_the_free_ones() -> None:
    pool, known = Pool(), len(parcels._KNOWN)
    for size in (1, 2, 3):
        assert sent(torch.zeros(size * MEGABYTE, dtype=torch.uint8), pool).open().sum() == 0
        assert len(pool) == 1
        assert len(parcels._KNOWN) == known + 1, "the parent forgets what the worker gave up"
    sent(torch.zeros(5), pool).open()
    assert len(pool) == 1


def test_a_parcel_that_is_never_opened_keeps_its_buffer() -> None:
    pool = Pool()
    waiting = sent(torch.arange(4), pool)
    assert sent(torch.zeros(4), pool).open().sum() == 0
    assert waiting.open().tolist() == [0, 1, 2, 3]


def test_steps_that_are_kept_stay_what_they_are() -> None:
    dataset = FakeDataset([30, 30])
    steps = iter(many_steps(dataset, workers=2))
    kept = [next(steps) for _ in range(25)]
    alone = iter(many_steps(dataset))
    assert [content([step]) for step in kept] == [content([next(alone)]) for _ in range(25)]
    steps.close()
    assert [content([step]) for step in kept[:3]] == [content([step]) for step in many_steps(dataset, last_step=3)]


def test_a_loader_that_ends_leaves_no_buffer_known() -> None:
    before = set(parcels._KNOWN)
    for number, value in enumerate(in_order(torch.tensor, range(20), workers=2)):
        assert value.item() == number
    assert set(parcels._KNOWN) == before


def test_forgetting_keeps_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "_KNOWN", {(1, 0): torch.zeros(1), (2, 0): torch.zeros(1)})
    forget({1, 5})
    assert list(parcels._KNOWN) == [(2, 0)]
