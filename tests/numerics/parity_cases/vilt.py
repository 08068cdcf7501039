"""ViLT: the transformers library's classes on one body, and the authors' code on the same weights.

Patches stand in raster order, and only those that hold an image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.numerics.parity_cases.fixture import (
    Fixture,
    Losses,
    Ours,
    Results,
    Seen,
    facts,
    padded,
    positions_of,
    stacked,
    targets,
    valid_rows,
    watch,
)
from vlp.data.batch import WEIGHT, collate
from vlp.models.convert.account import plan_of
from vlp.models.convert.checkpoint import to_theirs
from vlp.models.convert.vilt import VILT
from vlp.models.image import images_of
from vlp.models.model import Network
from vlp.models.patches import Patches
from vlp.objectives.answer import Answer, AnswerConfig
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.objectives.word_region import alignment_costs, alignment_distances, alignment_loss, transport_plans
from vlp.types import Batch, Example, FramedBatch, PixelBatch, PixelInput

HEADS = {"mlm": "mlm_score."}
MODALITY_OF_SECOND = 2
"""Row of the modality table that a second image takes."""


def run(fixture: Fixture) -> tuple[Results, list[Losses]]:
    model = fixture.model("hf-vilt")
    losses = Losses(model, "hf-vilt")
    results = masked_words(fixture, model, losses) | clean(fixture, model)
    runs = [losses]
    for case, judge in {"qa": answering, "retrieval": ranking, "nlvr2": two_images}.items():
        own = {name.removeprefix(f"{case}/"): t for name, t in fixture.extra.items() if name.startswith(f"{case}/")}
        if own:
            body = {name: t for name, t in fixture.weights.items() if not name.startswith("mlm_score.")}
            other = fixture.model("hf-vilt", body | own)
            runs.append(Losses(other, "hf-vilt"))
            results |= judge(fixture, other, runs[-1])
    if any(name.startswith("authors/") for name in fixture.extra):
        results |= authors(fixture)
    return results, runs


# ---------------------------------------------------------------------------------------------------------- inputs


def make(
    fixture: Fixture, model: Network, ids: Tensor, pixels: Tensor, shown: Tensor, segments: Tensor | None
) -> Batch:
    """Texts with images of different shapes, padded to one size; `shown` is True where a pixel is of the image."""
    side = model.config.image.source.patch  # type: ignore[union-attr]
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    mask = F.interpolate(shown[:, None].float(), size=(rows, columns))[:, 0].bool()
    examples = []
    for row, words in enumerate(valid_rows(ids, fixture["attention_mask"].sum(1))):
        grid = int(mask[row, :, 0].sum()), int(mask[row, 0].sum())
        kept = mask[row].flatten().nonzero().flatten().numpy()
        image = PixelInput(pixels[row].numpy().astype(np.float32), rows * columns, kept, grid)
        none = np.zeros(len(words), np.int64)
        segment_T = None if segments is None else segments[row, : len(words)].numpy()
        examples.append(Example(str(row), words.numpy(), none.astype(bool), none, image, segment_T=segment_T))
    return collate(examples, images_of(model.config.image).form, {}).to("cpu", fixture.dtype)


def see(fixture: Fixture, model: Network, ids: str, image: str = "", *, segments: bool = True) -> Seen:
    kinds = fixture["token_type_ids"] if segments else None
    pixels, shown = fixture[f"pixel_values{image}"], fixture[f"pixel_mask{image}"].bool()
    return watch(model, make(fixture, model, fixture[ids], pixels, shown, kinds))


def sizes_of(fixture: Fixture) -> tuple[int, int]:
    """Longest text, and most image tokens, of the official layout."""
    return fixture["input_ids"].shape[1], fixture.wanted_f32["out.mlm.image_mask"].shape[1]


def patches_of(batch: Batch) -> PixelBatch:
    assert isinstance(batch.image, FramedBatch)
    assert isinstance(batch.image.tokens, PixelBatch)
    return batch.image.tokens


# ------------------------------------------------------------------------------------------- the library's classes


def masked_words(fixture: Fixture, model: Network, losses: Losses) -> Results:
    seen, sizes = see(fixture, model, "input_ids"), sizes_of(fixture)
    logits = seen.text(model.heads["mlm"](seen.encoded.text_NH), sizes[0])
    losses.values["out.mlm.loss"] = word_loss(fixture, model, seen)
    first, *layers, _ = (seen.side_by_side(layer["text"], layer["image"], *sizes) for layer in seen.layers)
    return patches(seen, model, sizes[1]) | {
        "out.mlm.text_embeddings": seen.text(seen.text_NH, sizes[0]),
        "out.mlm.image_embeddings": seen.image(seen.image_MH, sizes[1]),
        "out.mlm.embedding_output": first,
        "out.mlm.hidden_layers": stacked(layers),
        "out.mlm.last_hidden_state": seen.side_by_side(seen.encoded.text_NH, seen.encoded.image_MH, *sizes),
        "out.mlm.pooled": Ours(seen.encoded.pooled_BH),
        "out.mlm.logits": logits,
        "out.mlm.logits_random_patch_order": logits,
        "out.mlm.loss": Ours(losses.values["out.mlm.loss"]),
    }


def patches(seen: Seen, model: Network, longest: int) -> Results:
    """The patches themselves: where each stands, and what the projection makes of all of them, padding too."""
    cutter = model.image.backbone
    assert isinstance(cutter, Patches)
    kept = patches_of(seen.batch)
    every = replace(kept, kept_M=None, grids_P2=None)
    pixels = every.pixels_P3HW
    rows, columns = (size // cutter.source.patch for size in pixels.shape[2:])
    projected: Tensor = model.image.parts["feature"].linear(cutter.cut(every).features_MD)  # type: ignore[operator, union-attr]
    cells = padded(cutter.cut(kept).cells_M2, kept.packing, longest - 1)
    return {
        "out.mlm.patch_conv": Ours(projected.view(len(pixels), rows, columns, -1).permute(0, 3, 1, 2)),
        "out.mlm.patch_grid": Ours(torch.tensor([rows, columns])),
        "out.mlm.patch_index": cells,
        "out.mlm.image_mask": Ours(torch.arange(longest)[None, :] < seen.batch.image.packing.lengths_B[:, None]),
    }


def word_loss(fixture: Fixture, model: Network, seen: Seen) -> Tensor:
    labels = fixture["mlm_labels"]
    its = targets(positions_of(labels >= 0, seen.batch.text.packing), token=labels[labels >= 0])
    objective = MaskedLanguage("mlm", MaskedLanguageConfig(), facts(model.config))
    return objective.loss(objective.scores(model.heads["mlm"], seen.encoded, its), its)[0] / its.count


def clean(fixture: Fixture, model: Network) -> Results:
    seen = see(fixture, model, "clean_input_ids", segments=False)
    return {
        "out.clean.last_hidden_state": seen.side_by_side(
            seen.encoded.text_NH, seen.encoded.image_MH, *sizes_of(fixture)
        ),
        "out.clean.pooled": Ours(seen.encoded.pooled_BH),
    }


def answering(fixture: Fixture, model: Network, losses: Losses) -> Results:
    seen = see(fixture, model, "clean_input_ids")
    score = fixture["vqa_labels"]
    weight = torch.ones(len(score), dtype=fixture.dtype)
    its = targets(torch.arange(len(score)), score=score, **{WEIGHT: weight})
    objective = Answer("qa", AnswerConfig(), score.shape[1])
    scores = objective.scores(model.heads["qa"], seen.encoded, its)
    losses.values["out.qa.loss"] = objective.loss(scores, its)[0] / its.count
    return {"out.qa.logits": Ours(scores), "out.qa.loss": Ours(losses.values["out.qa.loss"])}


def ranking(fixture: Fixture, model: Network, losses: Losses) -> Results:
    seen = see(fixture, model, "clean_input_ids")
    return {"out.retrieval.logits": Ours(model.heads["rank"](seen.encoded.pooled_BH))}


def two_images(fixture: Fixture, model: Network, losses: Losses) -> Results:
    """One text with each of two images; the second takes another row of the modality table."""
    modality = model.encoder.blocks[0].modality
    first = see(fixture, model, "clean_input_ids")
    modality.rows["image"] = MODALITY_OF_SECOND  # type: ignore[union-attr, index]
    second = see(fixture, model, "clean_input_ids", "_2")
    both = torch.stack([first.encoded.pooled_BH, second.encoded.pooled_BH], dim=1).flatten(0, 1)
    scores = model.heads["images"](both)
    losses.values["out.nlvr2.loss"] = F.cross_entropy(scores, fixture["nlvr2_labels"])
    return {"out.nlvr2.logits": Ours(scores), "out.nlvr2.loss": Ours(losses.values["out.nlvr2.loss"])}


# ---------------------------------------------------------------------------------------------- the authors' code


def authors(fixture: Fixture) -> Results:
    """The authors' names, from ours by the way back; their heads; and their epsilon."""
    hf = fixture.model("hf-vilt")
    config = VILT.config(fixture.official).model_copy(update={"heads": {"mlm": hf.config.heads["mlm"]}})
    weights = to_theirs(plan_of(VILT, config, "fixture"), hf.state_dict())
    own = {name.removeprefix("authors/"): t for name, t in fixture.extra.items() if name.startswith("authors/")}
    model = fixture.model("vilt", weights | own)
    masked, sizes = see(fixture, model, "input_ids", segments=False), sizes_of(fixture)
    whole = see(fixture, model, "clean_input_ids", segments=False)
    return matching(fixture, model) | {
        "out.authors.text_feats": whole.text(whole.encoded.text_NH, sizes[0]),
        "out.authors.image_feats": whole.image(whole.encoded.image_MH, sizes[1]),
        "out.authors.cls_feats": Ours(whole.encoded.pooled_BH),
        "out.authors.image_masks": Ours(torch.arange(sizes[1])[None, :] < whole.batch.image.packing.lengths_B[:, None]),
        "out.authors.mlm_logits": masked.text(model.heads["mlm"](masked.encoded.text_NH), sizes[0]),
        "out.authors.mlm_loss": Ours(word_loss(fixture, model, masked)),
    }


