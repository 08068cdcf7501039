"""Contrast of images and texts within groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.unit.task_making import SLOT, block, model_config, sample, text_encoder
from vlp.data.batch import WEIGHT
from vlp.errors import ConfigError, DataError
from vlp.models.heads import Contrast as Head
from vlp.models.heads import ContrastHead
from vlp.models.model import Network
from vlp.objectives.itc import Contrast, ContrastConfig
from vlp.seeds import generator
from vlp.tasks.module import TaskModule
from vlp.tasks.retrieval import CONTRAST, RetrievalConfig, RetrievalTask
from vlp.tasks.task import Setting
from vlp.types import Batch, Targets


def objective(group: int) -> Contrast:
    return Contrast("itc", ContrastConfig(group=group, width=3))


def targets(*images: int, group: int) -> Targets:
    weight = torch.full((len(images),), 1 / group)
    return Targets(torch.arange(len(images)), {"image": torch.tensor(images), WEIGHT: weight}, len(images) / group)


def vectors(pairs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(pairs, 6, generator=torch.Generator().manual_seed(seed))


def by_hand(scores: torch.Tensor, images: list[int]) -> float:
    """Mean over pairs of the two cross entropies, others of the same image left out."""
    total = 0.0
    for one in range(len(images)):
        for rows in (lambda a, b: (a, b), lambda a, b: (b, a)):
            odds = []
            for other in range(len(images)):
                if other == one or images[other] != images[one]:
                    text, image = rows(one, other)
                    odds.append(float(scores[text, :3] @ scores[image, 3:]))
            own = float(scores[one, :3] @ scores[one, 3:])
            total += math.log(sum(math.exp(each) for each in odds)) - own
    return total / (2 * len(images))


def test_loss_by_hand() -> None:
    scores = vectors(6)
    total, metrics = objective(3).loss(scores, targets(0, 1, 2, 5, 7, 5, group=3))
    wanted = by_hand(scores[:3], [0, 1, 2]) + by_hand(scores[3:], [5, 7, 5])
    assert float(total) == pytest.approx(wanted, rel=1e-5)
    assert metrics["itc_accuracy"][1] == 12


def test_no_pairs_cost_nothing() -> None:
    total, _ = objective(3).loss(vectors(0), targets(group=3))
    assert total == 0


def test_a_perfect_match_costs_little() -> None:
    unit = torch.eye(3)
    total, metrics = objective(3).loss(torch.cat([50 * unit, unit], 1), targets(0, 1, 2, group=3))
    assert float(total) < 1e-6
    assert float(metrics["itc_accuracy"][0]) == 6


def test_the_heads_vectors() -> None:
    head = Head(ContrastHead(width=4, temperature=0.1), (5, 7))
    text, image = torch.randn(3, 5), torch.randn(3, 7)
    both = head(text, image)
    assert torch.linalg.norm(both[:, :4], dim=1).tolist() == pytest.approx([10] * 3, rel=1e-5)
    assert torch.linalg.norm(both[:, 4:], dim=1).tolist() == pytest.approx([1] * 3, rel=1e-5)
    assert head.to(torch.bfloat16)(text.bfloat16(), image.bfloat16()).dtype == torch.float32


# --------------------------------------------------------------------------------------------------- as a task's loss


def task(**config: object) -> RetrievalTask:
    setting = Setting(model_config(), text_encoder(), 0)
    return RetrievalTask(RetrievalConfig.parse({"contrast": {"group": 4, "width": 6}, **config}), setting)


def test_a_group_holds_pairs_of_different_images() -> None:
    tables = block(2, 1, 3, 2, 1)
    for seed in range(30):
        pairs = task(ranking=None).pairs(SLOT, tables, generator(seed, "t"))
        assert len(pairs) == 4
        assert pairs[0].text == SLOT.example
        assert len({pair.image for pair in pairs}) == 4
        assert all(pair.matched and tables.sample_E[pair.text] == pair.image for pair in pairs)
    # Where the block has fewer, some come twice, and are not contrasted with themselves.
    pairs = task(ranking=None).pairs(SLOT, block(2, 1), generator(0, "t"))
    assert [pair.image for pair in pairs] == [0, 1, 1, 1]
    with pytest.raises(DataError, match=r"raise data\.block_shards"):
        task(ranking=None).pairs(SLOT, block(2), generator(0, "t"))


def batch_of(made: RetrievalTask, seeds: list[int]) -> Batch:
    tables = block(2, 1, 3, 2, 1)
    words = ("red", "blue", "green", "circle", "square", "left", "of", "what", "colour")
    groups = []
    for seed in seeds:
        pairs = made.pairs(SLOT, tables, generator(seed, "t"))
        text = sample(0, *words)
        groups.append(
            [
                made.example(
                    SLOT, pair, sample(pair.image, regions=1 + pair.image), text, pair.text, generator(0, "t"), 0
                )
                for pair in pairs
            ]
        )
    return made.collate(groups, 0)


def test_both_losses_in_one_batch() -> None:
    made = task(negative_images=1, negative_texts=2)
    batch = batch_of(made, [1, 2])
    assert len(batch) == 2 * (4 + 3)
    assert (len(batch.targets["itm"].positions_K), len(batch.targets[CONTRAST].positions_K)) == (8, 8)
    assert batch.targets["itm"].count == pytest.approx(2)
    assert batch.targets[CONTRAST].count == pytest.approx(2)


def test_the_loss_is_a_sum_over_groups_and_every_parameter_has_a_gradient() -> None:
    made = task(negative_images=1, negative_texts=1)
    torch.manual_seed(0)
    module = TaskModule(Network(model_config().model_copy(update={"heads": made.heads})), made.objectives)
    module.eval()
    whole = module(batch_of(made, [1, 2, 3])).sums
    parts = [module(batch_of(made, seeds)).sums for seeds in ([1], [2, 3], [])]
    for name in ("itm", CONTRAST):
        assert float(whole[name]) == pytest.approx(sum(float(part[name]) for part in parts), rel=1e-5)
    for batch in (batch_of(made, [1]), batch_of(made, [])):
        module.zero_grad()
        sum(module(batch).sums.values()).backward()  # type: ignore[union-attr]
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_task_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="ranking and contrast are both null"):
        RetrievalConfig.parse({"ranking": None})
    with pytest.raises(ConfigError, match="head: itc is the name of the dual encoder's"):
        RetrievalConfig.parse({"head": "itc"})


def test_pooling_of_images_without_tokens() -> None:
    made = task(ranking=None)
    module = TaskModule(Network(model_config().model_copy(update={"heads": made.heads})), made.objectives)
    example = made.bare_example(sample(0, regions=2), "red")
    bare = made.bare_example(sample(0), "red")
    bare.image = None
    batch = made.collate([[example], [bare]], 0)
    for pool in ("first", "mean"):
        contrast = Contrast("itc", ContrastConfig(image=pool, group=2))  # type: ignore[arg-type]
        pooled = contrast.reading(module.model.eval()(batch), batch).taps["image.pooled"]
        assert pooled[1].abs().sum() == 0
        states = module.model(batch).taps["image.unimodal"]
        wanted = states[0] if pool == "first" else states.mean(0)
        np.testing.assert_allclose(pooled[0].detach(), wanted.detach(), atol=1e-6)
