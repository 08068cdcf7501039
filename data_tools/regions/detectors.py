"""Regions from a torchvision detector: where it sees something, what its box head makes of it, what it takes it for.

Shape suffixes: P proposals of one image, Q proposals of a batch, R regions of one image, C classes, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import models
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image

from data_tools.regions.maker import Found, Photo
from data_tools.regions.networks import (
    ahead,
    choose_device,
    decoded,
    fingerprint,
    load_into,
    made_untrained,
    read_state,
)
from vlp.data.imagefile import ImageFault, open_image, upright, upright_size
from vlp.data.samples import Fault
from vlp.errors import ConfigError, nearest
from vlp.types import Regions

_LONG_PER_SHORT = 1333 / 800
"""Of torchvision's limits on the sides of its input."""
_SMALLEST = 1.0
"""Pixels of a box's sides, at the detector's input: less holds nothing."""
_CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a detector's boxes become regions."""

    min_boxes: int = 10
    """Taken whatever their confidence (10 to 100, as Anderson et al. 2018, arXiv 1707.07998, section 3.1)."""
    max_boxes: int = 100
    threshold: float = 0.2
    """Least confidence of those beyond `min_boxes` (0.2 in the authors' code)."""
    nms: float = 0.5
    """Of two boxes of one class that overlap more (intersection over union), the less confident goes (torchvision's
    default)."""


