"""Optimal transport between words and regions, against an exact solver on small problems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from tests.unit.task_making import example as an_example
from tests.unit.task_making import facts, hidden, model_config
from vlp.data.batch import ImageForm, TargetForm, collate
from vlp.data.image import with_whole
from vlp.errors import ConfigError
from vlp.models.model import ModelConfig
from vlp.objectives.objective import Facts
from vlp.objectives.word_region import (
    Alignment,
    AlignmentConfig,
    alignment_costs,
    alignment_distances,
    alignment_loss,
    transport_plans,
)
from vlp.seeds import draw
from vlp.types import Batch, Encoded, Example, RegionInput

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


# ------------------------------------------------------------------------------------------------------- the objective

SIZES = ((3, 4, True), (6, 2, False), (4, 0, True), (2, 5, False))
"""Words, regions, and whether they belong together."""


def examples_of(made: Alignment, whole: bool = False) -> list[Example]:
    examples = []
    for words, regions, matched in SIZES:
        one = an_example(words, regions, matched)
        assert isinstance(one.image, RegionInput)
        if whole and regions:
            one.image = with_whole(one.image)
        one.targets["wra"] = made.target(hidden(one), draw(0, "t"))
        examples.append(one)
    return examples


def encoded_of(examples: list[Example], made: Alignment, **frame: bool) -> tuple[Encoded, Batch]:
    """States that are drawn by example, so that a batch of fewer examples has the same, and rows around an image."""
    batch = collate(examples, ImageForm("regions", 6, **frame), {"wra": TargetForm(made.rows, made.empty())})
    text, image = [], []
    for one in examples:
        draw = torch.Generator().manual_seed(len(one.token_ids_T))
        rows = len(one.image) if one.image is not None else 0
        own = torch.randn(len(one.token_ids_T) + rows, 8, generator=draw)
        first, last = frame.get("first", False) and rows > 0, frame.get("last", False)
        text.append(own[: len(one.token_ids_T)])
        extra = torch.full((1, 8), 9.0)
        image += [extra] * first + [own[len(one.token_ids_T) :]] + [extra] * last
    return Encoded(torch.cat(text).requires_grad_(), torch.cat(image), torch.zeros(len(examples), 8)), batch


def alignment(**config: object) -> Alignment:
    return Alignment("wra", AlignmentConfig.parse(config), facts())


def distances_of(made: Alignment, examples: list[Example], **frame: bool) -> Tensor:
    encoded, batch = encoded_of(examples, made, **frame)
    return made.scores(None, made.reading(encoded, batch), batch.targets["wra"])


def test_pairs_with_regions_are_judged_as_the_functions_judge_them() -> None:
    made = alignment()
    examples = examples_of(made)
    encoded, batch = encoded_of(examples, made)
    targets = batch.targets["wra"]
    assert targets.positions_K.tolist() == [0, 1, 3]  # the third has no region
    found = made.scores(None, made.reading(encoded, batch), targets)
    text = encoded.text_NH.split(list(batch.text.packing.lengths))
    image = encoded.image_MH.split(list(batch.image.packing.lengths))
    wanted = []
    for row in (0, 1, 3):
        sides = text[row][None], image[row][None], torch.ones(1, len(text[row])) > 0, torch.ones(1, len(image[row])) > 0
        cost = alignment_costs(*sides)
        wanted.append(alignment_distances(cost, transport_plans(cost, *sides[2:])))
    torch.testing.assert_close(found, torch.cat(wanted))
    loss, metrics = made.loss(found, targets)
    torch.testing.assert_close(loss, found[0] - found[1] - found[2])
    assert (targets.count, made.head()) == (3.0, None)
    torch.testing.assert_close(metrics["wra_distance_matched"], (found.detach()[0], torch.tensor(1)))
    torch.testing.assert_close(metrics["wra_distance_mismatched"], (found.detach()[1:].sum(), torch.tensor(2)))
    loss.backward()
    assert encoded.text_NH.grad is not None
    assert encoded.text_NH.grad.any()


def test_rows_that_are_no_regions_do_not_count() -> None:
    made = alignment()
    plain = distances_of(made, examples_of(made))
    for frame in ({"first": True}, {"last": True}, {"first": True, "last": True}):
        torch.testing.assert_close(distances_of(made, examples_of(made), **frame), plain)
    seen = distances_of(made, examples_of(made, whole=True), first=True)
    assert seen.shape == plain.shape
    examples = examples_of(made, whole=True)
    encoded, batch = encoded_of(examples, made)
    encoded.image_MH.data[batch.image.packing.starts_B1[:-1].long()[[0, 1, 3]]] = 5  # the whole image
    torch.testing.assert_close(made.reading(encoded, batch).taps["wra"], seen)


def test_special_tokens_may_be_left_out() -> None:
    made = alignment(specials=False)
    encoded, batch = encoded_of(examples_of(made), made)
    found = made.reading(encoded, batch).taps["wra"]
    starts = batch.text.packing.starts_B1.long()
    with torch.no_grad():
        encoded.text_NH[starts[:-1]] = 5
        encoded.text_NH[starts[1:] - 1] = -5
    torch.testing.assert_close(made.reading(encoded, batch).taps["wra"], found)
    assert (alignment().reading(encoded, batch).taps["wra"] != found).all()


def test_a_batch_without_a_pair_costs_nothing_and_keeps_the_graph() -> None:
    made = alignment()
    examples = [an_example() for _ in range(2)]
    encoded, batch = encoded_of(examples, made)
    loss, _ = made.loss(made.scores(None, made.reading(encoded, batch), batch.targets["wra"]), batch.targets["wra"])
    loss.backward()
    assert float(loss.detach()) == 0


def test_streams_of_different_widths_are_refused() -> None:
    values = model_config().plain()
    values["image"]["layer"] = {"width": 12, "heads": 2, "ffn": 16}
    values["encoder"] = [{"stream": "both", "sublayers": ["cross", "ffn"]}]
    made = Facts(ModelConfig.parse(values), facts().text)
    with pytest.raises(ConfigError, match=r"task\.objectives\.wra: compares words with regions, .* 8 and 12 wide"):
        Alignment("wra", AlignmentConfig(), made)
