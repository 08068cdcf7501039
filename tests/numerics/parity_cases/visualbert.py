"""VisualBERT: two segments of text with regions, with and without alignment, and text alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.numerics.parity_cases.fixture import (
    Fixture,
    Losses,
    Ours,
    Results,
    Seen,
    facts,
    make_batch,
    positions_of,
    region_input,
    stacked,
    targets,
    valid_rows,
    watch,
)
from vlp.models.model import Network
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig


def run(fixture: Fixture) -> tuple[Results, list[Losses]]:
    model = fixture.model("visualbert")
    losses = Losses(model, "visualbert")
    results = with_image(fixture, model, losses, "pretrain")
    if fixture.has("align.image_text_alignment"):
        results |= with_image(fixture, model, losses, "align")
    results["out.mlm_only.loss"] = Ours(losses.values["out.pretrain.loss_masked_lm"])
    return results | text_only(fixture, model), [losses]


def see(fixture: Fixture, model: Network, case: str) -> Seen:
    words_B, regions_B = fixture["input_mask"].sum(1), fixture["image_mask"].sum(1)
    texts, segments = (valid_rows(fixture[name], words_B) for name in ("input_ids", "token_type_ids"))
    features = valid_rows(fixture["visual_embeddings"], regions_B)
    if case == "text_only":
        return watch(model, make_batch(model.config, texts, [None] * len(texts), fixture.dtype, segments))
    if case == "pretrain":
        images = [region_input(rows) for rows in features]
        return watch(model, make_batch(model.config, texts, images, fixture.dtype, segments))
    aligned = valid_rows(fixture["align.image_text_alignment"], regions_B)
    images = [region_input(rows, aligned_RA=words) for rows, words in zip(features, aligned, strict=True)]
    batch = make_batch(model.config, texts, images, fixture.dtype, segments)
    with segments_given(model, torch.cat(valid_rows(fixture["align.visual_embeddings_type"], regions_B))):
        return watch(model, batch)


@contextmanager
def segments_given(model: Network, rows_M: Tensor) -> Iterator[None]:
    """Regions take these rows of their segment table instead of the one that the config says."""
    part = model.image.parts["segment"]

    def other(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return module.table(rows_M)  # type: ignore[no-any-return, operator]

    handle = part.register_forward_hook(other)
    try:
        yield
    finally:
        handle.remove()


def with_image(fixture: Fixture, model: Network, losses: Losses, case: str) -> Results:
    seen = see(fixture, model, case)
    sizes = fixture["input_ids"].shape[1], fixture["image_mask"].shape[1]
    encoded, words = seen.encoded, model.heads["mlm"]
    layers = [seen.side_by_side(layer["text"], layer["image"], *sizes) for layer in seen.layers]
    labels = fixture["is_random_next"].flatten()
    matched = targets(torch.arange(len(labels)), matched=labels)
    objective = Matching("itm", MatchingConfig(), facts(model.config))
    scores = objective.scores(model.heads["itm"], encoded, matched)
    found = {
        f"out.{case}.loss_masked_lm": masked_words(fixture, model, seen),
        f"out.{case}.loss_next_sentence": objective.loss(scores, matched)[0] / matched.count,
    }
    found[f"out.{case}.loss"] = torch.stack(list(found.values())).sum()
    losses.values |= found
    return {name: Ours(loss) for name, loss in found.items()} | {
        f"out.{case}.embedding_output": seen.side_by_side(seen.text_NH, seen.image_MH, *sizes),
        f"out.{case}.hidden_layers": stacked(layers),
        f"out.{case}.logits": seen.side_by_side(words(encoded.text_NH), words(encoded.image_MH), *sizes),
        f"out.{case}.pooled": Ours(encoded.pooled_BH),
        f"out.{case}.seq_relationship_score": Ours(scores),
    }


def text_only(fixture: Fixture, model: Network) -> Results:
    seen = see(fixture, model, "text_only")
    logits = model.heads["mlm"](seen.encoded.text_NH)
    return {
        "out.text_only.logits": seen.text(logits, fixture["input_ids"].shape[1]),
        "out.text_only.loss": Ours(masked_words(fixture, model, seen)),
    }


def masked_words(fixture: Fixture, model: Network, seen: Seen) -> Tensor:
    labels = fixture["masked_lm_labels"]
    its = targets(positions_of(labels >= 0, seen.batch.text.packing), token=labels[labels >= 0])
    objective = MaskedLanguage("mlm", MaskedLanguageConfig(), facts(model.config))
    return objective.loss(objective.scores(model.heads["mlm"], seen.encoded, its), its)[0] / its.count
