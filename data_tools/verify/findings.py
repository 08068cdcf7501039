"""What `vlp-data verify` finds: kinds, counts that are exact, and enough examples to go and look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

DAMAGE = {
    "missing": "shards that the index names but that are not there",
    "foreign": "shards that are not in the index",
    "tar": "tars that are truncated, damaged, or hold what is refused",
    "checksum": "shards with other bytes than when they were indexed",
    "member": "members that stand twice, are too large or have a dot in their key",
    "text": "JSON or text that cannot be read, or is blank",
    "image": "images that do not decode to their last byte",
    "regions": "region arrays that are damaged, not finite, or do not fit each other",
    "width": "regions of another width or number of classes than the rest",
    "index": "index files that are damaged, or say something else than the shards",
    "lengths": "files of token lengths that are damaged or out of date",
}
"""Kinds of damage, as the table names and explains them: what a loader would replace, refuse or misread."""

NOTES = {
    "no index": "`vlp-data index` has not been here, so nothing tells what the bytes should be",
    "unfinished": "an import was begun and not finished; say the same command again",
    "no image": "samples without an image or regions, which the index leaves out",
    "no text": "samples without a caption or a question",
    "same image": "images with the same bytes as an earlier one",
    "same key": "keys that stand in an earlier shard too",
}
"""What should be known but is no damage."""

_KEPT = 1000
"""Findings kept per kind; the counts are exact."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or to be known."""

    kind: str
    reason: str
    shard: str = ""
    """File name of the shard, or of a file below `index/`."""
    key: str = ""
    """Of the sample; blank if it is about the whole file."""
    member: str = ""

    def __str__(self) -> str:
        sample = f": sample '{self.key}'" if self.key else ""
        member = f": {self.member}" if self.member else ""
        return f"{self.shard}{sample}{member}{':' if self.shard and not member else ''} {self.reason}".strip()


@dataclass
class Findings:
    """Findings by kind."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding, count: int = 1) -> None:
        """Count a finding that stands for `count` of its kind."""
        self.counts[finding.kind] += count
        listed = self.kept.setdefault(finding.kind, [])
        if len(listed) < _KEPT:
            listed.append(finding)

    def forget(self, kind: str) -> None:
        """Leave out a kind that does not matter here."""
        self.counts.pop(kind, None)
        self.kept.pop(kind, None)

    def update(self, other: Findings) -> None:
        """Take over what others found."""
        self.counts.update(other.counts)
        for kind, findings in other.kept.items():
            listed = self.kept.setdefault(kind, [])
            listed += findings[: _KEPT - len(listed)]

    def damage(self, kinds: Iterable[str] = DAMAGE) -> int:
        """How much of what was found is damage."""
        return sum(self.counts[kind] for kind in kinds)

    def plain(self) -> dict[str, Any]:
        """For a JSON report."""

        def listed(kinds: dict[str, str]) -> dict[str, Any]:
            return {
                kind: {"what": what, "count": self.counts[kind], "first": [asdict(f) for f in self.kept[kind]]}
                for kind, what in kinds.items()
                if self.counts[kind]
            }

        return {"findings": listed(DAMAGE), "notes": listed(NOTES)}
