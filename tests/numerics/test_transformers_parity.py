"""Our models against the transformers library's own classes: random weights, several shapes, with padding.

By way of `vlp convert`, as for weights from a hub. Measured in float64: 2e-14 at most.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.numerics.parity_cases.fixture import make_batch, padded, region_input, valid_rows, with_boxes
from vlp import resources
from vlp.config import read_yaml
from vlp.data.batch import collate
from vlp.models.convert.checkpoint import convert_from, convert_to, read_checkpoint
from vlp.models.convert.family import read_official
from vlp.models.convert.registry import family_of
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network
from vlp.models.patches import PatchSource
from vlp.types import Encoded, Example, Packing, PixelInput

EXACT = 1e-9
SHAPES = {"small": (16, 2, 24, "gelu"), "wide": (48, 6, 96, "relu")}
"""Width, heads, inner width and non-linearity of the feed-forward network."""
WORDS_B, REGIONS_B = torch.tensor([7, 3, 9]), torch.tensor([4, 6, 1])
VOCABULARY, FEATURES = 50, 10


def bert(shape: str) -> dict[str, Any]:
    width, heads, inner, activation = SHAPES[shape]
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": activation,
        "max_position_embeddings": 24,
        "layer_norm_eps": 1e-12,
        "attn_implementation": "eager",
    }


def shaken(model: Any, seed: int = 0) -> Any:
    """Every parameter random, in float64, in eval mode."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=draw)
            parameter.copy_(noise + ("LayerNorm.weight" in name or "layer_norm" in name))
    return model.double().eval()


