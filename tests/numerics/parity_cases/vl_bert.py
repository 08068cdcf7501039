"""VL-BERT: the transformer on given embeddings; whole from region features, with and without text-only rows; and two of
its functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

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
    padded,
    positions_of,
    region_input,
    stacked,
    targets,
    valid_rows,
    watch,
    with_boxes,
)
from vlp.data.batch import WEIGHT
from vlp.models.boxes import sine_numbers
from vlp.models.model import Network
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.objectives.objective import Average, Objective
from vlp.objectives.region_class import RegionClass, RegionClassConfig
from vlp.types import Targets

SMOOTHING = 1e-4
"""What the official code adds to the number of examples."""


def run(fixture: Fixture) -> tuple[Results, list[Losses]]:
    model = fixture.model("vl_bert")
    losses = Losses(model, "vl_bert")
    results = coordinates(fixture) | soft_cross_entropy(fixture, model) | transformer(fixture, model)
    seen = see(fixture, model, text_only=True)
    results |= multitask(fixture, model, seen)
    for case, average in (("multitask", "targets"), ("multitask_norm", "examples")):
        found = all_losses(fixture, model, seen, average)  # type: ignore[arg-type]
        results |= {f"out.{case}.loss_{name}": Ours(loss) for name, loss in found.items()}
        losses.values[f"out.{case}.loss_total"] = found["total"]
    alone = all_losses(fixture, model, see(fixture, model, text_only=False), "targets")
    alone["mlm"] = alone.pop("mlm_wvc")
    results |= {f"out.single.loss_{name}": Ours(loss) for name, loss in alone.items()}
    return results, [losses]


# ------------------------------------------------------------------------------------------------------- functions


def coordinates(fixture: Fixture) -> Results:
    boxes = fixture["coord.boxes"]
    shares = boxes[:, :4] / boxes[:, 4:].repeat(1, 2)
    sizes = {
        name: int(name.removeprefix("out.coord.dim")) for name in fixture.wanted_f32 if name.startswith("out.coord.dim")
    }
    return {name: Ours(sine_numbers(shares, size).view(len(boxes), 4, 2 * size)) for name, size in sizes.items()}


def soft_cross_entropy(fixture: Fixture, model: Network) -> Results:
    config = RegionClassConfig(loss="cross_entropy")
    single = (
        RegionClass("mrc", config, facts(model.config))
        .divergences(fixture["softce.input"], fixture["softce.target"])
        .sum(1)
    )
    valid = is_soft_label(fixture["softce.target"])
    return {
        "out.softce.none": Ours(single * valid),
        "out.softce.mean": Ours(single[valid].mean()),
        "out.softce.sum": Ours(single[valid].sum()),
    }


def is_soft_label(labels: Tensor) -> Tensor:
    """True where a label's probabilities sum to 1; the official code drops the others."""
    return (labels.sum(-1) - 1).abs() < 0.1


# ----------------------------------------------------------------------------------- the transformer on given vectors


@contextmanager
def given(part: nn.Module, make: object) -> Iterator[None]:
    """A part gives this instead of what it would."""
    handle = part.register_forward_hook(lambda module, args, output: make)
    try:
        yield
    finally:
        handle.remove()


def transformer(fixture: Fixture, model: Network) -> Results:
    """Objects' and words' visual vectors are given; norms, segments, positions and the end are ours."""
    words_B, objects_B = fixture["vlbert.text_mask"].sum(1), fixture["vlbert.object_mask"].sum(1)
    texts, segments, seen_by_words = (
        valid_rows(fixture[f"vlbert.{name}"], words_B)
        for name in ("text_input_ids", "text_token_type_ids", "text_visual_embeddings")
    )
    objects = torch.cat(valid_rows(fixture["vlbert.object_vl_embeddings"], objects_B))
    visual, linguistic = objects.chunk(2, dim=1)
    source = model.config.image.source
    images = [region_input(torch.zeros(int(n), source.width)) for n in objects_B]  # type: ignore[union-attr, arg-type]
    batch = make_batch(model.config, texts, images, fixture.dtype, segments)
    feature, whole = model.image.parts["feature"], model.text.parts["whole_image"]
    words = torch.cat(seen_by_words)
    with ExitStack() as stack:
        stack.enter_context(given(feature, (feature.norm(visual), visual)))  # type: ignore[operator]
        stack.enter_context(given(model.image.parts["shared"], linguistic))
        stack.enter_context(given(whole, whole.norm(words)))  # type: ignore[operator]
        seen = watch(model, batch)
    return transformer_results(fixture, model, seen, words_B, objects_B)


