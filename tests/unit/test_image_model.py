"""Image tokens out of pixels, alone and beside regions: their order, gradients, samples of them, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.examples import REGION_WIDTH, VOCABULARY, shaken
from tests.unit.backbones import SOURCES, batch_of, both_batch, config_of, source_of
from tests.unit.pictures import encoded, ramps
from vlp.data.samples import Fault
from vlp.errors import ConfigError
from vlp.models.backbone import Backbone, grid_of
from vlp.models.image import Tokens, images_of
from vlp.models.imageparts import Reading
from vlp.models.model import ModelConfig, Network, Sizes, fill_sizes, meta_model
from vlp.models.start import start_from
from vlp.seeds import Draw
from vlp.types import BothBatch, PixelBatch, Regions, Sample


def model_of(name: str, beside_regions: bool = False, **more: Any) -> Network:
    made = shaken(Network(config_of(source_of(name, **more), beside_regions)), seed=1)
    assert isinstance(made, Network)
    return made


def tokens_of(model: Network, batch: Any) -> torch.Tensor:
    return model.image(batch.image, batch.text, model.text.tables)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("beside_regions", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_every_parameter_gets_a_gradient_with_all_some_and_no_images(name: str, beside_regions: bool) -> None:
    model, source = model_of(name, beside_regions), source_of(name)
    cells = grid_of(source).tokens
    for images in ([True, True], [False, True], [False, False], []):
        model.zero_grad()
        counts = [2 if image else None for image in images]
        encoded = model(both_batch(source, counts) if beside_regions else batch_of(source, images))
        assert len(encoded.image_MH) == sum(images) * (cells + 2 * beside_regions)
        (encoded.text_NH.square().sum() + encoded.image_MH.sum() + encoded.pooled_BH.sum()).backward()
        for part, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, part
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), part
                assert any(images) or not part.startswith("image.") or (parameter.grad == 0).all(), part


def test_tokens_are_cells_in_reading_order_with_their_boxes() -> None:
    model, batch = model_of("patches"), batch_of(source_of("patches"), [True, False, True])
    assert isinstance(batch.image, PixelBatch)
    with torch.no_grad():
        tokens = tokens_of(model, batch)
        parts: Any = model.image.parts
        features = model.image.backbone(batch.image.pixels_P3HW)  # type: ignore[misc]
        for place, (image, row, column) in {0: (0, 0, 0), 1: (0, 0, 1), 3: (0, 1, 0), 17: (1, 2, 2)}.items():
            box = torch.tensor([column, row, column + 1, row + 1]) / 3
            wanted = parts["feature"].linear(features[image, 3 * row + column]) + parts["box"].linear(box)
            torch.testing.assert_close(tokens[place], model.image.combine.norm(wanted))


# ------------------------------------------------------------------------------------------------------ several sources


def test_regions_come_first_and_the_grid_of_the_whole_picture_after_them() -> None:
    name = "patches and their class token"
    model, source = model_of(name, beside_regions=True), source_of(name)
    batch = both_batch(source, [3, None, 1])
    image = batch.image
    assert isinstance(image, BothBatch)
    assert image.packing.lengths == (13, 0, 11)
    with torch.no_grad():
        tokens = tokens_of(model, batch)
        reading = Reading(batch.text, model.text.tables)
        regions_RH, *_ = Tokens.forward(model.image, image.regions, reading)
        assert model.image.grid is not None
        cells_GH, *_ = model.image.grid(image.pixels, reading)
    assert torch.equal(tokens, torch.cat([regions_RH[:3], cells_GH[:10], regions_RH[3:], cells_GH[10:]]))


def test_a_sample_needs_its_photo_and_its_regions() -> None:
    images = images_of(config_of(source_of("patches"), beside_regions=True).image)
    photo = encoded(ramps())
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], np.float32)
    regions = Regions(np.ones((2, REGION_WIDTH), np.float32), boxes)
    made = images.prepare(Sample("x", image=photo, regions=regions, width=40, height=30))
    assert made is not None
    assert len(made) == images.tokens(2) == 2 + 9
    assert images.prepare(Sample("x")) is None
    with pytest.raises(Fault, match="image"):
        images.prepare(Sample("x", regions=regions))
    with pytest.raises(Fault, match="features"):
        images.prepare(Sample("x", image=photo))


def test_a_grid_beside_pixels_is_refused() -> None:
    values = config_of(source_of("patches")).plain()
    values["image"]["grid"] = {"source": values["image"]["source"], "parts": [{"kind": "feature"}]}
    with pytest.raises(ConfigError, match=r"grid stands beside source\.kind regions"):
        ModelConfig.parse(values)


def test_sizes_that_the_data_fix_are_filled_in_beside_a_grid() -> None:
    values = config_of(source_of("patches"), beside_regions=True).plain()
    values["image"]["source"] |= {"width": "auto", "classes": "auto"}
    filled = fill_sizes(ModelConfig.parse(values), Sizes(VOCABULARY, 12, 5))
    assert filled.image.source.width == 12  # type: ignore[union-attr]
    assert filled.image.grid is not None
    assert filled.image.grid.source.mean == (0.5, 0.5, 0.5)


# ------------------------------------------------------------------------------------------------ some of the tokens


def sampled(name: str, sample: int | None, seed: int, beside_regions: bool = False) -> Any:
    """A photo prepared for pre-training."""
    config = config_of(source_of(name, sample=sample), beside_regions)
    images = images_of(config.image, sampled=True)
    return images, images.prepare(Sample("x", image=encoded(ramps())), Draw(seed))


def test_a_sample_of_the_tokens_is_drawn_from_the_example_s_generator() -> None:
    images, first = sampled("convolutions, one level up", 5, seed=0)
    assert images.tokens(0) == len(first) == 5
    assert (np.diff(first.kept_K) > 0).all()
    assert np.array_equal(first.kept_K, sampled("convolutions, one level up", 5, seed=0)[1].kept_K)
    drawn = [sampled("convolutions, one level up", 5, seed)[1].kept_K for seed in range(200)]
    counts = np.bincount(np.concatenate(drawn), minlength=16)
    assert counts.min() > 35, "each of the 16 is drawn 62.5 times of 200 on average"
    assert counts.max() < 95


def test_all_tokens_are_taken_where_there_are_fewer_and_outside_pre_training() -> None:
    images, made = sampled("convolutions", 5, seed=0)
    assert images.tokens(0) == len(made) == 4
    assert made.kept_K is None
    config = config_of(source_of("convolutions, one level up", sample=5))
    assert images_of(config.image).tokens(0) == 16


@pytest.mark.parametrize("beside_regions", [False, True])
def test_sampled_tokens_are_those_of_the_whole_grid(beside_regions: bool) -> None:
    name = "convolutions, one level up"
    model, source = model_of(name, beside_regions), source_of(name)
    make: Any = both_batch if beside_regions else batch_of
    given = [2, None, 2] if beside_regions else [True, False, True]
    whole, part = make(source, given), make(source, given, 6)
    pixels = part.image.pixels if beside_regions else part.image
    with torch.no_grad():
        all_MH, some_MH = tokens_of(model, whole), tokens_of(model, part)
    if beside_regions:  # without the regions' tokens
        all_MH = torch.cat([all_MH[2:18], all_MH[20:]])
        some_MH = torch.cat([some_MH[2:8], some_MH[10:]])
    assert len(pixels.kept_M) == 12
    assert pixels.kept_M.min() >= 0
    assert pixels.kept_M.max() >= 16
    torch.testing.assert_close(some_MH, all_MH[pixels.kept_M])


# ------------------------------------------------------------------------------------------------------ saved weights


def test_the_backbone_keeps_the_weights_that_timm_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
        asked.append(pretrained)
        network = made(name, pretrained=False, **arguments)
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.5)
        return network

    made = timm.create_model
    grid_of(source_of("patches"))  # known before timm is asked for weights
    monkeypatch.setattr(timm, "create_model", create)
    model = Network(config_of(source_of("patches", pretrained=True)))
    assert asked == [True]
    assert isinstance(model.image.backbone, Backbone)
    assert all((parameter == 0.5).all() for parameter in model.image.backbone.parameters())


@pytest.mark.parametrize("beside_regions", [False, True])
def test_a_saved_model_asks_for_no_weights(
    beside_regions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Network(config_of(source_of("convolutions"), beside_regions)).eval()
    model.config = config_of(source_of("convolutions", pretrained=True), beside_regions)
    model.save_pretrained(tmp_path)
    made = timm.create_model

    def create(name: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
        assert not pretrained
        return made(name, pretrained=pretrained, **arguments)

    monkeypatch.setattr(timm, "create_model", create)
    loaded = Network.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    meta_model(model.config)


@pytest.mark.parametrize("beside_regions", [False, True])
def test_a_model_goes_on_at_another_image_size(beside_regions: bool, tmp_path: Path) -> None:
    name = "patches and their class token"
    small = model_of(name, beside_regions)
    small.save_pretrained(tmp_path)
    large = Network(config_of(source_of(name, size=96), beside_regions))
    start_from(large, tmp_path)
    where = "image.grid.backbone" if beside_regions else "image.backbone"
    assert large.state_dict()[f"{where}.network.pos_embed"].shape[1] == 1 + 36
    for key, tensor in large.state_dict().items():
        if not key.endswith("pos_embed"):
            assert torch.equal(tensor, small.state_dict()[key]), key


def test_a_backbone_can_be_kept_as_it_is() -> None:
    model = model_of("patches", train="none")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("image.backbone.")}
    assert model.train().training
    encoded = model(batch_of(source_of("patches"), [True]))
    (encoded.text_NH.sum() + encoded.image_MH.sum() + encoded.pooled_BH.sum()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