def ours_of(theirs: Any, kind: str, tmp_path: Path) -> Network:
    """The library's model through `vlp convert`; and back, where each tensor must be as it was."""
    file, config, out = tmp_path / "model.safetensors", tmp_path / "config.json", tmp_path / "ours"
    state = {name: tensor.float().clone().contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(state, file)
    config.write_text(json.dumps(theirs.config.to_dict(), default=str))
    family, official = family_of(kind, "--from"), read_official(config)
    convert_from(kind, family, read_checkpoint(file), family.config(official), family.counts(official), out)
    back = convert_to(kind, family, out, tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    return Network.from_pretrained(out).double()


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, segments and mask, padded."""
    draw = torch.Generator().manual_seed(1)
    longest = int(WORDS_B.max())
    mask = torch.arange(longest)[None, :] < WORDS_B[:, None]
    ids = torch.randint(3, VOCABULARY, (len(WORDS_B), longest), generator=draw) * mask
    return ids, torch.randint(0, 2, ids.shape, generator=draw) * mask, mask.long()


def regions() -> tuple[Tensor, Tensor, Tensor]:
    """Features, boxes and mask, padded."""
    draw = torch.Generator().manual_seed(2)
    longest = int(REGIONS_B.max())
    mask = torch.arange(longest)[None, :] < REGIONS_B[:, None]
    features = torch.randn(len(REGIONS_B), longest, FEATURES, generator=draw)
    return features, torch.rand(len(REGIONS_B), longest, 4, generator=draw).sort(-1).values, mask.long()


def assert_same(ours_NH: Tensor, packing: Packing, theirs_BLH: Tensor) -> None:
    ours = padded(ours_NH, packing, theirs_BLH.shape[1])
    assert ours.valid is not None
    torch.testing.assert_close(ours.value[ours.valid], theirs_BLH[ours.valid], atol=EXACT, rtol=0)


def encode(model: Network, *, aligned: Tensor | None = None) -> tuple[Any, Encoded]:
    ids, segments, _ = texts()
    features, boxes, _ = regions()
    words = [None] * len(ids) if aligned is None else valid_rows(aligned, REGIONS_B)
    images = [region_input(f, aligned_RA=w) for f, w in zip(valid_rows(features, REGIONS_B), words, strict=True)]
    batch = make_batch(model.config, valid_rows(ids, WORDS_B), images, torch.float64, valid_rows(segments, WORDS_B))
    batch = with_boxes(batch, valid_rows(boxes.double(), REGIONS_B))
    return batch, model(batch)


@pytest.mark.parametrize("aligned", [False, True], ids=["plain", "aligned"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_visualbert(shape: str, aligned: bool, tmp_path: Path) -> None:
    config = transformers.VisualBertConfig(**bert(shape), num_hidden_layers=2, visual_embedding_dim=FEATURES)
    theirs = shaken(transformers.VisualBertForPreTraining(config))
    ours = ours_of(theirs, "hf-visualbert", tmp_path)
    ids, segments, mask = texts()
    features, _, image_mask = regions()
    words = torch.randint(-1, 3, (*image_mask.shape, 2), generator=torch.Generator().manual_seed(3))
    batch, encoded = encode(ours, aligned=words if aligned else None)
    wanted = theirs(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=segments,
        visual_embeds=features.double(),
        visual_attention_mask=image_mask,
        visual_token_type_ids=torch.ones_like(image_mask),
        image_text_alignment=words if aligned else None,
        output_hidden_states=True,
    )
    last, longest = wanted.hidden_states[-1], ids.shape[1]
    assert_same(encoded.text_NH, batch.text.packing, last[:, :longest])
    assert_same(encoded.image_MH, batch.image.packing, last[:, longest:])
    assert_same(ours.heads["mlm"](encoded.text_NH), batch.text.packing, wanted.prediction_logits[:, :longest])
    matched = ours.heads["itm"](encoded.pooled_BH)
    torch.testing.assert_close(matched, wanted.seq_relationship_logits, atol=EXACT, rtol=0)


@pytest.mark.parametrize("depths", [(2, 1, 2), (1, 3, 1)])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_lxmert(shape: str, depths: tuple[int, int, int], tmp_path: Path) -> None:
    sizes = dict(zip(("l_layers", "r_layers", "x_layers"), depths, strict=True))
    labels = {"num_object_labels": 9, "num_attr_labels": 5, "num_qa_labels": 7}
    settings = {key: value for key, value in bert(shape).items() if key != "layer_norm_eps"}
    theirs = shaken(
        transformers.LxmertForPreTraining(
            transformers.LxmertConfig(**settings, **sizes, **labels, visual_feat_dim=FEATURES, visual_pos_dim=4)
        )
    )
    ours = ours_of(theirs, "hf-lxmert", tmp_path)
    ids, segments, mask = texts()
    features, boxes, image_mask = regions()
    batch, encoded = encode(ours)
    body = theirs.lxmert(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=segments,
        visual_feats=features.double(),
        visual_pos=boxes.double(),
        visual_attention_mask=image_mask,
    )
    assert_same(encoded.text_NH, batch.text.packing, body.language_output)
    assert_same(encoded.image_MH, batch.image.packing, body.vision_output)
    torch.testing.assert_close(encoded.pooled_BH, body.pooled_output, atol=EXACT, rtol=0)
    words, matched = theirs.cls(body.language_output, body.pooled_output)
    assert_same(ours.heads["mlm"](encoded.text_NH), batch.text.packing, words)
    torch.testing.assert_close(ours.heads["itm"](encoded.pooled_BH), matched, atol=EXACT, rtol=0)
    for name, scores in theirs.obj_predict_head(body.vision_output).items():
        assert_same(ours.heads[name](encoded.image_MH), batch.image.packing, scores)
    answers = theirs.answer_head(body.pooled_output)
    torch.testing.assert_close(ours.heads["qa"](encoded.pooled_BH), answers, atol=EXACT, rtol=0)


GRIDS = [(2, 3), (5, 2), (3, 4)]
"""Patches of each image, rows and columns; the others are padding."""
SIDE = 4


def pictures() -> tuple[Tensor, Tensor]:
    """Pixels, and a mask that is 1 where a pixel is of the image."""
    height, width = (SIDE * max(grid[axis] for grid in GRIDS) for axis in (0, 1))
    pixels = torch.randn(len(GRIDS), 3, height, width, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(len(GRIDS), height, width, dtype=torch.int64)
    for row, (rows, columns) in enumerate(GRIDS):
        mask[row, : SIDE * rows, : SIDE * columns] = 1
    return pixels * mask[:, None], mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", ["mlm", "qa", "rank"])
@torch.no_grad()
def test_vilt(shape: str, head: str, tmp_path: Path) -> None:
    made = {
        "mlm": transformers.ViltForMaskedLM,
        "qa": transformers.ViltForQuestionAnswering,
        "rank": transformers.ViltForImageAndTextRetrieval,
    }[head]
    config = transformers.ViltConfig(
        **bert(shape), num_hidden_layers=2, image_size=4 * SIDE, patch_size=SIDE, num_labels=6, qkv_bias=head != "qa"
    )
    theirs = shaken(made(config))
    ours = ours_of(theirs, "hf-vilt", tmp_path)
    ids, segments, mask = texts()
    pixels, shown = pictures()
    wanted = theirs(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=segments,
        pixel_values=pixels.double(),
        pixel_mask=shown,
    ).logits
    batch = pixel_batch(ours, pixels, shown, ids, segments)
    encoded = ours(batch)
    if head == "mlm":
        assert_same(ours.heads["mlm"](encoded.text_NH), batch.text.packing, wanted)
    else:
        torch.testing.assert_close(ours.heads[head](encoded.pooled_BH), wanted, atol=EXACT, rtol=0)


def pixel_batch(ours: Network, pixels: Tensor, shown: Tensor, ids: Tensor, segments: Tensor) -> Any:
    patches = shown[:, ::SIDE, ::SIDE].bool()
    examples = []
    for row, (words, kinds) in enumerate(zip(valid_rows(ids, WORDS_B), valid_rows(segments, WORDS_B), strict=True)):
        kept = patches[row].flatten().nonzero().flatten().numpy()
        image = PixelInput(pixels[row].numpy(), patches[row].numel(), kept, GRIDS[row])
        none = np.zeros(len(words), np.int64)
        examples.append(Example(str(row), words.numpy(), none.astype(bool), none, image, segment_T=kinds.numpy()))
    return collate(examples, images_of(ours.config.image).form, {}).to("cpu", torch.float64)


@pytest.mark.parametrize("size", [(100, 100), (640, 480), (480, 640), (427, 640), (333, 500), (1000, 90), (383, 385)])
def test_an_image_gets_the_library_s_height_and_width(size: tuple[int, int]) -> None:
    from transformers import ViltImageProcessor

    made = ViltImageProcessor()(Image.new("RGB", size), return_tensors="pt")["pixel_values"]
    source = ModelConfig.parse(read_yaml(resources.shipped("model", "vilt_base")), "vilt_base").image.source
    assert isinstance(source, PatchSource)
    assert source.shape is not None
    assert source.shape.size(*size) == tuple(made.shape[2:])