def matching(fixture: Fixture, model: Network) -> Results:
    """The authors' matching: where the label is 0 the second image stands for the first. With word-patch alignment."""
    matched = fixture["authors.itm_labels"]
    pixels, shown = (
        torch.where(matched.view(-1, *[1] * (one.ndim - 1)).bool(), one, other)
        for one, other in (
            (fixture["pixel_values"], fixture["pixel_values_2"]),
            (fixture["pixel_mask"], fixture["pixel_mask_2"]),
        )
    )
    batch = make(fixture, model, fixture["clean_input_ids"], pixels, shown.bool(), None)
    seen = watch(model, batch)
    its = targets(torch.arange(len(matched)), matched=matched)
    objective = Matching("itm", MatchingConfig(), facts(model.config))
    scores = objective.scores(model.heads["itm"], seen.encoded, its)
    return {
        "out.authors.itm_logits": Ours(scores),
        "out.authors.itm_loss": Ours(objective.loss(scores, its)[0] / its.count),
        "out.authors.itm_wpa_loss": Ours(0.1 * alignment(seen, matched.bool())),
    }


def alignment(seen: Seen, matched_B: Tensor) -> Tensor:
    """Without [CLS], [SEP] and the image's first row."""
    packings = seen.batch.text.packing, seen.batch.image.packing
    text = padded(seen.encoded.text_NH, packings[0], packings[0].longest)
    image = padded(seen.encoded.image_MH, packings[1], packings[1].longest)
    assert text.valid is not None
    assert image.valid is not None
    words, regions = text.valid.clone(), image.valid.clone()
    words[:, 0] = regions[:, 0] = False
    words[torch.arange(len(words)), packings[0].lengths_B - 1] = False
    cost = alignment_costs(text.value, image.value, words, regions)
    distances = alignment_distances(cost, transport_plans(cost, words, regions))
    return alignment_loss(distances, matched_B) / len(matched_B)
