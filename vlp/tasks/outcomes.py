"""What an evaluation found: metrics, and what became of each example, for intervals, results files and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlp.data.shards import BadSample
from vlp.metrics.bootstrap import interval

if TYPE_CHECKING:
    from vlp.data.dataset import Dataset
    from vlp.types import Sample


@dataclass(frozen=True)
class Outcome:
    """What became of one thing that was judged: a question, a query, an example."""

    id: str
    """As results files name it."""
    place: str
    """`<shard>/<key>` of its image. What has the same image is drawn together for an interval."""
    asked: str
    """The text, in words."""
    said: str
    """What the model makes of it, in words."""
    wanted: tuple[str, ...] = ()
    """What would have been right; empty where it is not known."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Its part in each metric that is a mean over outcomes; empty where it is not known what is right."""
    types: Mapping[str, str] = field(default_factory=dict)
    """What kinds it belongs to, by the dataset's own names."""


@dataclass(frozen=True)
class Judgement:
    """The result of an evaluation; complete on rank 0."""

    metrics: dict[str, float]
    outcomes: Sequence[Outcome] = ()
    """In the order of the index."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know, a sentence each."""


@dataclass(frozen=True)
class Group:
    """The outcomes of one kind."""

    type: str
    kind: str
    count: int
    metrics: dict[str, float]


def means(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """The mean of each score over the outcomes that have it."""
    return {name: sum(values) / len(values) for name, (values, _) in _by_score(outcomes).items()}


def intervals(outcomes: Iterable[Outcome], seed: int) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each score's mean."""
    return {name: interval(values, places, seed=seed) for name, (values, places) in _by_score(outcomes).items()}


def groups(outcomes: Iterable[Outcome]) -> list[Group]:
    """The means by kind, for each type that the dataset knows; the most frequent kinds first."""
    members: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        for type, kind in outcome.types.items() if outcome.scores else ():
            members.setdefault((type, kind), []).append(outcome)
    found = [Group(type, kind, len(its), means(its)) for (type, kind), its in members.items()]
    return sorted(found, key=lambda group: (group.type, -group.count, group.kind))


def place_of(example_id: str) -> str:
    """`<shard>/<key>` of an example's id, `<shard>/<key>#<text number>`."""
    return example_id.rpartition("#")[0]


def looked_up(dataset: Dataset, example_ids: Iterable[str]) -> dict[str, tuple[Sample, int]]:
    """The sample (texts only) and the text's number of each example, by its id."""
    wanted: dict[str, dict[str, list[str]]] = {}
    for example_id in example_ids:
        name, _, key = place_of(example_id).partition("/")
        wanted.setdefault(f"{name}.tar", {}).setdefault(key, []).append(example_id)
    found: dict[str, tuple[Sample, int]] = {}
    for shard, entry in enumerate(dataset.index.manifest.shards):
        keys = wanted.get(entry.name)
        if keys is None:
            continue
        for row, key in enumerate(dataset.index.table(shard).keys):
            if key in keys:
                sample = dataset.read(shard, row, image=False, regions=False, texts=True)
                found |= {example_id: (sample, int(example_id.rpartition("#")[2])) for example_id in keys[key]}
    return found


def pictures(dataset: Dataset, places: Iterable[str]) -> dict[str, bytes]:
    """The image files of some samples, by `<shard>/<key>`; those without one, or with a broken one, are left out."""
    wanted = set(places)
    found: dict[str, bytes] = {}
    for shard, entry in enumerate(dataset.index.manifest.shards):
        stem = entry.name.removesuffix(".tar")
        if not any(place.startswith(f"{stem}/") for place in wanted):
            continue
        for row, key in enumerate(dataset.index.table(shard).keys):
            if f"{stem}/{key}" in wanted:
                try:
                    image = dataset.read(shard, row, image=True, regions=False, texts=False).image
                except BadSample:
                    continue
                found |= {} if image is None else {f"{stem}/{key}": image}
    return found


def _by_score(outcomes: Iterable[Outcome]) -> dict[str, tuple[list[float], list[str]]]:
    found: dict[str, tuple[list[float], list[str]]] = {}
    for outcome in outcomes:
        for name, score in outcome.scores.items():
            values, places = found.setdefault(name, ([], []))
            values.append(score)
            places.append(outcome.place)
    return found
