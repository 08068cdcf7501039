"""Regions from timm backbones, against timm's own forward."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from data_tools.regions.backbones import Backbone, BoxRegions, GridRegions
from data_tools.regions.maker import Photo
from tests.unit.shard_making import photo, some_regions
from vlp.data.pixels import read_square
from vlp.data.samples import Fault
from vlp.errors import ConfigError
from vlp.types import Regions, View


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    sizes = [(60, 40), (40, 60), (64, 64), (50, 51), (90, 30)]
    return [
        Photo(str(number), photo(number, size), some_regions(number + 1, number)) for number, size in enumerate(sizes)
    ]


def _regions(found: object) -> Regions:
    assert isinstance(found, Regions)
    return found


def _backbone(name: str = "test_resnet", size: int | None = 96, **more: Any) -> Backbone:
    return Backbone(name, untrained=True, size=size, **more)


def _timm(name: str, size: int) -> Any:
    """The same random weights, by timm alone."""
    arguments = {"img_size": size} if "resnet" not in name else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=0, **arguments).eval()


def _pixels(name: str, data: bytes, size: int, view: View | None = None) -> Tensor:
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    values = torch.from_numpy(read_square(data, size, view=view)).float() / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (config.mean, config.std))
    return ((values - mean) / std)[None]


def _map(network: Any, pixels: Tensor) -> Tensor:
    """[D, h, w] of timm's states, whatever their layout."""
    with torch.inference_mode():
        states = network.forward_features(pixels)[0]
    if states.ndim == 2:
        side = int((len(states) - network.num_prefix_tokens) ** 0.5)
        return states[network.num_prefix_tokens :].T.reshape(-1, side, side)  # type: ignore[no-any-return]
    return states.permute(2, 0, 1) if getattr(network, "output_fmt", "") == "NHWC" else states  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "size", "cells"), [("test_resnet", 96, 3), ("test_vit", 64, 4), ("swin_tiny_patch4_window7_224", 224, 7)]
)
def test_cells_are_those_of_timm(photos: Sequence[Photo], name: str, size: int, cells: int) -> None:
    network = _timm(name, size)
    found = GridRegions(_backbone(name, size), cells).make(photos[:2])
    for given, made in zip(photos[:2], found, strict=True):
        regions = _regions(made)
        map_Dhw = _map(network, _pixels(name, given.image or b"", size))
        assert map_Dhw.shape[1:] == (cells, cells)
        for number, (feature_D, box_4) in enumerate(zip(regions.features_RD, regions.boxes_R4, strict=True)):
            row, column = divmod(number, cells)
            np.testing.assert_allclose(feature_D, map_Dhw[:, row, column], atol=1e-5, rtol=1e-5)
            wanted = np.array([column, row, column + 1, row + 1]) / cells
            np.testing.assert_allclose(box_4, wanted, atol=1e-6)


def test_forty_nine_cells_at_the_size_of_the_model() -> None:
    maker = GridRegions(_backbone("resnet18", None), 7)
    regions = _regions(maker.make([Photo("a", photo())])[0])
    assert regions.features_RD.shape == (49, 512)
    assert (regions.features_RD.dtype, regions.boxes_R4.dtype) == (np.float32, np.float32)
    sevenths = regions.boxes_R4[[0, 6, 48]] * 7
    np.testing.assert_allclose(sevenths, [[0, 0, 1, 1], [6, 0, 7, 1], [6, 6, 7, 7]], atol=1e-5)
    known = maker.provenance
    assert (known["backbone"], known["grid"], known["size"], known["width"]) == ("resnet18", 7, 224, 512)
    assert (known["untrained"], len(known["weights"])) == (True, 32)


