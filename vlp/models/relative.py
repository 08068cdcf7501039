"""Attention bias by distance: one learned number per head for each distance of two tokens.

Shape suffixes: B examples; L longest; A heads; K kinds of distance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp.models.attention import take
from vlp.models.blocks import RelativeConfig
from vlp.types import Batch, Packing, Stream

Side = Stream | None
"""The stream whose tokens look at each other; None for both joined."""


class RelativeBias(nn.Module):
    """The bias on the scores of one attention sublayer; zero at the start.

    Args:
        config: which distances are told apart.
        heads: each has a bias of its own.
    """

    def __init__(self, config: RelativeConfig, heads: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(kinds(config), heads))

    def forward(self, distances_BLL: Tensor) -> Tensor:
        """[B, A, L, L] to add to the scores of padded queries and keys."""
        return self.table[distances_BLL].permute(0, 3, 1, 2)


def kinds(config: RelativeConfig) -> int:
    """How many distances are told apart."""
    return (2 * config.text - 1) + _grid_kinds(config) + 2


def distances(config: RelativeConfig, batch: Batch, side: Side) -> Tensor:
    """The kind of distance from each query to each key, int64 [B, L, L], in the padded layout of the side's packing.

    In the table's order: words from `text - 1` back to as many ahead; cells by rows, then columns, apart; a cell from
    what stands before the grid, that from a cell, and such among themselves; text to image; image to text.
    """
    word_BL, place_BL = _places(batch, side)
    text, grid = 2 * config.text - 1, _grid_kinds(config)
    furthest = config.text - 1
    words = (word_BL[:, :, None] - word_BL[:, None, :]).clamp(-furthest, furthest) + furthest
    is_text_BL = place_BL < 0
    from_text, to_text = is_text_BL[:, :, None], is_text_BL[:, None, :]
    result = torch.where(from_text & to_text, words, text + _cells(config, place_BL))
    result = torch.where(from_text & ~to_text, torch.full_like(result, text + grid), result)
    return torch.where(~from_text & to_text, torch.full_like(result, text + grid + 1), result)


def _grid_kinds(config: RelativeConfig) -> int:
    return (2 * config.rows - 1) * (2 * config.columns - 1) + 3


def _cells(config: RelativeConfig, place_BL: Tensor) -> Tensor:
    """Kinds of distance within the image, counted from 0; meaningless where a token is of the text."""
    cell_BL = (place_BL - config.prefix).clamp(0, config.rows * config.columns - 1)
    row_BL, column_BL = cell_BL // config.columns, cell_BL % config.columns
    down = row_BL[:, :, None] - row_BL[:, None, :] + config.rows - 1
    right = column_BL[:, :, None] - column_BL[:, None, :] + config.columns - 1
    between = down * (2 * config.columns - 1) + right
    before_BL = place_BL < config.prefix
    last = _grid_kinds(config) - 3
    before = last + 2 * before_BL[:, :, None].long() + before_BL[:, None, :].long() - 1
    return torch.where(before_BL[:, :, None] | before_BL[:, None, :], before, between)


def _places(batch: Batch, side: Side) -> tuple[Tensor, Tensor]:
    """Per padded token its place among the words and its place in the image, [B, L]; the latter is -1 for text."""
    text, image = batch.text, batch.image.packing
    index_M = image.rows_N % max(image.longest, 1)
    if side == "text":
        return _padded(text.positions_N, text.packing), _padded(torch.full_like(text.positions_N, -1), text.packing)
    if side == "image":
        return _padded(torch.zeros_like(index_M), image), _padded(index_M, image)
    word_J = take(torch.cat([text.positions_N, torch.zeros_like(index_M)]), batch.joint_rows_J)
    place_J = take(torch.cat([torch.full_like(text.positions_N, -1), index_M]), batch.joint_rows_J)
    return _padded(word_J, batch.joint), _padded(place_J, batch.joint)


def _padded(x_N: Tensor, packing: Packing) -> Tensor:
    flat = x_N.new_zeros(len(packing) * packing.longest).index_copy_(0, packing.rows_N, x_N)
    return flat.view(len(packing), packing.longest)
