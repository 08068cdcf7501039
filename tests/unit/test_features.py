"""Features: what can be had of a model, and that nothing but the example itself decides them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlp
from tests.unit.feature_making import ANSWERS, DUAL, JOINT, RETRIEVAL, pixel_model, samples, trained, vqa
from tests.unit.pictures import ramps
from vlp import VisionLanguageModel
from vlp.errors import ConfigError, DataError, VlpError
from vlp.features.extractor import Arrays, Extractor
from vlp.features.kinds import NAMES, parse_what
from vlp.features.preparing import Files, Preparing
from vlp.features.sharing import in_batches, worth_sharing
from vlp.tasks.retrieval import RetrievalConfig
from vlp.tasks.saved import SavedTask
from vlp.types import Example

EVERYTHING = (
    "pooled,text,image,text.unimodal,image.unimodal,text.layer.0,image.layer.0,text.layer.2,image.layer.1,"
    "text.vector,image.vector,itm,attention,attention.1,attention.2"
)


def examples(model: VisionLanguageModel, number: int = 9) -> list[Example]:
    preparing = Preparing(model)
    return [
        preparing.example(str(n), caption, sample)
        for n, (sample, caption) in enumerate((s, c) for s in samples(number) for c in s.captions)
    ]


def extracted(model: VisionLanguageModel, given: list[Example], what: str, micro_tokens: int = 8192) -> list[Arrays]:
    return Extractor(model, parse_what(what), micro_tokens).run(given)


def same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("encoder", [JOINT, DUAL], ids=["joint", "dual"])
def test_an_example_s_features_are_its_own(encoder: list[dict[str, Any]]) -> None:
    """Whatever it is batched with, and wherever it stands."""
    model = trained(encoder)
    given = examples(model)
    whole = extracted(model, given, EVERYTHING)
    for budget in (1, 25, 60):
        for one, other in zip(extracted(model, given, EVERYTHING, budget), whole, strict=True):
            same(one, other)
    order = np.random.default_rng(0).permutation(len(given))
    for place, one in zip(order, extracted(model, [given[place] for place in order], EVERYTHING, 40), strict=True):
        same(one, whole[place])


@pytest.mark.parametrize("encoder", [JOINT, DUAL], ids=["joint", "dual"])
def test_features_are_what_the_network_makes(encoder: list[dict[str, Any]]) -> None:
    model = trained(encoder)
    given = examples(model, 3)
    last = 2 if encoder is JOINT else 5
    layers = f"text.layer.0,image.layer.0,text.layer.{last},image.layer.{last}"
    what = f"pooled,text,image,itm,text.vector,image.vector,{layers}"
    for example, found in zip(given, extracted(model, given, what), strict=True):
        from vlp.data.batch import collate

        batch = collate([example], model.images.form, {})
        with torch.no_grad():
            encoded = model(batch)
            image_MH, *_ = model.network.image(batch.image, batch.text, model.network.text.tables)
            scores = model.network.heads["itm"](encoded.pooled_BH)[0]
        np.testing.assert_allclose(found["pooled"], encoded.pooled_BH[0], atol=1e-5)
        np.testing.assert_allclose(found["text"], encoded.text_NH, atol=1e-5)
        np.testing.assert_allclose(found[f"text.layer.{last}"], encoded.text_NH, atol=1e-5)
        np.testing.assert_allclose(found[f"image.layer.{last}"], encoded.image_MH, atol=1e-5)
        np.testing.assert_allclose(found["image.layer.0"], image_MH, atol=1e-5)
        np.testing.assert_allclose(found["itm"], scores[1] - scores[0], atol=1e-5)
        for side in ("text", "image"):
            assert found[f"{side}.vector"].shape == (6,)
            np.testing.assert_allclose(np.linalg.norm(found[f"{side}.vector"]), 1, atol=1e-5)


def test_what_a_text_alone_decides_needs_no_image_and_no_meeting() -> None:
    model = trained()
    given = examples(model, 4)
    alone = extracted(model, given, "text.vector,image.vector,text.unimodal")
    for one, other in zip(alone, extracted(model, given, "text.vector,image.vector,text.unimodal,pooled"), strict=True):
        same(one, {name: other[name] for name in one})
    without = [Example(e.id, e.token_ids_T, e.special_T, e.word_T, None) for e in given]
    for one, other in zip(alone, extracted(model, without, "text.vector"), strict=True):
        np.testing.assert_allclose(one["text.vector"], other["text.vector"], atol=1e-5)


def test_an_image_of_several_texts_runs_once() -> None:
    """Alone; and what comes out is what each pair gives by itself."""
    for model in (trained(), pixel_model(), pixel_model(encoder=JOINT)):
        given = examples(model, 9) if not model.images.wants_image else picture_examples(model)
        given.append(replace(given[0], image=None))
        what = "pooled,text,image,itm,text.unimodal,image.unimodal,text.vector,image.vector"
        assert worth_sharing(model.network, parse_what(what), given)
        images, hook = tokens_seen(model)
        whole = extracted(model, given, what, 60)
        hook.remove()
        once = {id(example.image): example.image for example in given if example.image is not None}
        assert sum(images) == sum(map(len, once.values())), "each image runs once"
        for example, found in zip(given, whole, strict=True):
            (by_itself,) = extracted(model, [example], what)
            same(by_itself, found)
        for one, other in zip(extracted(model, given, "image.vector,text.unimodal", 60), whole, strict=True):
            same(one, {name: other[name] for name in one})
    assert not worth_sharing(trained(JOINT).network, parse_what("pooled"), examples(trained(JOINT)))
    assert not worth_sharing(trained().network, parse_what("attention"), examples(trained()))


def tokens_seen(model: VisionLanguageModel) -> tuple[list[int], Any]:
    """How many image tokens each run of the image's embedding sees, and the hook that counts them."""
    seen: list[int] = []
    return seen, model.network.image.register_forward_hook(lambda _, given, out: seen.append(given[0].packing.tokens))


