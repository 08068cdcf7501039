"""Shards of made-up regions and a tokenizer at a base model's sizes, for benchmarks of training.

    python -m tests.benchmarks.regiondata FOLDER [numbers]

writes FOLDER/data and FOLDER/tokenizer: 800 images of 36 regions with captions of 14 words, and the detector's class
probabilities; or, with `numbers`, what the files of Tan and Bansal 2019 (arXiv 1908.07490) have in their place, numbers
of classes and attributes, and a question to every other image.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from data_tools.tokenizer import SPECIAL, save
from data_tools.writer import ShardWriter
from vlp.data.index import build_index
from vlp.types import Question, Regions

WORDS, CLASSES, ATTRIBUTES, ANSWERS = 28996, 1601, 400, 40
"""As the published base recipes have them: a cased vocabulary, a detector's classes and one for the background, its
attributes. Answers are few."""
WIDTH = 2048


def region_data(
    folder: Path, *, samples: int, words: int, regions: int, vocabulary: int = WORDS, numbers: bool = False
) -> tuple[Path, Path]:
    """A data directory and a tokenizer.

    Args:
        words: of each caption; its tokens are two more.
        regions: of each image.
        numbers: regions have numbers of classes and attributes instead of probabilities, and half of the images a
            question.
    """
    data, tokenizer = folder / "data", folder / "tokenizer"
    random = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(f"w{word}" for word in random.integers(len(SPECIAL), vocabulary, length))

    with ShardWriter(data, max(1, samples // 4)) as writer:
        for number in range(samples):
            made = _regions(regions, random)
            writer.write(
                key=f"s{number:06}",
                image=None,
                image_extension=None,
                regions=_numbered(made, random) if numbers else made,
                captions=[text(words)],
                questions=[Question(text(words), (f"a{number % ANSWERS}",), str(number))]
                if numbers and number % 2
                else [],
                metadata={"id": number},
            )
    build_index(data)
    return data, words_tokenizer(tokenizer, vocabulary)


def words_tokenizer(folder: Path, count: int) -> Path:
    """A tokenizer of made-up words `w5`, `w6`, ..., so many with the special tokens."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *(f"w{n}" for n in range(len(SPECIAL), count))])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Whitespace()
    made.add_special_tokens(list(SPECIAL))
    save(made, folder)
    return folder


def _regions(count: int, random: np.random.Generator) -> Regions:
    corners_R22 = np.sort(random.random((count, 2, 2)), axis=1)
    probs_RC = random.random((count, CLASSES)).astype(np.float32)
    return Regions(
        features_RD=random.random((count, WIDTH)).astype(np.float16),
        boxes_R4=corners_R22.reshape(count, 4).astype(np.float32),
        confidence_R=random.random(count).astype(np.float32),
        class_probs_RC=(probs_RC / probs_RC.sum(1, keepdims=True)).astype(np.float16),
    )


def _numbered(regions: Regions, random: np.random.Generator) -> Regions:
    """Regions with numbers of classes and attributes instead of probabilities."""
    count = len(regions)
    return replace(
        regions,
        class_probs_RC=None,
        classes_R=random.integers(0, CLASSES - 1, count),
        attributes_R=random.integers(0, ATTRIBUTES, count),
        attribute_confidence_R=random.random(count).astype(np.float32),
    )


if __name__ == "__main__":
    region_data(Path(sys.argv[1]), samples=800, words=14, regions=36, numbers=sys.argv[2:] == ["numbers"])
