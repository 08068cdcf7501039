"""The recipe card: of each published recipe the lines in which reimplementations differ, out of the shipped configs.

python -m vlp.recipes > docs/recipes.md
"""

from __future__ import annotations

from collections.abc import Callable

from vlp import resources
from vlp.models.embeddings import SegmentConfig
from vlp.models.image import RegionSource
from vlp.models.imageparts import BoxConfig, FeatureConfig, ImagePositionConfig
from vlp.objectives.itc import ContrastPretrainingConfig
from vlp.objectives.itm import MatchingConfig
from vlp.objectives.mlm import MaskedLanguageConfig
from vlp.objectives.objective import SelfSupervisedConfig
from vlp.objectives.question import QuestionAnsweringConfig
from vlp.objectives.region_class import RegionClassConfig
from vlp.objectives.region_feature import RegionFeatureConfig
from vlp.objectives.word_region import AlignmentConfig
from vlp.run import RunConfig, load_run
from vlp.tasks.pretrain import PretrainConfig

PUBLISHED = "_base"
"""How the names of published recipes end."""
INTRODUCTION = """# Recipe card

Made of `configs/pretrain/*_base.yaml` by `make recipes`; do not edit it. Each line is one in which reimplementations
differ, and models then differ silently. The configs say of each key where it comes from; their `_tiny` twins are the
same recipes at a size for tests and small data, and say what differs.

"""


def card() -> str:
    """The card in Markdown: a column per recipe, a row per fact."""
    names = [name for name in resources.names("pretrain") if name.endswith(PUBLISHED)]
    runs = {name: load_run(name, ["tokenizer=words"], "pretrain") for name in names}
    lines = [["", *(f"`{name}`" for name in names)], ["---"] * (len(names) + 1)]
    lines += [[title, *(fact(run) for run in runs.values())] for title, fact in FACTS.items()]
    return INTRODUCTION + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _task(run: RunConfig) -> PretrainConfig:
    assert isinstance(run.task, PretrainConfig)
    return run.task


def _matching(run: RunConfig) -> MatchingConfig | None:
    return next((own for own in _task(run).objectives.values() if isinstance(own, MatchingConfig)), None)


def _words(run: RunConfig) -> MaskedLanguageConfig:
    return next(own for own in _task(run).objectives.values() if isinstance(own, MaskedLanguageConfig))


def _percent(*shares: float) -> str:
    return " / ".join(f"{100 * share:.3g}" for share in shares)


# ----------------------------------------------------------------------------------------------------------- the task


def _label(run: RunConfig) -> str:
    own = _matching(run)
    return "no matching" if own is None else f"{own.matched_label}"


def _replaced(run: RunConfig) -> str:
    own = _matching(run)
    if own is not None and own.negatives == "hard":
        return "image and text, each by a hard one"
    return "-" if own is None else f"{own.replace.replace('_', ' ')}, {_percent(own.probability)} %"


def _masked_words(run: RunConfig) -> str:
    own = _words(run)
    kept = _percent(own.mask, own.random, 1 - own.mask - own.random)
    return f"{_percent(own.probability)} % of {own.unit}s: {kept}"


def _hides_regions(task: PretrainConfig) -> bool:
    kinds = (RegionClassConfig, RegionFeatureConfig)
    return any(isinstance(own, kinds) for own in task.objectives.values())


def _masked_regions(run: RunConfig) -> str:
    task = _task(run)
    if not _hides_regions(task):
        return "none"
    own = task.region_hiding
    shares = _percent(own.zero, own.random, max(0, 1 - own.zero - own.random))
    mark = next(part.hidden for part in run.model.image.parts if isinstance(part, FeatureConfig))
    instead = "; a learned vector instead of zeros"
    marked = {"zero": "", "learned": "; a learned vector added", "replaced": instead}[mark]
    least = "; at least one" if own.at_least_one else ""
    along = "" if own.overlap == 1 else f"; overlaps above {own.overlap:g} too"
    return f"{_percent(own.probability)} %: {shares}{marked}{least}{along}"


def _whole(run: RunConfig) -> str:
    source = run.model.image.source
    if not isinstance(source, RegionSource) or not source.whole:
        return "no"
    left_out = {"guessed": "masked and kept ones", "hidden": "masked ones"}[_task(run).region_hiding.whole_without]
    return f"first, mean without {left_out}"


def _region_targets(run: RunConfig) -> str:
    return "; ".join(_target(own) for own in _task(run).objectives.values() if _target(own)) or "none"


def _target(own: SelfSupervisedConfig) -> str:
    weight = "" if own.weight == 1 else f" x {own.weight:g}"
    match own:
        case RegionClassConfig():
            how = {"hard": "cross entropy, hard", "soft": {"kl": "KL"}.get(own.loss, "cross entropy") + ", soft"}
            where = ", all regions" if own.over == "all" else ""
            sure = ", by confidence" if own.by_confidence else ""
            return f"{own.of} ({how[own.labels]}{where}{sure}){weight}"
        case RegionFeatureConfig():
            tied = ", tied" if own.tied else ""
            return f"feature ({own.distance.replace('_', ' ')}{tied}){weight}"
        case AlignmentConfig():
            return f"transport{weight}"
        case _:
            return ""


