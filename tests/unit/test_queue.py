"""The queue keeps the newest vectors, and goes on from what a checkpoint kept."""

from __future__ import annotations

import pytest
import torch

from vlp.errors import CheckpointError
from vlp.objectives.gallery import Gallery
from vlp.train.queue import Queue


def vectors(*numbers: int) -> Gallery:
    text = torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 2)
    return Gallery(text, -text, torch.tensor(numbers, dtype=torch.int64))


def held(queue: Queue) -> list[int]:
    found = queue.gallery
    assert found.text_GD[:, 0].tolist() == found.images_G.tolist()
    assert torch.equal(found.image_GD, -found.text_GD)
    return sorted(found.images_G.tolist())


def test_it_keeps_the_newest() -> None:
    queue = Queue(4, 2, torch.device("cpu"))
    trail = []
    for numbers in ([1, 2, 3], [4, 5], [], [6, 7, 8, 9, 10, 11], [12]):
        queue.put(vectors(*numbers))
        trail.append(held(queue))
    assert trail == [[1, 2, 3], [2, 3, 4, 5], [2, 3, 4, 5], [8, 9, 10, 11], [9, 10, 11, 12]]


def test_it_goes_on_from_what_was_kept() -> None:
    one, other = Queue(4, 2, torch.device("cpu")), Queue(4, 2, torch.device("cpu"))
    one.put(vectors(1, 2, 3, 4, 5))
    other.set({name: tensor.clone() for name, tensor in one.tensors().items()})
    for queue in (one, other):
        queue.put(vectors(6, 7))
    assert torch.equal(one.gallery.text_GD, other.gallery.text_GD)
    other.set({})
    with pytest.raises(CheckpointError, match=r"restore momentum\.queue"):
        Queue(5, 2, torch.device("cpu")).set(one.tensors())


def test_of_no_size_it_holds_nothing() -> None:
    queue = Queue(0, 2, torch.device("cpu"))
    queue.put(vectors(1, 2))
    assert len(queue.gallery) == 0
