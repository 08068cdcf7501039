"""How objectives combine: when they begin, what is hidden together, and which pairs and texts they are about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.task_making import SLOT, ask, block, sample, setting, shown_features, text_encoder, within_3_sigma
from vlp.errors import ConfigError
from vlp.seeds import draw
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.types import Example, Pair, Question, Slot

TEXT = "the red circle left of the blue square"
HIDING = {
    "mlm": {"kind": "masked_language", "mask": 1, "random": 0},
    "itm": {"kind": "matching"},
    "mrfr": {"kind": "region_feature"},
    "mrc": {"kind": "region_class"},
}
ITC = {"kind": "contrast"}
SLOW = {**ITC, "momentum": {}}
HARD = {"kind": "matching", "negatives": "hard"}
DISTILLED = {"kind": "masked_language", "alpha": 0.4}
ASKED = (
    Question("what colour is the circle", ("red",)),
    Question("is the square left of the circle", ("no", "no", "no", "yes")),
    Question("what is the square", ("a hat",)),
)
QA = {"kind": "question_answering", "answers": ["red", "no", "yes"]}


def task(**config: Any) -> PretrainTask:
    return PretrainTask(PretrainConfig.parse({"objectives": HIDING, **config}), setting())


def at(step: int) -> Slot:
    return replace(SLOT, step=step)


def example(of: PretrainTask, seed: int = 0, slot: Slot = SLOT, **pair: Any) -> Example:
    made = of.example(slot, Pair(0, 0, **pair), sample(0, regions=8), sample(1, TEXT), 0, draw(seed, "t"), slot.step)
    return ask(of, made, slot.step)


def hides(made: Example) -> tuple[bool, bool]:
    """Whether words and whether regions of an example are hidden."""
    words = not np.array_equal(made.token_ids_T, text_encoder().encode(TEXT)[0])
    assert made.regions is not None
    return words, bool((shown_features(made) == 0).all(axis=1).any())


# -------------------------------------------------------------------------------------------------- conditional masking


def test_one_modality_of_an_example_is_hidden_with_all_objectives() -> None:
    made = [example(task(masking="conditional"), seed) for seed in range(400)]
    words = [each for each in made if hides(each) == (True, False)]
    regions = [each for each in made if hides(each) == (False, True)]
    assert len(words) + len(regions) == 400
    assert within_3_sigma(len(words), 400, 0.5)
    assert {frozenset(each.targets) for each in words} == {frozenset({"mlm", "itm"})}
    assert {frozenset(each.targets) for each in regions} == {frozenset({"mrfr", "mrc", "itm"})}


def test_both_may_be_hidden_though_one_is_guessed() -> None:
    made = task(combine="one", masking="joint")
    for step in range(40):
        (name,) = made.active(step)
        shown = example(made, slot=at(step))
        assert set(shown.targets) == {name}
        assert hides(shown) == ((False, False) if name == "itm" else (True, True))


def test_evaluation_of_one_objective_hides_its_modality_alone() -> None:
    assert hides(example(task(combine="one", masking="joint").only("mrc"))) == (False, True)


# ------------------------------------------------------------------------------------------------------ when they begin


def test_an_objective_begins_at_its_step() -> None:
    later = {**HIDING, "mrc": {"kind": "region_class", "from_step": 30}}
    made = task(objectives=later)
    assert "mrc" not in made.active(29)
    assert "mrc" in made.active(30)
    one = task(objectives=later, combine="one")
    assert {one.active(step) for step in range(30)} == {("mlm",), ("itm",), ("mrfr",)}
    assert ("mrc",) in {one.active(step) for step in range(30, 60)}
    assert made.only("mrc").active(0) == ("mrc",)  # evaluation looks at it at any time


# --------------------------------------------------------------------------------------------------- question answering


def asked(of: PretrainTask, number: int, matched: bool = True, regions: int = 3) -> Example:
    record = sample(0, "the red circle", questions=ASKED, regions=regions)
    image = replace(record, regions=None) if not regions else record
    made = of.example(SLOT, Pair(0, number, matched), image, record, number, draw(0, "t"), 0)
    return ask(of, made, 0)


def test_a_question_of_a_matched_pair_asks_for_its_answer() -> None:
    made = task(texts="both", objectives={**HIDING, "qa": QA}, on_mismatched=True)
    assert asked(made, 0).targets["qa"].values["score"].tolist() == []  # a caption
    assert asked(made, 1).targets["qa"].values["score"].tolist() == [[1, 0, 0]]
    np.testing.assert_allclose(asked(made, 2).targets["qa"].values["score"], [[0, 0.75, 0.25]])
    assert asked(made, 3).targets["qa"].values["score"].tolist() == []  # its answer is none of the vocabulary
    torn = asked(made, 1, matched=False)
    assert "qa" not in torn.targets
    assert set(torn.targets) == set(HIDING)


def test_a_question_without_an_image_is_not_asked() -> None:
    made = task(texts="both", objectives={**HIDING, "qa": QA})
    alone = asked(made, 1, regions=0)
    assert {name for name, target in alone.targets.items() if len(target.positions)} == {"mlm"}
    blind = PretrainTask(made.config, setting(without="image"))  # but where that is what is measured
    assert len(asked(blind, 1).targets["qa"].positions) == 1


def test_questions_alone_may_be_the_texts() -> None:
    made = task(texts="questions", objectives={"qa": QA})
    assert asked(made, 0).targets["qa"].values["score"].tolist() == [[1, 0, 0]]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"objectives": {"qa": QA}}, "objectives.qa needs questions; say texts: both"),
        ({"objectives": {"mlm": {"kind": "masked_language", "from_step": 9}}}, "one that begins at once"),
        (
            {"objectives": {name: {"kind": "masked_language"} for name in ("a", "b")}},
            "objectives.b hides words, and so does a",
        ),
        (
            {"objectives": {n: {"kind": "masked_language"} for n in "ab"}, "combine": "one", "masking": "joint"},
            "objectives.b hides words, and so does a",
        ),
        ({"objectives": {"itm": HARD}}, "objectives.itm.negatives: hard ones are found by what contrast makes"),
        ({"objectives": {"itm": HARD, "itc": ITC}, "combine": "one"}, "objectives.itm.negatives: hard ones"),
        ({"objectives": {"itm": HARD, "itc": {**ITC, "from_step": 5}}}, "objectives.itm.negatives: hard ones"),
        ({"objectives": {"a": ITC, "b": ITC}}, "objectives can hold one of kind contrast"),
        ({"objectives": {"mlm": DISTILLED}}, "objectives.mlm.alpha: 0.4 is the share of a momentum model's guesses"),
        ({"objectives": {"mlm": DISTILLED, "itc": ITC}}, "objectives.mlm.alpha: 0.4 is the share"),
        ({"objectives": {"mlm": DISTILLED, "itc": SLOW}, "combine": "one"}, "objectives.mlm.alpha: 0.4 is the share"),
        (
            {"objectives": {"mlm": DISTILLED, "itc": {**SLOW, "from_step": 5}}},
            "objectives.mlm.alpha: 0.4 is the share",
        ),
    ],
)
def test_a_contradiction_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PretrainConfig.parse(config)


def test_what_needs_contrast_may_stand_beside_it() -> None:
    together = {"mlm": DISTILLED, "itm": HARD, "itc": SLOW}
    assert PretrainConfig.parse({"objectives": together}).objectives["mlm"].alpha == 0.4  # type: ignore[union-attr]
    along = {name: {**own, "along_with": "itc"} if name != "itc" else own for name, own in together.items()}
    PretrainConfig.parse({"objectives": along, "combine": "one"})


# ----------------------------------------------------------------------------------------------------- tokens of a pair


def passes(combine: str = "all", step: int = 0, **objectives: Any) -> tuple[float, float]:
    """How often a pair's text and image are gone over."""
    made = task(objectives=objectives, combine=combine)
    (pair,) = made.pairs(at(step), block(2, 2), draw(0, "t"))
    return pair.text_passes, pair.image_passes


