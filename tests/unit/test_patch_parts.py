"""Patches of pixels as image tokens: convolved, normalised, placed on a grid of any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.examples import example, pixels
from tests.unit.part_making import FEATURE, PATCHES, image_of, model_of
from tests.unit.pictures import encoded, ramps
from vlp.data.batch import collate
from vlp.models.image import images_of
from vlp.models.model import Network
from vlp.seeds import Draw
from vlp.types import Example, Sample


def patch_model(rows: int = 3, columns: int = 3, align: bool = True, **settings: Any) -> Network:
    grid = {"kind": "grid", "rows": rows, "columns": columns, "align_corners": align}
    return model_of(FEATURE, grid, source=PATCHES, **settings)


def test_patches_are_convolved() -> None:
    model = model_of(FEATURE, source=PATCHES)
    made = [example(3, pixels(12, 9, np.random.default_rng(0)), 0), example(4, None, 1)]
    batch = collate(made, images_of(model.config.image).form, {})
    linear = model.image.parts["feature"].linear
    kernel = linear.weight.view(16, 3, 4, 4)  # type: ignore[operator, union-attr]
    wanted = F.conv2d(batch.image.pixels_P3HW, kernel, linear.bias, stride=4)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(image_of(model, batch), wanted.flatten(2)[0].T, atol=1e-5, rtol=1e-5)


def test_bytes_are_normalised() -> None:
    source = {**PATCHES, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    model = model_of(FEATURE, source=source)
    shown = np.random.default_rng(0).integers(0, 256, (3, 12, 12)).astype(np.uint8)
    made = example(3, pixels(12, 9, np.random.default_rng(0)), 0)
    tokens = []
    mean, std = (np.array(source[key])[:, None, None] for key in ("mean", "std"))
    for given in (shown, ((shown / 255 - mean) / std).astype(np.float32)):
        made.image.pixels_3HW = given  # type: ignore[union-attr]
        tokens.append(image_of(model, collate([made], images_of(model.config.image).form, {})))
    torch.testing.assert_close(*tokens)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("own", [(3, 3), (2, 4), (5, 1)])
def test_positions_of_another_grid_are_interpolated(own: tuple[int, int], align: bool) -> None:
    model = patch_model(*own, align=align)
    made = example(3, pixels(12, 9, np.random.default_rng(0)), 0)
    batch = collate([made], images_of(model.config.image).form, {})
    table = model.image.parts["grid"].table[1:].T.view(1, 16, *own)  # type: ignore[operator, index]
    wanted = F.interpolate(table, size=(3, 3), mode="bilinear", align_corners=align).flatten(2)[0].T
    plain = model_of(FEATURE, source=PATCHES)
    plain.image.parts["feature"].load_state_dict(model.image.parts["feature"].state_dict())
    torch.testing.assert_close(image_of(model, batch) - image_of(plain, batch), wanted, atol=1e-5, rtol=1e-5)


def test_an_image_of_another_shape_has_its_own_grid() -> None:
    model = patch_model(cls=True)
    made = example(3, pixels(12, 9, np.random.default_rng(0)), 0)
    made.image.kept_K, made.image.grid = np.array([0, 1, 3, 4]), (2, 2)  # type: ignore[union-attr]
    batch = collate([made], images_of(model.config.image).form, {})
    assert batch.image.packing.lengths == (5,)
    table = model.image.parts["grid"].table
    places = image_of(model, batch)
    torch.testing.assert_close(places[0], model.image.extra["first"].vector + table[0])  # type: ignore[operator, index]
    features = model.image.parts["feature"].linear(  # type: ignore[operator, union-attr]
        model.image.backbone.cut(batch.image.tokens).features_MD  # type: ignore[union-attr]
    )
    corners = table[[1, 3, 7, 9]]  # type: ignore[index]
    torch.testing.assert_close(places[1:] - features, corners, atol=1e-5, rtol=1e-5)


def test_images_that_keep_their_shapes_do_not_change_each_other() -> None:
    source = {**PATCHES, "fit": "keep", "longest": 20, "sample": 7}
    model = model_of(FEATURE, {"kind": "grid", "rows": 3, "columns": 3}, source=source, cls=True)
    images = images_of(model.config.image, sampled=True)
    assert images.tokens(0) == 7 + 1
    assert images_of(model.config.image).tokens(0) == 3 * 5 + 1
    made = []
    for number, size in enumerate(((30, 30), (90, 30), (20, 30), (30, 40))):
        made.append(example(3, None, number))
        made[-1].image = images.prepare(Sample("key", image=encoded(ramps(*size))), Draw(0))
    # Three to one: 7 x 20 pixels, so 1 x 5 patches.
    assert [each.image and len(each.image) for each in made] == [7, 5, 7, 7]

    def tokens(chosen: list[Example]) -> Tensor:
        return image_of(model, collate(chosen, images.form, {}))

    alone = torch.cat([tokens([each]) for each in made])
    torch.testing.assert_close(tokens(made), alone, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(tokens(made[::-1]).flip(0)[: 1 + 7].flip(0), tokens([made[0]]), atol=1e-6, rtol=1e-6)
