"""Prefix language modelling: who sees whom, what is guessed, and captions that are written word by word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.examples import REGIONS, SMALL, example, shaken, shipped
from tests.unit.task_making import Oracle, dataset, facts, hidden, judge, sample, setting, text_encoder, within_3_sigma
from tests.unit.task_making import example as words_example
from vlp.data.batch import collate
from vlp.distributed import world
from vlp.errors import ConfigError
from vlp.models.attention import Implementation
from vlp.models.model import ModelConfig, Network
from vlp.objectives.objective import Facts
from vlp.objectives.prefix import PrefixLanguage, PrefixLanguageConfig
from vlp.seeds import draw
from vlp.tasks.captioning import exact_matches
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.types import Batch, Example

FAMILIES = ("uniter_tiny", "lxmert_tiny", "vilbert_tiny")


def model_of(family: str, *overrides: str) -> Network:
    return shaken(Network(shipped(family, *SMALL, *overrides))).eval()  # type: ignore[return-value]


def states(model: Network, *examples: Example) -> tuple[list[Tensor], list[Tensor]]:
    """Text and image states of each example."""
    batch = collate(examples, REGIONS, {})
    with torch.no_grad():
        encoded = model(batch)
    text = encoded.text_NH.split(list(batch.text.packing.lengths))
    return list(text), list(encoded.image_MH.split(list(batch.image.packing.lengths)))


def causal(tokens: int, image: int | None, seed: int) -> Example:
    return replace(example(tokens, image, seed), causal=True)


def cut(of: Example, tokens: int) -> Example:
    return replace(of, token_ids_T=of.token_ids_T[:tokens], special_T=of.special_T[:tokens], word_T=of.word_T[:tokens])


# ------------------------------------------------------------------------------------------------------ who sees whom


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_up_to_a_word_are_what_they_were_if_the_text_ended_there(family: str, attention: Implementation) -> None:
    model = model_of(family, f"attention={attention}")
    long, plain = causal(9, 4, 1), example(7, 2, 2)
    (whole, _), (image, _) = states(model, long, plain)
    for tokens in (1, 4, 8):
        (part, _), (seen, _) = states(model, cut(long, tokens), plain)
        torch.testing.assert_close(part, whole[:tokens], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(seen, image, atol=1e-5, rtol=1e-5)  # the image sees no word


@pytest.mark.parametrize("family", FAMILIES)
def test_words_see_the_image_and_those_before_them(family: str) -> None:
    model = model_of(family)
    one = causal(6, 4, 1)
    (text,), _ = states(model, one)
    (other,), _ = states(model, replace(one, image=example(6, 4, 2).image))
    assert ((text - other).abs().amax(1) > 1e-3).all()
    ids_T = one.token_ids_T.copy()
    ids_T[2] = 3 if ids_T[2] != 3 else 4
    (changed,), _ = states(model, replace(one, token_ids_T=ids_T))
    differs_T = (text - changed).abs().amax(1) > 1e-4
    assert differs_T.tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_of_reading_stand_in_one_batch(family: str) -> None:
    model = model_of(family)
    one, plain, bare = causal(6, 4, 1), example(5, 3, 2), causal(4, None, 3)
    together = states(model, one, plain, bare)
    for number, each in enumerate((one, plain, bare)):
        alone = states(model, each)
        torch.testing.assert_close(together[0][number], alone[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[1][number], alone[1][0], atol=1e-5, rtol=1e-5)
    (two_way,), _ = states(model, replace(one, causal=False))
    assert not torch.allclose(two_way, together[0][0], atol=1e-3)


def test_gradients_are_finite_where_an_image_sees_no_word() -> None:
    model = model_of("vilbert_tiny").train()
    encoded = model(collate([causal(5, 3, 1), causal(3, None, 2)], REGIONS, {}))
    (encoded.text_NH.sum() + encoded.image_MH.sum() + encoded.pooled_BH.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------------ what is guessed


def objective(**config: Any) -> PrefixLanguage:
    return PrefixLanguage("lm", PrefixLanguageConfig.parse(config), facts())


def test_each_token_is_guessed_from_the_one_before() -> None:
    made = words_example(words=5)
    made.special_T[3] = True  # an unknown word is not worth guessing
    target = objective().target(hidden(made), draw(0, "t"))
    assert made.causal
    assert target.positions.tolist() == [0, 1, 3, 4, 5]
    assert target.values["token"].tolist() == made.token_ids_T[[1, 2, 4, 5, 6]].tolist()
    assert target.values["token"][-1] == text_encoder().sep_id


def test_hidden_tokens_are_guessed_in_their_place() -> None:
    made = words_example(words=20_000)
    before = made.token_ids_T.copy()
    target = objective(guess="masked").target(hidden(made), draw(0, "t"))
    assert made.causal
    assert within_3_sigma(len(target.positions), 20_001, 0.15)
    assert target.values["token"].tolist() == before[target.positions].tolist()
    masks = int((made.token_ids_T == text_encoder().mask_id).sum())
    assert within_3_sigma(masks, len(target.positions), 0.8)


def test_the_end_is_hidden_too_and_the_beginning_never() -> None:
    ends, trials = 0, 2000
    for seed in range(trials):
        made = words_example(words=9)
        target = objective(guess="masked").target(hidden(made), draw(seed, "t"))
        assert 0 not in target.positions
        ends += 10 in target.positions
    assert 0.13 < ends / trials < 0.20  # 15 %, and where none was drawn, one in ten


def test_a_place_that_tells_the_length_is_refused() -> None:
    told = shipped("vl_bert_tiny", *SMALL)
    with pytest.raises(ConfigError, match=r"task\.objectives\.lm: .* after_text"):
        PrefixLanguage("lm", PrefixLanguageConfig(), Facts(told, text_encoder()))
    plain = ModelConfig.parse({**told.plain(), "image": {**told.image.plain(), "parts": [{"kind": "feature"}]}})
    PrefixLanguage("lm", PrefixLanguageConfig(), Facts(plain, text_encoder()))


# ------------------------------------------------------------------------------------------------------------ captions


@pytest.fixture
def _joined() -> Iterator[None]:
    with world():
        yield


CAPTIONS = ("the red circle", "the blue square", "green")


def writer(pick: dict[float, str], guess: str) -> Oracle:
    """Stands in for a model that says of each image (known by its first number) a text, word by word."""
    encoder = text_encoder()

    def scores(batch: Batch) -> Tensor:
        found = torch.zeros(len(batch), encoder.vocab_size)
        for row, (start, length) in enumerate(
            zip(batch.text.packing.starts_B1.tolist(), batch.text.packing.lengths, strict=False)
        ):
            ids = batch.text.ids_N[start : start + length].tolist()
            if guess == "masked":
                assert ids.pop() == encoder.mask_id
            assert batch.targets["lm"].positions_K[row] == start + length - 1
            said = encoder.encode(pick[round(float(first_numbers(batch)[row]), 3)])[0].tolist()
            assert ids == said[: len(ids)]
            found[row, said[min(len(ids), len(said) - 1)]] = 1
            found[row, encoder.mask_id] = 2  # never said
        return found

    return Oracle(scores)


def first_numbers(batch: Batch) -> list[float]:
    from tests.unit.task_making import images_of

    return images_of(batch)


@pytest.mark.parametrize("guess", ["next", "masked"])
@pytest.mark.parametrize("micro_tokens", [30, 1000])
@pytest.mark.usefixtures("_joined")
def test_captions_are_written_word_by_word(guess: str, micro_tokens: int, tmp_path: Path) -> None:
    samples = [sample(number, caption, "left of") for number, caption in enumerate(CAPTIONS)]
    said = {
        round(float(each.regions.features_RD[0, 0]), 3): text
        for each, text in zip(samples, ("the red circle", "the blue circle", "left of"), strict=True)
        if each.regions is not None
    }
    config = {"objectives": {"lm": {"kind": "prefix_language", "guess": guess}, "itm": {"kind": "matching"}}}
    task = PretrainTask(PretrainConfig.parse(config), setting())
    lm = task.objectives["lm"]
    assert isinstance(lm, PrefixLanguage)
    oracle = writer(said, guess)
    found = exact_matches(task, lm, judge(oracle, dataset(tmp_path, samples), micro_tokens), most=9)
    assert found == {"caption_exact_match": pytest.approx(2 / 3)}
    longest = max(max(batch.text.packing.lengths) for batch in oracle.batches)
    assert longest == 4 + (guess == "masked")  # stops when all are done
    assert exact_matches(task, lm, judge(oracle, dataset(tmp_path / "b", samples)), most=1)["caption_exact_match"] == 1


@pytest.mark.usefixtures("_joined")
def test_a_text_that_never_ends_is_cut_at_the_limit(tmp_path: Path) -> None:
    red = text_encoder().encode("red")[0][1]
    endless = Oracle(lambda batch: torch.eye(text_encoder().vocab_size)[torch.full((len(batch),), int(red))])
    task = PretrainTask(PretrainConfig.parse({"objectives": {"lm": {"kind": "prefix_language"}}}), setting())
    lm = task.objectives["lm"]
    assert isinstance(lm, PrefixLanguage)
    data = dataset(tmp_path, [sample(0, " ".join(["red"] * 14)), sample(1, " ".join(["red"] * 13))])
    assert exact_matches(task, lm, judge(endless, data), most=9) == {"caption_exact_match": 0.5}
    assert np.max([max(batch.text.packing.lengths) for batch in endless.batches]) == 15
