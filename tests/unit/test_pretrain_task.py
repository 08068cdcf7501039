"""Pre-training as a task: which objectives a step has, and what is hidden of a pair."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from tests.unit.shard_making import WIDTH
from tests.unit.task_making import SLOT, ask, block, sample, setting, shown_features, text_encoder, within_3_sigma
from vlp.data.batch import asked_of
from vlp.errors import ConfigError
from vlp.seeds import Draws, draw
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.types import Example, Pair, RegionInput, Slot, Target

ALL = {
    "mlm": {"kind": "masked_language", "ratio": 2, "weight": 0.5, "mask": 1, "random": 0},
    "itm": {"kind": "matching", "ratio": 1, "replace": "text"},
    "mrfr": {"kind": "region_feature", "ratio": 1},
    "mrc": {"kind": "region_class", "ratio": 0},
}
TEXT = "the red circle left of the blue square"


def task(seed: int = 0, **config: Any) -> PretrainTask:
    return PretrainTask(PretrainConfig.parse({"objectives": ALL, **config}), setting(seed))


def at(step: int) -> Slot:
    return replace(SLOT, step=step)


def example(of: PretrainTask, matched: bool = True, slot: Slot = SLOT, seed: int = 0) -> Example:
    pair = Pair(0, 0, matched)
    made = of.example(slot, pair, sample(0, regions=8), sample(1, TEXT), 0, draw(seed, "t"), slot.step)
    return ask(of, made, slot.step)


def hides(made: Example) -> tuple[bool, bool]:
    """Whether words and whether regions of an example are hidden."""
    words = not np.array_equal(made.token_ids_T, text_encoder().encode(TEXT)[0])
    assert isinstance(made.image, RegionInput)
    return words, bool((shown_features(made) == 0).all(axis=1).any())


# ------------------------------------------------------------------------------------------ objectives of a step


def test_all_objectives_in_every_step() -> None:
    assert {task(combine="all").active(step) for step in range(20)} == {("mlm", "itm", "mrfr", "mrc")}


def test_one_objective_per_step_by_ratio() -> None:
    drawn = Counter(task(combine="one").active(step) for step in range(2000))
    assert set(drawn) == {("mlm",), ("itm",), ("mrfr",)}  # mrc has ratio 0
    assert within_3_sigma(drawn["mlm",], 2000, 0.5)
    assert within_3_sigma(drawn["itm",], 2000, 0.25)


def test_the_draw_is_a_function_of_seed_and_step() -> None:
    one, again, other = ([task(seed, combine="one").active(step) for step in range(50)] for seed in (1, 1, 2))
    assert one == again != other
    assert task(1, combine="one").active(49) == one[49]


def test_weights_are_the_configs() -> None:
    assert task().weights == {"mlm": 0.5, "itm": 1.0, "mrfr": 1.0, "mrc": 1.0}
    assert set(task().heads) == set(ALL)


# -------------------------------------------------------------------------------------------------------- pairs


def test_pairs_are_mismatched_only_for_matching() -> None:
    made, tables = task(combine="one"), block(1, 1, 1)
    for step in range(60):
        pairs = [made.pairs(at(step), tables, draw(seed, "t")) for seed in range(20)]
        assert {len(each) for each in pairs} == {1}
        torn = any(not pair.matched for (pair,) in pairs)
        assert torn == (made.active(step) == ("itm",))


def test_matching_anew_mismatches_in_every_step_with_all() -> None:
    pairs = [task().pairs(SLOT, block(1, 1), draw(seed, "t"))[0] for seed in range(1000)]
    assert within_3_sigma(sum(not pair.matched for pair in pairs), 1000, 0.5)


# ------------------------------------------------------------------------------------------------ what is hidden


def test_one_modality_is_hidden_at_a_time() -> None:
    made, seen = task(combine="one"), set()
    for step in range(40):
        (name,) = made.active(step)
        shown = example(made, slot=at(step))
        assert hides(shown) == {"mlm": (True, False), "itm": (False, False), "mrfr": (False, True)}[name]
        assert set(shown.targets) == {name}
        seen.add(name)
    assert seen == {"mlm", "itm", "mrfr"}


def test_both_are_hidden_with_all() -> None:
    made = example(task())
    assert hides(made) == (True, True)
    assert set(made.targets) == set(ALL)
    # Both objectives of regions guess the same ones.
    assert made.targets["mrfr"].positions.tolist() == made.targets["mrc"].positions.tolist()


def test_a_mask_does_not_tell_a_match() -> None:
    for combine in ("all", "one"):
        made = task(combine=combine)
        for step in range(20):
            whole, torn = (example(made, matched, slot=at(step)) for matched in (True, False))
            assert torn.token_ids_T.tolist() == whole.token_ids_T.tolist()
            assert isinstance(torn.image, RegionInput)
            assert isinstance(whole.image, RegionInput)
            np.testing.assert_array_equal(shown_features(torn), shown_features(whole))


def test_nothing_is_guessed_in_a_mismatched_pair() -> None:
    torn = example(task(), matched=False)
    assert set(torn.targets) == {"itm"}
    assert torn.targets["itm"].values["matched"].tolist() == [0]
    assert not example(task().only("mlm"), matched=False).targets


def test_unless_the_config_says_so() -> None:
    torn = example(task(on_mismatched=True), matched=False)
    assert hides(torn) == (True, True)
    assert set(torn.targets) == set(ALL)


def test_regions_are_hidden_as_the_config_says() -> None:
    made = example(task(region_hiding={"probability": 1.0}))
    assert not shown_features(made).any()
    assert made.targets["mrfr"].positions.tolist() == list(range(8))


def test_an_example_is_a_function_of_its_generator() -> None:
    first, again, other = (example(task(), seed=seed) for seed in (1, 1, 2))
    for name in ("mlm", "mrfr"):
        assert first.targets[name].positions.tolist() == again.targets[name].positions.tolist()
    assert first.token_ids_T.tolist() == again.token_ids_T.tolist()
    assert first.token_ids_T.tolist() != other.token_ids_T.tolist()


@pytest.mark.parametrize("masking", ["joint", "conditional"])
def test_what_is_hidden_of_an_example_is_the_same_in_any_company(masking: str) -> None:
    objectives = {**ALL, "nce": {"kind": "region_contrast", "negatives": 10}}
    hiding = {"probability": 0.4, "zero": 0.5, "random": 0.4, "overlap": 0.5}
    made = task(objectives=objectives, masking=masking, region_hiding=hiding)

    def bare(number: int) -> Example:
        image = sample(number, regions=(8, 0, 5)[number % 3])
        lent = np.repeat([[7], [9]], WIDTH, axis=1).astype(np.float16 if number % 2 else np.float32)
        image = replace(image, lent_KD=lent if number % 4 else None)
        pair = Pair(0, 0, matched=number % 5 > 0)
        return made.example(SLOT, pair, image, sample(1, TEXT), 0, draw(number, "t"), 0)

    together, numbers = [bare(number) for number in range(24)], np.arange(24)
    asked = made.ask(together, 0)
    apart: dict[str, list[Target]] = {name: [] for name in asked}
    for number, one in enumerate(together):
        alone = ask(made, bare(number), 0)
        assert one.token_ids_T.tolist() == alone.token_ids_T.tolist()
        assert isinstance(one.image, RegionInput)
        assert isinstance(alone.image, RegionInput)
        np.testing.assert_array_equal(shown_features(one), shown_features(alone))
        np.testing.assert_equal(one.image.hidden_R, alone.image.hidden_R)
        for name, targets in apart.items():
            target = alone.targets.get(name, made.objectives[name].empty())
            assert len(target.positions) == asked[name].counts_B[number]
            targets.append(target)
    assert asked.keys() == objectives.keys()
    for name, targets in apart.items():
        wanted = asked_of(targets, made.objectives[name].empty()).among(numbers, 24)
        np.testing.assert_equal(asdict(asked[name]), asdict(wanted))
    assert made.ask([], 0) == {}


def test_what_has_been_asked_is_not_asked_again() -> None:
    made = task()
    done, new = example(made), made.example(SLOT, Pair(0, 0), sample(0, regions=8), sample(1, TEXT), 0, draw(0, "t"), 0)
    words = done.token_ids_T.tolist()
    asked = made.ask([done, new, done], 0)
    assert done.token_ids_T.tolist() == words
    assert asked.keys() == ALL.keys()
    for each in asked.values():
        assert each.counts_B.tolist() == [0, len(each.positions_K), 0]
        assert len(each.positions_K)


@pytest.mark.parametrize("name", ["image", "lent", "stream"])
def test_an_objective_draws_numbers_of_its_own_whatever_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = task(objectives={name: {"kind": "masked_language"}}), list[Draws]()
    empty = Target(np.zeros(0, np.int64), {})
    monkeypatch.setattr(
        made.objectives[name],
        "targets",
        lambda hidden, draws: given.append(draws) or asked_of([Target(np.zeros(1, np.int64), {})], empty),
    )
    shown = example(made)
    assert shown.targets.keys() == {name}
    assert given[0].uniform([3]).tolist() != Draws([draw(0, "t").key]).apart(name).uniform([3]).tolist()


def test_a_batch_has_room_for_every_objective() -> None:
    made = task(combine="one")
    step = next(step for step in range(50) if made.active(step) == ("mlm",))
    batch = made.collate([[example(made, slot=at(step))]], step)  # which asks for nothing twice
    assert {name: targets.count > 0 for name, targets in batch.targets.items()} == {
        "mlm": True,
        "itm": False,
        "mrfr": False,
        "mrc": False,
    }
    assert len(made.collate([], 0)) == 0


# -------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_looks_at_one_objective_in_every_step() -> None:
    made = task(combine="one")
    view = made.only("mrc")
    assert {view.active(step) for step in range(20)} == {("mrc",)}
    assert hides(example(view)) == (False, True)
    assert {made.active(step) for step in range(20)} != {("mrc",)}  # the task itself stays as it was


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"objectives": {}}, "objectives"),
        ({"combine": "one", "objectives": {"mlm": {"kind": "masked_language", "ratio": 0}}}, "a ratio above 0"),
        ({"objectives": {"a": {"kind": "matching"}, "b": {"kind": "matching"}}}, "one of kind matching"),
        ({"objectives": {"mlm": {"kind": "masked_langage"}}}, "objectives.mlm.kind: 'masked_langage' is not right"),
        (
            {"objectives": {"mlm": {"kind": "masked_language", "masc": 1}}},
            r"objectives.mlm.masc' \(did you mean 'mask'",
        ),
        (
            {"objectives": {"mlm": {"kind": "masked_language", "mask": 0.9, "random": 0.2}}},
            "mlm: mask and random are 1.1",
        ),
        ({"objectives": {"m.l.m": {"kind": "masked_language"}}}, "'m.l.m' cannot name an objective"),
        ({"objectives": {"train": {"kind": "masked_language"}}}, "'train' cannot name an objective"),
    ],
)
def test_a_contradiction_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PretrainConfig.parse({"objectives": ALL, **config})
