"""The page of `vlp-data inspect --html`: one file, no script, nothing fetched; every text of the data is escaped."""

from __future__ import annotations

from collections import Counter
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_tools.inspect.cards import CARD_STYLE, cards
from data_tools.inspect.summary import SPREAD, Ranked, Row, Summary
from vlp.data.arrays import write_whole
from vlp.data.index import Index

_BINS = 16

_STYLE = """
:root { --ink: #1d2329; --soft: #59636e; --line: #d8dee4; --fill: #f4f6f8; --bar: #3f6f9f; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1240px; padding: 1.5rem 1rem 3rem;
  color: var(--ink); background: #fff; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; } h3 { font-size: .95rem; margin: 0 0 .5rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 1.4rem 2.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: normal; } tr > :last-child { padding-right: 0; }
.facts td:first-child { color: var(--soft); white-space: nowrap; width: 1%; padding-right: 1.6rem; }
.facts td { overflow-wrap: anywhere; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.bars { display: grid; grid-template-columns: minmax(3.5rem, max-content) max-content minmax(3rem, 1fr);
  gap: .15rem .8rem; align-items: center; }
.bars span { overflow-wrap: anywhere; } .bars .count { text-align: right; font-variant-numeric: tabular-nums; }
.bars i { display: block; height: .75rem; background: var(--bar); border-radius: 1px; }
"""


def write_page(path: Path, index: Index, summary: Summary, pictures: int) -> None:
    """Write the page, with samples taken at even distances from the whole directory.

    Raises:
        DataError: a shard's index cannot be used.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = summary.counts
    title = escape(f"{Path(index.directory).resolve().name}: {counts.samples:,} samples")
    answers = f"Answers: {counts.answers.total():,}, {len(counts.answers):,} different"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}{CARD_STYLE}</style></head><body><h1>{title}</h1>",
        _columns([("Contents", _facts(summary.overview())), ("Made by", _facts(summary.provenance()))]),
        "<h2>Sizes</h2>",
        _numbers(["", *SPREAD], [[name, *figures] for name, figures in summary.spreads()]),
        "<h2>How they spread</h2>",
        _columns(
            [
                ("Words per caption", _histogram(counts.captions)),
                ("Words per question", _histogram(counts.questions)),
                ("Tokens per text", _histogram(counts.tokens)),
                ("Width / height", _histogram(counts.aspects, 100)),
                ("Regions per image", _histogram(counts.regions)),
            ]
        ),
        "<h2>What they say</h2>",
        _columns(
            [
                ("Vocabulary", _facts(summary.vocabulary())),
                ("Most frequent words", _bars(summary.frequent_words())),
                (answers, _bars(summary.balance())),
                ("Region classes by probability", _bars(summary.classes())),
            ]
        ),
        '<h2>Samples</h2><div class="samples">',
        *cards(index, pictures, summary.class_names),
        "</div></body></html>",
    ]
    write_whole(path, "\n".join(parts).encode(errors="backslashreplace"))


def _columns(sections: list[tuple[str, str]]) -> str:
    """Sections side by side where there is room; those without content are left out."""
    shown = [f"<section><h3>{escape(title)}</h3>{content}</section>" for title, content in sections if content]
    return f'<div class="columns">{"".join(shown)}</div>'


def _facts(rows: list[Row]) -> str:
    lines = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows]
    return f'<table class="facts">{"".join(lines)}</table>' if lines else ""


def _numbers(head: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f'<div class="scroll"><table class="numbers">{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _histogram(values: Counter[int], unit: int = 1) -> str:
    """Bars of at most so many bins; what lies beyond the 99.5th percentile is one bin, or it would squeeze the rest."""
    if not values:
        return ""
    sizes = np.array(sorted(values))
    counts = np.array([values[size] for size in sizes.tolist()])
    low = int(sizes[0])
    high = int(sizes[int(np.searchsorted(np.cumsum(counts), 0.995 * counts.sum()))])
    edges = np.unique(np.linspace(low, high + 1, _BINS + 1).astype(int)).tolist()
    names = [_bin(first, last - 1, unit) for first, last in pairwise(edges)]
    told = [int(counts[(sizes >= first) & (sizes < last)].sum()) for first, last in pairwise(edges)]
    if sizes[-1] > high:
        names.append(f"{_bin(high + 1, high + 1, unit)} and more")
        told.append(int(counts[sizes > high].sum()))
    return _bars([(name, count, count / counts.sum()) for name, count in zip(names, told, strict=True)])


def _bin(first: int, last: int, unit: int) -> str:
    if unit == 1:
        return f"{first}" if first == last else f"{first} to {last}"
    return f"{first / unit:.2f}"


def _bars(rows: list[Ranked]) -> str:
    most = max((share for _, _, share in rows), default=0) or 1
    lines = [
        f'<span>{escape(name)}</span><span class="count" title="{share:.1%}">{count:,}</span>'
        f'<i style="width:{100 * share / most:.1f}%{";min-width:1px" if count else ""}"></i>'
        for name, count, share in rows
    ]
    return f'<div class="bars">{"".join(lines)}</div>' if lines else ""
