"""Who looks at whom where a text is read from left to right: prefix language modelling. Sources: Dong et al. 2019
(arXiv 1905.03197), section 2.3; Zhou et al. 2020 (arXiv 1909.11059), section 3.2.

A word of such a text looks at the image and at the words up to itself; the image looks at itself alone. So the states
up to a word are what they would be if the text ended there.

Shape suffixes: B examples; Q, K longest side of queries, of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.types import Batch, Packing, Stream

Side = Stream | None
"""The stream that looks, or is looked at; None for both joined, text before image."""


def may_look(batch: Batch, queries: Side, keys: Side) -> Tensor | None:
    """True where a query may look at a key, bool [B, 1, Q, K]; None where all may."""
    causal_B = batch.text.causal_B
    if causal_B is None or keys == "image":
        return None
    text_BK, text_BQ = _is_text(batch, keys), _is_text(batch, queries)
    place_Q, place_K = (torch.arange(text.shape[1], device=text.device) for text in (text_BQ, text_BK))
    before_QK = place_K <= place_Q[:, None]
    allowed_BQK = ~text_BK[:, None, :] | (text_BQ[:, :, None] & before_QK)
    return (allowed_BQK | ~causal_B[:, None, None])[:, None]


def _is_text(batch: Batch, side: Side) -> Tensor:
    """True where tokens of the text stand in the padded layout, bool [B, L]."""
    packing = _packing(batch, side)
    place_L = torch.arange(packing.longest, device=batch.text.packing.lengths_B.device)
    if side is None:
        return place_L < batch.text.packing.lengths_B[:, None]
    return (place_L >= 0).expand(len(packing), -1) if side == "text" else (place_L < 0).expand(len(packing), -1)


def _packing(batch: Batch, side: Side) -> Packing:
    return {"text": batch.text.packing, "image": batch.image.packing, None: batch.joint}[side]