def transformer_results(fixture: Fixture, model: Network, seen: Seen, words_B: Tensor, objects_B: Tensor) -> Results:
    longest = fixture.wanted_f32["out.vlbert.embedding_output"].shape[1]
    longest_T, longest_R = fixture["vlbert.text_input_ids"].shape[1], fixture["vlbert.object_mask"].shape[1]
    slots = torch.arange(longest)[None, :]
    is_text = slots < words_B[:, None]
    is_object = (slots >= words_B[:, None]) & (slots < (words_B + objects_B)[:, None])
    encoded, heads = seen.encoded, model.heads
    layers = [seen.joint(layer["text"], layer["image"], longest) for layer in seen.layers]
    results = {
        "out.vlbert.attention_mask": Ours(slots < seen.batch.joint.lengths_B[:, None]),
        "out.vlbert.is_text": Ours(is_text),
        "out.vlbert.is_object": Ours(is_object),
        "out.vlbert.embedding_output": seen.joint(seen.text_NH, seen.image_MH, longest),
        "out.vlbert.hidden_layers": stacked(layers),
        "out.vlbert.pooled": Ours(encoded.pooled_BH),
        "out.vlbert.text_out": first(seen.joint(encoded.text_NH, encoded.image_MH, longest), longest_T),
        "out.vlbert.object_out": objects(seen, encoded.image_MH, longest_R, objects_B),
        "out.vlbert.mlm_logits": words_everywhere(model, seen, longest, longest_T),
        "out.vlbert.mvrc_logits": objects(seen, heads["mrc"](encoded.image_MH), longest_R, objects_B),
    }
    if "itm" in heads:
        results["out.vlbert.relationship_logits"] = Ours(heads["itm"](encoded.pooled_BH))
    return results


def first(ours: Ours, slots: int) -> Ours:
    """The first slots of each row."""
    assert ours.valid is not None
    return Ours(ours.value[:, :slots], ours.valid[:, :slots])


def words_everywhere(model: Network, seen: Seen, longest: int, slots: int) -> Ours:
    """The vocabulary head on the first slots of text and objects packed: official text rows run on into the objects."""
    head, encoded = model.heads["mlm"], seen.encoded
    return first(seen.joint(head(encoded.text_NH), head(encoded.image_MH), longest), slots)


def objects(seen: Seen, rows_MH: Tensor, longest: int, objects_B: Tensor) -> Ours:
    """Image rows without the end, which stands behind them."""
    every = padded(rows_MH, seen.batch.image.packing, longest + 1)
    return Ours(every.value[:, :longest], torch.arange(longest)[None, :] < objects_B[:, None])


# -------------------------------------------------------------------------------------------- whole, from features


def see(fixture: Fixture, model: Network, *, text_only: bool) -> Seen:
    """Captions with their regions, and text-only rows behind them."""
    texts, boxes, images = captions(fixture)
    if text_only:
        more = fixture["e2e.aux_text"]
        texts = [*texts, *valid_rows(more, (more > 0).sum(1))]
        images = [*images, *([None] * len(more))]
    return watch(model, with_boxes(make_batch(model.config, texts, images, fixture.dtype), boxes))


def captions(fixture: Fixture) -> tuple[list[Tensor], list[Tensor], list[object]]:
    """Words, boxes as shares of the image, and regions; a region whose box is not there is padding."""
    text, regions = fixture["e2e.text"], fixture["e2e.boxes"]
    regions_B = real(fixture).sum(1)
    sizes = fixture["e2e.im_info"][:, :2].repeat(1, 2)
    hidden = valid_rows(fixture["e2e.mvrc_ops"] == 1, regions_B)
    rows = valid_rows(regions, regions_B)
    boxes = [each[:, :4] / size for each, size in zip(rows, sizes, strict=True)]
    images = [replace(region_input(each[:, 4:], h), whole=True) for each, h in zip(rows, hidden, strict=True)]
    return valid_rows(text, (text > 0).sum(1)), boxes, list(images)


def real(fixture: Fixture) -> Tensor:
    """True where there is a region."""
    return fixture["e2e.boxes"][:, :, 0] > -1.5


