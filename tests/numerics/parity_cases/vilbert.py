"""ViLBERT: one body, three region losses."""

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
from vlp.models.convert.family import Official
from vlp.models.convert.vilbert import layers
from vlp.models.model import Network
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.objectives.objective import Objective
from vlp.objectives.region_class import RegionClass, RegionClassConfig
from vlp.objectives.region_contrast import contrast, products
from vlp.objectives.region_feature import RegionFeature, RegionFeatureConfig
from vlp.types import Targets


def run(fixture: Fixture) -> tuple[Results, list[Losses]]:
    results: Results = {}
    runs = []
    for case in ("kl", "mse", "nce"):
        if f"out.{case}.loss_total" not in fixture.wanted_f32:
            continue
        model = model_of(fixture, case)
        seen = see(fixture, model)
        if not runs:
            results |= body(fixture, model, seen)
        losses = Losses(model, "vilbert")
        results |= all_losses(fixture, model, seen, case, losses)
        runs.append(losses)
    return results, runs


def model_of(fixture: Fixture, case: str) -> Network:
    """The body with the region head of a case; two of them guess features."""
    other = {name.removeprefix(f"{case}/"): t for name, t in fixture.extra.items() if name.startswith(f"{case}/")}
    values = dict(fixture.config["official_config"])
    if case != "kl":
        values |= {"visual_target": {"mse": 1, "nce": 2}[case], "v_target_size": values["v_feature_size"]}
    official = Official(fixture.directory / "config.json", {**fixture.config, "official_config": values})
    return fixture.model("vilbert", {**fixture.weights, **other}, official)


def see(fixture: Fixture, model: Network) -> Seen:
    words_B, regions_B = fixture["attention_mask"].sum(1), fixture["image_attention_mask"].sum(1)
    texts, segments = (valid_rows(fixture[name], words_B) for name in ("input_ids", "token_type_ids"))
    numbers = valid_rows(fixture["image_loc"], regions_B)
    images = [replace(region_input(rows), whole=True) for rows in valid_rows(fixture["image_feat"], regions_B)]
    batch = with_boxes(
        make_batch(model.config, texts, images, fixture.dtype, segments), [box[:, :4] for box in numbers]
    )
    with box_numbers_given(model, numbers):
        return watch(model, batch)


def body(fixture: Fixture, model: Network, seen: Seen) -> Results:
    longest_T, longest_R = fixture["input_ids"].shape[1], fixture["image_feat"].shape[1]
    encoded = seen.encoded
    text, image, cross_text, cross_image = [], [], [], []
    for number, theirs in layers(model.config):
        states = seen.layers[number]
        if theirs.keys() & {"layer", "c_layer"}:
            (text if "layer" in theirs else cross_text).append(seen.text(states["text"], longest_T))
        if theirs.keys() & {"v_layer", "c_layer"}:
            (image if "v_layer" in theirs else cross_image).append(seen.image(states["image"], longest_R))
    return {
        "out.body.text_embeddings": seen.text(seen.text_NH, longest_T),
        "out.body.image_embeddings": seen.image(seen.image_MH, longest_R),
        "out.body.text_layers": stacked(text),
        "out.body.image_layers": stacked(image),
        "out.body.coatt_text": stacked(cross_text),
        "out.body.coatt_image": stacked(cross_image),
        "out.body.sequence_output_t": seen.text(encoded.text_NH, longest_T),
        "out.body.sequence_output_v": seen.image(encoded.image_MH, longest_R),
        "out.body.pooled_output_t": Ours(pooled(model, seen, "text")),
        "out.body.pooled_output_v": Ours(pooled(model, seen, "image")),
        "out.body.prediction_scores_t": seen.text(model.heads["mlm"](encoded.text_NH), longest_T),
        "out.body.seq_relationship_score": Ours(model.heads["itm"](encoded.pooled_BH)),
    }


def pooled(model: Network, seen: Seen, stream: str) -> Tensor:
    """One stream's vector before the two are fused."""
    states, packing = {
        "text": (seen.encoded.text_NH, seen.batch.text.packing),
        "image": (seen.encoded.image_MH, seen.batch.image.packing),
    }[stream]
    return torch.relu(model.pooler.linear[stream](states[packing.starts_B1[:-1].long()]))


def all_losses(fixture: Fixture, model: Network, seen: Seen, case: str, losses: Losses) -> Results:
    labels = fixture["masked_lm_labels"]
    hidden = fixture["image_label"] == 1
    # Region 0 is the whole image and has no target.
    regions = positions_of(torch.nn.functional.pad(hidden, (1, 0)), seen.batch.image.packing)
    words = targets(positions_of(labels >= 0, seen.batch.text.packing), token=labels[labels >= 0])
    matched = targets(torch.arange(len(labels)), matched=1 - fixture["next_sentence_label"])
    mlm = MaskedLanguage("mlm", MaskedLanguageConfig(), facts(model.config))
    itm = Matching("itm", MatchingConfig(replace="text", matched_label=0), facts(model.config))
    guessed, region = regions_of(fixture, model, seen, case, regions, hidden)
    found = {
        f"out.{case}.loss_masked_lm": mean(model, seen, mlm, words),
        f"out.{case}.loss_masked_img": region,
        f"out.{case}.loss_next_sentence": mean(model, seen, itm, matched),
    }
    found[f"out.{case}.loss_total"] = torch.stack(list(found.values())).sum()
    losses.values |= found
    return guessed | {name: Ours(loss) for name, loss in found.items()}


def mean(model: Network, seen: Seen, objective: Objective, its: Targets, at_least: float = 0) -> Tensor:
    """Mean loss; without a target it is no number, unless the official code divides by one at least."""
    scores = objective.scores(model.heads[objective.name], seen.encoded, its)
    return objective.loss(scores, its)[0] / max(its.count, at_least)


def regions_of(
    fixture: Fixture, model: Network, seen: Seen, case: str, regions_K: Tensor, hidden: Tensor
) -> tuple[Results, Tensor]:
    """What the region head guesses of every region, and the case's loss."""
    name = next(name for name in ("mrc", "mrfr") if name in model.heads)
    every = seen.image(model.heads[name](seen.encoded.image_MH), fixture["image_feat"].shape[1])
    results = {f"out.{case}.prediction_scores_v": every}
    if case == "kl":
        objective: Objective = RegionClass(name, RegionClassConfig(), facts(model.config))
        return results, mean(model, seen, objective, targets(regions_K, probability=fixture["image_target"][hidden]))
    features = fixture["image_target_feat"]
    if case == "mse":
        objective = RegionFeature(name, RegionFeatureConfig(), facts(model.config))
        return results, mean(model, seen, objective, targets(regions_K, feature=features[hidden]), at_least=1)
    # The negatives were drawn by the official code, and are given.
    drawn = fixture.wanted_f32["out.nce.negative_index"]
    results["out.nce.negative_index"] = Ours(drawn)
    scores = model.heads[name](seen.encoded.image_MH[regions_K])
    true = torch.arange(hidden.numel()).view(hidden.shape)[hidden]
    candidates = torch.cat([true[:, None], drawn[hidden]], dim=1)
    return results, contrast(products(scores, features.flatten(0, 1), candidates)).mean()
