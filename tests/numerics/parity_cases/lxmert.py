"""LXMERT: all heads and losses in one step, and the body with padded regions."""

from __future__ import annotations

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
    make_batch,
    positions_of,
    region_input,
    stacked,
    targets,
    valid_rows,
    watch,
    with_boxes,
)
from vlp.data.batch import WEIGHT
from vlp.models.model import Network
from vlp.objectives.answer import Answer, AnswerConfig
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.objectives.objective import Objective
from vlp.objectives.region_class import RegionClass, RegionClassConfig
from vlp.objectives.region_feature import RegionFeature, RegionFeatureConfig
from vlp.types import Targets


def run(fixture: Fixture) -> tuple[Results, list[Losses]]:
    model = fixture.model("lxmert")
    losses = Losses(model, "lxmert")
    results: Results = {}
    for case in ("pretrain", "regionmask"):
        if fixture.has(f"{case}.visual_feats"):
            seen = see(fixture, model, case)
            results |= common(fixture, seen, case)
            if case == "pretrain":
                results |= scores(fixture, model, seen) | all_losses(fixture, model, seen, losses)
    return results, [losses]


def see(fixture: Fixture, model: Network, case: str) -> Seen:
    """A case's batch through the model."""
    words_B = fixture["text.attention_mask"].sum(1)
    features = fixture[f"{case}.visual_feats"]
    regions_B = torch.full((len(features),), features.shape[1])
    if fixture.has(f"{case}.visual_attention_mask"):
        regions_B = fixture[f"{case}.visual_attention_mask"].sum(1)
    texts, segments = (valid_rows(fixture[f"text.{name}"], words_B) for name in ("input_ids", "token_type_ids"))
    images = [region_input(rows) for rows in valid_rows(features, regions_B)]
    batch = make_batch(model.config, texts, images, fixture.dtype, segments)
    return watch(model, with_boxes(batch, valid_rows(fixture[f"{case}.pos"], regions_B)))


def common(fixture: Fixture, seen: Seen, case: str) -> Results:
    longest_T, longest_R = fixture["text.input_ids"].shape[1], fixture[f"{case}.visual_feats"].shape[1]
    depths = fixture.config["visual_config"]
    text, image = depths["l_layers"], depths["l_layers"] + depths["r_layers"]

    def states(stream: str, first: int, last: int | None) -> Ours:
        lay_out, longest = (seen.text, longest_T) if stream == "text" else (seen.image, longest_R)
        return stacked([lay_out(layer[stream], longest) for layer in seen.layers[first:last]])

    return {
        f"out.{case}.lang_embeddings": seen.text(seen.text_NH, longest_T),
        f"out.{case}.visn_embeddings": seen.image(seen.image_MH, longest_R),
        f"out.{case}.lang_l_layers": states("text", 0, text),
        f"out.{case}.visn_r_layers": states("image", text, image),
        f"out.{case}.lang_x_layers": states("text", image, None),
        f"out.{case}.visn_x_layers": states("image", image, None),
        f"out.{case}.pooled": Ours(seen.encoded.pooled_BH),
    }


def scores(fixture: Fixture, model: Network, seen: Seen) -> Results:
    """What the heads make of every word and region, targets or not."""
    heads, encoded = model.heads, seen.encoded
    longest_T, longest_R = fixture["text.input_ids"].shape[1], fixture["pretrain.visual_feats"].shape[1]
    regions = {name: f"out.pretrain.{name}_scores" for name in ("obj", "attr", "feat") if name in heads}
    found = {out: seen.image(heads[name](encoded.image_MH), longest_R) for name, out in regions.items()}
    if "qa" in heads:
        found["out.pretrain.answer_scores"] = Ours(heads["qa"](encoded.pooled_BH))
    return found | {
        "out.pretrain.lang_prediction_scores": seen.text(heads["mlm"](encoded.text_NH), longest_T),
        "out.pretrain.cross_relationship_score": Ours(heads["itm"](encoded.pooled_BH)),
    }


def all_losses(fixture: Fixture, model: Network, seen: Seen, losses: Losses) -> Results:
    made = {"mask_lm": words(fixture, model, seen), "matched": matched(fixture, model)}
    for of, name in (("class", "obj"), ("attribute", "attr")):
        if name in model.heads:
            made[name] = classes(fixture, model, of)
    if "feat" in model.heads:
        made["feat"] = features(fixture, model)
    if "qa" in model.heads:
        made["qa"] = answers(fixture, model)
    found = {
        f"out.pretrain.loss_{name}": loss_of(model, seen, objective, its) for name, (objective, its) in made.items()
    }
    found["out.pretrain.loss_total"] = torch.stack(list(found.values())).sum()
    losses.values |= found
    return {name: Ours(loss) for name, loss in found.items()}


def loss_of(model: Network, seen: Seen, objective: Objective, its: Targets) -> Tensor:
    total, _ = objective.loss(objective.scores(model.heads[objective.name], seen.encoded, its), its)
    weight: float = objective.config.weight  # type: ignore[attr-defined]
    return weight * total / its.count


def words(fixture: Fixture, model: Network, seen: Seen) -> tuple[Objective, Targets]:
    labels = fixture["text.masked_lm_labels"]
    positions = positions_of(labels >= 0, seen.batch.text.packing)
    return MaskedLanguage("mlm", MaskedLanguageConfig(), facts(model.config)), targets(
        positions, token=labels[labels >= 0]
    )


def matched(fixture: Fixture, model: Network) -> tuple[Objective, Targets]:
    labels = fixture["pretrain.matched_label"]
    rows = (labels >= 0).nonzero().flatten()
    return Matching("itm", MatchingConfig(replace="text"), facts(model.config)), targets(rows, matched=labels[rows])


def weight_of(fixture: Fixture, loss: str) -> float:
    return float(fixture.config["visual_config"]["visual_loss_config"][loss][3])


def classes(fixture: Fixture, model: Network, of: str) -> tuple[Objective, Targets]:
    """Every region is guessed, weighed by the detector's confidence."""
    name = {"class": "obj", "attribute": "attr"}[of]
    labels, confidence = (fixture[f"pretrain.{name}_{what}"].flatten() for what in ("label", "conf"))
    config = RegionClassConfig(
        of=of,
        labels="hard",
        over="all",
        by_confidence=True,
        weight=weight_of(fixture, name),  # type: ignore[arg-type]
    )
    its = targets(torch.arange(len(labels)), **{"class": labels, "confidence": confidence})
    return RegionClass(name, config, facts(model.config)), its


def features(fixture: Fixture, model: Network) -> tuple[Objective, Targets]:
    """Hidden regions are guessed, and the mean is over all."""
    hidden = fixture["pretrain.feat_mask"].flatten() > 0
    config = RegionFeatureConfig(distance="smooth_l1", weight=weight_of(fixture, "feat"))
    feature = fixture["pretrain.feat_label"].flatten(0, 1)[hidden]
    its = targets(hidden.nonzero().flatten(), count=float(len(hidden)), feature=feature)
    return RegionFeature("feat", config, facts(model.config)), its


def answers(fixture: Fixture, model: Network) -> tuple[Objective, Targets]:
    labels, number = fixture["pretrain.ans"], int(fixture.config["num_answers"])
    score = F.one_hot(labels.clamp_min(0), number).to(fixture.dtype)
    answered = (labels >= 0).to(fixture.dtype)
    objective = Answer("qa", AnswerConfig(loss="cross_entropy"), number)
    return objective, targets(torch.arange(len(labels)), float(answered.sum()), score=score, **{WEIGHT: answered})
