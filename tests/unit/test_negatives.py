"""Hard negatives: never of the own image, as often as the scores say, a function of the draws."""

from __future__ import annotations

import torch

from tests.unit.task_making import within_3_sigma
from vlp.objectives.negatives import MOST, NONE, hard_negatives

SCORES = torch.tensor([[9.0, 1.0, 0.0, 2.0], [0.0, 9.0, 3.0, 1.0], [5.0, 0.0, 9.0, 0.0], [1.0, 2.0, 3.0, 9.0]])
IMAGES = torch.tensor([4, 7, 4, 9])


def test_a_negative_is_of_another_image_and_drawn_by_the_scores() -> None:
    draws = torch.rand(3000, 4, 2, generator=torch.Generator().manual_seed(0))
    found = [hard_negatives(SCORES, IMAGES, each) for each in draws]
    for way, scores in ((0, SCORES), (1, SCORES.T)):
        rows = torch.stack([pair[way] for pair in found])
        for row in range(4 if way else MOST):  # later texts may find that an image is given away
            allowed = [other for other in range(4) if IMAGES[other] != IMAGES[row]]
            shares = scores[row, allowed].softmax(0)
            assert set(rows[:, row].tolist()) <= set(allowed)
            for other, share in zip(allowed, shares.tolist(), strict=True):
                assert within_3_sigma(int((rows[:, row] == other).sum()), 3000, share)


def test_the_ends_of_the_draw() -> None:
    first, last = torch.zeros(4, 2), torch.full((4, 2), 1 - 1e-12, dtype=torch.float64)
    assert hard_negatives(SCORES, IMAGES, first)[0].tolist() == [1, 0, 1, 0]
    assert hard_negatives(SCORES, IMAGES, last)[0].tolist() == [3, 3, 1, 2]  # the third text comes too late for 3


def test_one_image_alone_has_none() -> None:
    found = hard_negatives(SCORES[:2, :2], torch.tensor([3, 3]), torch.rand(2, 2))
    assert [way.tolist() for way in found] == [[NONE, NONE]] * 2
    assert [len(way) for way in hard_negatives(SCORES[:0, :0], IMAGES[:0], torch.rand(0, 2))] == [0, 0]


def test_an_image_is_given_to_few_texts_and_the_others_draw_again() -> None:
    loved = torch.zeros(6, 6)
    loved[:, 2] = 50.0  # all texts are like one image
    loved[:, 4] = 25.0  # and next to it like another
    image_of, text_of = hard_negatives(loved, torch.arange(6), torch.full((6, 2), 0.5))
    assert image_of.tolist()[:4] == [2, 2, 4, 4]  # in the order of the batch; the third text is of that image
    assert not {2, 4} & set(image_of.tolist()[4:])
    assert torch.bincount(image_of, minlength=6).max() == MOST
    assert hard_negatives(loved.T, torch.arange(6), torch.full((6, 2), 0.5))[1].tolist() == [2, 2, 4, 2, 2, 2]
    assert len(text_of) == 6


def test_a_text_goes_without_where_no_image_is_left() -> None:
    images = torch.tensor([1, 2, 2, 2, 2])  # four texts of one image, and one other image
    image_of, text_of = hard_negatives(torch.zeros(5, 5), images, torch.full((5, 2), 0.3))
    assert image_of.tolist()[1:] == [0, 0, NONE, NONE]
    assert image_of[0] != NONE
    assert text_of.tolist()[1:] == [0, 0, 0, 0]
