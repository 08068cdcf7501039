"""timm backbones: their tokens and boxes, what is trained of them, weights from files, another image size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.unit.backbones import GRIDS, SOURCES, source_of
from vlp.errors import CheckpointError, ConfigError
from vlp.models.backbone import Backbone, PixelSource, grid_of, normalisation
from vlp.models.backboneweights import at_size

SHALLOW = {"cait_xxs24_224": {"depth": 1, "embed_dim": 24, "num_heads": 2, "depth_token_only": 1}}


def images(source: PixelSource, count: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, source.size, source.size, generator=draw)


def made(source: PixelSource) -> Backbone:
    torch.manual_seed(0)
    return Backbone(source)


def trained(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.network.named_parameters() if parameter.requires_grad}


# ------------------------------------------------------------------------------------------------- tokens and boxes


@pytest.mark.parametrize("name", SOURCES)
def test_the_grid_is_that_of_a_real_forward(name: str) -> None:
    source = source_of(name)
    grid, backbone = grid_of(source), Backbone(source)
    assert (grid.rows, grid.columns, grid.prefix) == GRIDS[name]
    assert backbone(images(source)).shape == (2, grid.tokens, grid.width)
    assert grid.boxes().shape == (grid.tokens, 4)


@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_224", "swin_tiny_patch4_window7_224", "convnext_tiny"])
@pytest.mark.parametrize("take", ["map", "tokens"])
def test_the_grids_of_full_size_backbones(name: str, take: str) -> None:
    grid = grid_of(PixelSource.parse({"kind": "pixels", "backbone": name, "take": take}))
    width = 2048 if name == "resnet50" else 768
    side = 14 if name.startswith("vit") else 7
    prefix = int(name.startswith("vit") and take == "tokens")
    assert (grid.rows, grid.columns, grid.prefix, grid.width) == (side, side, prefix, width)


def test_cells_lie_in_reading_order_behind_the_tokens_of_the_whole_image() -> None:
    boxes = grid_of(source_of("patches and their class token")).boxes()
    third = 1 / 3
    assert boxes[0].tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(boxes[2], torch.tensor([third, 0, 2 * third, third]))
    torch.testing.assert_close(boxes[4], torch.tensor([0, third, third, 2 * third]))
    assert grid_of(source_of("patches")).boxes()[0].tolist() == pytest.approx([0, 0, third, third])


@pytest.mark.parametrize("name", SOURCES)
def test_tokens_are_what_timm_makes(name: str) -> None:
    source = source_of(name)
    backbone = made(source).eval()
    torch.manual_seed(0)
    arguments = {
        **source.arguments,
        **({"img_size": source.size} if source.backbone.startswith(("vit", "swin")) else {}),
    }
    if source.take == "tokens":
        network = timm.create_model(source.backbone, num_classes=0, **arguments).eval()
        network.load_state_dict(backbone.network.state_dict())
        wanted = network.forward_features(images(source))
        wanted = wanted.permute(0, 2, 3, 1) if "convnext" in source.backbone else wanted
        wanted = wanted.flatten(1, 2) if wanted.ndim == 4 else wanted
    else:
        network = timm.create_model(
            source.backbone, features_only=True, out_indices=(source.level,), **arguments
        ).eval()
        network.load_state_dict(backbone.network.state_dict(), strict=False)
        wanted = network(images(source))[-1]
        wanted = (wanted if "swin" in source.backbone else wanted.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(backbone(images(source)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_an_image_s_tokens_do_not_depend_on_the_other_images_even_in_training(name: str) -> None:
    source = source_of(name)
    backbone = Backbone(source).train()
    state = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    given = images(source, 3)
    alone = torch.cat([backbone(image[None]) for image in given])
    torch.testing.assert_close(backbone(given), alone, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.state_dict().items())


def test_frozen_norms_compute_what_the_trained_network_does() -> None:
    source = source_of("convolutions")
    backbone = made(source)
    for name, buffer in backbone.network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    network = timm.create_model(source.backbone, features_only=True, out_indices=(-1,)).eval()
    network.load_state_dict(backbone.network.state_dict(), strict=False)
    wanted = network(images(source))[-1].permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(backbone(images(source)), wanted)


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "mobilenetv3_small_050"])
def test_all_of_a_backbone_with_random_weights_learns(name: str) -> None:
    """Residual branches too, whose last norm timm starts with gains of 0."""
    source = PixelSource.parse({"kind": "pixels", "backbone": name, "size": 64})
    backbone = made(source)
    backbone(images(source)).square().sum().backward()
    learning = {name: p.grad for name, p in backbone.network.named_parameters() if p.requires_grad}
    assert learning
    assert [name for name, gradient in learning.items() if gradient is None or not gradient.any()] == []


@pytest.mark.parametrize("name", ["test_convnext", "poolformer_s12", "cait_xxs24_224"])
def test_no_branch_of_a_backbone_with_random_weights_is_silenced_by_its_scale(name: str) -> None:
    """timm starts their layer scales at 1e-6 or 1e-5."""
    source = PixelSource.parse({"kind": "pixels", "backbone": name, "size": 64, "arguments": SHALLOW.get(name, {})})
    scales = [p for each, p in made(source).network.named_parameters() if re.search("gamma|layer_scale", each)]
    assert scales
    assert min(scale.min().item() for scale in scales) == 1


def test_bytes_are_normalised_as_the_weights_were_trained() -> None:
    source = source_of("patches")
    mean, std = normalisation(source)
    assert (mean, std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "of the ViTs that Google trained"
    assert source.filled().mean == mean
    assert normalisation(source_of("convolutions"))[0] == pytest.approx((0.485, 0.456, 0.406))
    assert normalisation(source_of("patches", mean=[0, 0, 0]))[0] == (0, 0, 0)
    backbone = made(source).eval()
    bytes_ = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(backbone(bytes_), backbone((bytes_ / 255 - 0.5) / 0.5), atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------------- what is trained


def test_all_or_none_of_a_backbone_is_trained() -> None:
    everything = {name for name, _ in made(source_of("patches")).network.named_parameters()}
    assert trained(made(source_of("patches"))) == everything
    frozen = made(source_of("patches", train="none", drop_path=0.5)).train()
    assert not trained(frozen)
    assert not any(module.training for module in frozen.network.modules())


STAGES = {
    "convolutions": (4, ("conv1", "layer1", "layer2", "layer3")),
    "plain convolutions": (2, ("features_0", "features_3")),
    "modern convolutions": (4, ("stem", "stages_0", "stages_1", "stages_2")),
    "modern convolutions as tokens": (4, ("stem", "stages.0", "stages.1", "stages.2", "head")),
    "patches": (2, ("model.cls_token", "model.pos_embed", "model.patch_embed", "model.blocks.0")),
    "patches and their class token": (2, ("cls_token", "pos_embed", "patch_embed", "blocks.0")),
    "windows": (2, ("patch_embed", "layers_0")),
    "windows as tokens": (2, ("patch_embed", "layers.0")),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_last_stages_of_a_backbone_are_trained(name: str) -> None:
    stages, frozen = STAGES[name]
    names = {each for each, _ in made(source_of(name)).network.named_parameters()}
    wanted = {each for each in names if not each.startswith(frozen)}
    backbone = made(source_of(name, train=1))
    assert trained(backbone) == wanted
    assert wanted
    assert len(wanted) < len(trained(made(source_of(name, train=stages)))) < len(names)
    with pytest.raises(ConfigError, match=rf"train: '.*' has {stages} stages, not {stages + 1}; or write all"):
        made(source_of(name, train=stages + 1))


def test_what_is_frozen_drops_nothing_and_what_is_trained_does() -> None:
    arguments = {**SOURCES["patches"]["arguments"], "depth": 3}
    backbone = made(source_of("patches", train=1, drop_path=0.5, arguments=arguments)).train()
    blocks = backbone.network.model.blocks  # type: ignore[union-attr]
    assert [block.training for block in blocks] == [False, False, True]  # type: ignore[union-attr]
    given = images(source_of("patches"), 16)
    assert not torch.equal(backbone(given), backbone(given))


def test_nothing_is_dropped_unless_the_config_says_so() -> None:
    """timm's Swin drops a tenth of its paths by itself."""
    source = source_of("windows", arguments={"depths": [2, 2], "embed_dim": 8, "num_heads": [1, 2]})
    backbone, given = made(source).train(), images(source, 16)
    assert torch.equal(backbone(given), backbone(given))
    dropping = made(source.model_copy(update={"drop_path": 0.5})).train()
    assert not torch.equal(dropping(given), dropping(given))


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "convnext_tiny"])
def test_what_the_tokens_do_not_depend_on_is_frozen(name: str) -> None:
    """ZeRO waits for a gradient of each trained parameter; a pooling layer's would never come."""
    with torch.device("meta"):
        backbone = Backbone(PixelSource.parse({"kind": "pixels", "backbone": name, "take": "tokens"}))
    frozen = {each for each, parameter in backbone.network.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert {each.split(".")[0] for each in frozen} <= {"attn_pool", "head", "fc_norm"}


@pytest.mark.parametrize("name", ["convolutions", "patches", "patches and their class token", "modern convolutions"])
@pytest.mark.parametrize("train", ["all", 1])
def test_recomputed_activations_give_the_same_gradients(name: str, train: str | int) -> None:
    gradients = []
    for checkpointing in (False, True):
        source = source_of(name, checkpointing=checkpointing, train=train)
        backbone = made(source).train()
        backbone(images(source)).square().sum().backward()
        parameters = dict(backbone.network.named_parameters())
        gradients.append({each: parameters[each].grad for each in trained(backbone)})
    for each, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][each], gradient, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------- weights of a file


