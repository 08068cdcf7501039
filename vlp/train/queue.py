"""The vectors of past steps that contrast tells pairs from. Source: He et al. 2020 (arXiv 1911.05722), section 3.1.

Every rank holds the same queue, in the order of the global batches, so ranks change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlp.errors import CheckpointError
from vlp.objectives.gallery import Gallery

KIND = "queue"
"""Name of the queue's tensors in checkpoints."""


class Queue:
    """The newest vectors in a ring.

    Args:
        size: vectors of each side that it holds at most.
        width: numbers of a vector.
    """

    def __init__(self, size: int, width: int, device: torch.device) -> None:
        self._text_QD = torch.zeros(size, width, device=device)
        self._image_QD = torch.zeros(size, width, device=device)
        self._images_Q = torch.zeros(size, dtype=torch.int64, device=device)
        self._seen = 0

    @property
    def gallery(self) -> Gallery:
        """What it holds."""
        held = min(self._seen, len(self._images_Q))
        return Gallery(self._text_QD[:held], self._image_QD[:held], self._images_Q[:held])

    def put(self, new: Gallery) -> None:
        """Take in the vectors of a step, in the order of its global batch."""
        size = len(self._images_Q)
        first = max(0, len(new) - size)  # of more than it holds, the last
        if size:
            rows = (self._seen + torch.arange(first, len(new), device=self._images_Q.device)) % size
            self._text_QD[rows] = new.text_GD[first:]
            self._image_QD[rows] = new.image_GD[first:]
            self._images_Q[rows] = new.images_G[first:]
        self._seen += len(new)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {
            "text": self._text_QD,
            "image": self._image_QD,
            "images": self._images_Q,
            "seen": torch.tensor([self._seen]),
        }

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave; from none of them it stays empty.

        Raises:
            CheckpointError: they are of a queue of another size.
        """
        if not tensors:
            return
        if tensors["text"].shape != self._text_QD.shape:
            raise CheckpointError(
                f"the checkpoint's queue holds {tuple(tensors['text'].shape)} numbers, this run's "
                f"{tuple(self._text_QD.shape)}; restore momentum.queue and width of the contrast objective"
            )
        self._text_QD.copy_(tensors["text"])
        self._image_QD.copy_(tensors["image"])
        self._images_Q.copy_(tensors["images"])
        self._seen = int(tensors["seen"])
