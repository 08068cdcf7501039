"""Guessing what the detector saw in a hidden region."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.unit.shard_making import CLASSES, WIDTH
from tests.unit.task_making import PIXELS, example, facts, hide
from vlp.data.batch import WEIGHT, asked_of
from vlp.data.image import with_whole
from vlp.errors import ConfigError
from vlp.models.heads import ClassHead
from vlp.objectives.objective import Hidden
from vlp.objectives.region_class import RegionClass, RegionClassConfig
from vlp.objectives.regions import RegionHidingConfig
from vlp.seeds import Draws, draw
from vlp.types import RegionInput, Target, Targets


def objective(**config: bool) -> RegionClass:
    return RegionClass("mrc_kl", RegionClassConfig.parse(config), facts())


def target_of(made: RegionInput) -> Target:
    """The target when all of these regions are hidden."""
    whole = example()
    whole.image = made
    hidden = hide(whole, RegionHidingConfig(probability=1), draw(0, "t"))
    return objective().target(hidden, draw(1, "t"))


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
    hidden = hide(made, RegionHidingConfig(probability=0.3), draw(0, "t"))
    target = objective().target(hidden, draw(1, "t"))
    assert hidden.example.regions is not None
    assert hidden.example.regions.class_probs_RC is not None
    assert 0 < len(target.positions) < 9
    wanted = hidden.example.regions.class_probs_RC[target.positions]
    np.testing.assert_allclose(target.values["probability"], wanted / wanted.sum(1, keepdims=True), rtol=1e-6)


def test_an_image_without_classes_gives_no_target() -> None:
    made = example(regions=3).image
    assert isinstance(made, RegionInput)
    made.class_probs_RC = None
    for target in (target_of(made), objective().target(Hidden(example()), draw(0, "t"))):
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


# ------------------------------------------------------------------------------------------- hard labels, all regions


def source_with_attributes() -> dict[str, object]:
    return {"kind": "regions", "width": WIDTH, "classes": CLASSES, "attributes": 4}


def regions_with_labels() -> RegionInput:
    made = example(regions=5).image
    assert isinstance(made, RegionInput)
    made.classes_R = np.array([2, -1, 0, 1, 2])
    made.attributes_R = np.array([3, 0, -1, 1, 2])
    made.attribute_confidence_R = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    return made


def made_with(**config: object) -> RegionClass:
    return RegionClass("obj", RegionClassConfig.parse(config), facts(source_with_attributes()))


def target_with(made: RegionInput, hidden: float = 0.5, **config: object) -> Target:
    whole = example()
    whole.image = made
    return made_with(**config).target(hide(whole, RegionHidingConfig(probability=hidden), draw(3, "t")), draw(1, "t"))


def test_hard_labels_are_the_detector_s_choice_or_its_most_probable_class() -> None:
    made = regions_with_labels()
    target = target_with(made, 1.0, labels="hard")
    assert target.values["class"].tolist() == [2, -1, 0, 1, 2]
    made.classes_R = None
    assert made.class_probs_RC is not None
    made.class_probs_RC[0] = np.eye(CLASSES)[0] * 0.9 + np.eye(CLASSES)[1] * 0.1
    probable = made.class_probs_RC.argmax(1)
    assert target_with(made, 1.0, labels="hard").values["class"].tolist() == probable.tolist()
    without = target_with(made, 1.0, labels="hard", background=True).values["class"]
    assert without[0] == 1  # class 0 is background, and never a label
    assert without.min() >= 1


def test_all_regions_may_be_guessed_and_weighed() -> None:
    made = regions_with_labels()
    target = target_with(made, of="attribute", labels="hard", over="all", by_confidence=True)
    assert target.positions.tolist() == [0, 1, 2, 3, 4]
    assert target.values["class"].tolist() == [3, 0, -1, 1, 2]
    np.testing.assert_allclose(target.values["confidence"], [0.1, 0.2, 0.3, 0.4, 0.5])
    made.attribute_confidence_R = None
    unsure = target_with(made, of="attribute", labels="hard", over="all", by_confidence=True)
    assert unsure.values["confidence"].tolist() == [1] * 5


def test_the_whole_image_is_never_guessed() -> None:
    whole = example()
    whole.image = with_whole(regions_with_labels())
    hidden = hide(whole, RegionHidingConfig(probability=1), draw(3, "t"))
    for over in ("all", "hidden"):
        target = made_with(labels="hard", over=over).target(hidden, draw(1, "t"))
        assert target.positions.tolist() == [1, 2, 3, 4, 5]
        assert target.values["class"].tolist() == [2, -1, 0, 1, 2]


@pytest.mark.parametrize("over", ["all", "hidden"])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_what_is_asked_of_each_of_many_is_its_own(labels: str, over: str) -> None:
    made = made_with(labels=labels, over=over, by_confidence=True, average="examples")
    many = []
    for number, precision in enumerate([np.float32, np.float16, None, np.float32, np.float16]):
        one, rng = example(regions=3 + number), np.random.default_rng(number)
        assert isinstance(one.image, RegionInput)
        image, rows = one.image, len(one.image)
        assert image.class_probs_RC is not None
        image.class_probs_RC = image.class_probs_RC.astype(precision) if precision else None
        # Some shards say the class, others its probabilities, others neither.
        image.classes_R = rng.integers(0, CLASSES, rows) if number == 3 else None
        image.confidence_R = rng.random(rows).astype(np.float32) if number % 2 else None
        one.image = with_whole(image) if number > 2 else image
        many.append(hide(one, RegionHidingConfig(probability=0.5), draw(number, "t")))
    asked = made.targets(many, Draws(range(5)))
    alone = asked_of([made.target(each, draw(0, "t")) for each in many], made.empty())
    assert alone.counts_B[2] == 0
    assert (np.delete(alone.counts_B, 2) > 0).all()
    np.testing.assert_equal(asdict(asked), asdict(alone))


def test_hard_loss_weighs_by_confidence_and_leaves_out_regions_without_a_class() -> None:
    scores = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    labels, confidence = torch.tensor([1, -1, 0, 2]), torch.tensor([0.5, 1.0, 0.25, 0.0])
    own = [-scores.log_softmax(1)[k, max(int(labels[k]), 0)] for k in range(4)]
    targets = Targets(torch.arange(4), {"class": labels, "confidence": confidence}, 4.0)
    total, _ = made_with(labels="hard", by_confidence=True).loss(scores, targets)
    torch.testing.assert_close(total, 0.5 * own[0] + 0.25 * own[2])
    total, _ = made_with(labels="hard").loss(scores, Targets(torch.arange(4), {"class": labels}, 4.0))
    torch.testing.assert_close(total, own[0] + own[2] + own[3])


def test_soft_cross_entropy_is_the_divergence_and_the_label_s_entropy() -> None:
    scores = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))
    probability = torch.rand(3, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(1)
    targets = Targets(torch.arange(3), {"probability": probability}, 3.0)
    entropy = -(probability * probability.log()).sum()
    kl, cross = (made_with(loss=loss).loss(scores, targets)[0] for loss in ("kl", "cross_entropy"))
    torch.testing.assert_close(cross, kl + entropy)


def test_the_mean_may_be_over_examples_first() -> None:
    assert (
        target_with(regions_with_labels(), 1.0, average="examples").values[WEIGHT].tolist() == [pytest.approx(0.2)] * 5
    )
    objective_of_examples = made_with(average="examples")
    assert objective_of_examples.empty().values[WEIGHT].shape == (0,)
    scores = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))
    probability = torch.rand(3, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(1)
    each = made_with().divergences(scores, probability).sum(1)
    shares = torch.tensor([0.5, 0.5, 1.0])  # two targets of one example, one of another
    total, _ = objective_of_examples.loss(
        scores, Targets(torch.arange(3), {"probability": probability, WEIGHT: shares}, 2.0)
    )
    torch.testing.assert_close(total, (each[0] + each[1]) / 2.0001 + each[2] / 1.0001)


def test_heads_of_hard_labels() -> None:
    head = made_with(of="attribute", labels="hard", inner_of="other", inner_norm=False).head()
    assert head == ClassHead(reads="image", classes=4, inner="same", norm="none", inner_of="other")


def test_shards_without_attributes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs attributes of the regions, .* \(no <key>\.attributes\.npy\)"):
        RegionClass("attr", RegionClassConfig(of="attribute", labels="hard"), facts())
    with pytest.raises(ConfigError, match="of: attribute needs labels: hard"):
        RegionClassConfig.parse({"of": "attribute"})


def test_regions_without_a_class_do_not_count_for_accuracy() -> None:
    targets = Targets(torch.arange(3), {"class": torch.tensor([1, -1, 0])}, 3.0)
    scores = torch.eye(CLASSES)[[1, 1, 1]]
    _, metrics = made_with(labels="hard").loss(scores, targets)
    assert [int(value) for value in metrics["obj_accuracy"]] == [1, 2]