def picture_examples(model: VisionLanguageModel) -> list[Example]:
    preparing = Preparing(model)
    files = [Files(ramps(20 + 9 * number, 30)) for number in range(3)]
    texts = ("red", "blue circle", "the red square", "left")
    return [preparing.example(text, text, each) for each in files for text in texts]


def test_maps_say_who_looks_at_whom() -> None:
    model = trained()
    example = examples(model, 1)[0]
    text = len(example.token_ids_T)
    (found,) = extracted(model, [example], "attention,attention.1,attention.3,attention.4")
    tokens = example.tokens
    assert found["attention"].shape == (2 + 1 + 2 * 2, tokens, tokens)
    assert found["attention.1"].shape == (2, tokens, tokens)
    np.testing.assert_allclose(found["attention.1"].mean(0), found["attention"][0], atol=1e-6)
    first, third, cross, own = (found["attention"][number] for number in (0, 2, 3, 4))
    np.testing.assert_allclose(first[:text].sum(1), 1, atol=1e-5)
    assert not first[text:].any(), "the text's block leaves the image alone"
    assert not first[:, text:].any()
    assert not third[:text].any()
    np.testing.assert_allclose(third[text:].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(cross.sum(1), 1, atol=1e-5)
    assert not cross[:text, :text].any(), "each looks at the other alone"
    assert not cross[text:, text:].any()
    assert cross[:text, text:].all()
    assert not own[:text, text:].any()


def test_maps_are_the_weights_that_the_plain_formula_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn import functional as F

    model = trained(JOINT, attention="reference", dropout=0, attention_dropout=0)
    example = examples(model, 1)[0]
    weights: list[torch.Tensor] = []
    dropout = F.dropout
    monkeypatch.setattr(F, "dropout", lambda x, *more, **named: weights.append(x) or dropout(x, *more, **named))
    (found,) = extracted(model, [example], "attention.2")
    used = [each for each in weights if each.dim() == 4][-1]
    np.testing.assert_allclose(found["attention.2"], used[0], atol=1e-6)


def test_batches_hold_like_lengths_within_the_budget() -> None:
    lengths = [5, 9, 3, 9, 20, 4]
    batches = in_batches(lengths, 18)
    assert sorted(itertools.chain(*batches)) == list(range(6))
    assert batches == [[4], [1, 3], [0, 5, 2]]


REFUSED: list[tuple[dict[str, Any], Any, str]] = [
    ({}, "poled", r"'poled' cannot be extracted \(did you mean 'pooled'\?\)"),
    ({}, "text.layer.N", r"'text.layer.N' cannot be extracted"),
    ({}, "text.layer." + "9" * 5000, r"'text.layer.9{46}...' cannot be extracted"),
    ({}, "text.layer.01", r"'text.layer.01' cannot be extracted"),
    ({}, ["pooled", 7], r"is no list of names; give some of pooled, text"),
    ({}, None, r"'None' is no list of names"),
    ({}, " , ", r"give at least one of pooled, text, image"),
    ({}, "text.layer.6", r"'text.layer.6' cannot be extracted: the model has 5 blocks"),
    ({}, "attention.8", r"'attention.8' cannot be extracted: the model has 7 attention sublayers"),
    ({}, "attention.0", r"counted from 1"),
    ({"task": vqa()}, "itm", r"no head for matching \(it was trained for 'vqa'\)"),
    ({"task": vqa()}, "text.vector", r"need a contrastive head, and the model has none"),
    (
        {"encoder": JOINT, "task": RETRIEVAL},
        "pooled,text.vector",
        r"text.vector: the text's vector of this model is made of one state for all texts, .*train one with "
        r"task.contrast.text=mean or with blocks of the text alone",
    ),
]


@pytest.mark.parametrize(("model", "what", "sentence"), REFUSED, ids=[str(what)[:20] for _, what, _ in REFUSED])
def test_what_a_model_cannot_give_is_refused(model: dict[str, Any], what: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Extractor(trained(**model), parse_what(what))


def test_a_text_s_vector_is_of_its_words() -> None:
    """Where no block has looked at them, the first state is one for all texts; what else the model has is given."""
    blind = trained(JOINT, task=RETRIEVAL)
    assert extracted(blind, examples(blind, 2), "pooled,itm,image.vector")
    for model in (trained(JOINT), trained()):
        found = extracted(model, examples(model), "text.vector")
        words = {example.token_ids_T.tobytes() for example in examples(model)}
        assert len({row["text.vector"].round(4).tobytes() for row in found}) == len(words)
    dual = {"ranking": None, "contrast": {"width": 6}}
    with pytest.raises(ConfigError, match=r"match: the text's vector of this model is made of one state for all texts"):
        pixel_model(encoder=JOINT, task=RetrievalConfig.parse(dual)).match([ramps()], ["red"])


def test_names_come_once_and_in_one_order() -> None:
    assert [one.name for one in parse_what("itm,attention.2,text,text,attention.1,pooled")] == [
        "pooled",
        "text",
        "itm",
        "attention.1",
        "attention.2",
    ]
    assert len(set(NAMES)) == len(NAMES)


# ------------------------------------------------------------------------------------------------------- vlp.extract


def test_pairs_stream_in_order(tmp_path: Path) -> None:
    model = pixel_model()
    taken = []

    def pairs() -> Any:
        for number in range(7):
            taken.append(number)
            ramps(20 + number, 30).save(tmp_path / f"{number}.png")
            yield {"id": f"p{number}", "image": tmp_path / f"{number}.png", "text": "red " * (number + 1)}

    rows = vlp.extract(model, pairs(), "pooled,text,itm", window=3)
    assert not taken, "nothing is read before it is asked for"
    first = next(rows)
    assert taken == [0, 1, 2]
    found = [first, *rows]
    assert [row.id for row in found] == [f"p{number}" for number in range(7)]
    images = [tmp_path / f"{number}.png" for number in range(7)]
    encoded = model.encode(images, [row.words for row in found])
    for number, row in enumerate(found):
        np.testing.assert_allclose(row.arrays["pooled"], encoded.pooled[number], atol=1e-5)
        np.testing.assert_allclose(row.arrays["text"], encoded.text[number], atol=1e-5)


def test_a_pair_that_cannot_be_used_is_told_of(tmp_path: Path) -> None:
    model = pixel_model()
    pairs: list[Any] = [(ramps(), "red"), (tmp_path / "none.jpg", "blue"), (None, "green")]
    said: list[dict[str, str]] = []
    assert [row.words for row in vlp.extract(model, pairs, bad=said.append)] == ["red", "green"]
    assert [record["id"] for record in said] == ["1"]
    with pytest.raises(DataError, match=r"pair 1: image .*No such file"):
        list(vlp.extract(model, pairs))
    with pytest.raises(ConfigError, match="pair 0 has an unknown 'txt'"):
        list(vlp.extract(model, [{"txt": "red"}]))


WRONG_PAIRS: list[tuple[str, Any, str]] = [
    ("pixels", "photo.jpg", r"it is a str; give \(image, text\), or a mapping of id, image, text, regions"),
    ("pixels", None, r"it is a NoneType; give"),
    ("pixels", ("a", "b", "c"), r"it is a tuple of 3; give"),
    ("pixels", (None, 7), r"text is of type int; give a str"),
    ("pixels", {"text": ["red"]}, r"text is of type list; give a str"),
    ("pixels", {"text": "red \ud800"}, r"text has a text with half a surrogate pair"),
    ("pixels", (7, "red"), r"the image is of type int; give a picture"),
    ("pixels", {"image": np.zeros((3, 8, 9), np.uint8)}, r"image is an array \[3, 8, 9\] of uint8; give"),
    ("pixels", {"regions": {}, "text": "red"}, r"regions are given, and the model reads photos; give the image"),
    ("regions", (ramps(), "red"), r"image is a photo, and the model reads regions of a detector; give regions"),
    ("regions", {"regions": 7}, r"the regions are of type int; give arrays by name"),
    ("regions", {"regions": {"box": 1}}, r"regions have no array 'box' \(did you mean 'boxes'"),
    ("regions", {"text": "red"}, r"image is missing, and itm is of it; leave the pair or itm out"),
]


@pytest.mark.parametrize(("kind", "pair", "sentence"), WRONG_PAIRS, ids=[each[2][:25] for each in WRONG_PAIRS])
def test_pairs_of_wrong_types_are_told_of(kind: str, pair: Any, sentence: str) -> None:
    model = trained() if kind == "regions" else pixel_model()
    good = {"regions": samples(1)[0].regions, "text": "red"} if kind == "regions" else (ramps(), "red")
    said: list[dict[str, str]] = []
    assert len(list(vlp.extract(model, [pair, good], "itm", bad=said.append))) == 1
    assert [record["id"] for record in said] == ["0"]
    with pytest.raises(DataError, match=f"pair 0: .*{sentence}"):
        list(vlp.extract(model, [pair, good], "itm"))


def test_what_extract_takes_is_checked_before_anything_is_read() -> None:
    model: Any = pixel_model()
    for given, sentence in (
        ({"pairs": "photo.jpg"}, "pairs is a str"),
        ({"pairs": {"image": "photo.jpg"}}, "pairs is a dict"),
        ({"pairs": None}, "pairs is a NoneType"),
        ({"model": "runs/mine/model"}, "model is a str; give VisionLanguageModel.from_pretrained"),
        ({"window": 0}, "window is 0; it should be a whole number from 1 on"),
        ({"micro_tokens": "many"}, "micro_tokens is 'many'"),
        ({"bad": []}, "bad is a list; give something that can be called"),
    ):
        with pytest.raises(ConfigError, match=f"extract: {sentence}"):
            vlp.extract(**{"model": model, "pairs": [], **given})  # type: ignore[arg-type]


def test_what_is_of_an_image_needs_one() -> None:
    """Of a text alone there are states and a pooled vector, and no image's vector or odds of a match."""
    model = pixel_model()
    pairs = [{"text": "red"}, {"image": ramps(), "text": "blue"}]
    assert len(list(vlp.extract(model, pairs, "pooled,text,image,text.vector"))) == 2
    for what in ("image.vector", "itm", "pooled,image.vector"):
        said: list[dict[str, str]] = []
        assert [row.words for row in vlp.extract(model, pairs, what, bad=said.append)] == ["blue"]
        assert said[0]["member"] == "image"
    blind = pixel_model()
    blind.task = SavedTask(task=RETRIEVAL, without="image")
    assert len(list(vlp.extract(blind, pairs, "itm"))) == 2, "as it was trained"


# ------------------------------------------------------------------------------------------------- answers, matches


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


def test_a_model_in_half_precision_gives_numbers() -> None:
    model = trained()
    given = examples(model, 3)
    whole = extracted(model, given, "pooled,itm,attention,text.vector")
    for dtype in (torch.float16, torch.bfloat16):
        for one, other in zip(
            extracted(model.to(dtype), given, "pooled,itm,attention,text.vector"), whole, strict=True
        ):
            assert all(array.dtype == np.float32 for array in one.values())
            np.testing.assert_allclose(one["pooled"], other["pooled"], atol=0.1)
