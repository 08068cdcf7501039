"""The sizes that a config leaves to the data, where there are no data to ask."""

from __future__ import annotations

from typing import Any

from vlp.models.image import RegionSource
from vlp.models.model import ModelConfig, Sizes

_WORDS = 30522
"""BERT's uncased vocabulary."""
_REGIONS = {"width": 2048, "classes": 1600, "attributes": 400}
"""Of bottom-up attention (Anderson et al. 2018, arXiv 1707.07998)."""


def assumed_sizes(config: ModelConfig) -> Sizes:
    """The sizes that a config gives, and those assumed for `auto`."""
    source = config.image.source

    def of(given: Any, otherwise: int) -> Any:
        return otherwise if given == "auto" else given

    found = {
        key: of(getattr(source, key), size) if isinstance(source, RegionSource) else None
        for key, size in _REGIONS.items()
    }
    words = of(config.text.vocab_size, _WORDS)
    return Sizes(words, found["width"], found["classes"], attribute_ids=found["attributes"])
