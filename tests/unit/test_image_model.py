"""Pixels through timm backbones: frozen statistics, grids, zero images, weights that stay theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.examples import VOCABULARY, example, pixels, shaken
from vlp.data.batch import ImageForm, collate
from vlp.errors import ConfigError
from vlp.models.image import Backbone, PixelSource, grid_boxes, grid_size
from vlp.models.model import ModelConfig, VisionLanguageModel, meta_model
from vlp.types import Batch

SOURCES: dict[str, dict[str, Any]] = {
    "convolutions": {"backbone": "resnet10t", "size": 64},
    "convolutions, one level up": {"backbone": "resnet10t", "size": 64, "level": -2},
    "activated norms": {"backbone": "mobilenetv3_small_050", "size": 64},
    "patches": {
        "backbone": "vit_tiny_patch16_224",
        "size": 48,
        "arguments": {"img_size": 48, "embed_dim": 24, "depth": 2, "num_heads": 2},
    },
    "patches, one level up": {
        "backbone": "vit_tiny_patch16_224",
        "size": 48,
        "level": -2,
        "arguments": {"img_size": 48, "embed_dim": 24, "depth": 3, "num_heads": 2},
    },
    "modern convolutions": {
        "backbone": "convnext_atto",
        "size": 96,
        "arguments": {"dims": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
    },
    "windows, channels last": {
        "backbone": "swin_tiny_patch4_window7_224",
        "size": 56,
        "arguments": {"img_size": 56, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "drop_path_rate": 0},
    },
}
GRIDS = {
    "convolutions": (2, 2),
    "convolutions, one level up": (4, 4),
    "activated norms": (2, 2),
    "patches": (3, 3),
    "patches, one level up": (3, 3),
    "modern convolutions": (3, 3),
    "windows, channels last": (7, 7),
}


def source_of(name: str, **more: Any) -> PixelSource:
    return PixelSource.parse({"kind": "pixels", **SOURCES[name], **more})


def config_of(source: PixelSource) -> ModelConfig:
    values = {
        "text": {"vocab_size": VOCABULARY, "max_length": 16, "layer": {"width": 16, "heads": 2, "ffn": 24}},
        "image": {"source": source.plain(), "parts": [{"kind": "feature"}, {"kind": "box", "numbers": 4}]},
        "encoder": [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}],
        "dropout": 0,
        "attention_dropout": 0,
    }
    return ModelConfig.parse(values, "test")


def batch_of(source: PixelSource, images: list[bool]) -> Batch:
    """Examples with and without an image."""
    rows, columns = grid_size(source)
    rng = np.random.default_rng(0)
    shown = [pixels(source.size, rows * columns, rng) if image else None for image in images]
    return collate([example(4, image, n) for n, image in enumerate(shown)], ImageForm("pixels", source.size), {})


@pytest.mark.parametrize("name", SOURCES)
def test_grid_size_is_that_of_a_real_forward(name: str) -> None:
    source = source_of(name)
    backbone = Backbone(source)
    features = backbone(torch.randn(2, 3, source.size, source.size))
    assert features.shape == (2, backbone.width, *GRIDS[name])
    assert grid_size(source) == GRIDS[name]


@pytest.mark.parametrize("name", SOURCES)
def test_an_image_s_features_do_not_depend_on_the_other_images_even_in_training(name: str) -> None:
    source = source_of(name)
    backbone = Backbone(source).train()
    state = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    images = torch.randn(3, 3, source.size, source.size)
    alone = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(backbone(images), alone, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.state_dict().items())


def test_frozen_norms_compute_what_the_trained_network_does() -> None:
    source = source_of("convolutions")
    torch.manual_seed(0)
    network = timm.create_model(source.backbone, features_only=True, out_indices=(-1,)).eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    backbone = Backbone(source)
    backbone.network.load_state_dict(network.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images), network(images)[-1])


@pytest.mark.parametrize("name", SOURCES)
def test_every_parameter_gets_a_gradient_with_all_some_and_no_images(name: str) -> None:
    model = shaken(VisionLanguageModel(config_of(source_of(name))), seed=1)
    for images in ([True, True], [False, True], [False, False], []):
        model.zero_grad()
        encoded = model(batch_of(source_of(name), images))
        assert len(encoded.image_MH) == sum(images) * GRIDS[name][0] * GRIDS[name][1]
        (encoded.text_NH.square().sum() + encoded.image_MH.sum() + encoded.pooled_BH.sum()).backward()
        for part, parameter in model.named_parameters():
            assert parameter.grad is not None, part
            assert torch.isfinite(parameter.grad).all(), part
            if not any(images) and part.startswith("image."):
                assert (parameter.grad == 0).all(), part


def test_tokens_are_cells_in_reading_order_with_their_boxes() -> None:
    source = source_of("patches")
    model = shaken(VisionLanguageModel(config_of(source)))
    assert isinstance(model, VisionLanguageModel)
    batch = batch_of(source, [True, False, True])
    with torch.no_grad():
        tokens = model.image(batch.image, None)
        parts: Any = model.image.parts
        cells = Backbone.forward(model.image.backbone, batch.image.pixels_P3HW)  # type: ignore[arg-type, union-attr]
        for place, (image, row, column) in {0: (0, 0, 0), 1: (0, 0, 1), 3: (0, 1, 0), 17: (1, 2, 2)}.items():
            box = torch.tensor([column, row, column + 1, row + 1]) / 3
            wanted = parts["feature"].linear(cells[image, :, row, column]) + parts["box"].linear(box)
            torch.testing.assert_close(tokens[place], model.image.combine.norm(wanted))


def test_boxes_of_a_grid() -> None:
    assert grid_boxes(1, 2).tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    assert grid_boxes(2, 1).tolist() == [[0, 0, 1, 0.5], [0, 0.5, 1, 1]]


def test_the_backbone_keeps_the_weights_that_timm_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
        asked.append(pretrained)
        network = made(name, pretrained=False, **arguments)
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.5)
        return network

    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    model = VisionLanguageModel(config_of(source_of("patches", pretrained=True)))
    assert asked == [True]
    assert model.image.backbone is not None
    assert all((parameter == 0.5).all() for parameter in model.image.backbone.parameters())


def test_a_saved_model_does_not_ask_for_pre_trained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of("convolutions")
    model = VisionLanguageModel(config_of(source)).eval()
    config = config_of(source_of("convolutions", pretrained=True))
    model.config = config
    model.save_pretrained(tmp_path)
    made = timm.create_model

    def create(name: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
        assert not pretrained
        return made(name, pretrained=pretrained, **arguments)

    monkeypatch.setattr(timm, "create_model", create)
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    meta_model(config)


def test_a_backbone_can_be_kept_as_it_is() -> None:
    model = VisionLanguageModel(config_of(source_of("patches", trained=False)))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("image.backbone.")}
    assert model.train().training
    assert not any(module.training for module in model.image.backbone.network.modules())  # type: ignore[union-attr]
    encoded = model(batch_of(source_of("patches"), [True]))
    (encoded.text_NH.sum() + encoded.image_MH.sum() + encoded.pooled_BH.sum()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"backbone": "resnet18x"}, r"backbone: timm has no 'resnet18x' \(did you mean '.*'\?\)"),
        ({"backbone": "resnet10t", "arguments": {"colour": 1}}, "timm cannot make 'resnet10t' so: .*colour"),
        ({"backbone": "resnet10t", "level": 9}, "timm cannot make 'resnet10t' so"),
        ({"backbone": "levit_128s"}, "'levit_128s' has batch norms that cannot be frozen"),
    ],
)
def test_backbones_that_cannot_be_are_refused_with_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Backbone(PixelSource.parse({"kind": "pixels", **settings}))


def test_an_image_size_that_the_backbone_does_not_take_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"size: 'vit_tiny_patch16_224' takes no images of 96 x 96 .*96"):
        grid_size(PixelSource.parse({"kind": "pixels", "backbone": "vit_tiny_patch16_224", "size": 96}))
