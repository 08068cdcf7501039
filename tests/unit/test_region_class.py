"""Guessing what the detector saw in a hidden region."""

import math

import numpy as np
import pytest
import torch

from tests.unit.shard_making import CLASSES, WIDTH
from tests.unit.task_making import PIXELS, example, facts
from vlp.errors import ConfigError
from vlp.models.heads import ClassHead
from vlp.objectives.objective import Hidden
from vlp.objectives.region_class import RegionClass, RegionClassConfig
from vlp.objectives.regions import RegionHidingConfig, hide_regions
from vlp.seeds import generator
from vlp.types import RegionInput, Target, Targets


def objective(**config: bool) -> RegionClass:
    return RegionClass("mrc_kl", RegionClassConfig.parse(config), facts())


def target_of(made: RegionInput) -> Target:
    """The target when all of these regions are hidden."""
    whole = example()
    whole.image = made
    hidden = hide_regions(whole, RegionHidingConfig(probability=1), generator(0, "t"))
    return objective().target(hidden, generator(1, "t"))


def test_the_loss_is_a_sum_of_divergences() -> None:
    scores = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]])
    probability = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    targets = Targets(torch.arange(2), {"probability": probability}, 2.0)
    by_hand = 0.0
    for row, wanted in zip(scores.tolist(), probability.tolist(), strict=True):
        whole = math.log(sum(math.exp(score) for score in row))
        by_hand += sum(p * (math.log(p) - (s - whole)) for p, s in zip(wanted, row, strict=True) if p)
    total, metrics = objective().loss(scores, targets)
    assert float(total) == pytest.approx(by_hand)
    assert [float(value) for value in metrics["mrc_kl_accuracy"]] == [0.0, 2.0]
    assert float(objective(mean_over_classes=True).loss(scores, targets)[0]) == pytest.approx(by_hand / 3)
    perfect = Targets(targets.positions_K, {"probability": scores.softmax(-1)}, 2.0)
    assert float(objective().loss(scores, perfect)[0]) == pytest.approx(0, abs=1e-6)


def test_half_floats_are_made_to_sum_to_1() -> None:
    made = example(regions=4).image
    assert isinstance(made, RegionInput)
    made.class_probs_RC = np.array([[1, 1, 2], [0.1, 0.2, 0.2], [0.3333, 0.3333, 0.333], [0, 0, 0]], np.float16)
    probability = target_of(made).values["probability"]
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability[0], [0.25, 0.25, 0.5], atol=1e-3)
    np.testing.assert_allclose(probability[:3].sum(axis=1), 1, atol=1e-6)
    assert not probability[3].any()  # a detector that says nothing asks nothing, and divides by nothing
    assert made.class_probs_RC[0, 2] == 2


def test_the_target_belongs_to_the_hidden_region() -> None:
    made = example(regions=9)
    hidden = hide_regions(made, RegionHidingConfig(probability=0.3), generator(0, "t"))
    target = objective().target(hidden, generator(1, "t"))
    assert hidden.original is not None
    assert hidden.original.class_probs_RC is not None
    assert 0 < len(target.positions) < 9
    wanted = hidden.original.class_probs_RC[target.positions]
    np.testing.assert_allclose(target.values["probability"], wanted / wanted.sum(1, keepdims=True), rtol=1e-6)


def test_an_image_without_classes_gives_no_target() -> None:
    made = example(regions=3).image
    assert isinstance(made, RegionInput)
    made.class_probs_RC = None
    for target in (target_of(made), objective().target(Hidden(example(), None), generator(0, "t"))):
        assert len(target.positions) == 0
        assert target.values["probability"].shape == (0, CLASSES)


def test_its_head() -> None:
    assert objective().head() == ClassHead(reads="image", classes=CLASSES, inner="same")


def test_shards_without_classes_are_refused() -> None:
    source = {"kind": "regions", "width": WIDTH, "classes": None}
    with pytest.raises(
        ConfigError, match=r"^task\.objectives\.mrc: needs class probabilities .* data\.train hold none"
    ):
        RegionClass("mrc", RegionClassConfig(), facts(source))


def test_pixels_have_no_regions_to_guess() -> None:
    with pytest.raises(ConfigError, match=r"^task\.objectives\.mrc: guesses regions, but model\.image\.source reads"):
        RegionClass("mrc", RegionClassConfig(), facts(PIXELS))
