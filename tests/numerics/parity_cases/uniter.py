"""UNITER: four cases made by the authors' own collate functions, and optimal transport."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.numerics.parity_cases.fixture import (
    Fixture,
    Losses,
    Ours,
    Results,
    Seen,
    box_numbers_given,
    facts,
    make_batch,
    positions_of,
    region_input,
    stacked,
    targets,
    valid_rows,
    watch,
    with_boxes,
)
from vlp.models.model import Network
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.objectives.region_class import RegionClass, RegionClassConfig
from vlp.objectives.region_feature import RegionFeature, RegionFeatureConfig
from vlp.objectives.word_region import Alignment, AlignmentConfig, alignment_costs, transport_plans


def run(fixture: Fixture) -> tuple[Results, list[Losses]]:
    model = fixture.model("uniter")
    losses = Losses(model, "uniter")
    results: Results = {}
    for case, judge in {"mlm": words, "mrfr": features, "mrc": classes, "itm": matching}.items():
        if fixture.has(f"{case}.input_ids"):
            seen = see(fixture, model, case)
            results |= common(fixture, seen, case)
            results |= judge(fixture, model, seen, losses)
    return results, [losses]


def see(fixture: Fixture, model: Network, case: str) -> Seen:
    """A case's batch through the model."""
    ids, features = fixture[f"{case}.input_ids"], fixture[f"{case}.img_feat"]
    words_B = (ids != 0).sum(1)
    regions_B = fixture[f"{case}.attn_masks"].sum(1) - words_B
    numbers = valid_rows(fixture[f"{case}.img_pos_feat"], regions_B)
    hidden = fixture[f"{case}.img_masks"] if fixture.has(f"{case}.img_masks") else torch.zeros(features.shape[:2])
    images = [
        region_input(f, h) for f, h in zip(valid_rows(features, regions_B), valid_rows(hidden, regions_B), strict=True)
    ]
    batch = make_batch(model.config, valid_rows(ids, words_B), images, fixture.dtype)
    batch = with_boxes(batch, [each[:, :4] for each in numbers])
    with box_numbers_given(model, numbers):
        return watch(model, batch)


def common(fixture: Fixture, seen: Seen, case: str) -> Results:
    longest_T, longest_R = fixture[f"{case}.input_ids"].shape[1], fixture[f"{case}.img_feat"].shape[1]
    longest = fixture[f"{case}.attn_masks"].shape[1]
    layers = [seen.joint(layer["text"], layer["image"], longest) for layer in seen.layers]
    return {
        f"out.{case}.text_embeddings": seen.text(seen.text_NH, longest_T),
        f"out.{case}.image_embeddings": seen.image(seen.image_MH, longest_R),
        f"out.{case}.embedding_output": seen.joint(seen.text_NH, seen.image_MH, longest),
        f"out.{case}.hidden_layers": stacked(layers),
        f"out.{case}.pooled": Ours(seen.encoded.pooled_BH),
    }


def words(fixture: Fixture, model: Network, seen: Seen, losses: Losses) -> Results:
    objective = MaskedLanguage("mlm", MaskedLanguageConfig(), facts(model.config))
    labels = fixture["mlm.txt_labels"]
    positions = positions_of(labels >= 0, seen.batch.text.packing)
    made = targets(positions, token=labels[labels >= 0])
    scores = objective.scores(model.heads["mlm"], seen.encoded, made)
    total, _ = objective.loss(scores, made)
    losses.values["out.mlm.loss_mean"] = total / made.count
    raw = [
        objective.loss(scores[k : k + 1], targets(positions[:1], token=made.values["token"][k : k + 1]))[0]
        for k in range(len(positions))
    ]
    return {
        "out.mlm.scores": Ours(scores),
        "out.mlm.loss_raw": Ours(torch.stack(raw)),
        "out.mlm.loss_mean": Ours(losses.values["out.mlm.loss_mean"]),
    }


def masked_regions(fixture: Fixture, case: str, seen: Seen) -> Tensor:
    """Packed rows of the regions that are guessed; the official mask is of text and regions packed together."""
    mask = fixture[f"{case}.img_mask_tgt"].bool()
    words_B = seen.batch.text.packing.lengths_B
    rows = [(row.nonzero().flatten() - words) for row, words in zip(mask, words_B.tolist(), strict=True)]
    starts = seen.batch.image.packing.starts_B1[:-1].tolist()
    return torch.cat([row + start for row, start in zip(rows, starts, strict=True)])