def _combined(run: RunConfig) -> str:
    task = _task(run)
    masking = "joint" if task.hides_both else "conditional"
    if task.combine == "all":
        return f"all in a step; {masking} masking"
    own = {name: config for name, config in task.objectives.items() if config.along_with is None}
    ratios = " : ".join(f"{config.ratio:g}" for config in own.values())
    return f"one a step, {' : '.join(own)} = {ratios}; {masking} masking"


def _mismatched(run: RunConfig) -> str:
    task = _task(run)
    return "guessed" if task.on_mismatched else "-" if _matching(run) is None else "not guessed"


def _contrast(run: RunConfig) -> str:
    for own in _task(run).objectives.values():
        if isinstance(own, ContrastPretrainingConfig):
            slow = own.momentum
            momentum = f"; momentum {slow.decay:g}, queue {slow.queue:,}, distilled {slow.alpha:g}" if slow else ""
            return f"{own.width} numbers, temperature from {own.temperature:g}{momentum}"
    return "no"


def _questions(run: RunConfig) -> str:
    for own in _task(run).objectives.values():
        if isinstance(own, QuestionAnsweringConfig):
            return f"{own.most} answers, from step {own.from_step:,}, x {own.weight:g}"
    return "no"


def _text_only(run: RunConfig) -> str:
    weights = [1.0 if entry.weight is None else entry.weight for entry in run.data.train]
    alone = sum(weight for weight, entry in zip(weights, run.data.train, strict=True) if entry.text_only)
    share = alone / sum(weights) or run.data.text_only_share
    return f"{_percent(share)} % of a batch" if share else "no"


# ---------------------------------------------------------------------------------------------------------- the model


def _box(run: RunConfig) -> str:
    for part in run.model.image.parts:
        if isinstance(part, BoxConfig):
            return f"{part.numbers}"
        if isinstance(part, FeatureConfig) and part.box_frequencies:
            return f"4 as {4 * 2 * part.box_frequencies} sines and cosines"
    return "none"


def _segments(run: RunConfig) -> str:
    for part in run.model.image.parts:
        if isinstance(part, SegmentConfig):
            owner = "the text's" if part.table == "text" else "its own"
            return f"row {part.index} of {owner} table"
    return "none"


def _place(run: RunConfig) -> str:
    for part in run.model.image.parts:
        if isinstance(part, ImagePositionConfig):
            return {"zero": "0 for all", "after_text": "one for all, behind the text"}.get(part.at, part.at)
    return "none"


def _pooling(run: RunConfig) -> str:
    own = run.model.pooler
    activation = f", {own.activation}" if own.linear else ", as it is"
    fused = "" if own.fusion == "text" else f"; {own.fusion} with the image's first"
    return f"text's {own.at}{activation}{fused}"


# ------------------------------------------------------------------------------------------------------- the training


def _start(run: RunConfig) -> str:
    weights = run.model.text.weights
    return "scratch" if weights is None else weights.source


def _optimizer(run: RunConfig) -> str:
    own = run.optimizer
    name = own.kind if own.bias_correction else "adam without bias correction"
    betas = ", ".join(f"{beta:g}" for beta in own.betas)
    groups = f"; {len(own.groups)} groups at x {own.groups[0].learning_rate:g}" if own.groups else ""
    return f"{name} ({betas}), eps {own.epsilon:g}, {own.learning_rate:g}{groups}"


def _decay(run: RunConfig) -> str:
    return f"{run.optimizer.weight_decay:g} on {'all' if run.optimizer.decay_all else 'all but norms and biases'}"


def _clip(run: RunConfig) -> str:
    return "no" if run.optimizer.clip_norm is None else f"{run.optimizer.clip_norm:g}"


def _schedule(run: RunConfig) -> str:
    warmup = run.schedule.warmup
    return f"{run.schedule.kind}, {f'{warmup:,} steps' if isinstance(warmup, int) else f'{_percent(warmup)} %'} warm-up"


def _length(run: RunConfig) -> str:
    length = f"{run.run.steps:,} steps" if run.run.steps else f"{run.run.epochs:g} epochs"
    return f"{length} of {run.batch.size}"


FACTS: dict[str, Callable[[RunConfig], str]] = {
    "label of a match": _label,
    "replaced": _replaced,
    "words and regions of mismatched pairs": _mismatched,
    "masked words: [MASK] / random / kept": _masked_words,
    "masked regions: zeros / random / kept": _masked_regions,
    "region targets": _region_targets,
    "objectives": _combined,
    "contrast": _contrast,
    "questions": _questions,
    "text only": _text_only,
    "whole image as a region": _whole,
    "numbers of a box": _box,
    "image's segment": _segments,
    "image's place": _place,
    "pooling": _pooling,
    "starts from": _start,
    "optimizer": _optimizer,
    "weight decay": _decay,
    "clipped norm": _clip,
    "schedule": _schedule,
    "length": _length,
}
"""Title of each row, and what stands in it."""


if __name__ == "__main__":
    print(card(), end="")
