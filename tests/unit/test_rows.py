"""Rows that are made where a batch wants them: joined without a copy, and by a copy wherever they lie otherwise."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.unit.pictures import encoded, ramps
from tests.unit.shard_making import WIDTH
from tests.unit.task_making import sample
from vlp.data.batch import collate
from vlp.data.image import PixelImages, RegionImages
from vlp.data.rows import Rows, joined
from vlp.types import Example, PixelBatch, RegionBatch, Sample


def taken(rows: Rows, *counts: int, width: int = 3) -> list[NDArray[np.float32]]:
    made = [rows.take(count, width) for count in counts]
    for number, array in enumerate(made):
        array[...] = number
    return made


def after_a_batch(numbers: int) -> Rows:
    """One that has seen a batch of so many numbers."""
    rows = Rows(np.float32)
    rows.take(numbers, 1)
    rows.end()
    return rows


def test_rows_of_one_batch_are_joined_without_a_copy() -> None:
    made = taken(after_a_batch(18), 2, 0, 3, 1)
    whole = joined(made)
    assert whole[:, 0].tolist() == [0, 0, 2, 2, 2, 3]
    assert all(np.shares_memory(whole, array) for array in made if len(array))
    made[2][0] = 7
    assert whole[2].tolist() == [7, 7, 7]
    part = joined(made[2:])  # a batch that begins behind others of its piece
    assert part[:, 0].tolist() == [7, 2, 2, 3]
    assert np.shares_memory(part, made[3])


def test_a_batch_keeps_no_other_s_memory() -> None:
    rows = after_a_batch(18)
    first = joined(taken(rows, 2, 2))
    rows.end()
    second = joined(taken(rows, 2, 2))
    assert not np.shares_memory(first, second)
    assert first.base is not second.base


@pytest.mark.parametrize(
    "order",
    [[1, 0, 2], [0, 2], [0, 0, 1], [0, 1, 2, 2]],
    ids=["another order", "a gap", "twice", "twice at the end"],
)
def test_rows_that_do_not_follow_each_other_are_copied(order: list[int]) -> None:
    made = taken(after_a_batch(18), 1, 2, 1)
    chosen = [made[number] for number in order]
    whole = joined(chosen)
    assert whole[:, 0].tolist() == np.concatenate(chosen)[:, 0].tolist()
    assert not any(np.shares_memory(whole, array) for array in chosen)


def test_a_larger_batch_than_the_last_is_copied_and_the_next_fits() -> None:
    rows = after_a_batch(6)
    larger = taken(rows, 2, 2, 2)
    assert joined(larger)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    rows.end()
    assert np.shares_memory(joined(made := taken(rows, 2, 2, 2)), made[0])


def test_other_arrays_are_copied() -> None:
    plain = [np.ones((1, 3), np.float32), np.zeros((2, 3), np.float32)]
    assert joined(plain).tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    rows = after_a_batch(18)
    (first,) = taken(rows, 2)
    narrow = rows.take(2, 2)
    with pytest.raises(ValueError, match="dimension"):
        joined([first, narrow])
    halves = [first[:1], plain[0]]
    assert joined(halves).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert joined([first[:, :2], first[:, 1:]]).shape == (4, 2)


def test_each_thread_has_its_own_and_a_copy_begins_anew() -> None:
    rows = after_a_batch(18)
    (mine,) = taken(rows, 1)
    found: list[NDArray[np.float32]] = []
    thread = threading.Thread(target=lambda: found.append(rows.take(1, 3)))
    thread.start()
    thread.join()
    assert found[0].base is not mine.base
    assert pickle.loads(pickle.dumps(rows)).take(1, 3).base is not mine.base


@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_holds_the_features_where_they_were_written(whole: bool) -> None:
    images = RegionImages(WIDTH, whole=whole)
    for number in range(2):  # the first finds out how large a batch is
        prepared = [images.prepare(sample(other, regions=3)) for other in (1, 2, 3)]
        ids, special = np.arange(2), np.ones(2, bool)
        batch = collate([Example("x", ids, special, ids, image) for image in prepared], images.form, {}).image
        images.batch_ends()
        assert isinstance(batch, RegionBatch)
        for place, image in enumerate(prepared):
            assert image is not None
            length = len(image)
            own = batch.features_MD[place * length : (place + 1) * length]
            np.testing.assert_array_equal(own.numpy(), image.features_RD)
            assert np.shares_memory(own.numpy(), image.features_RD) == bool(number)


def test_a_batch_holds_the_pixels_where_they_were_decoded() -> None:
    images = PixelImages(16, 4)
    files = [encoded(ramps(30 + number, 20)) for number in range(3)]
    ids, special = np.arange(2), np.ones(2, bool)
    for number in range(2):  # the first finds out how large a batch is
        prepared = [images.prepare(Sample("x", image=data)) for data in (files[0], files[0], files[1], files[2])]
        batch = collate([Example("x", ids, special, ids, image) for image in prepared], images.form, {}).image
        images.batch_ends()
        assert isinstance(batch, PixelBatch)
        for pixels_3HW, image in zip(batch.pixels_P3HW.numpy(), prepared, strict=True):
            assert image is not None
            np.testing.assert_array_equal(pixels_3HW, image.pixels_3HW)
            assert np.shares_memory(pixels_3HW, image.pixels_3HW) == bool(number)
    assert batch.pixels_P3HW.is_contiguous(memory_format=torch.channels_last)


def test_parts_of_any_one_array_are_joined_without_a_copy_but_never_parts_of_its_rows() -> None:
    whole = np.arange(12.0).reshape(6, 2)
    parts = [whole[0:1], whole[1:4], whole[4:6]]
    assert np.shares_memory(joined(parts), whole)
    assert joined(parts[1:]).tolist() == whole[1:].tolist()
    assert joined([whole[:, :1]]).tolist() == whole[:, :1].tolist()
    assert joined([whole[::2], whole[1::2]]).tolist() == [*whole[::2].tolist(), *whole[1::2].tolist()]
    assert joined([parts[1], parts[0]]).tolist() == [*parts[1].tolist(), *parts[0].tolist()]
    memory = bytearray(48)  # what adjoins by chance is of two arrays all the same
    beside = [np.frombuffer(memory, np.float32, 6, offset).reshape(2, 3) for offset in (0, 24)]
    assert not np.shares_memory(joined(beside), beside[0])
