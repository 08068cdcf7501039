"""English contractions that people write without an apostrophe, as the VQA challenge mends them.

Each is listed as it should be; a word that lacks one of its apostrophes is taken for it. Words that are another word
without it (she'll, we'd, it's) are not listed.
"""

from __future__ import annotations

from collections.abc import Iterator

_ENDINGS = {
    "n't": "are ca could did does do had has have is might must need ought sha should was were wo would ai",
    "'ve": "could might should would must not they we what where who you i",
    "n't've": "could had might should would",
    "'d've": "he it they you who somebody someone something there she we i y'all",
    "'d": "he how it they where who you somebody someone something there",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone something that there what when where who why",
}
_MENDED = [word + ending for ending, words in _ENDINGS.items() for word in words.split()]
_MENDED += ["i'm", "ma'am", "o'clock", "'twas", "'ow's'at", "y'all"]


def _with_one_missing(word: str) -> Iterator[str]:
    for place, letter in enumerate(word):
        if letter == "'":
            yield word[:place] + word[place + 1 :]


CONTRACTIONS = {short: word for word in _MENDED for short in _with_one_missing(word)}
"""What should be written, by what is."""