def test_pairs_that_come_of_an_example_are_counted() -> None:
    mlm = {"kind": "masked_language"}
    assert passes(itm={"kind": "matching"}, mlm=mlm, itc=ITC) == (1, 1)
    # Its own, the text that it draws, and two that draw it; text and image meet from the first block on.
    assert passes(itm=HARD, itc=ITC) == (4, 4)
    assert passes(itm=HARD, itc=ITC, mlm=mlm) == (5, 5)  # and its own text as it was before words were hidden
    assert passes("one", 0, itm={**HARD, "along_with": "itc"}, itc={**ITC, "ratio": 0}, mlm=mlm) == (1, 1)
    assert passes("one", 0, itm={**HARD, "along_with": "itc"}, itc=ITC, mlm={**mlm, "ratio": 0}) == (4, 4)


def test_a_text_alone_makes_no_pairs() -> None:
    made = task(objectives={"itm": HARD, "itc": ITC})
    alone = replace(block(2, regions=0), has_image_S=np.zeros(1, bool))
    (pair,) = made.pairs(SLOT, alone, draw(0, "t"))
    assert (pair.text_passes, pair.image_passes) == (1, 1)


# ---------------------------------------------------------------------------------------------- in another's steps

ALIGNED = {**HIDING, "wra": {"kind": "word_region_alignment", "along_with": "itm"}}


def test_an_objective_may_stand_in_another_s_steps() -> None:
    made = task(objectives=ALIGNED, combine="one")
    drawn = [made.active(step) for step in range(300)]
    assert {names for names in drawn if "wra" in names} == {("itm", "wra")}
    assert ("itm",) not in drawn
    assert within_3_sigma(sum("wra" in names for names in drawn), 300, 1 / 4)  # its own ratio draws nothing
    assert made.only("wra").active(0) == ("itm", "wra")
    assert made.only("itm").active(0) == ("itm",)


def test_what_is_about_pairs_is_judged_on_those_that_matching_draws() -> None:
    made = task(objectives={**HIDING, "wra": {"kind": "word_region_alignment"}})
    assert made.only("wra").active(0) == ("itm", "wra")
    assert made.only("itm").active(0) == ("itm",)
    pairs = [made.only("wra").pairs(SLOT, block(1, 1, 1), draw(seed, "t"))[0] for seed in range(40)]
    assert {pair.matched for pair in pairs} == {True, False}


def test_alignment_judges_mismatched_pairs_too() -> None:
    for matched in (True, False):
        asked = example(task(objectives=ALIGNED), matched=matched).targets
        assert asked["wra"].values["matched"].tolist() == [int(matched)]
        assert ("mlm" in asked) == matched


def test_one_that_follows_nobody_is_refused() -> None:
    for leader in ("nobody", "wra", "late"):
        objectives = {**ALIGNED, "late": {"kind": "region_class", "along_with": "wra"}}
        objectives["wra"] = {**objectives["wra"], "along_with": leader if leader != "late" else "itm"}
        with pytest.raises(ConfigError, match=r"along_with: '(nobody|wra)' is no objective with steps of its own"):
            PretrainConfig.parse({"objectives": objectives})
