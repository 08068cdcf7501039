"""What contrast has learned, on a dataset: recall both ways among some of its images, by the vectors alone.

Shape suffixes: P pairs, I images, D width of a vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vlp.metrics.recall import ranks_of_matches
from vlp.objectives.gallery import Gallery, pulls
from vlp.objectives.itc import Contrast
from vlp.tasks.judge import Judge
from vlp.tasks.module import TaskModule

if TYPE_CHECKING:
    from vlp.tasks.task import Task

IMAGES = 1000
"""Images among which is searched, with all their texts; the first ones of the dataset."""
KS = (1, 5, 10)


def contrast_metrics(view: Task, contrast: Contrast, judge: Judge) -> dict[str, float]:
    """Loss and recall of `contrast`, complete on rank 0; collective.

    Args:
        view: the task with contrast alone active.
    """
    found = _pairs(view, contrast, judge)
    if found is None:
        return {}
    scores_P, images_P = found
    name = contrast.name
    text_PD, image_PD, _ = contrast.parts(scores_P)
    first_I, which_P = _first_of_each(images_P)
    image_ID = image_PD[first_I]
    scores_PI = text_PD @ image_ID.T
    matches_PI = which_P[:, None] == torch.arange(len(first_I))[None, :]
    metrics = {f"{name}_images": float(len(first_I)), f"loss/{name}": _loss(text_PD, image_PD, images_P)}
    ranks = {
        "text_to_image": ranks_of_matches(scores_PI, matches_PI),
        "image_to_text": ranks_of_matches(scores_PI.T, matches_PI.T),
    }
    for way, ranks_Q in ranks.items():
        metrics |= {f"{name}_{way}_recall@{k}": float((ranks_Q <= k).double().mean()) for k in KS}
    return metrics


def _pairs(view: Task, contrast: Contrast, judge: Judge) -> tuple[Tensor, Tensor] | None:
    """The vectors of the pairs and the numbers of their images, on rank 0; None elsewhere, or where there is none."""
    records = []
    for step in judge.batches(view):
        for batch in step.micro_batches:
            vectors_K: Tensor = judge.run(batch, TaskModule.vectors)
            values = batch.targets[contrast.name].values
            records.append((vectors_K.cpu().numpy(), values["place"].numpy(), values["image"].numpy()))
    gathered = judge.gathered(records)
    if not gathered:
        return None
    vectors_P, places_P, images_P = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
    order_P = np.argsort(places_P)
    numbers_P = images_P[order_P]
    _, first = np.unique(numbers_P, return_index=True)
    kept_P = np.isin(numbers_P, numbers_P[np.sort(first)[:IMAGES]])
    if not kept_P.any():
        return None
    return torch.from_numpy(vectors_P[order_P][kept_P]), torch.from_numpy(numbers_P[kept_P])


def _first_of_each(images_P: Tensor) -> tuple[Tensor, Tensor]:
    """A pair of each image, and for each pair the number of its image among those."""
    _, which_P = torch.unique(images_P, return_inverse=True)
    first_I = torch.full((int(which_P.max()) + 1,), len(images_P), dtype=torch.int64)
    return first_I.scatter_reduce(0, which_P, torch.arange(len(images_P)), "amin"), which_P


def _loss(text_PD: Tensor, image_PD: Tensor, images_P: Tensor) -> float:
    return float(pulls(Gallery(text_PD, image_PD, images_P)).loss_G.mean())