def multitask(fixture: Fixture, model: Network, seen: Seen) -> Results:
    examples, longest_R = fixture["e2e.text"].shape[0], fixture["e2e.boxes"].shape[1]
    longest = fixture.wanted_f32["out.multitask.embedding_output"].shape[1]
    longest_T = max(fixture["e2e.text"].shape[1], fixture["e2e.aux_text"].shape[1])
    regions_B = torch.cat([real(fixture).sum(1), torch.zeros(len(fixture["e2e.aux_text"]), dtype=torch.int64)])
    words = words_everywhere(model, seen, longest, longest_T)
    _, features, packing, _ = model.image(seen.batch.image, seen.batch.text, model.text.tables)
    results = {
        "out.multitask.embedding_output": seen.joint(seen.text_NH, seen.image_MH, longest),
        "out.multitask.pooled": Ours(seen.encoded.pooled_BH),
        "out.multitask.obj_reps": of_rows(padded(features, packing, longest_R), slice(examples)),
        "out.multitask.mlm_logits_wvc": of_rows(words, slice(examples)),
        "out.multitask.mlm_logits_aux": of_rows(words, slice(examples, None)),
        "out.multitask.mvrc_logits": of_rows(
            objects(seen, model.heads["mrc"](seen.encoded.image_MH), longest_R, regions_B), slice(examples)
        ),
    }
    if "itm" in model.heads:
        results["out.multitask.relationship_logits"] = Ours(model.heads["itm"](seen.encoded.pooled_BH[:examples]))
    return results


def of_rows(ours: Ours, rows: slice) -> Ours:
    assert ours.valid is not None
    return Ours(ours.value[rows], ours.valid[rows])


def all_losses(fixture: Fixture, model: Network, seen: Seen, average: Average) -> dict[str, Tensor]:
    examples = len(fixture["e2e.text"])
    mlm = MaskedLanguage("mlm", MaskedLanguageConfig(average=average), facts(model.config))
    mrc = RegionClass(
        "mrc", RegionClassConfig(loss="cross_entropy", average=average, inner_norm=False), facts(model.config)
    )
    labels = [valid_rows(fixture["e2e.mlm_labels"], seen.batch.text.packing.lengths_B[:examples])]
    found = {"mlm_wvc": loss_of(model, seen, mlm, words(seen, labels[0], 0, average), average)}
    if len(seen.batch) > examples:
        more = valid_rows(fixture["e2e.aux_mlm_labels"], seen.batch.text.packing.lengths_B[examples:])
        found["mlm_aux"] = loss_of(model, seen, mlm, words(seen, more, examples, average), average)
    found["mvrc"] = loss_of(model, seen, mrc, regions(fixture, seen, average), average)
    if "itm" in model.heads:
        matched = targets(torch.arange(examples), matched=fixture["e2e.relationship_label"])
        itm = Matching("itm", MatchingConfig(), facts(model.config))
        found["relationship"] = loss_of(model, seen, itm, matched, "targets")
    return found | {"total": torch.stack(list(found.values())).sum()}


def loss_of(model: Network, seen: Seen, objective: Objective, its: Targets, average: Average) -> Tensor:
    total, _ = objective.loss(objective.scores(model.heads[objective.name], seen.encoded, its), its)
    return total / (its.count + SMOOTHING if average == "examples" else max(its.count, 1))


def words(seen: Seen, labels: Sequence[Tensor], first_example: int, average: Average) -> Targets:
    """Masked words of consecutive examples."""
    starts = seen.batch.text.packing.starts_B1[first_example:].tolist()
    rows = [(row >= 0).nonzero().flatten() for row in labels]
    positions = torch.cat([row + start for row, start in zip(rows, starts, strict=False)])
    tokens = torch.cat([row[row >= 0] for row in labels])
    return weighed(positions, [len(row) for row in rows], average, seen.text_NH.dtype, token=tokens)


def regions(fixture: Fixture, seen: Seen, average: Average) -> Targets:
    """Regions whose soft label is one: it sums to 1."""
    labels = fixture["e2e.mvrc_labels"]
    wanted = is_soft_label(labels)
    positions = positions_of(wanted, seen.batch.image.packing)
    return weighed(positions, wanted.sum(1).tolist(), average, seen.image_MH.dtype, probability=labels[wanted])


def weighed(
    positions_K: Tensor, counts: Sequence[int], average: Average, dtype: torch.dtype, **values: Tensor
) -> Targets:
    if average == "targets":
        return targets(positions_K, **values)
    share_K = torch.cat([torch.full((count,), 1 / max(count, 1), dtype=dtype) for count in counts])
    return targets(positions_K, float(sum(count > 0 for count in counts)), **values, **{WEIGHT: share_K})
