"""Which words are hidden together: single tokens, whole words, spans of words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.task_making import example, facts, hidden, text_encoder, within_3_sigma
from vlp.errors import ConfigError
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.objectives.words import choose_spans, choose_words
from vlp.seeds import Draws, derive, draw, generator
from vlp.types import Example, Target

LONG = 100_000
"""Tokens."""
SOME = Draws([derive(0, "t", number) for number in range(200)])


def words_of(lengths: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Specials and words of [CLS], words of so many tokens, [SEP]."""
    word_T = np.concatenate([[-1], np.repeat(np.arange(len(lengths)), lengths), [-1]])
    return word_T < 0, word_T


def some_words(tokens: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    lengths = generator(seed, "lengths").integers(1, 4, tokens)
    return words_of(lengths[np.cumsum(lengths) <= tokens])


def spans(
    special_T: NDArray[np.bool_], word_T: NDArray[np.int64], seed: int, **config: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places that spans hide, and the number of each one's span."""
    settings = {"probability": 0.15, "end": 0.2, "longest": 10} | config
    found = choose_spans([special_T], [word_T], draws=Draws([derive(seed, "t")]), **settings)  # type: ignore[arg-type]
    return np.flatnonzero(found.chosen_N), found.unit_K


def made_of(text: tuple[NDArray[np.bool_], NDArray[np.int64]]) -> Example:
    """An example whose every token is word 7, cut into these words."""
    made = example(len(text[0]) - 2)
    made.token_ids_T[1:-1] = 7
    made.special_T, made.word_T = text
    return made


def masked(made: Example, seed: int = 1, **config: object) -> Target:
    objective = MaskedLanguage("mlm", MaskedLanguageConfig.parse(config), facts())
    objective.random_ids = np.array([8, 9])
    return objective.target(hidden(made), draw(seed, "t"))


# ------------------------------------------------------------------------------------------------------------- words


def test_a_word_is_hidden_with_all_of_its_tokens() -> None:
    special_T, word_T = some_words(LONG, 0)
    chosen_N, unit_K, _ = choose_words([special_T], [word_T], 0.15, Draws([1]))
    chosen_K = np.flatnonzero(chosen_N)
    assert within_3_sigma(len(np.unique(word_T[chosen_K])), int(word_T.max()) + 1, 0.15)
    whole = np.flatnonzero(np.isin(word_T, word_T[chosen_K]))
    assert chosen_K.tolist() == whole.tolist()
    assert (np.diff(unit_K) == (np.diff(word_T[chosen_K]) != 0)).all()  # numbered one by one
    assert unit_K[0] == 0


def test_one_draw_decides_for_a_word() -> None:
    text = words_of(np.full(LONG // 2, 2))
    made = made_of(text)
    target = masked(made, unit="word")
    after_U2 = made.token_ids_T[target.positions].reshape(-1, 2)
    words = len(after_U2)
    assert within_3_sigma(words, LONG // 2, 0.15)
    assert within_3_sigma(int((after_U2 == text_encoder().mask_id).all(1).sum()), words, 0.8)
    assert within_3_sigma(int((after_U2 == 7).all(1).sum()), words, 0.1)
    assert within_3_sigma(int(np.isin(after_U2, [8, 9]).all(1).sum()), words, 0.1)
    randoms = after_U2[np.isin(after_U2, [8, 9]).all(1)]
    assert within_3_sigma(int((randoms[:, 0] == randoms[:, 1]).sum()), len(randoms), 0.5)  # each token its own


def test_a_token_without_a_word_is_one_by_itself() -> None:
    special_T, word_T = np.array([True, False, False, False, True]), np.array([-1, -1, -1, 0, -1])
    chosen = choose_words([special_T] * 200, [word_T] * 200, 0.3, SOME)
    assert [
        len(set(unit_K)) for unit_K in np.split(chosen.unit_K, chosen.units_B.cumsum())[:-1]
    ] == chosen.units_B.tolist()
    found = {tuple(np.flatnonzero(chosen_T).tolist()) for chosen_T in chosen.chosen_N.reshape(200, -1)}
    assert found == {(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)}


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@given(st.lists(st.integers(1, 3), min_size=0, max_size=5), st.integers(0, 999))
def test_at_least_one_is_hidden_and_a_special_never(unit: str, lengths: list[int], seed: int) -> None:
    special_T, word_T = words_of(np.array(lengths, np.int64))
    target = masked(made_of((special_T, word_T)), seed, unit=unit, probability=0.01)
    assert len(target.positions) >= min(1, len(lengths))
    assert not special_T[target.positions].any()
    assert (target.values["token"] == 7).all()


# ------------------------------------------------------------------------------------------------------------- spans


def test_spans_hide_the_share_of_the_tokens() -> None:
    special_T, word_T = some_words(LONG, 0)
    chosen_K, unit_K = spans(special_T, word_T, 0)
    tokens = int((~special_T).sum())
    assert int(tokens * 0.15) <= len(chosen_K) <= int(tokens * 0.15) + 1
    assert len(np.unique(chosen_K)) == len(chosen_K)
    assert set(unit_K.tolist()) == set(range(int(unit_K.max()) + 1))


def test_a_share_is_kept_on_average_in_short_texts() -> None:
    special_T, word_T = words_of(np.ones(9, np.int64))  # 15 % of 9 are 1.35
    counts = np.array([len(spans(special_T, word_T, seed)[0]) for seed in range(4000)])
    assert set(counts.tolist()) == {1, 2}
    assert within_3_sigma(int((counts == 2).sum()), 4000, 0.35)


def test_lengths_of_spans_are_geometric_and_bounded() -> None:
    # One span in a text that is long enough for it: its length shows as it was drawn.
    special_T, word_T = words_of(np.full(60, 2))
    found = [spans(special_T, word_T, seed, probability=1 / 120 * 22) for seed in range(4000)]
    lengths = np.array([(unit_K == 0).sum() / 2 for chosen_K, unit_K in found if chosen_K[unit_K == 0][0] < 100])
    assert lengths.max() == 10
    for words in (1, 2, 3):
        assert within_3_sigma(int((lengths == words).sum()), len(lengths), 0.2 * 0.8 ** (words - 1))
    assert within_3_sigma(int((lengths == 10).sum()), len(lengths), 0.8**9)


def test_a_span_is_of_whole_words_in_a_row() -> None:
    special_T, word_T = some_words(60, 3)
    for seed in range(50):
        chosen_K, unit_K = spans(special_T, word_T, seed, probability=0.3)
        for number in range(int(unit_K.max())):  # but for the last, which the share cuts
            span = chosen_K[unit_K == number]
            assert set(np.flatnonzero(np.isin(word_T, word_T[span]))) - set(span) <= set(chosen_K)


def test_one_draw_decides_for_a_span() -> None:
    made = made_of(words_of(np.full(LONG // 2, 1)))
    special_T, word_T = made.special_T, made.word_T
    target = masked(made, unit="span")
    chosen_K, unit_K = spans(special_T, word_T, 1)
    assert target.positions.tolist() == chosen_K.tolist()
    after_K = made.token_ids_T[chosen_K]
    firsts = np.searchsorted(np.sort(unit_K), np.arange(int(unit_K.max()) + 1))
    order = np.argsort(unit_K, kind="stable")
    hidden_U = [after_K[order][first] for first in firsts]
    assert within_3_sigma(hidden_U.count(text_encoder().mask_id), len(hidden_U), 0.8)
    mask_K = after_K == text_encoder().mask_id
    assert all(len(set(mask_K[unit_K == number])) == 1 for number in range(300))


# ---------------------------------------------------------------------------------------------------------- all units


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_the_same_generator_hides_the_same(unit: str) -> None:
    text = some_words(200, 5)
    made = [made_of(text) for _ in range(3)]
    first, again, other = (masked(each, seed, unit=unit) for each, seed in zip(made, (3, 3, 4), strict=True))
    assert first.positions.tolist() == again.positions.tolist()
    assert made[0].token_ids_T.tolist() == made[1].token_ids_T.tolist()
    assert first.positions.tolist() != other.positions.tolist()


def test_settings_of_spans_are_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match="unit is word; say unit: span"):
        MaskedLanguageConfig.parse({"unit": "word", "span_longest": 3})
