"""Hard negatives: never of the own image, as often as the scores say, a function of the draws."""

from __future__ import annotations

import torch

from tests.unit.task_making import within_3_sigma
from vlp.objectives.negatives import NONE, hard_negatives

SCORES = torch.tensor([[9.0, 1.0, 0.0, 2.0], [0.0, 9.0, 3.0, 1.0], [5.0, 0.0, 9.0, 0.0], [1.0, 2.0, 3.0, 9.0]])
IMAGES = torch.tensor([4, 7, 4, 9])


def test_a_negative_is_of_another_image_and_drawn_by_the_scores() -> None:
    draws = torch.rand(3000, 4, 2, generator=torch.Generator().manual_seed(0))
    found = [hard_negatives(SCORES, IMAGES, each) for each in draws]
    for way, scores in ((0, SCORES), (1, SCORES.T)):
        rows = torch.stack([pair[way] for pair in found])
        for row in range(4):
            allowed = [other for other in range(4) if IMAGES[other] != IMAGES[row]]
            shares = scores[row, allowed].softmax(0)
            assert set(rows[:, row].tolist()) <= set(allowed)
            for other, share in zip(allowed, shares.tolist(), strict=True):
                assert within_3_sigma(int((rows[:, row] == other).sum()), 3000, share)


def test_the_ends_of_the_draw() -> None:
    first, last = torch.zeros(4, 2), torch.full((4, 2), 1 - 1e-12, dtype=torch.float64)
    assert hard_negatives(SCORES, IMAGES, first)[0].tolist() == [1, 0, 1, 0]
    assert hard_negatives(SCORES, IMAGES, last)[0].tolist() == [3, 3, 3, 2]


def test_one_image_alone_has_none() -> None:
    found = hard_negatives(SCORES[:2, :2], torch.tensor([3, 3]), torch.rand(2, 2))
    assert [way.tolist() for way in found] == [[NONE, NONE]] * 2
    assert [len(way) for way in hard_negatives(SCORES[:0, :0], IMAGES[:0], torch.rand(0, 2))] == [0, 0]
