"""Shards of made-up regions and a tokenizer at a base model's sizes, for benchmarks of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from data_tools.tokenizer import SPECIAL, save
from data_tools.writer import ShardWriter
from vlp.data.index import build_index
from vlp.types import Regions

WORDS, CLASSES = 28996, 1601
"""As the published base recipes have them: a cased vocabulary, a detector's classes and one for the background."""
WIDTH = 2048


def region_data(folder: Path, *, samples: int, words: int, regions: int, vocabulary: int = WORDS) -> tuple[Path, Path]:
    """A data directory and a tokenizer.

    Args:
        words: of each caption; its tokens are two more.
        regions: of each image.
    """
    data, tokenizer = folder / "data", folder / "tokenizer"
    random = np.random.default_rng(0)
    with ShardWriter(data, max(1, samples // 4)) as writer:
        for number in range(samples):
            writer.write(
                key=f"s{number:06}",
                image=None,
                image_extension=None,
                regions=_regions(regions, random),
                captions=[" ".join(f"w{word}" for word in random.integers(len(SPECIAL), vocabulary, words))],
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
