"""Guessing the feature of a hidden region."""

import pytest
import torch

from tests.unit.shard_making import WIDTH
from tests.unit.task_making import PIXELS, example, facts, hide
from vlp.data.batch import ImageForm, collate
from vlp.data.image import with_whole
from vlp.errors import ConfigError
from vlp.models.heads import FeatureHead
from vlp.objectives.objective import Hidden
from vlp.objectives.region_feature import RegionFeature, RegionFeatureConfig
from vlp.objectives.regions import RegionHidingConfig
from vlp.seeds import draw
from vlp.types import RegionBatch, RegionInput, Targets

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
    made, asks = example(regions=8), objective()
    hidden = hide(made, RegionHidingConfig(probability=0.4), draw(0, "t"))
    made.targets["mrfr"] = asks.target(hidden, draw(1, "t"))
    features = torch.from_numpy(made.image.features_RD)  # type: ignore[union-attr]
    whole = collate([example(regions=3), made], ImageForm("regions", WIDTH), {"mrfr": asks.form()})
    for batch, exact in ((whole.to("cpu"), True), (whole.to("cpu", torch.bfloat16), False)):
        targets, image = batch.targets["mrfr"], batch.image
        assert isinstance(image, RegionBatch)
        assert 0 < len(targets.positions_K) < 8
        # As exact as it is, whatever the model computes in.
        torch.testing.assert_close(targets.values["feature"], features[targets.positions_K - 3], rtol=0, atol=0)
        assert targets.values["feature"].any()
        assert not image.features_MD[targets.positions_K].any()
        assert (image.features_MD.dtype == torch.float32) == exact
    # The loader's batch is as it was, so that it can be used again.
    torch.testing.assert_close(whole.image.features_MD[3:], features, rtol=0, atol=0)  # type: ignore[union-attr]
    torch.testing.assert_close(whole.to("cpu").to("cpu").targets["mrfr"].values, whole.to("cpu").targets["mrfr"].values)


def test_nothing_hidden_gives_no_target() -> None:
    made, asks = example(), objective()
    made.targets["mrfr"] = asks.target(Hidden(made), draw(0, "t"))
    batch = collate([made], ImageForm("regions", WIDTH), {"mrfr": asks.form()}).to("cpu")
    assert batch.targets["mrfr"].values["feature"].shape == (0, WIDTH)


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
        if regions:  # the whole image before them counts for none
            assert isinstance(one.image, RegionInput)
            one.image = with_whole(one.image)
        config = RegionHidingConfig(probability=probability, at_least_one=False)
        case = hide(one, config, draw(regions, "t"))
        one.targets["mrfr"] = made.target(case, draw(1, "t"))
        shown.append(one)
        total += regions
    assert not len(shown[1].targets["mrfr"].positions)  # none is hidden, and still it has three regions
    batch = collate(shown, ImageForm("regions", WIDTH), {"mrfr": made.form()}).to("cpu")
    assert batch.targets["mrfr"].count == total == 11
    hidden = len(shown[0].targets["mrfr"].positions)
    assert 0 < hidden == len(batch.targets["mrfr"].positions_K) == len(batch.targets["mrfr"].values["feature"])
