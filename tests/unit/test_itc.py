"""Contrast of images and texts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.unit.task_making import PIXELS, SLOT, block, model_config, sample, text_encoder
from vlp.errors import ConfigError
from vlp.models.heads import Contrast as Head
from vlp.models.heads import ContrastHead
from vlp.models.model import ModelConfig, Network
from vlp.objectives import gallery
from vlp.objectives.itc import Contrast, ContrastConfig, image_number
from vlp.seeds import draw
from vlp.tasks.module import TaskModule
from vlp.tasks.retrieval import CONTRAST, RetrievalConfig, RetrievalTask
from vlp.tasks.task import Setting
from vlp.types import Batch, Targets

PATCHES = {"kind": "patches", "size": 32, "patch": 16}


def objective(**config: object) -> Contrast:
    return Contrast("itc", ContrastConfig.parse({"width": 3, **config}), model_config(), "task.objectives.itc")


def targets(*images: int, **survey: torch.Tensor) -> Targets:
    values = {"place": torch.arange(len(images)), "image": torch.tensor(images, dtype=torch.int64)}
    return Targets(torch.arange(len(images)), values, len(images), survey)


def vectors(pairs: int, seed: int = 0) -> torch.Tensor:
    """Vectors of text and image, and one over the temperature."""
    made = torch.randn(pairs, 7, generator=torch.Generator().manual_seed(seed))
    made[:, 6] = 5.0
    return made


def by_hand(scores: torch.Tensor, images: list[int]) -> float:
    """Mean over pairs of the two cross entropies, others of the same image left out."""
    total = 0.0
    for one in range(len(images)):
        for rows in (lambda a, b: (a, b), lambda a, b: (b, a)):
            odds = []
            for other in range(len(images)):
                if other == one or images[other] != images[one]:
                    text, image = rows(one, other)
                    odds.append(float(scores[text, :3] @ scores[image, 3:6]))
            own = float(scores[one, :3] @ scores[one, 3:6])
            total += math.log(sum(math.exp(each) for each in odds)) - own
    return total / 2


def test_loss_by_hand() -> None:
    scores = vectors(6)
    total, metrics = objective().loss(scores, targets(0, 1, 2, 5, 7, 5))
    assert float(total) == pytest.approx(by_hand(scores, [0, 1, 2, 5, 7, 5]), rel=1e-5)
    assert metrics["itc_accuracy"][1] == 12
    assert float(metrics["itc_temperature"][0]) == pytest.approx(6 / 5)


def test_no_pairs_cost_nothing() -> None:
    total, _ = objective().loss(vectors(0), targets())
    assert total == 0


def test_a_perfect_match_costs_little() -> None:
    unit = torch.eye(3)
    total, metrics = objective().loss(torch.cat([50 * unit, unit, unit[:, :1]], 1), targets(0, 1, 2))
    assert float(total) < 1e-6
    assert float(metrics["itc_accuracy"][0]) == 6


@pytest.mark.parametrize("chunk", [2, 100])
def test_parts_of_a_batch_pull_as_the_whole_does(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CHUNK", chunk)
    images = [0, 1, 2, 5, 7, 5]
    whole = vectors(6).requires_grad_()
    total, _ = objective().loss(whole, targets(*images))
    total.backward()
    found = gallery.pulls(gallery.Gallery(whole[:, :3], whole[:, 3:6], torch.tensor(images)))
    sums, parts = 0.0, vectors(6).requires_grad_()
    for rows in ([4, 0], [], [1, 2, 3, 5]):
        survey = {"loss": found.loss_G[rows], "right": found.right_G[rows]}
        survey |= {"text_pull": found.text_GD[rows], "image_pull": found.image_GD[rows]}
        part, metrics = objective().loss(parts[rows], targets(*(images[row] for row in rows), **survey))
        assert metrics["itc_accuracy"][1] == 2 * len(rows)
        sums += float(part.detach())
        part.backward()
    assert sums == pytest.approx(float(total), rel=1e-6)
    assert parts.grad is not None
    assert whole.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad)


def test_a_slow_model_gives_part_of_the_targets() -> None:
    own, slow, past = vectors(3), F.normalize(vectors(3, 1)[:, :6].reshape(-1, 3)).view(-1, 6), vectors(2, 2)[:, :6]
    images, past_images = [0, 1, 0], [0, 9]
    keys = torch.cat([slow, past])
    survey = {
        "text_gallery": keys[:, :3],
        "image_gallery": keys[:, 3:],
        "images": torch.tensor(images + past_images),
        "rows": torch.arange(3),
        "alpha": torch.tensor(0.4),
    }
    found, _ = objective().loss(own, targets(*images, **survey))
    total = 0.0
    for row in range(3):
        left = [key for key in range(5) if key == row or (images + past_images)[key] != images[row]]
        ways = ((own[row, :3], slow[row, :3], keys[left, 3:]), (5 * own[row, 3:6], slow[row, 3:], keys[left, :3]))
        for mine, teacher, these in ways:
            wanted = 0.4 * (5 * teacher @ these.T).softmax(0)
            wanted[left.index(row)] += 0.6
            total -= float((wanted * (mine @ these.T).log_softmax(0)).sum()) / 2
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_the_heads_vectors() -> None:
    head = Head(ContrastHead(width=4, temperature=0.1), (5, 7))
    text, image = torch.randn(3, 5), torch.randn(3, 7)
    both = head(text, image)
    assert torch.linalg.norm(both[:, :4], dim=1).tolist() == pytest.approx([10] * 3, rel=1e-5)
    assert torch.linalg.norm(both[:, 4:8], dim=1).tolist() == pytest.approx([1] * 3, rel=1e-5)
    assert both[:, 8].tolist() == pytest.approx([10] * 3, rel=1e-5)
    assert head.to(torch.bfloat16)(text.bfloat16(), image.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("temperature", "seen"), [(1e-5, 1e-3), (0.1, 0.1), (9.0, 0.5)])
def test_the_temperature_is_read_within_bounds_and_can_come_back(temperature: float, seen: float) -> None:
    head = Head(ContrastHead(width=4), (5, 7))
    torch.nn.init.constant_(head.log_scale, -math.log(temperature))
    both = head(torch.randn(1, 5), torch.randn(1, 7))
    assert float(1 / both[0, 8]) == pytest.approx(seen, rel=1e-4)
    both[0, 8].backward()
    assert head.log_scale.grad is not None
    assert float(head.log_scale.grad) > 0


# --------------------------------------------------------------------------------------------------- as a task's loss


def task(**config: object) -> RetrievalTask:
    setting = Setting(model_config(), text_encoder(), 0)
    return RetrievalTask(RetrievalConfig.parse({"contrast": {"width": 6}, **config}), setting)


def batch_of(made: RetrievalTask, seeds: list[int]) -> Batch:
    tables = block(2, 1, 3, 2, 1)
    words = ("red", "blue", "green", "circle", "square", "left", "of", "what", "colour")
    groups = []
    for seed in seeds:
        slot = replace(SLOT, index=seed, example=seed)
        text = sample(0, *words)
        groups.append(
            [
                made.example(slot, pair, sample(pair.image, regions=1 + pair.image), text, pair.text, draw(0, "t"), 0)
                for pair in made.pairs(slot, tables, draw(seed, "t"))
            ]
        )
    return made.collate(groups, 0)


def test_both_losses_in_one_batch() -> None:
    made = task(negative_images=1, negative_texts=2)
    batch = batch_of(made, [1, 2])
    assert len(batch) == 2 * 4
    assert (len(batch.targets["itm"].positions_K), batch.targets["itm"].count) == (8, pytest.approx(2))
    contrast = batch.targets[CONTRAST]
    assert (contrast.positions_K.tolist(), contrast.values["place"].tolist(), contrast.count) == ([0, 4], [1, 2], 2)
    assert contrast.values["image"].tolist() == [image_number(0, "s0"), image_number(0, "s1")]
    alone = task(ranking=None)
    assert [len(alone.pairs(SLOT, block(2, 1), draw(0, "t"))), len(batch_of(alone, [1, 2]))] == [1, 2]


def test_every_parameter_has_a_gradient() -> None:
    made = task(negative_images=1, negative_texts=1)
    torch.manual_seed(0)
    module = TaskModule(Network(model_config().model_copy(update={"heads": made.heads})), made.objectives)
    module.eval()
    for batch in (batch_of(made, [1]), batch_of(made, [])):
        module.zero_grad()
        sum(module(batch).sums.values()).backward()  # type: ignore[union-attr]
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_task_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="ranking and contrast are both null"):
        RetrievalConfig.parse({"ranking": None})
    with pytest.raises(ConfigError, match="head: itc is the name of the dual encoder's"):
        RetrievalConfig.parse({"head": "itc"})


SELF = [{"stream": "text", "sublayers": ["self", "ffn"]}, {"stream": "image", "sublayers": ["self", "ffn"]}]
JOINT = [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}]
LATE = [*JOINT, *SELF]
ALONE_FFN = [{"stream": "both", "sublayers": ["ffn"]}, *JOINT]
BLIND: list[tuple[list[Any], dict[str, Any], dict[str, str], str]] = [
    (JOINT, {}, {"text": "first"}, r"task\.contrast\.text: 'first' is one state for all texts, .*; say mean, or take"),
    (LATE, {}, {"text": "first"}, r"task\.contrast\.text"),
    (ALONE_FFN, {}, {"text": "first"}, r"task\.contrast\.text"),
    (JOINT, {}, {"text": "mean", "image": "first"}, r"task\.contrast\.image: 'first' is its first region alone; say"),
    (JOINT, {"source": PATCHES}, {"text": "mean", "image": "first"}, r"image: 'first' is its first patch alone"),
    (JOINT, {"source": PIXELS, "cls": True}, {"text": "mean", "image": "first"}, r"one state for all images"),
    (JOINT, {}, {"text": "mean", "image": "mean"}, ""),
    (JOINT, {"source": PIXELS}, {"text": "mean", "image": "first"}, ""),
    ([*SELF, *JOINT], {}, {"text": "first", "image": "first"}, ""),
]


@pytest.mark.parametrize(("encoder", "image", "pools", "sentence"), BLIND)
def test_vectors_must_be_of_the_text_and_of_the_image(
    encoder: list[Any], image: dict[str, Any], pools: dict[str, str], sentence: str
) -> None:
    values = model_config().plain()
    config = ModelConfig.parse({**values, "encoder": encoder, "image": {**values["image"], **image}})
    contrast = Contrast(CONTRAST, ContrastConfig.parse({"width": 3, **pools}), config, "task.contrast")
    if not sentence:
        contrast.check_sides()
        return
    with pytest.raises(ConfigError, match=sentence):
        contrast.check_sides()


def test_pooling_of_images_without_tokens() -> None:
    made = task(ranking=None)
    module = TaskModule(Network(model_config().model_copy(update={"heads": made.heads})), made.objectives)
    example = made.bare_example(sample(0, regions=2), "red")
    bare = made.bare_example(sample(0), "red")
    bare.image = None
    batch = made.collate([[example], [bare]], 0)
    for pool in ("first", "mean"):
        contrast = objective(image=pool)
        pooled = contrast.reading(module.model.eval()(batch), batch).taps["image.pooled"]
        assert pooled[1].abs().sum() == 0
        states = module.model(batch).taps["image.unimodal"]
        wanted = states[0] if pool == "first" else states.mean(0)
        np.testing.assert_allclose(pooled[0].detach(), wanted.detach(), atol=1e-6)
