"""Features: what can be had of a model, and that nothing but the example itself decides them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.feature_making import DUAL, JOINT, RETRIEVAL, pixel_model, samples, trained, vqa
from tests.unit.pictures import ramps
from vlp import VisionLanguageModel
from vlp.errors import ConfigError
from vlp.features.extractor import Arrays, Extractor
from vlp.features.kinds import NAMES, parse_what
from vlp.features.preparing import Files, Preparing
from vlp.features.sharing import in_batches, worth_sharing
from vlp.tasks.retrieval import RetrievalConfig
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