def features(fixture: Fixture, model: Network, seen: Seen, losses: Losses) -> Results:
    config = RegionFeatureConfig(distance="mse", tied=True)
    objective = RegionFeature("mrfr", config, facts(model.config))
    made = targets(masked_regions(fixture, "mrfr", seen), feature=fixture["mrfr.feat_targets"])
    scores = objective.scores(model.heads["mrfr"], seen.encoded, made)
    total, _ = objective.loss(scores, made)
    losses.values["out.mrfr.loss_mean"] = total / made.count
    return {
        "out.mrfr.scores": Ours(scores),
        "out.mrfr.loss_raw": Ours(objective.distances(scores, made.values["feature"])),
        "out.mrfr.loss_mean": Ours(total / made.count),
    }


def classes(fixture: Fixture, model: Network, seen: Seen, losses: Losses) -> Results:
    positions, soft = masked_regions(fixture, "mrc", seen), fixture["mrc.label_targets"]
    hard = RegionClass("mrc", RegionClassConfig(labels="hard", background=True), facts(model.config))
    divergence = RegionClass("mrc", RegionClassConfig(mean_over_classes=True), facts(model.config))
    made = targets(positions, **{"class": soft[:, 1:].argmax(1) + 1})
    scores = hard.scores(model.heads["mrc"], seen.encoded, made)
    raw = [
        hard.loss(scores[k : k + 1], targets(positions[:1], **{"class": made.values["class"][k : k + 1]}))[0]
        for k in range(len(positions))
    ]
    losses.values["out.mrc.loss_mean"] = hard.loss(scores, made)[0] / made.count
    losses.values["out.mrckl.loss_mean"] = divergence.loss(scores, targets(positions, probability=soft))[0] / made.count
    return {
        "out.mrc.scores": Ours(scores),
        "out.mrc.loss_raw": Ours(torch.stack(raw)),
        "out.mrc.loss_mean": Ours(losses.values["out.mrc.loss_mean"]),
        "out.mrckl.scores": Ours(scores),
        "out.mrckl.loss_raw": Ours(divergence.divergences(scores, soft)),
        "out.mrckl.loss_mean": Ours(losses.values["out.mrckl.loss_mean"]),
    }


def matching(fixture: Fixture, model: Network, seen: Seen, losses: Losses) -> Results:
    objective = Matching("itm", MatchingConfig(), facts(model.config))
    matched = fixture["itm.targets"]
    everyone = torch.arange(len(matched))
    made = targets(everyone, matched=matched)
    scores = objective.scores(model.heads["itm"], seen.encoded, made)
    mean = objective.loss(scores, made)[0] / made.count
    raw = [objective.loss(scores[k : k + 1], targets(everyone[:1], matched=matched[k : k + 1]))[0] for k in everyone]
    results = {
        "out.itm.scores": Ours(scores),
        "out.itm.loss_raw": Ours(torch.stack(raw)),
        "out.itm.loss_mean": Ours(mean),
    }
    transport, loss = alignment(fixture, model, seen, matched.bool())
    # The official code drops to float32 from here on.
    losses.values["out.itm.loss_train"] = mean + fixture.config["itm_ot_lambda"] * loss.to(mean.dtype)
    return results | transport | {"out.itm.loss_train": Ours(losses.values["out.itm.loss_train"])}


def alignment(fixture: Fixture, model: Network, seen: Seen, matched_B: Tensor) -> tuple[Results, Tensor]:
    """Cost and plan by the functions, distance and loss by the objective."""
    longest_T, longest_R = fixture["itm.input_ids"].shape[1], fixture["itm.img_feat"].shape[1]
    text = seen.text(seen.encoded.text_NH, longest_T)
    image = seen.image(seen.encoded.image_MH, longest_R)
    assert text.valid is not None
    assert image.valid is not None
    cost = alignment_costs(text.value, image.value, text.valid, image.valid)
    settings = fixture.config["ot"]
    config = AlignmentConfig(beta=settings["beta"], steps=settings["iteration"], inner=settings["k"])
    plan = transport_plans(cost, text.valid, image.valid, beta=config.beta, steps=config.steps, inner=config.inner)
    objective = Alignment("wra", config, facts(model.config))
    everyone = torch.arange(len(matched_B))
    its = targets(everyone, matched=matched_B.long(), whole=torch.zeros_like(everyone))
    encoded = objective.reading(seen.encoded, replace(seen.batch, targets={"wra": its}))
    distances = objective.scores(None, encoded, its)
    loss = objective.loss(distances, its)[0] / its.count
    results = {
        "out.itm.ot_txt_emb": text,
        "out.itm.ot_img_emb": image,
        "out.itm.ot_cost": Ours(cost),
        "out.itm.ot_plan": Ours(plan),
        "out.itm.ot_dist": Ours(distances),
        "out.itm.ot_pos_dist": Ours(distances[matched_B]),
        "out.itm.ot_neg_dist": Ours(distances[~matched_B]),
        "out.itm.ot_loss": Ours(loss),
    }
    return results, loss
