"""Every tensor of a checkpoint accounted for: mapped, a second name of another, or unused for a reason.

What is missing, surplus or of another shape is refused with the list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlp.errors import CheckpointError
from vlp.models.convert.family import Family
from vlp.models.convert.names import Rule, Shape, Table, below, rules
from vlp.models.heads import ClassHead, HeadConfig
from vlp.models.image import RegionSource
from vlp.models.model import ModelConfig, meta_model

LISTED = 20
"""Names that a refusal spells out; it counts the rest."""


@dataclass(frozen=True)
class Plan:
    """How the tensors of one checkpoint and those of one model belong together."""

    config: ModelConfig
    """With the heads that the checkpoint holds."""
    rules: tuple[Rule, ...]
    absent: tuple[str, ...] = ()
    """Heads that a checkpoint of this kind may hold, and this one does not."""

    def their_shapes(self) -> dict[str, Shape]:
        """Names and shapes of the tensors that are mapped, in the order of the tables."""
        return {n: s for rule in self.rules for n, s in zip(rule.theirs, rule.their_shapes, strict=True)}


def plan(family: Family, config: ModelConfig, shapes: Mapping[str, Shape], where: str, *, untied: bool = False) -> Plan:
    """The plan for a checkpoint of these names and shapes.

    A head is there if any of its tensors is.

    Args:
        config: without heads, or with those that the checkpoint must have.
        where: the file, for messages.
        untied: the tensors that the authors' code may tie hold different numbers.
    Raises:
        CheckpointError: our model has tensors that the tables do not name.
    """
    found: dict[str, HeadConfig] = {}
    absent: list[str] = []
    for name, head in family.heads(config).items():
        if not any(_stands(stem, shapes) for stem in _stems(head.table)):
            absent.append(name)
        elif head.fits(shapes):
            owners = [other for other in found if found[other].inner_of is None and family.heads(config)[other].inner]
            shared = {"inner_of": owners[0] if owners else None} if head.inner else {}
            found[name] = head.sized(shapes, untied=untied).model_copy(update=shared)
    made = plan_of(family, config.model_copy(update={"heads": found}), where)
    return replace(made, absent=tuple(absent))


def plan_of(family: Family, config: ModelConfig, where: str) -> Plan:
    """The plan for a model whose heads are known."""
    known = family.heads(config)
    strangers = [name for name in config.heads if name not in known]
    if strangers:
        raise CheckpointError(f"{where}: checkpoints of this kind have no place for the head '{strangers[0]}'")
    ours = {name: tuple(tensor.shape) for name, tensor in meta_model(config).state_dict().items()}
    table = dict(family.table(config))
    for name in config.heads:
        table |= below(known[name].names(config.heads[name]), "", f"heads.{name}")
    made = tuple(rules(table, ours))
    mapped = [name for rule in made for name in rule.ours]
    surplus = sorted(set(ours) - set(mapped))
    if surplus:
        raise CheckpointError(
            f"{where}: checkpoints of this kind have no place for {listed(surplus)} of the model; "
            "is the config of another architecture?"
        )
    return Plan(config, made)


def wrapper_of(family: Family, config: ModelConfig, names: Collection[str]) -> str:
    """What stands before all of these names: what the authors' training code puts there, or nothing."""
    if not family.wrapper or not all(name.startswith(family.wrapper) for name in names):
        return ""
    inner = {name.removeprefix(family.wrapper) for name in names}
    # A file without heads may begin with the same word all over (`bert.`), unwrapped.
    return family.wrapper if any(_stands(stem, inner) for stem in _stems(family.table(config))) else ""


def _stems(table: Table) -> list[str]:
    return [name for names in table for name in ((names,) if isinstance(names, str) else names)]


def _stands(stem: str, shapes: Collection[str]) -> bool:
    return any(stem + suffix in shapes for suffix in ("", ".weight", ".bias"))


@dataclass(frozen=True)
class Account:
    """What became of the tensors of a checkpoint."""

    tied: Mapping[str, str]
    """Second names, and the tensor that each is."""
    unused: Mapping[str, str]
    """Tensors that our model has no use for, and why."""


def account(
    family: Family, made: Plan, tensors: Mapping[str, Tensor], counts: Mapping[str, int], where: str
) -> Account:
    """Account for every tensor of a checkpoint.

    Args:
        counts: classes of heads that the authors' config says.
    Raises:
        CheckpointError: some are missing, surplus or of another shape; they are listed.
    """
    unused = family.unused(made.config)
    wanted = made.their_shapes() | {name: each.shape for name, each in unused.items()}
    reasons = {name: each.reason for name, each in unused.items()}
    tied: dict[str, str] = {}
    surplus: list[str] = []
    for name in tensors:
        if name in wanted:
            continue
        source = family.tied.get(name)
        if source is not None and source in tensors:
            tied[name] = source
        elif reason := _ignored(family, name):
            reasons[name] = reason
        else:
            surplus.append(name)
    for name in [name for name, source in tied.items() if not same(tensors[name], tensors[source])]:
        reasons[name] = f"in the authors' code it is {tied.pop(name)}, whose numbers here are others"
    _refuse_misfits(made, wanted, tensors, counts, surplus, where)
    return Account(tied, reasons)


def _refuse_misfits(
    made: Plan,
    wanted: Mapping[str, Shape],
    tensors: Mapping[str, Tensor],
    counts: Mapping[str, int],
    surplus: Sequence[str],
    where: str,
) -> None:
    missing = [name for name in wanted if name not in tensors]
    wrong = [
        f"{name} is {list(tensors[name].shape)} and should be {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    wrong += _wrong_counts(made.config, counts)
    parts = [("missing", missing), ("surplus", surplus), ("of another shape", wrong)]
    said = "; ".join(f"{what}: {listed(names)}" for what, names in parts if names)
    if said:
        raise CheckpointError(f"{where} does not fit its config; {said}")


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers."""
    return one.shape == other.shape and torch.equal(one, other)


def _ignored(family: Family, name: str) -> str | None:
    return next((reason for pattern, reason in family.ignored.items() if re.fullmatch(pattern, name)), None)


def _wrong_counts(config: ModelConfig, counts: Mapping[str, int]) -> list[str]:
    """Heads of another number of classes than the authors' config says, or than ours has for regions."""
    heads = {name: head for name, head in config.heads.items() if isinstance(head, ClassHead)}
    source = config.image.source
    known = [source.classes, source.attributes] if isinstance(source, RegionSource) else []
    regions = [count for count in known if isinstance(count, int)]
    wrong = []
    for name, head in heads.items():
        wanted = [counts[name]] if name in counts else regions if head.reads == "image" else []
        if wanted and head.classes not in wanted:
            wrong.append(f"head {name} has {head.classes} classes and should have {' or '.join(map(str, wanted))}")
    return wrong


def listed(names: Sequence[str]) -> str:
    """The names, or the first of them and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