class DetectorRegions:
    """Makes regions of photos by a torchvision detector with a box head.

    A region is a proposal of the detector's first stage: its feature is what the box head makes of it [D], its class
    probabilities are over all classes with the background first [C], its confidence is the largest of those without
    the background, its box is the one refined for that class.

    Args:
        name: of torchvision's, such as `fasterrcnn_resnet50_fpn_v2`.
        weights: a file; without, torchvision's own, from its cache or the network.
        untrained: random weights instead, always the same ones: for trying things out.
        size: pixels of the short side at the detector's input; None for the detector's own, 800.
        batch: photos that go through together; how many does not change the result.
        workers: threads that decode photos.
    Raises:
        ConfigError: no such detector, or no such weights.
    """

    wants_image, wants_regions = True, False

    def __init__(
        self,
        name: str,
        *,
        weights: Path | None = None,
        untrained: bool = False,
        selection: Selection | None = None,
        size: int | None = None,
        batch: int = 4,
        workers: int = 4,
        device: str = "auto",
    ) -> None:
        self._selection, self._batch, self._workers = selection or Selection(), batch, workers
        self._device = choose_device(device)
        self._network = _detector(name, weights, untrained)
        if size is not None:
            self._network.transform.min_size = (size,)
            self._network.transform.max_size = round(size * _LONG_PER_SHORT)
        head = self._network.roi_heads.box_predictor.cls_score
        self.provenance: dict[str, Any] = {
            "from": "detector",
            "detector": name,
            "weights": fingerprint(self._network),
            "untrained": untrained,
            "width": head.in_features,
            "classes": head.out_features,
            "short_side": self._network.transform.min_size[-1],
            **asdict(self._selection),
        }
        self._network.eval().requires_grad_(False).to(self._device)

    def make(self, photos: Sequence[Photo]) -> list[Found]:
        """The regions of each photo; a Fault where it does not decode, None where there is no image."""
        made: list[Found] = [None] * len(photos)
        batches = self._batches(photos)
        read = ahead(lambda rows: [self._read(photos[row].image or b"") for row in rows], batches, self._workers)
        for rows, inputs in zip(batches, read, strict=True):
            for row, pixels in zip(rows, inputs, strict=True):
                if isinstance(pixels, Fault):
                    made[row] = pixels
            for group in self._alike([(r, p) for r, p in zip(rows, inputs, strict=True) if isinstance(p, Tensor)]):
                for (row, _), regions in zip(group, self.detect([pixels for _, pixels in group]), strict=True):
                    made[row] = regions
        return made

    @torch.inference_mode()
    def detect(self, pixels: Sequence[Tensor]) -> list[Regions | None]:
        """The regions of photos that the detector's transform has scaled and that it pads alike, each [3, h, w]."""
        network, heads = self._network, self._network.roi_heads
        sizes = [(int(pixels_3hw.shape[1]), int(pixels_3hw.shape[2])) for pixels_3hw in pixels]
        stacked = network.transform.batch_images([pixels_3hw.to(self._device) for pixels_3hw in pixels], self._padding)
        maps = network.backbone(stacked)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        proposals, _ = network.rpn(ImageList(stacked, sizes), maps)
        features_QD = heads.box_head(heads.box_roi_pool(maps, proposals, sizes))
        scores_QC, deltas = heads.box_predictor(features_QD)
        probs_QC = F.softmax(scores_QC, -1)
        boxes_QC4 = heads.box_coder.decode(deltas, proposals)
        ends = pairwise(accumulate((len(boxes) for boxes in proposals), initial=0))
        return [
            select(features_QD[first:end], probs_QC[first:end], boxes_QC4[first:end], size, self._selection)
            for (first, end), size in zip(ends, sizes, strict=True)
        ]

    # -------------------------------------------------------------------------------------------------- batches

    @property
    def _padding(self) -> int:
        return int(self._network.transform.size_divisible)

    def _batches(self, photos: Sequence[Photo]) -> list[list[int]]:
        """Rows that go through together, photos of like shape beside each other.

        A photo padded to the size of a larger one is seen a little differently at its edges. So only photos that are
        padded alike share a batch, and the regions of a photo do not depend on what else is in it.
        """
        shapes = {row: self._shape(photo.image) for row, photo in enumerate(photos) if photo.image is not None}
        order = sorted(shapes, key=lambda row: (shapes[row], row))
        batches: list[list[int]] = []
        for row in order:
            last = batches[-1] if batches else []
            if last and len(last) < self._batch and shapes[last[0]] == shapes[row]:
                last.append(row)
            else:
                batches.append([row])
        return batches

    def _shape(self, data: bytes) -> tuple[int, int]:
        """About the padded height and width of a photo at the detector's input, by its header."""
        try:
            width, height = upright_size(open_image(data))
        except ImageFault:
            return 0, 0
        transform = self._network.transform
        scale = min(transform.min_size[-1] / min(width, height), transform.max_size / max(width, height))
        return self._padded(height * scale), self._padded(width * scale)

    def _padded(self, side: float) -> int:
        return math.ceil(math.floor(side) / self._padding) * self._padding

    def _alike(self, batch: list[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
        """Those of a batch that are padded alike, for the header's forecast may be a pixel off."""
        groups: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for row, pixels_3hw in batch:
            groups.setdefault(tuple(self._padded(side) for side in pixels_3hw.shape[1:]), []).append((row, pixels_3hw))
        return list(groups.values())

    def _read(self, data: bytes) -> Tensor | Fault:
        """A photo as the detector's own transform makes it, [3, h, w]."""
        pixels_HW3 = decoded(lambda: np.array(upright(open_image(data))))
        if isinstance(pixels_HW3, Fault):
            return pixels_HW3
        transform = self._network.transform
        with torch.inference_mode():
            photo = torch.from_numpy(pixels_HW3).permute(2, 0, 1).float() / 255
            resized: Tensor = transform.resize(transform.normalize(photo))[0]
        return resized


def select(
    features_PD: Tensor, probs_PC: Tensor, boxes_PC4: Tensor, size: tuple[int, int], selection: Selection
) -> Regions | None:
    """The regions among a photo's proposals, the most confident first: each proposal once, as its likeliest class.

    Args:
        probs_PC: over all classes, the background first.
        boxes_PC4: refined for each class, in pixels.
        size: height and width in pixels.
    """
    confidence_P, class_P = probs_PC[:, 1:].max(1)
    boxes_P4 = clip_boxes_to_image(boxes_PC4[torch.arange(len(class_P), device=class_P.device), class_P + 1], size)
    large = ((boxes_P4[:, 2:] - boxes_P4[:, :2]) >= _SMALLEST).all(1).nonzero()[:, 0]
    kept = large[batched_nms(boxes_P4[large], confidence_P[large], class_P[large], selection.nms)]
    sure = int((confidence_P[kept] > selection.threshold).sum())
    kept = kept[: min(max(sure, selection.min_boxes), selection.max_boxes)]
    if not len(kept):
        return None
    height, width = size
    shares_R4 = boxes_P4[kept] / boxes_P4.new_tensor([width, height, width, height])
    arrays = (features_PD[kept], shares_R4.clamp(0, 1), confidence_P[kept], probs_PC[kept])
    return Regions(*(array.float().cpu().numpy() for array in arrays))


def detector_names() -> list[str]:
    """The detectors of torchvision that have a box head."""
    return [name for name in models.list_models(models.detection) if "rcnn" in name]


def _detector(name: str, weights: Path | None, untrained: bool) -> Any:
    if name not in detector_names():
        raise ConfigError(f"--detector: torchvision has no '{name}' with a box head{nearest(name, detector_names())}")
    bare: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if untrained:
        network: Any = made_untrained(lambda: models.get_model(name, **bare))
    elif weights is not None:
        state = read_state(weights)
        if _CLASS_SCORES not in state:
            raise ConfigError(f"--weights {weights}: does not fit {name}: {_CLASS_SCORES} is missing")
        network = models.get_model(name, **bare, num_classes=len(state[_CLASS_SCORES]))
        load_into(network, state, weights, name)
    else:
        network = _pretrained(name)
    assert isinstance(network, GeneralizedRCNN)
    return network


def _pretrained(name: str) -> Any:
    try:
        return models.get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError, ValueError) as error:  # not fetched; or fetched, and damaged
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConfigError(
            f"--detector {name}: torchvision's weights are not in {place} and cannot be fetched ({error}); "
            "give --weights FILE, or --untrained for random ones"
        ) from None