def test_a_finer_map_is_averaged(photos: Sequence[Photo]) -> None:
    backbone = _backbone("test_vit", 64)
    fine, coarse = (_regions(GridRegions(backbone, cells).make(photos[:1])[0]).features_RD for cells in (4, 2))
    wanted = fine.reshape(2, 2, 2, 2, -1).mean(axis=(1, 3)).reshape(4, -1)
    np.testing.assert_allclose(coarse, wanted, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_the_batch_changes_nothing(photos: Sequence[Photo], batch: int) -> None:
    backbone = _backbone()
    for one, other in (
        (GridRegions(backbone, 3, batch=16), GridRegions(backbone, 3, batch=batch)),
        (BoxRegions(backbone, batch=16), BoxRegions(backbone, batch=batch)),
    ):
        for a, b in zip(one.make(photos), other.make(photos), strict=True):
            np.testing.assert_allclose(_regions(a).features_RD, _regions(b).features_RD, atol=1e-5)


def test_boxes_get_the_vector_of_what_is_cut_out(photos: Sequence[Photo]) -> None:
    network, maker = _timm("test_resnet", 96), BoxRegions(_backbone())
    for given, made in zip(photos, maker.make(photos), strict=True):
        regions, before = _regions(made), _regions(given.regions)
        for feature_D, box in zip(regions.features_RD, before.boxes_R4.tolist(), strict=True):
            with torch.inference_mode():
                wanted_1D = network(_pixels("test_resnet", given.image or b"", 96, View(box=tuple(box))))
            np.testing.assert_allclose(feature_D, wanted_1D[0], atol=1e-4)
        np.testing.assert_array_equal(regions.boxes_R4, before.boxes_R4)
        np.testing.assert_array_equal(regions.class_probs_RC, before.class_probs_RC)  # type: ignore[arg-type]
        np.testing.assert_array_equal(regions.confidence_R, before.confidence_R)  # type: ignore[arg-type]
    assert maker.provenance["width"] == network.num_features


def test_boxes_are_cut_out_of_the_upright_image() -> None:
    upright = Image.open(io.BytesIO(photo(1, (60, 40), "PNG")))
    stored, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(stored, "PNG", exif=exif)
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.25]], np.float32)
    seen = Regions(np.zeros((2, 3), np.float32), boxes)
    found = BoxRegions(_backbone()).make(
        [Photo("a", photo(1, (60, 40), "PNG"), seen), Photo("b", stored.getvalue(), seen)]
    )
    np.testing.assert_allclose(_regions(found[0]).features_RD, _regions(found[1]).features_RD, atol=1e-5)
    assert not np.allclose(_regions(found[0]).features_RD[0], _regions(found[0]).features_RD[1], atol=1e-3)


def test_boxes_of_no_width_are_a_pixel() -> None:
    edge = Regions(np.zeros((1, 3), np.float32), np.array([[1, 1, 1, 1]], np.float32))
    assert np.isfinite(_regions(BoxRegions(_backbone()).make([Photo("a", photo(), edge)])[0]).features_RD).all()


def test_images_that_cannot_be_read_are_told_apart(photos: Sequence[Photo]) -> None:
    some = some_regions(2)
    given = [photos[0], Photo("cut", photo()[:-200], some), Photo("none", None, some), Photo("text", b"x", some)]
    for maker in (GridRegions(_backbone(), 3, batch=2), BoxRegions(_backbone())):
        found = maker.make([*given, Photo("bare", photo()), photos[1]])
        kinds = [type(one) for one in found]
        last = Regions if isinstance(maker, GridRegions) else type(None)
        assert kinds == [Regions, Fault, type(None), Fault, last, Regions]
        assert str(found[1]) == "image does not decode"
        alone = _regions(maker.make([photos[1]])[0])
        np.testing.assert_allclose(_regions(found[5]).features_RD, alone.features_RD, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_weights_come_from_a_file_with_or_without_its_classifier(tmp_path: Path, name: str) -> None:
    torch.manual_seed(5)
    whole = timm.create_model(name, num_classes=9)
    torch.save(whole.state_dict(), tmp_path / "x.pth")
    bare = timm.create_model(name, num_classes=0)
    bare.load_state_dict(whole.state_dict(), strict=False)
    save_file(bare.state_dict(), tmp_path / "x.safetensors")
    made = [Backbone(name, weights=tmp_path / file) for file in ("x.pth", "x.safetensors")]
    assert made[0].fingerprint == made[1].fingerprint != Backbone(name, untrained=True).fingerprint
    assert made[0].provenance["untrained"] is False
    with pytest.raises(ConfigError, match=r"x.pth: does not fit resnet18: .* is missing"):
        Backbone("resnet18", weights=tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _backbone("resnet_18"), r"--backbone: timm has no 'resnet_18' \(did you mean 'resnet18'\?\)"),
        (lambda: GridRegions(_backbone(), 2), r"--grid 2: test_resnet gives 3 x 3 cells at 96 pixels, which do not"),
        (lambda: _backbone("test_vit", 60), r"--size 60: .*|--backbone test_vit: timm cannot make it"),
        (lambda: Backbone("test_vit"), r"--backbone test_vit: timm cannot make it .*--untrained for random weights"),
        (lambda: _backbone(device="abacus"), r"--device abacus: .*; say cpu, cuda"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_sentence(
    make: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=said):
        make()