def published(source: PixelSource, folder: Path, **more: Any) -> dict[str, Tensor]:
    """Random weights of the whole classifier under timm's names, saved into `weights.safetensors`."""
    torch.manual_seed(7)
    network = timm.create_model(source.backbone, **source.arguments, **more)
    tensors = {name: torch.rand_like(tensor.float()) for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "weights.safetensors")
    return tensors


@pytest.mark.parametrize("name", SOURCES)
def test_weights_come_from_a_file_of_timm_s_names(name: str, tmp_path: Path) -> None:
    source = source_of(name)
    sized = {"img_size": source.size} if source.backbone.startswith(("vit", "swin")) else {}
    tensors = published(source, tmp_path, **sized)
    backbone = Backbone(source_of(name, weights=str(tmp_path / "weights.safetensors")))
    loaded = backbone.network.state_dict()
    assert len(loaded) > 5
    for ours, tensor in loaded.items():
        theirs = re.sub(r"^(stem|stages|layers|features)_", r"\1.", ours.removeprefix("model."))
        assert torch.equal(tensor, tensors[theirs]), ours


def test_positions_are_interpolated_to_the_image_size(tmp_path: Path) -> None:
    source = source_of("patches and their class token")
    tensors = published(source, tmp_path, img_size=48)
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    ramp = torch.stack([rows, columns], dim=-1).reshape(1, 9, 2).repeat(1, 1, 12)
    tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], ramp], dim=1)
    save_file(tensors, tmp_path / "weights.safetensors")
    larger = source_of("patches and their class token", size=96, weights=str(tmp_path / "weights.safetensors"))
    table = Backbone(larger).network.state_dict()["pos_embed"]
    assert table.shape == (1, 1 + 36, 24)
    assert torch.equal(table[:, 0], tensors["pos_embed"][:, 0]), "the class token has no place"
    cells = table[0, 1:].reshape(6, 6, 24)
    assert (cells[1:, :, 0] > cells[:-1, :, 0]).all(), "rows go on growing downwards"
    assert (cells[:, 1:, 1] > cells[:, :-1, 1]).all(), "columns go on growing to the right"
    assert cells[:, :, 0].mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["patches", "windows", "patches and their class token"])
