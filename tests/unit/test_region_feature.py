"""Guessing the feature of a hidden region."""

import numpy as np
import pytest
import torch

from tests.unit.shard_making import WIDTH
from tests.unit.task_making import PIXELS, chosen, example, facts, hide
from vlp.data.batch import ImageForm, collate
from vlp.errors import ConfigError
from vlp.models.heads import FeatureHead
from vlp.objectives.objective import Hidden
from vlp.objectives.region_feature import RegionFeature, RegionFeatureConfig
from vlp.objectives.regions import RegionHidingConfig
from vlp.seeds import draw
from vlp.types import Targets

GUESSED = torch.tensor([[0.0, 2.0, -3.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
TRUE = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.5, 1.0, 3.0, 1.0, 1.0]])


def objective(**config: str | bool) -> RegionFeature:
    return RegionFeature("mrfr", RegionFeatureConfig.parse(config), facts())


@pytest.mark.parametrize(
    ("distance", "by_hand"),
    [
        ("mse", (0 + 4 + 9 + 0.25 + 1 + 1 + 0.25 + 4) / 6),
        ("smooth_l1", (0 + 1.5 + 2.5 + 0.125 + 0.5 + 0.5 + 0.125 + 1.5) / 6),  # d^2 / 2 below 1, else d - 1/2
    ],
)
def test_the_loss_is_a_sum_over_regions_of_means_over_numbers(distance: str, by_hand: float) -> None:
    targets = Targets(torch.arange(2), {"feature": TRUE}, 2.0)
    total, metrics = objective(distance=distance).loss(GUESSED, targets)
    assert float(total) == pytest.approx(by_hand)
    wanted = torch.cosine_similarity(GUESSED, TRUE).sum()
    torch.testing.assert_close(metrics["mrfr_cosine"], (wanted, 2.0))
    assert objective().loss(GUESSED.bfloat16(), targets)[0].dtype == torch.float32
    assert objective().loss(GUESSED[:0], Targets(torch.arange(0), {"feature": TRUE[:0]}, 0.0))[0] == 0


def test_the_target_is_the_feature_that_was_hidden() -> None:
    made = example(regions=8)
    features = made.image.features_RD.copy()  # type: ignore[union-attr]
    config = RegionHidingConfig(probability=0.4)
    hidden = chosen(made, config, draw(0, "t"))
    target = objective().target(hidden, draw(1, "t"))
    hide(hidden, config, draw(2, "t"))
    assert 0 < len(target.positions) < 8
    assert target.values["feature"].any()
    np.testing.assert_array_equal(target.values["feature"], features[target.positions])
    assert not made.image.features_RD[target.positions].any()  # type: ignore[union-attr]


def test_nothing_hidden_gives_no_target() -> None:
    target = objective().target(Hidden(example()), draw(0, "t"))
    assert target.values["feature"].shape == (0, WIDTH)


def test_its_head() -> None:
    assert objective(tied=True).head() == FeatureHead(width=WIDTH, tied=True)
    assert objective().head() == FeatureHead(width=WIDTH, tied=False)


def test_pixels_have_no_regions_to_guess() -> None:
    with pytest.raises(ConfigError, match=r"^task\.objectives\.mrfr: guesses regions, but model\.image\.source reads"):
        RegionFeature("mrfr", RegionFeatureConfig(), facts(PIXELS))


def test_the_mean_may_be_over_all_regions() -> None:
    made, total, shown = objective(average="regions"), 0.0, []
    for regions, probability in ((8, 0.5), (3, 1e-9), (0, 0.5)):
        one = example(regions=regions)
        config = RegionHidingConfig(probability=probability, at_least_one=False)
        case = chosen(one, config, draw(regions, "t"))
        one.targets["mrfr"] = made.target(case, draw(1, "t"))
        shown.append(one)
        total += regions
    assert not len(shown[1].targets["mrfr"].positions)  # none is hidden, and still it has three regions
    batch = collate(shown, ImageForm("regions", WIDTH), {"mrfr": made.form()})
    assert batch.targets["mrfr"].count == total == 11
    hidden = len(shown[0].targets["mrfr"].positions)
    assert 0 < hidden == len(batch.targets["mrfr"].positions_K) == len(batch.targets["mrfr"].values["feature"])
