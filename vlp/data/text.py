"""Text into token ids, with a transformers tokenizer from a directory or the hub."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.errors import ConfigError, DataError


class TextEncoder:
    """A tokenizer and the longest text that the model takes.

    A text becomes `[CLS] tokens [SEP]` (or `<s> tokens </s>`: whatever the tokenizer calls them); a longer text is
    cut, keeping the last special token.

    Args:
        source: a directory that holds a tokenizer, or a hub id.
        max_length: tokens of a text, specials included.
        added: special tokens that the tokenizer gets beside its own; those it has already are left as they are.
    Raises:
        ConfigError: the tokenizer is not there, or has no token to begin, end or mask with.
    """

    def __init__(self, source: str | Path, max_length: int, added: Sequence[str] = ()) -> None:
        self.source = str(source)
        self.max_length = max_length
        if max_length < 3:
            raise ConfigError(f"a text of {max_length} tokens has no room for a word: give at least 3")
        self._tokenizer = _load(self.source)
        if added:
            self._tokenizer.add_special_tokens({"extra_special_tokens": list(added)}, False)
        self.cls_id = self._special("cls_token")
        self.sep_id = self._special("sep_token")
        self.mask_id = self._special("mask_token")
        """The id that stands where a token is hidden."""
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        """Rows that a word embedding needs: the largest id and one."""
        self._special_V = np.zeros(self.vocab_size, np.bool_)
        self._special_V[self._tokenizer.all_special_ids] = True
        ids = np.array(sorted(set(self._tokenizer.get_vocab().values())), np.int64)
        self.random_ids = ids[~self._special_V[ids]]
        """Ids that may stand in for a masked token: all but the special ones."""
        self.fingerprint = _fingerprint(self._tokenizer)
        """Changes whenever a text could give other tokens."""

    def encode(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Token ids, which of them are special, and the word each belongs to (-1 for specials), each [T].

        Raises:
            DataError: there is half a surrogate pair in the text, which is no character.
        """
        room = self.max_length - 2
        normal, encoding = self._beginning(text, room)
        token_ids_T = np.array([self.cls_id, *encoding.ids[:room], self.sep_id], np.int64)
        special_T = self._special_V[token_ids_T]
        words = [-1, *_words(encoding, normal)[:room], -1]
        return token_ids_T, special_T, np.where(special_T, -1, np.array(words, np.int64))

    def encode_two(
        self, first: str, second: str
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """As `encode`, of `[CLS] first [SEP] second [SEP]`; and which of the texts a token belongs to, 0 or 1.

        Where there is no room for both, the longer one is cut token by token (Devlin et al. 2019, in their code).
        """
        room = self.max_length - 3
        read = [self._beginning(text, room) for text in (first, second)]
        halves = [encoding for _, encoding in read]
        words = [_words(encoding, normal) for normal, encoding in read]
        kept = _fitting(len(halves[0].ids), len(halves[1].ids), room)
        ids = [half.ids[:most] for half, most in zip(halves, kept, strict=True)]
        after = max(words[0][: kept[0]], default=-1) + 1
        later = [-1 if word < 0 else word + after for word in words[1][: kept[1]]]
        token_ids_T = np.array([self.cls_id, *ids[0], self.sep_id, *ids[1], self.sep_id], np.int64)
        special_T = self._special_V[token_ids_T]
        word_T = np.array([-1, *words[0][: kept[0]], -1, *later, -1], np.int64)
        segment_T = np.repeat(np.arange(2), [kept[0] + 2, kept[1] + 1])
        return token_ids_T, special_T, np.where(special_T, -1, word_T), segment_T

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text before it is cut, specials included."""
        return [len(encoding.ids) + 2 for encoding in self._encodings([_normal(text) for text in texts])]

    def _encodings(self, normal: list[str]) -> list[Any]:
        try:
            return list(self._tokenizer.backend_tokenizer.encode_batch(normal, add_special_tokens=False))
        except (UnicodeEncodeError, TypeError):
            wrong = next((text for text in normal if any("\ud800" <= letter <= "\udfff" for letter in text)), None)
            if wrong is None:
                raise
            raise DataError(f"{wrong[:20]!r}: half a surrogate pair is no character; take it out") from None

    def _beginning(self, text: str, room: int) -> tuple[str, Any]:
        """So much of a text, composed, as decides its first `room` tokens, with the encoding of it; a short one whole.

        A tokenizer keeps 200 bytes for each character, and a text of 10 MB has more than a model reads by a factor of
        20,000. What is read ends at a blank, if there is one, and has twice the tokens that are wanted: how a text goes
        on changes no token so far before its end (a test compares four kinds of tokenizer). Where it has fewer, more
        is read, up to a million characters.
        """
        size = _FIRST * self.max_length
        while True:
            head = _normal(_head(text, size))
            (encoding,) = self._encodings([head])
            if len(text) <= size or size >= _MOST or len(encoding.ids) >= 2 * room:
                return head, encoding
            size *= _FIRST

    def decode(self, token_ids: list[int]) -> str:
        """The text that these tokens stand for, for pages and pictures."""
        return str(self._tokenizer.decode(token_ids))

    def tokens(self, token_ids: list[int]) -> list[str]:
        """The token of each id, as the tokenizer writes it."""
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(token_ids)]

    @property
    def unknown_id(self) -> int | None:
        """The id that stands for what the vocabulary lacks; None for a tokenizer that can write everything."""
        number = self._tokenizer.unk_token_id
        return None if number is None else int(number)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Tokens and their ids."""
        return dict(self._tokenizer.get_vocab())

    def save(self, directory: Path) -> None:
        """Write the tokenizer, so that `TextEncoder(directory, ...)` and transformers load it.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._tokenizer.save_pretrained(directory)
        except Exception as error:  # the library raises a bare one where the disk is full
            raise OSError(f"{directory}: the tokenizer cannot be written: {error}") from error

    def _special(self, name: str) -> int:
        number = getattr(self._tokenizer, f"{name}_id", None)
        if number is None:
            raise ConfigError(f"tokenizer: '{self.source}' has no {name}, which begins, ends or hides a text: add one")
        return int(number)


_FIRST = 16
"""Characters per token that are read at first: English has four or five."""
_MOST = 1 << 20
"""Characters after which no more of a text is read, however few tokens it has."""


def _head(text: str, size: int) -> str:
    """The text up to a size, or to the last blank in the second half of that."""
    if len(text) <= size:
        return text
    blank = next((place for place in range(size - 1, size // 2, -1) if text[place].isspace()), size)
    return text[:blank]


def _fitting(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept: of the longer one so many fewer that both fit."""
    over = first + second - room
    if over <= 0:
        return first, second
    if first <= room // 2:
        return first, room - first
    if second <= room // 2:
        return room - second, second
    return room - room // 2, room // 2


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _words(encoding: Any, text: str) -> list[int]:
    """Number of each token's word, -1 for none: what the tokenizer takes for one, and in any case no more than what
    stands between two blanks (some tokenizers take a whole text for one word)."""
    words = [-1 if word is None else int(word) for word in encoding.word_ids]
    if max(words, default=0) + 1 >= len(text.split()):
        return words
    numbers, number, before = [], -1, (-2, 0, 0)
    for word, (start, end) in zip(words, encoding.offsets, strict=True):
        blank_before = any(map(str.isspace, text[max(0, before[2] - 1) : start + 1]))
        # A token of nothing but a blank begins the word after it.
        if word != before[0] or (blank_before and text[before[1] : before[2]].strip()):
            number += 1
        numbers.append(-1 if word == -1 else number)
        before = word, start, end
    return numbers


def _load(source: str) -> Any:
    """The tokenizer in a directory, else the one of that hub id."""
    from transformers import AutoTokenizer, BertTokenizer

    path = Path(source).expanduser()
    try:
        if not path.is_dir():
            if path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
                raise ConfigError(f"tokenizer: no directory '{source}': give one that holds a tokenizer, or a hub id")
            tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
        elif (path / "vocab.txt").exists() and not any((path / name).exists() for name in _DESCRIBED):
            # A bare BERT vocabulary says nothing of itself, and AutoTokenizer gives up.
            tokenizer = BertTokenizer.from_pretrained(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"tokenizer: '{source}' cannot be loaded as a directory or hub id ({reason}): "
            "give a directory that `vlp-data tokenizer` or transformers' save_pretrained wrote, or a hub id"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"tokenizer: '{source}' has no fast version (tokenizer.json), which word numbers need")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


_DESCRIBED = ("tokenizer.json", "tokenizer_config.json", "config.json")


def _fingerprint(tokenizer: Any) -> str:
    names = ("cls_token", "sep_token", "mask_token")
    parts = [tokenizer.backend_tokenizer.to_str(), json.dumps([str(getattr(tokenizer, name)) for name in names])]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
