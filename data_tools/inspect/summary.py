"""What a data directory holds, in tables: for `vlp-data inspect` on the terminal and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.inspect.counting import Counts
from vlp.data.manifest import Manifest
from vlp.data.text import TextEncoder

Row = tuple[str, str]
"""A name and what is to be said of it."""
Ranked = tuple[str, int, float]
"""A name, how often it came, and its share."""

_QUANTILES = (0, 0.5, None, 0.95, 1)
"""Of a spread: least, median, mean, 95 %, most."""
SPREAD = ("least", "median", "mean", "95 %", "most")


@dataclass(frozen=True)
class Summary:
    """Counts of a data directory and what its manifest says."""

    manifest: Manifest
    counts: Counts
    encoder: TextEncoder | None = None
    class_names: tuple[str, ...] = ()
    """Of the region classes, by their number; nothing where they have only that."""

    def overview(self) -> list[Row]:
        """How much there is."""
        manifest, counts = self.manifest, self.counts
        captions = f"{counts.captions.total():,}"
        rows = [
            ("shards", f"{len(manifest.shards):,}, {_bytes(sum(entry.bytes for entry in manifest.shards))}"),
            ("samples", f"{counts.samples:,}" + (" (text only)" if manifest.text_only else "")),
            ("captions", captions + (f" ({counts.distinct_captions:,} different)" if counts.captions else "")),
            ("questions", f"{counts.questions.total():,}"),
            ("with an image", f"{counts.widths.total() + counts.unknown_sizes:,}"),
            ("with regions", f"{counts.regions.total():,}"),
        ]
        if manifest.left_out:
            rows.append(("left out", f"{manifest.left_out:,} samples without an image or regions"))
        if manifest.feature_width:
            rows.append(("region features", f"{manifest.feature_width:,} wide"))
        if manifest.class_count or manifest.class_ids:
            rows.append(("region classes", f"{manifest.class_count or manifest.class_ids:,}"))
        if counts.unknown_sizes:
            rows.append(("images without a readable header", f"{counts.unknown_sizes:,}"))
        if counts.bad:
            more = ", ..." if counts.bad > len(counts.bad_names) else ""
            rows.append(("unreadable samples", f"{counts.bad:,}: {', '.join(counts.bad_names)}{more}"))
        return rows

    def provenance(self) -> list[Row]:
        """What made the shards, from what: the manifest's notes, one line per value."""
        return [*_flat(self.manifest.made_by), ("fingerprint", self.manifest.fingerprint)]

    def spreads(self) -> list[tuple[str, tuple[str, ...]]]:
        """Name and smallest, median, mean, 95th percentile, largest of what was measured."""
        counts = self.counts
        measured = {
            "words per caption": (counts.captions, 1),
            "words per question": (counts.questions, 1),
            "tokens per text": (counts.tokens, 1),
            "image width, pixels": (counts.widths, 1),
            "image height, pixels": (counts.heights, 1),
            "width / height": (counts.aspects, 100),
            "regions per image": (counts.regions, 1),
        }
        return [(name, spread(values, unit)) for name, (values, unit) in measured.items() if values]

    def vocabulary(self) -> list[Row]:
        """How rich the texts are; with a tokenizer, how well it covers them."""
        words = self.counts.words
        if not words:
            return []
        once = sum(count == 1 for count in words.values())
        rows = [
            ("words", f"{words.total():,}"),
            ("different words", f"{len(words):,}"),
            ("of these, once only", f"{once:,} ({once / len(words):.1%})"),
        ]
        if self.encoder is None or not self.counts.token_ids:
            return rows
        ids = self.counts.token_ids
        unknown = ids[self.encoder.unknown_id] if self.encoder.unknown_id is not None else 0
        special = len(self.encoder.vocabulary) - len(self.encoder.random_ids)
        ordinary = set(self.encoder.random_ids.tolist())
        unused = len(ordinary) - len(ordinary & ids.keys())
        return [
            *rows,
            ("tokens", f"{ids.total():,} ({ids.total() / max(1, words.total()):.2f} per word)"),
            ("unknown tokens", f"{unknown:,} ({unknown / ids.total():.2%})"),
            ("vocabulary", f"{len(ordinary):,} tokens and {special} special ones"),
            ("of these, never used", f"{unused:,} ({unused / max(1, len(ordinary)):.1%})"),
        ]

    def frequent_words(self, most: int = 15) -> list[Ranked]:
        """The most frequent words."""
        return _ranked(self.counts.words, most)

    def balance(self, most: int = 15) -> list[Ranked]:
        """The most frequent answers."""
        return _ranked(self.counts.answers, most)

    def classes(self, most: int = 15) -> list[Ranked]:
        """The region classes of the largest share of all probability; the count is of regions they are the top of."""
        mass, top = self.counts.class_mass, self.counts.class_top
        ranked = sorted(mass.items(), key=lambda item: (-item[1], item[0]))[:most]
        total, names = max(1, mass.total()), self.class_names
        return [(class_name(number, names), top[number], share / total) for number, share in ranked]


def class_name(number: int, names: Sequence[str]) -> str:
    """What a region class is called."""
    return names[number] if number < len(names) and names[number] else f"class {number}"


def spread(values: Counter[int], unit: int = 1) -> tuple[str, ...]:
    """Least, median, mean, 95th percentile and most of a histogram, of values in parts of `unit`."""
    sizes = sorted(values)
    total = values.total()
    figures = []
    for share in _QUANTILES:
        if share is None:
            figures.append(sum(size * count for size, count in values.items()) / total)
            continue
        rank, place = max(1, share * total), 0
        for size in sizes:
            place += values[size]
            if place >= rank:
                figures.append(float(size))
                break
    digits = 2 if unit > 1 else 1
    return tuple(f"{figure / unit:,.{digits}f}".removesuffix(".0") for figure in figures)


def _ranked(counts: Counter[str], most: int) -> list[Ranked]:
    total = max(1, counts.total())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(name, count, count / total) for name, count in ranked[:most]]


def _flat(notes: Mapping[str, Any], prefix: str = "") -> list[Row]:
    rows: list[Row] = []
    for name, value in notes.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _bytes(number: int) -> str:
    size, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
