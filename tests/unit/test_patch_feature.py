"""Masked patches: what is hidden, and what is guessed of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.examples import VOCABULARY, example
from tests.unit.task_making import facts as facts_of
from tests.unit.task_making import within_3_sigma
from vlp.data.batch import collate
from vlp.errors import ConfigError
from vlp.models.backbone import PixelSource
from vlp.models.heads import FeatureHead
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network
from vlp.models.patches import Patches, PatchSource
from vlp.objectives.objective import Facts, Hidden
from vlp.objectives.patch_feature import PatchFeature, PatchFeatureConfig, source_grid
from vlp.objectives.patches import PatchHidingConfig, hide_patches
from vlp.seeds import Draw, Draws, draw
from vlp.tasks.module import TaskModule
from vlp.types import Batch, Example, PixelInput

PATCHES = {"kind": "patches", "size": 12, "patch": 4, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
CELLS = {"kind": "pixels", "backbone": "test_convnext", "size": 32, "level": -2}
TOKENS = {"kind": "pixels", "backbone": "test_vit", "size": 160, "take": "tokens"}  # one of the whole image, then cells


def config_of(source: dict[str, Any], **more: Any) -> ModelConfig:
    values = {
        "text": {"vocab_size": VOCABULARY, "max_length": 16, "layer": {"width": 16, "heads": 2, "ffn": 24}},
        "image": {"source": source, "parts": [{"kind": "feature", "hidden": "learned"}], **more},
        "encoder": [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}],
        "dropout": 0,
        "attention_dropout": 0,
    }
    config = ModelConfig.parse(values, "test")
    return config.model_copy(update={"image": config.image.filled()})


def objective(source: dict[str, Any], **config: Any) -> PatchFeature:
    made = Facts(config_of(source), facts_of().text)
    return PatchFeature("mpf", PatchFeatureConfig.parse(config), made)


def picture(source: dict[str, Any], seed: int = 0, kept: int | None = None) -> PixelInput:
    rng, size = np.random.default_rng(seed), source["size"]
    made = PixelInput(rng.integers(0, 256, (3, size, size)).astype(np.uint8), source_grid(parsed(source)).tokens)
    if kept is not None:
        made.kept_K = np.sort(rng.choice(made.tokens, kept, replace=False))
    return made


def parsed(source: dict[str, Any]) -> PixelSource | PatchSource:
    return config_of(source).image.source  # type: ignore[return-value]


def patched(one: Example, config: PatchHidingConfig, prefix: int, rng: Draw) -> Hidden:
    """An example of which image tokens are hidden."""
    hidden = Hidden(one)
    hide_patches([hidden], config, prefix, Draws([rng.key]))
    return hidden


def masked(made: PatchFeature, seed: int = 0, kept: int | None = None, **config: Any) -> Example:
    """An example with its target."""
    source = made.source.plain()
    one = example(5, picture(source, seed, kept), seed)
    settings = PatchHidingConfig(**{"probability": 0.4, **config})
    hidden = patched(one, settings, made.grid.prefix, draw(seed, "t"))
    one.targets["mpf"] = made.target(hidden, draw(seed, "u"))
    return one


def batch_of(made: PatchFeature, examples: list[Example], **more: Any) -> Batch:
    form = images_of(config_of(made.source.plain(), **more).image).form
    return collate(examples, form, {"mpf": made.form()})


# ----------------------------------------------------------------------------------------------------------- hiding


def test_so_many_are_targets_and_so_many_of_them_hidden() -> None:
    one = example(5, PixelInput(np.zeros((3, 4, 4), np.uint8), 100_000))
    hidden = patched(one, PatchHidingConfig(zero=0.8), 0, draw(0, "t"))
    targets = hidden.guessed_K
    assert isinstance(one.image, PixelInput)
    assert one.image.hidden_K is not None
    assert within_3_sigma(len(targets), 100_000, 0.15)
    assert within_3_sigma(int(one.image.hidden_K.sum()), len(targets), 0.8)
    assert set(np.flatnonzero(one.image.hidden_K)) < set(targets)


def test_one_is_hidden_in_any_case_unless_the_config_says_otherwise() -> None:
    for at_least_one, found in ((True, {1}), (False, {0})):
        config, counts = PatchHidingConfig(probability=1e-6, at_least_one=at_least_one), set()
        for seed in range(20):
            one = example(5, PixelInput(np.zeros((3, 4, 4), np.uint8), 4))
            counts.add(len(patched(one, config, 0, draw(seed, "t")).guessed_K))
        assert counts == found


def test_tokens_of_the_whole_image_and_images_of_regions_stay() -> None:
    for seed in range(20):
        one = example(5, replace(PixelInput(np.zeros((3, 4, 4), np.uint8), 5), kept_K=np.array([0, 2, 4])))
        hidden = patched(one, PatchHidingConfig(probability=1), 2, draw(seed, "t"))
        assert hidden.guessed_K.tolist() == [1, 2]
    for image in (None, 3):
        one = example(5, image)
        assert not len(patched(one, PatchHidingConfig(), 0, draw(0, "t")).guessed_K)


# ---------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("kept", [None, 6])
def test_pixels_are_those_that_the_model_s_patches_have(kept: int | None) -> None:
    made = objective(PATCHES)
    one = masked(made, kept=kept)
    batch = batch_of(made, [one])
    cut = Patches(made.source).cut(batch.image).features_MD  # type: ignore[arg-type]
    targets = batch.targets["mpf"]
    assert 0 < len(targets.positions_K) < len(cut)
    torch.testing.assert_close(targets.values["pixels"], cut[targets.positions_K], atol=1e-6, rtol=1e-5)
    assert made.head() == FeatureHead(width=48)


def test_pixels_of_a_backbone_s_cells_lie_where_the_cells_do() -> None:
    made = objective(CELLS)
    grid = made.grid
    side = 32 // grid.rows
    image = np.zeros((3, 32, 32), np.uint8)
    for row in range(grid.rows):
        for column in range(grid.columns):
            image[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = row * grid.columns + column
    one = example(5, PixelInput(image, grid.tokens))
    target = made.target(patched(one, PatchHidingConfig(), grid.prefix, draw(3, "t")), draw(0, "t"))
    source = made.source
    assert isinstance(source, PixelSource)
    mean, std = (np.repeat(np.array(each, np.float32), side * side) for each in (source.mean, source.std))
    wanted = (target.positions[:, None] / 255 - mean) / std
    np.testing.assert_allclose(target.values["pixels"], wanted, rtol=1e-4, atol=1e-5)


def test_a_class_token_shifts_the_cells() -> None:
    made = objective(TOKENS)
    assert made.grid.prefix == 1
    one = masked(made, probability=1)
    batch = batch_of(made, [one])
    assert batch.targets["mpf"].positions_K.tolist() == list(range(1, made.grid.tokens))
    pixels = batch.targets["mpf"].values["pixels"].reshape(-1, 3, 160 // made.grid.rows, 160 // made.grid.columns)
    source = made.source
    assert isinstance(source, PixelSource)
    corner = batch.image.pixels_P3HW[0, :, 0, 0].float() / 255  # type: ignore[union-attr]
    torch.testing.assert_close(pixels[0, :, 0, 0], (corner - torch.tensor(source.mean)) / torch.tensor(source.std))


def test_images_that_keep_their_shape_are_hidden_and_guessed_alike() -> None:
    source = {**PATCHES, "fit": "keep", "longest": 24}
    made, examples, rng = objective(source), [], np.random.default_rng(0)
    for number, (rows, columns) in enumerate(((3, 5), (6, 3))):
        image = PixelInput(
            rng.integers(0, 256, (3, 4 * rows, 4 * columns)).astype(np.uint8), rows * columns, grid=(rows, columns)
        )
        one = example(5, image, number)
        hidden = patched(one, PatchHidingConfig(probability=0.5, zero=0.6), 0, draw(number, "t"))
        one.targets["mpf"] = made.target(hidden, draw(0, "u"))
        examples.append(one)
    batch = batch_of(made, examples)
    cut = Patches(made.source).cut(batch.image).features_MD  # type: ignore[arg-type]
    targets = batch.targets["mpf"]
    torch.testing.assert_close(targets.values["pixels"], cut[targets.positions_K], atol=1e-6, rtol=1e-5)
    wanted = np.concatenate([one.image.hidden_K for one in examples])  # type: ignore[union-attr]
    assert batch.image.hidden_M.tolist() == wanted.tolist()  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------ loss, model


def test_the_loss_is_a_sum_over_patches_of_means_over_numbers() -> None:
    made, draw = objective(PATCHES), torch.Generator().manual_seed(0)
    batch = batch_of(made, [masked(made)])
    targets = batch.targets["mpf"]
    wanted = targets.values["pixels"]
    guessed = torch.randn(wanted.shape, generator=draw)
    torch.testing.assert_close(made.loss(guessed, targets)[0], ((guessed - wanted) ** 2).mean(1).sum())
    standard = objective(PATCHES, standardise=True).loss(guessed, targets)[0]
    of_each = torch.stack([(row - row.mean()) / row.std(correction=0) for row in wanted])
    torch.testing.assert_close(standard, ((guessed - of_each) ** 2).mean(1).sum(), rtol=1e-4, atol=1e-4)
    smooth = objective(PATCHES, distance="smooth_l1").loss(guessed, targets)[0]
    torch.testing.assert_close(
        smooth, torch.nn.functional.smooth_l1_loss(guessed, wanted, reduction="none").mean(1).sum()
    )


@pytest.mark.parametrize("frame", [{}, {"cls": True}, {"cls": True, "end": True}])
def test_a_backbone_s_features_are_those_before_anything_is_hidden(frame: dict[str, bool]) -> None:
    made = objective(CELLS, of="features")
    torch.manual_seed(0)
    model = Network(config_of(CELLS, **frame).model_copy(update={"heads": {"mpf": made.head()}})).eval()
    examples = [masked(made, 1), example(4, None), masked(made, 2)]
    batch = batch_of(made, examples, **frame)
    targets = batch.targets["mpf"]
    encoded = made.reading(model(batch), batch)
    scores = made.scores(model.heads["mpf"], encoded, targets)
    features = model.image.backbone(batch.image.tokens.pixels_P3HW if frame else batch.image.pixels_P3HW)  # type: ignore
    wanted = torch.cat([features[n, torch.from_numpy(e.targets["mpf"].positions)] for n, e in enumerate(examples[::2])])
    torch.testing.assert_close(scores[:, made.width :], wanted)
    assert not scores[:, made.width :].requires_grad or not encoded.taps["mpf"].requires_grad
    total, _ = made.loss(scores, targets)
    torch.testing.assert_close(total, ((scores[:, : made.width] - wanted) ** 2).mean(1).sum())


@pytest.mark.parametrize("source", [PATCHES, CELLS])
def test_a_hidden_patch_is_not_seen_and_a_kept_one_is(source: dict[str, Any]) -> None:
    made = objective(source)
    torch.manual_seed(0)
    model = Network(config_of(source)).eval()
    one = masked(made, 1, probability=1, zero=0.5)
    batch = batch_of(made, [one])
    image: Any = batch.image
    hidden = image.hidden_M
    assert 0 < hidden.sum() < len(batch.targets["mpf"].positions_K)
    feature: Any = model.image.parts["feature"]
    with torch.no_grad():
        feature.hidden[1] = torch.randn(feature.hidden.shape[1])
        _, features, _, source_MD = model.image(image, batch.text, model.text.tables)
        torch.testing.assert_close(features[hidden], feature.linear(feature.hidden[1]).expand(int(hidden.sum()), -1))
        torch.testing.assert_close(features[~hidden], feature.linear(source_MD[~hidden]))


def test_every_parameter_takes_part_and_no_target_is_fine() -> None:
    for config in ({"of": "features"}, {"of": "pixels"}, {"of": "features", "tied": True}):
        made = objective(CELLS, **config)
        torch.manual_seed(0)
        model = Network(config_of(CELLS).model_copy(update={"heads": {"mpf": made.head()}}))
        module = TaskModule(model, {"mpf": made})
        for examples in ([masked(made)], [example(4, None)], []):
            module.zero_grad()
            module(batch_of(made, examples)).sums["mpf"].backward()
            assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("source", "config", "said"),
    [
        ({"kind": "regions", "width": 6}, {}, "reads regions; remove it"),
        (PATCHES, {"of": "features"}, "has no backbone"),
        ({**CELLS, "size": 112, "level": -1}, {"of": "pixels"}, "do not divide"),
        (CELLS, {"of": "pixels", "tied": True}, "not pixels"),
    ],
)
def test_what_cannot_be_guessed_is_refused(source: dict[str, Any], config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^task\.objectives\.mpf.*{said}"):
        objective(source, **config)
