"""Question answering: the answer vocabulary, the soft targets, and the accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.shard_making import some_regions, texts, write_tar
from tests.unit.task_making import SLOT, Oracle, dataset, judge, sample, setting, text_encoder
from vlp.data.batch import WEIGHT
from vlp.data.dataset import Dataset
from vlp.data.index import build_index, open_index
from vlp.data.lengths import token_lengths
from vlp.distributed import world
from vlp.errors import ConfigError, DataError
from vlp.seeds import draw
from vlp.tasks.vocabulary import answer_vocabulary
from vlp.tasks.vqa import ANSWER, VqaConfig, VqaTask
from vlp.types import Pair, Question

TEN = ("red",) * 6 + ("Blue",) * 2 + ("purple",) * 2


def task(*answers: str, **config: Any) -> VqaTask:
    return VqaTask(VqaConfig.parse({"answers": list(answers), **config}), setting())


def asked(*answers: str, id: str = "") -> Question:
    return Question("what colour is the circle", tuple(answers), id)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Dataset]:
    samples = [
        sample(0, questions=[asked(*TEN, id="q0"), asked("The red", "RED", id="q1")]),
        sample(1, questions=[asked(id="q2"), asked("blue", "blue", "a", id="q3")]),
        sample(2, questions=[asked("green", id="q4")]),
        sample(3, "no question here"),
    ]
    with world():
        yield dataset(tmp_path, samples, "questions")


# ---------------------------------------------------------------------------------------------- answer vocabulary


def test_answers_by_the_number_of_questions_whose_commonest_they_are(data: Dataset) -> None:
    # red is q0's and q1's, blue q3's, green q4's; ties by the alphabet. purple is nobody's commonest, 'a' is nothing.
    assert answer_vocabulary([data], 1) == ("red", "blue", "green")
    assert answer_vocabulary([data], 2) == ("red",)
    assert answer_vocabulary([data, data], 3) == ("red",)


def test_no_answer_that_is_frequent_enough_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"data\.train: no answer occurs for 3 questions; lower min_count"):
        answer_vocabulary([data], 3)


def test_a_sample_that_cannot_be_read_gives_no_answer(tmp_path: Path) -> None:
    good = texts(questions=[{"question": "what", "answers": ["red"]}])
    blank = texts("caption", "  ", questions=[{"question": "what", "answers": ["blue"]}])
    arrays = some_regions(1)
    from vlp.data.arrays import npy_bytes

    members = []
    for key, text in (("a", good), ("b", blank)):
        members += [(f"{key}.json", text), (f"{key}.features.npy", npy_bytes(arrays.features_RD))]
        members += [(f"{key}.boxes.npy", npy_bytes(arrays.boxes_R4))]
    write_tar(tmp_path / "x.tar", members)
    build_index(tmp_path)
    index, encoder = open_index(tmp_path), text_encoder()
    lengths = token_lengths(index, encoder.count, encoder.fingerprint, encoder.max_length)
    assert answer_vocabulary([Dataset(index, "questions", lengths)], 1) == ("red",)


# -------------------------------------------------------------------------------------------------------- targets


def target(question: Question, *answers: str) -> tuple[list[float], float]:
    pair = Pair(0, 0)
    made = task(*answers).example(SLOT, pair, sample(0), sample(0, questions=[question]), 0, draw(0, "t"), 0)
    values = made.targets[ANSWER].values
    return values["score"][0].tolist(), float(values[WEIGHT][0])


def test_soft_scores_of_what_the_vocabulary_holds() -> None:
    score, weight = target(asked(*TEN), "blue", "red", "green")
    assert score == [pytest.approx(0.6), 1.0, 0.0]
    assert weight == 1


def test_unanswered_questions_count_for_nothing() -> None:
    assert target(asked(), "red") == ([0.0], 0.0)
    # but one that was answered otherwise does: it teaches that none of the known answers fits
    assert target(asked("purple"), "red") == ([0.0], 1.0)


def test_a_mask_stands_behind_the_question_where_the_pooler_reads_one() -> None:
    pooler = {"pooler": setting().model.pooler.model_copy(update={"at": "mask"})}
    masked = replace(setting(), model=setting().model.model_copy(update=pooler))
    made, encoder = VqaTask(VqaConfig.parse({"answers": ["red"]}), masked), text_encoder()
    for words, kept in ((3, 3), (13, 13), (14, 13), (20, 13)):  # of 16 tokens, [CLS], [MASK] and [SEP] take three
        question = Question(" ".join(["red"] * words), ("red",))
        found = made.example(SLOT, Pair(0, 0), sample(0), sample(0, questions=[question]), 0, draw(0, "t"), 0)
        assert found.token_ids_T.tolist()[-2:] == [encoder.mask_id, encoder.sep_id]
        assert len(found.token_ids_T) == len(found.special_T) == len(found.word_T) == kept + 3
        assert found.special_T[[0, -2, -1]].all()
        assert not found.special_T[1:-2].any()
    assert made.image_tokens(4) == task("red").image_tokens(4) + 1  # the index does not count the mask


def test_only_questions_can_be_answered() -> None:
    with pytest.raises(ConfigError, match=r"texts: 'captions' is not right, it should be 'questions'"):
        VqaConfig.parse({"texts": "captions"})


# -------------------------------------------------------------------------------------------------------- judging


def saying(number: int, answers: int) -> Oracle:
    return Oracle(lambda batch: torch.eye(answers)[[number] * len(batch)])


def test_accuracy_over_answered_questions(data: Dataset) -> None:
    made = task("red", "blue")
    found = made.evaluate(judge(saying(0, 2), data, micro_tokens=25))
    # 'red' scores 1 for q0 (6 of 10) and q1, 0 for q3 and q4; q2 has no answers.
    assert found == {"vqa_accuracy": pytest.approx(2 / 4), "questions": 4}
    found = made.evaluate(judge(saying(1, 2), data, micro_tokens=25))
    assert found["vqa_accuracy"] == pytest.approx((0.6 + 0 + 2 / 3 + 0) / 4)


def test_predictions_in_order_with_ids(data: Dataset) -> None:
    found = task("red", "blue").predictions(judge(saying(1, 2), data))
    ids = [each.example_id.partition("/")[2] for each in found]
    assert ids == ["s0#0", "s0#1", "s1#0", "s1#1", "s2#0"]
    assert {each.answer for each in found} == {"blue"}
    assert [each.score for each in found] == [pytest.approx(0.6), 0, None, pytest.approx(2 / 3), 0]


def test_a_split_without_answers_has_predictions_but_no_accuracy(tmp_path: Path) -> None:
    with world():
        secret = dataset(tmp_path, [sample(0, questions=[asked(id="x")])], "questions")
        made = task("red", "blue")
        assert made.evaluate(judge(saying(0, 2), secret)) == {}
        assert [each.answer for each in made.predictions(judge(saying(0, 2), secret))] == ["red"]


def test_outcomes_say_what_was_asked_said_and_right(data: Dataset) -> None:
    found = task("red", "blue").judged(judge(saying(1, 2), data))
    assert [each.id for each in found.outcomes] == [f"q{number}" for number in range(5)]
    assert found.outcomes[0].wanted == ("red", "blue", "purple")  # the commonest first
    assert found.outcomes[0].place.endswith("/s0")
    assert dict(found.outcomes[3].scores) == {"vqa_accuracy": pytest.approx(2 / 3)}
    assert found.outcomes[2].wanted == ()
    assert dict(found.outcomes[2].scores) == {}
    assert found.metrics == task("red", "blue").evaluate(judge(saying(1, 2), data))
    (note,) = found.notes
    assert note.startswith("1 of 4 questions have no answer among the 2 that")


def test_questions_with_one_id_are_told_apart(tmp_path: Path) -> None:
    with world():
        twice = dataset(tmp_path, [sample(n, questions=[asked("red", id="1")]) for n in range(3)], "questions")
        found = task("red", "blue").judged(judge(saying(0, 2), twice))
    assert [(each.id, each.place.partition("/")[2]) for each in found.outcomes] == [("1", f"s{n}") for n in range(3)]
