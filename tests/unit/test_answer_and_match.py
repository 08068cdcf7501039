"""`answer` and `match` of a model: the head's best answers, every image with every text."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import vlp
from tests.unit.feature_making import ANSWERS, JOINT, pixel_model, samples, trained, vqa
from tests.unit.pictures import ramps
from vlp.errors import ConfigError, VlpError
from vlp.features.preparing import Preparing
from vlp.tasks.retrieval import RetrievalConfig


def test_answers_are_the_head_s_best() -> None:
    for more in ({}, {"answer": {"loss": "kl"}}):
        model = trained(source={"kind": "pixels", "backbone": "test_convnext", "size": 32}, task=vqa(**more))
        found = model.answer(ramps(), "what is left", 2)
        encoded = model(model.batch(images=[ramps()], texts=["what is left"]))
        scores = model.network.heads["answer"](encoded.pooled_BH)[0]
        shares = scores.sigmoid() if not more else scores.softmax(0)
        order = shares.argsort(descending=True)
        assert [one.answer for one in found] == [ANSWERS[number] for number in order[:2]]
        np.testing.assert_allclose([one.score for one in found], shares[order[:2]].detach(), atol=1e-5)
    assert len(model.answer(ramps(), "what", 99)) == len(ANSWERS)
    assert len(model.answer(ramps(), "what", np.int64(2))) == 2  # type: ignore[arg-type]


def test_a_masked_question_gets_its_mask() -> None:
    source = {"kind": "pixels", "backbone": "test_convnext", "size": 32}
    model = trained(JOINT, source, vqa(), pooler={"at": "mask"})
    ids = Preparing(model).example("x", "what is left", next(iter(samples(1)))).token_ids_T
    assert model.text is not None
    assert ids[-2] == model.text.mask_id
    assert model.answer(ramps(), "what is left")
    (row,) = vlp.extract(model, [(ramps(), "what is left")], "text")
    assert len(row.arrays["text"]) == 6


def test_every_image_is_matched_with_every_text() -> None:
    pictures, texts = [ramps(), ramps(40, 90)], ["red", "blue circle", "left of the red square"]
    model = pixel_model()
    odds_IT = model.match(pictures, texts, batch_size=4)
    assert odds_IT.shape == (2, 3)
    for i, t in itertools.product(range(2), range(3)):
        (row,) = vlp.extract(model, [(pictures[i], texts[t])], "itm")
        np.testing.assert_allclose(odds_IT[i, t], row.arrays["itm"], atol=1e-5)
    task = vlp_retrieval_without_ranking()
    dual = pixel_model(task=task)
    cosines_IT = dual.match(pictures, texts, batch_size=2)
    for i, t in itertools.product(range(2), range(3)):
        (row,) = vlp.extract(dual, [(pictures[i], texts[t])], "text.vector,image.vector")
        cosine = row.arrays["text.vector"] @ row.arrays["image.vector"]
        np.testing.assert_allclose(cosines_IT[i, t], cosine, atol=1e-5)
    assert model.match(pictures, []).shape == (2, 0)


@pytest.mark.parametrize("ranking", [True, False])
def test_no_images_and_no_texts_match_nothing(ranking: bool) -> None:
    model = pixel_model() if ranking else pixel_model(task=vlp_retrieval_without_ranking())
    assert model.match([], ["red", "blue"]).shape == (0, 2)
    assert model.match([ramps()], []).shape == (1, 0)
    assert model.match([], []).shape == (0, 0)


def test_wrong_questions_and_matches_are_sentences() -> None:
    answers, matches = pixel_model(task=vqa()), pixel_model()
    for call, sentence in (
        (lambda: answers.answer(ramps(), None), "answer: the text of pair 1 is of type NoneType; give a str"),
        (lambda: answers.answer(ramps(), "\udfff"), "answer: the text of pair 1, .*: half a surrogate pair"),
        (lambda: answers.answer(ramps(), "what", 0), "answer: k is 0; it should be a whole number from 1 on"),
        (lambda: answers.answer(ramps(), "what", True), "answer: k is True"),
        (lambda: answers.answer(None, "what"), "answer: there is no image; give what the question is about"),
        (lambda: answers.answer(7, "what"), "the image is of type int; give a picture"),
        (lambda: matches.match(texts=["red"]), "match: give images .*, and texts"),
        (lambda: matches.match([ramps()], "red"), "match: texts should be a list"),
        (lambda: matches.match([ramps()], [None]), "match: the text of pair 1 is of type NoneType"),
        (lambda: matches.match([ramps(), None], ["red"]), "match: pair 2 has no image; give one for each row"),
        (lambda: matches.match([ramps()], ["red"], batch_size=-1), "batch_size is -1"),
    ):
        with pytest.raises(VlpError, match=sentence):
            call()  # type: ignore[no-untyped-call]


def vlp_retrieval_without_ranking() -> Any:
    return RetrievalConfig.parse({"ranking": None, "contrast": {"width": 6}})


def test_models_without_answers_or_matches_say_so() -> None:
    with pytest.raises(ConfigError, match="answer: the model was trained for 'retrieval' and has no answers"):
        pixel_model().answer(ramps(), "what")
    with pytest.raises(ConfigError, match="match: the model was trained for 'vqa' and has no head for matching"):
        pixel_model(task=vqa()).match([ramps()], ["red"])
