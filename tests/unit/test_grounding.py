"""The probe: a word guessed with the right image and with a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.task_making import Oracle, dataset, images_of, judge, sample, setting, text_encoder, texts_of
from vlp.data.dataset import Dataset
from vlp.distributed import world
from vlp.errors import ConfigError
from vlp.tasks.grounding import word_accuracies
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.types import Batch

COLOURS = ("red", "blue", "green")
TEXTS = ("the red circle", "left of the blue square", "the circle", "green is green", "the red square", "blue")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with world():
        yield


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return dataset(tmp_path, [sample(number, text) for number, text in enumerate(TEXTS)])


def probed(kind: str = "masked_language") -> PretrainTask:
    return PretrainTask(PretrainConfig.parse({"objectives": {"guess": {"kind": kind}}}), setting())


def colour_of_the_image(data: Dataset) -> dict[float, int]:
    """The id of the word that stands in the text of each image, by which a model that looks answers."""
    known = {}
    for shard, entry in enumerate(data.index.manifest.shards):
        for row in range(entry.samples):
            made = data.read(shard, row, image=False, regions=True, texts=True)
            assert made.regions is not None
            words = [word for word in made.captions[0].split() if word in COLOURS]
            place = round(float(made.regions.features_RD[0, 0]), 4)
            known[place] = int(text_encoder().encode(words[0] if words else "is")[0][1])
    assert len(known) == len(TEXTS)
    return known


def test_a_model_that_looks_is_told_from_one_that_does_not(data: Dataset) -> None:
    known = colour_of_the_image(data)

    def looks(batch: Batch) -> Tensor:
        owner = torch.repeat_interleave(torch.arange(len(batch)), batch.text.packing.lengths_B)
        images = images_of(batch)
        answers = [known[round(images[int(owner[place])], 4)] for place in batch.targets["guess"].positions_K]
        return torch.nn.functional.one_hot(torch.tensor(answers, dtype=torch.long), text_encoder().vocab_size).float()

    seeing, blind = Oracle(looks), Oracle(lambda batch: always("red", batch))
    found = word_accuracies(probed(), judge(seeing, data), COLOURS)
    assert found["word_accuracy"] == 1.0
    assert found["word_accuracy_wrong_image"] < 0.7
    guessed = word_accuracies(probed(), judge(blind, data), COLOURS)
    assert guessed["word_accuracy"] == guessed["word_accuracy_wrong_image"] == pytest.approx(2 / 5)


def always(word: str, batch: Batch) -> Tensor:
    scores = torch.zeros(len(batch.targets["guess"].positions_K), text_encoder().vocab_size)
    scores[:, int(text_encoder().encode(word)[0][1])] = 1
    return scores


def test_the_first_of_the_words_is_hidden_and_nothing_else(data: Dataset) -> None:
    oracle = Oracle(lambda batch: always("red", batch))
    word_accuracies(probed(), judge(oracle, data), COLOURS)
    shown = [text for batch in oracle.batches for text in texts_of(batch)]
    wanted = ["the [MASK] circle", "left of the [MASK] square", "the circle", "[MASK] is green", "the [MASK] square"]
    assert shown == [*wanted, "[MASK]"] * 2
    right = [image for batch in oracle.batches[: len(oracle.batches) // 2] for image in images_of(batch)]
    wrong = [image for batch in oracle.batches[len(oracle.batches) // 2 :] for image in images_of(batch)]
    assert not any(a == b for a, b in zip(right, wrong, strict=True))


def test_an_unknown_word_is_not_a_name_for_all_unknown_words(tmp_path: Path) -> None:
    strange = dataset(tmp_path, [sample(0, "the Ж"), sample(1, "red Ж")])
    oracle = Oracle(lambda batch: always("red", batch))
    measured = word_accuracies(probed(), judge(oracle, strange), ["Щ", "yellow dog", "red"])
    assert measured["word_accuracy"] == 1.0
    assert sum(batch.targets["guess"].count for batch in oracle.batches) == 2  # with the right and with the wrong image


def test_words_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    strange = dataset(tmp_path, [sample(0, "the Ж"), sample(1, "red Ж")])
    with pytest.raises(ConfigError, match="none of 'Щ, yellow dog' is a token"):
        word_accuracies(probed(), judge(Oracle(lambda batch: always("red", batch)), strange), ["Щ", "yellow dog"])


def test_a_lone_image_has_no_wrong_one(tmp_path: Path) -> None:
    alone = dataset(tmp_path, [sample(0, "the red circle")])
    found = word_accuracies(probed(), judge(Oracle(lambda batch: always("red", batch)), alone), COLOURS)
    assert found == {"word_accuracy": 1.0}


def test_a_task_that_guesses_no_words_has_no_probe(data: Dataset) -> None:
    assert word_accuracies(probed("region_feature"), judge(Oracle(lambda batch: batch.text.ids_N), data), COLOURS) == {}
