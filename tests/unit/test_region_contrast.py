"""Telling a region's feature from others'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.shard_making import WIDTH
from tests.unit.task_making import PIXELS, block, example, facts, hide
from vlp.data.batch import TargetForm, collate
from vlp.data.image import with_whole
from vlp.errors import ConfigError
from vlp.models.heads import FeatureHead
from vlp.objectives.objective import Hidden
from vlp.objectives.region_contrast import RegionContrast, RegionContrastConfig, contrast, products
from vlp.objectives.regions import RegionHidingConfig
from vlp.seeds import draw
from vlp.types import Example, Loan, RegionInput, Target, Targets

LENT = np.arange(5 * WIDTH, dtype=np.float32).reshape(5, WIDTH)


def objective(**config: Any) -> RegionContrast:
    return RegionContrast("nce", RegionContrastConfig.parse({"negatives": 10, **config}), facts())


def hidden(regions: int = 8, lent: np.ndarray | None = LENT, whole: bool = False, seed: int = 0) -> Hidden:
    made = example(regions=regions)
    if whole:
        assert isinstance(made.image, RegionInput)
        made.image = with_whole(made.image)
    return hide(made, RegionHidingConfig(probability=0.4), draw(seed, "t"), lent)


def test_cross_entropy_of_the_true_feature_among_the_negatives() -> None:
    scores = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    features = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 1.0], [1.0, 1.0]])
    found = products(scores, features, torch.tensor([[0, 2, -1], [1, 3, 2]]))
    assert found.tolist() == [[1.0, 2.0, -torch.inf], [3.0, 1.0, 1.0]]
    torch.testing.assert_close(contrast(found), -found.log_softmax(1)[:, 0])
    assert products(scores.bfloat16(), features, torch.tensor([[0], [1]])).dtype == torch.float32
    assert contrast(products(scores[:0], features[:0], torch.zeros((0, 3), dtype=torch.int64))).shape == (0,)


@pytest.mark.parametrize("whole", [False, True])
def test_the_true_feature_comes_first_and_is_no_negative(whole: bool) -> None:
    case = hidden(whole=whole)
    target = objective().target(case, draw(1, "t"))
    features, candidates = target.values["feature"], target.values["candidate"]
    own = example(regions=8).regions.features_RD  # type: ignore[union-attr]
    np.testing.assert_array_equal(features, np.concatenate([own, LENT]))
    np.testing.assert_array_equal(features[candidates[:, 0]], own[target.positions - int(whole)])
    assert candidates.shape == (len(target.positions), 11)
    assert (candidates[:, 1:8] >= len(own)).all()  # seven of ten are of other images
    assert (candidates[:, 8:] < len(own)).all()
    assert not (candidates[:, 1:] == candidates[:, :1]).any()
    assert [target.values[name].tolist() for name in ("features", "regions")] == [[13], [len(target.positions)]]


def test_where_one_kind_of_negative_is_lacking_the_other_fills_in() -> None:
    inside = objective().target(hidden(lent=None), draw(1, "t")).values["candidate"][:, 1:]
    assert ((inside >= 0) & (inside < 8)).all()
    across = objective().target(hidden(regions=1), draw(1, "t")).values["candidate"]
    assert across[0, 0] == 0
    assert ((across[:, 1:] >= 1) & (across[:, 1:] < 6)).all()
    alone = objective().target(hidden(regions=1, lent=None), draw(1, "t")).values["candidate"]
    assert alone.tolist() == [[0, *[-1] * 10]]  # and then nothing is to be told


def test_all_regions_of_some_other_samples_are_lent() -> None:
    tables = block(1, 1, 1)
    tables.regions_S[:] = [3, 0, 4]
    for seed in range(50):
        assert set(objective(images=3).loans(0, tables, draw(seed, "t"))) <= {Loan(2, 0, 4)}
    assert objective().loans(0, block(1), draw(0, "t")) == ()


def collated(examples: list[Example], made: RegionContrast) -> Targets:
    from vlp.data.batch import ImageForm

    form = TargetForm(made.rows, made.empty())
    return collate(examples, ImageForm("regions", WIDTH), {"nce": form}).targets["nce"]


def test_a_batch_s_loss_is_the_sum_of_its_examples() -> None:
    made, examples = objective(), []
    for number in range(3):
        case = hidden(5 + number, LENT[:number], seed=number)
        case.example.targets["nce"] = made.target(case, draw(number, "t"))
        examples.append(case.example)
    examples[1].targets["nce"] = Target(np.zeros(0, np.int64), made.empty().values)
    together = collated(examples, made)
    numbers = torch.Generator().manual_seed(0)
    scores = torch.randn(len(together.positions_K), WIDTH, generator=numbers)
    total, metrics = made.loss(scores, together)
    one, two = collated(examples[:1], made), collated(examples[2:], made)
    apart = [made.loss(scores[: int(one.count)], one)[0], made.loss(scores[int(one.count) :], two)[0]]
    torch.testing.assert_close(total, sum(apart))
    by_hand = 0.0
    for k in range(int(one.count)):
        rows = one.values["candidate"][k]
        by_hand -= float((one.values["feature"][rows] @ scores[k]).log_softmax(0)[0])
    assert float(apart[0]) == pytest.approx(by_hand, rel=1e-5)
    right, count = metrics["nce_accuracy"]
    assert 0 <= float(right) <= float(count) == together.count == one.count + two.count


def test_nothing_to_tell_costs_nothing_and_keeps_the_graph() -> None:
    made = objective()
    scores = torch.zeros(0, WIDTH, requires_grad=True)
    total, _ = made.loss(scores, collated([example()], made))
    total.backward()
    assert float(total.detach()) == 0
    assert scores.grad is not None


def test_its_head_and_what_it_needs() -> None:
    assert objective(tied=True).head() == FeatureHead(width=WIDTH, tied=True)
    with pytest.raises(ConfigError, match=r"^task\.objectives\.nce: guesses regions, but model\.image\.source reads"):
        RegionContrast("nce", RegionContrastConfig(), facts(PIXELS))
