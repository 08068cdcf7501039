"""Retrieval: groups to learn from, and the ranking of all pairs to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.task_making import (
    SLOT,
    Oracle,
    block,
    dataset,
    images_of,
    judge,
    sample,
    setting,
    texts_of,
)
from vlp.data.batch import WEIGHT
from vlp.data.dataset import Dataset
from vlp.distributed import world
from vlp.errors import ConfigError, DataError
from vlp.seeds import draw
from vlp.tasks.retrieval import RetrievalConfig, RetrievalTask
from vlp.types import Batch, Pair, Question

TEXTS = (("red", "red circle"), ("blue",), ("green", "left of", "the"), ("square",))


def task(**config: Any) -> RetrievalTask:
    made = RetrievalTask(RetrievalConfig.parse(config), setting())
    made.apart = False  # an oracle has no halves
    return made


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Dataset]:
    with world():
        yield dataset(tmp_path, [sample(number, *texts) for number, texts in enumerate(TEXTS)])


# --------------------------------------------------------------------------------------------------------- groups


def test_a_group_is_the_matched_pair_and_its_negatives() -> None:
    tables = block(2, 1, 3)
    for seed in range(50):
        group = task(negative_images=2, negative_texts=3).pairs(SLOT, tables, draw(seed, "t"))
        assert len(group) == 6
        assert group[0] == Pair(0, 0, matched=True)
        assert all(pair.text == 0 and pair.image != 0 and not pair.matched for pair in group[1:3])
        assert all(pair.image == 0 and tables.sample_E[pair.text] != 0 and not pair.matched for pair in group[3:])


def test_a_group_without_negatives_to_be_had_teaches_nothing() -> None:
    made = task(negative_images=1, negative_texts=1)
    for tables in (block(2), block(2, 0)):
        group = made.pairs(SLOT, tables, draw(0, "t"))
        assert set(group) == {Pair(0, 0, matched=True)}
        assert len(group) == 3


def test_a_groups_pairs_count_as_one() -> None:
    made = task(negative_images=1, negative_texts=2)
    examples = [made.example(SLOT, Pair(0, 0), sample(0), sample(0, "red"), 0, draw(0, "t"), 0) for _ in range(8)]
    batch = made.collate([examples[:4], examples[4:]], 0)
    assert batch.targets["itm"].count == pytest.approx(2)
    assert float(batch.targets["itm"].values[WEIGHT].sum()) == pytest.approx(2)
    assert made.collate([], 0).targets["itm"].count == 0


def test_nothing_is_hidden() -> None:
    made = task().example(SLOT, Pair(0, 0), sample(0), sample(0, "the red circle"), 0, draw(0, "t"), 0)
    whole = sample(0).regions
    assert whole is not None
    assert made.image is not None
    np.testing.assert_array_equal(made.image.features_RD, whole.features_RD.astype(np.float32))  # type: ignore[union-attr]
    assert not np.isin(made.token_ids_T, task().setting.text.mask_id).any()


def test_no_negatives_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="negative_images and negative_texts are both 0"):
        RetrievalConfig.parse({"negative_images": 0, "negative_texts": 0})
    with pytest.raises(ConfigError, match=r"'it\.m' cannot name"):
        RetrievalConfig.parse({"head": "it.m"})


# -------------------------------------------------------------------------------------------------------- judging


def feature_of(number: int) -> float:
    regions = sample(number).regions
    assert regions is not None
    return float(np.float32(regions.features_RD[0, 0]))


FIRST = {round(feature_of(number), 4): number for number in range(len(TEXTS))}


def knowing(score: Any) -> Oracle:
    """A model whose log odds of a pair are `score(image number, text)`."""

    def answer(batch: Batch) -> Tensor:
        images = [FIRST[round(feature, 4)] for feature in images_of(batch)]
        odds = [score(image, text) for image, text in zip(images, texts_of(batch), strict=True)]
        return torch.tensor([[0.0, each] for each in odds])

    return Oracle(answer)


def test_a_model_that_knows_ranks_first(data: Dataset) -> None:
    found = task().evaluate(judge(knowing(lambda image, text: float(text in TEXTS[image])), data))
    assert (found["images"], found["texts"]) == (4, 7)
    recalls = {name: value for name, value in found.items() if "recall" in name}
    assert set(recalls) == {f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert set(recalls.values()) == {1.0}


def test_recall_is_counted_both_ways(data: Dataset) -> None:
    # Image 0 fits every text best; all else is right. So a text finds its image second, but for those of image 0.
    found = task().evaluate(judge(knowing(lambda image, text: 2.0 * (image == 0) + (text in TEXTS[image])), data))
    assert found["text_to_image_recall@1"] == pytest.approx(2 / 7)
    assert found["text_to_image_recall@5"] == 1.0
    assert found["image_to_text_recall@1"] == 1.0


def test_every_pair_is_scored_once_within_the_token_budget(data: Dataset) -> None:
    oracle = knowing(lambda image, text: 0.0)
    found = task().evaluate(judge(oracle, data, micro_tokens=30))
    pairs = [pair for batch in oracle.batches for pair in zip(images_of(batch), texts_of(batch), strict=True)]
    assert len(pairs) == len(set(pairs)) == 28
    assert max(batch.tokens for batch in oracle.batches) <= 30
    assert found["text_to_image_recall@1"] == 0.0  # a constant score


def test_only_the_first_images_are_judged(data: Dataset) -> None:
    found = task(judged_images=2).evaluate(judge(knowing(lambda image, text: 0.0), data))
    assert (found["images"], found["texts"]) == (2, 3)


def test_questions_can_be_ranked_too(tmp_path: Path) -> None:
    samples = [sample(n, "red", questions=[Question("what is left of the circle")]) for n in range(3)]
    with world():
        for texts, count in (("questions", 3), ("both", 6)):
            data = dataset(tmp_path / texts, samples, texts)  # type: ignore[arg-type]
            found = task(texts=texts).evaluate(judge(knowing(lambda image, text: 0.0), data))
            assert found["texts"] == count


def test_an_image_that_cannot_be_read_is_left_out_and_counted(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made, prepare = task(), type(task().images).prepare
    bad = {"s1"}

    def failing(self: Any, image: Any, rng: Any = None) -> Any:
        if image.key in bad:
            from vlp.data.samples import Fault

            raise Fault("image", "does not decode")
        return prepare(self, image, rng)

    monkeypatch.setattr(type(made.images), "prepare", failing)
    found = made.evaluate(judge(knowing(lambda image, text: 0.0), data))
    assert (found["images"], found["texts"], found["unreadable_images"]) == (3, 6, 1)
    bad |= {"s0", "s2", "s3"}
    with pytest.raises(DataError, match="no image with captions can be read"):
        made.evaluate(judge(knowing(lambda image, text: 0.0), data))