def test_a_trained_backbone_can_go_on_at_another_size(name: str) -> None:
    small = made(source_of(name))
    size = 2 * small.source.size
    arguments = {**small.source.arguments, **({"window_size": 14} if name == "windows" else {})}
    large = made(small.source.model_copy(update={"size": size, "arguments": arguments}))
    changed = at_size(large, small.network.state_dict(), "test")
    large.network.load_state_dict(changed)
    same = at_size(small, small.network.state_dict(), "test")
    assert all(torch.equal(tensor, same[key]) for key, tensor in small.network.state_dict().items())
    different = [key for key, tensor in changed.items() if tensor.shape != small.network.state_dict()[key].shape]
    assert different
    assert all("pos_embed" in key or "relative_position" in key or "attn_mask" in key for key in different)


def test_wrong_weights_are_refused_with_the_first_tensors(tmp_path: Path) -> None:
    source = source_of("patches")
    tensors = published(source, tmp_path, img_size=48)
    file = tmp_path / "weights.safetensors"
    del tensors["blocks.1.norm1.bias"]
    tensors["blocks.0.mlp.fc1.bias"] = torch.zeros(5)
    save_file(tensors, file)
    given = source_of("patches", weights=str(file))
    sentence = (
        r"weights: .*weights.safetensors does not fit 'vit_tiny_patch16_224': "
        r"blocks.0.mlp.fc1.bias is \[5\] and should be \[96\]; blocks.1.norm1.bias is missing$"
    )
    with pytest.raises(CheckpointError, match=sentence):
        Backbone(given)
    torch.save({"state_dict": tensors, "more": Path("x")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth: refused, since it may hold code"):
        Backbone(source_of("patches", weights=str(tmp_path / "weights.pth")))
    with pytest.raises(CheckpointError, match=r"nowhere: no such file"):
        Backbone(source_of("patches", weights=str(tmp_path / "nowhere")))


def test_a_checkpoint_of_a_training_program_is_read(tmp_path: Path) -> None:
    source = source_of("convolutions")
    tensors = published(source, tmp_path)
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "checkpoint.pth.tar")
    backbone = Backbone(source_of("convolutions", weights=str(tmp_path / "checkpoint.pth.tar")))
    assert torch.equal(backbone.network.state_dict()["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"backbone": "resnet18x"}, r"backbone: timm has no 'resnet18x' \(did you mean '.*'\?\)"),
        ({"backbone": "resnet18.nobody"}, r"backbone: timm has no weights 'resnet18.nobody' \(did you mean '.*'\?\)"),
        ({"backbone": "resnet10t", "arguments": {"colour": 1}}, "timm cannot make 'resnet10t' so: .*colour"),
        ({"backbone": "resnet10t", "level": 9}, "timm cannot make 'resnet10t' so"),
        ({"backbone": "levit_128s"}, "'levit_128s' has batch norms that cannot be frozen"),
        (
            {"backbone": "vit_tiny_patch16_224", "size": 96, "arguments": {"img_size": 224}},
            r"size: 'vit_tiny_patch16_224' takes no images of 96 x 96 .*96",
        ),
    ],
)
def test_backbones_that_cannot_be_are_refused_with_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Backbone(PixelSource.parse({"kind": "pixels", **settings}))


def test_pretrained_and_weights_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="pretrained and weights are both given"):
        source_of("patches", pretrained=True, weights="x")
