"""Optimal transport between words and regions, against an exact solver on small problems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from vlp.objectives.word_region import alignment_costs, alignment_distances, alignment_loss, transport_plans

WORDS_B, REGIONS_B = (5, 2, 3), (3, 4, 1)


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Padded states of three examples, with what is real of them."""
    draw = torch.Generator().manual_seed(seed)
    text, image = torch.randn(3, 5, 8, generator=draw), torch.randn(3, 4, 8, generator=draw)
    words, regions = (
        torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        for longest, lengths in ((5, WORDS_B), (4, REGIONS_B))
    )
    return text, image, words, regions


def exact(cost_TR: Tensor) -> float:
    """The least cost of moving words of equal weight onto regions of equal weight, by linear programming."""
    words, regions = cost_TR.shape
    sums = np.zeros((words + regions, words * regions))
    for t in range(words):
        for r in range(regions):
            sums[t, t * regions + r] = sums[words + r, t * regions + r] = 1
    weights = np.concatenate([np.full(words, 1 / words), np.full(regions, 1 / regions)])
    return float(linprog(cost_TR.flatten().numpy(), A_eq=sums, b_eq=weights).fun)


def test_costs_are_one_less_the_cosine_and_nothing_at_padding() -> None:
    text, image, words, regions = problem()
    cost = alignment_costs(text, image, words, regions)
    for b, t, r in ((0, 4, 2), (1, 1, 3), (2, 0, 0)):
        cosine = torch.cosine_similarity(text[b, t], image[b, r], dim=0)
        torch.testing.assert_close(cost[b, t, r], 1 - cosine)
    assert (cost[1, 2:] == 0).all()
    assert (cost[2, :, 1:] == 0).all()
    # A state of length 0 is at a right angle to all.
    text[0, 0] = 0
    assert (alignment_costs(text, image, words, regions)[0, 0, :3] == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_plans_come_near_the_exact_least_cost(seed: int) -> None:
    text, image, words, regions = problem(seed)
    cost = alignment_costs(text, image, words, regions)
    plan = transport_plans(cost, words, regions, steps=400)
    distances = alignment_distances(cost, plan)
    for b, (count, others) in enumerate(zip(WORDS_B, REGIONS_B, strict=True)):
        least = exact(cost[b, :count, :others])
        assert distances[b].item() == pytest.approx(least, abs=1e-3)
        # Not all words are moved at once (the method ends on the regions' side), but all of their weight.
        torch.testing.assert_close(plan[b].sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(plan[b].sum(0)[:count], torch.full((count,), 1 / count), atol=1e-4, rtol=0)
        assert (plan[b, others:] == 0).all()
        assert (plan[b, :, count:] == 0).all()


def test_an_example_does_not_depend_on_its_padding_or_neighbours() -> None:
    text, image, words, regions = problem()
    cost = alignment_costs(text, image, words, regions)
    together = alignment_distances(cost, transport_plans(cost, words, regions))
    for b, (count, others) in enumerate(zip(WORDS_B, REGIONS_B, strict=True)):
        cut = slice(b, b + 1), slice(count), slice(others)
        own = alignment_costs(text[cut[:2]], image[cut[0], cut[2]], words[cut[:2]], regions[cut[0], cut[2]])
        alone = alignment_distances(own, transport_plans(own, words[cut[:2]], regions[cut[0], cut[2]]))
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-6, rtol=0)


def test_everything_is_in_fp32_and_the_gradient_runs_through_the_costs() -> None:
    text, image, words, regions = problem()
    text = text.bfloat16().requires_grad_()
    cost = alignment_costs(text, image.bfloat16(), words, regions)
    plan = transport_plans(cost, words, regions)
    assert cost.dtype == plan.dtype == torch.float32
    assert not plan.requires_grad
    loss = alignment_loss(alignment_distances(cost, plan), torch.tensor([True, False, True]))
    loss.backward()
    assert text.grad is not None
    assert (text.grad[0] != 0).any()
    assert (text.grad[1, 2:] == 0).all()


def test_matched_pairs_are_drawn_together_and_mismatched_ones_apart() -> None:
    distances = torch.tensor([0.5, 0.25, 0.125])
    assert alignment_loss(distances, torch.tensor([True, False, True])) == 0.5 - 0.25 + 0.125


def test_no_examples_and_examples_without_regions() -> None:
    text, image, words, regions = problem()
    regions = regions & False
    cost = alignment_costs(text, image, words, regions)
    assert (alignment_distances(cost, transport_plans(cost, words, regions)) == 0).all()
    cost = alignment_costs(text[:0], image[:0], words[:0], regions[:0])
    assert alignment_distances(cost, transport_plans(cost, words[:0], regions[:0])).shape == (0,)
