"""The page of `vlp-data inspect --html`: one file, no script, nothing fetched; every text of the data is escaped."""

from __future__ import annotations

import base64
import io
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.summary import Summary
from vlp.data.arrays import write_whole
from vlp.data.imagefile import ImageFault, open_image
from vlp.data.index import Index
from vlp.data.shards import BadSample, ShardReader
from vlp.types import Question, Regions, Sample

_LONG_SIDE = 480
_BOXES = 12
"""Boxes drawn per picture, the most confident first; more hide the picture."""
_ANSWERS = 5

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #1d2329; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .8rem 0; }
td, th { border-bottom: 1px solid #d8dee4; padding: .25rem .8rem .25rem 0; text-align: left; font-weight: normal; }
th { color: #59636e; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7rem; background: #4878a8; vertical-align: middle; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1.2rem; }
.sample { border: 1px solid #d8dee4; border-radius: 6px; padding: .7rem; overflow-wrap: anywhere; }
.sample h3 { font: 12px/1.4 ui-monospace, monospace; color: #59636e; margin: 0 0 .5rem; }
.picture { position: relative; background: #eef1f4; } .picture img { display: block; width: 100%; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
rect { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
ul { margin: .5rem 0 0; padding-left: 1.1rem; } .answer { color: #0f6b3a; } .bad { color: #b3261e; }
"""
_COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45")


def write_page(path: Path, index: Index, summary: Summary, pictures: int) -> None:
    """Write the page, with samples taken at even distances from the whole directory.

    Raises:
        DataError: a shard's index cannot be used.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    title = escape(f"{index.directory.resolve().name}: {summary.samples:,} samples")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1>",
        _table([], [[name, value] for name, value in summary.overview()]),
        _table(["", "least", "median", "mean", "95 %", "most"], [[name, *row] for name, row in summary.spreads()]),
        _histogram("Words per caption", summary.caption_words),
        _histogram("Regions per image", summary.regions_S),
        _answers(summary),
        '<h2>Samples</h2><div class="samples">',
        *_samples(index, pictures),
        "</div></body></html>",
    ]
    write_whole(path, "\n".join(parts).encode())


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    cells = ["".join(f"<th>{escape(name)}</th>" for name in head)] if head else []
    for row in rows:
        numbers = "".join(f'<td class="number">{escape(value)}</td>' for value in row[1:])
        cells.append(f"<td>{escape(row[0])}</td>{numbers}")
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def _histogram(title: str, values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    if not len(values):
        return ""
    edges = np.unique(np.linspace(values.min(), values.max() + 1, 16).astype(int))
    counts, _ = np.histogram(values, edges)
    names = [f"{low}" if high - low == 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)]
    return f"<h2>{escape(title)}</h2>" + _bars(list(zip(names, counts.tolist(), strict=True)))


def _answers(summary: Summary) -> str:
    if not summary.answers:
        return ""
    title = f"{summary.answers.total():,} answers, {len(summary.answers):,} different"
    return f"<h2>{title}</h2>" + _bars([(answer, count) for answer, count, _ in summary.balance()])


def _bars(rows: list[tuple[str, int]]) -> str:
    most = max(1, *(count for _, count in rows))
    lines = [
        f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td>'
        f'<td><span class="bar" style="width:{300 * count / most:.0f}px"></span></td></tr>'
        for name, count in rows
    ]
    return "<table>" + "".join(lines) + "</table>"


def _samples(index: Index, pictures: int) -> list[str]:
    ends = np.cumsum([entry.samples for entry in index.manifest.shards])
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.unique(np.linspace(0, total - 1, min(pictures, total)).astype(int)).tolist()
    reader = ShardReader(index)
    cards = []
    for number in chosen:
        shard = int(np.searchsorted(ends, number, side="right"))
        row = number - (int(ends[shard - 1]) if shard else 0)
        name = index.manifest.shards[shard].name
        try:
            sample = reader.read(shard, row, image=True, regions=True, texts=True)
            cards.append(_card(name, sample))
        except BadSample as bad:
            cards.append(f'<div class="sample"><p class="bad">{escape(str(bad))}</p></div>')
    reader.close()
    return cards


def _card(shard: str, sample: Sample) -> str:
    captions = "".join(f"<li>{escape(caption)}</li>" for caption in sample.captions)
    questions = "".join(f"<li>{_question(question)}</li>" for question in sample.questions)
    return (
        f'<div class="sample"><h3>{escape(shard)}/{escape(sample.key)}</h3>{_picture(sample)}'
        f"<ul>{captions}{questions}</ul></div>"
    )


def _question(question: Question) -> str:
    answers = sorted(set(question.answers), key=lambda answer: (-question.answers.count(answer), answer))
    shown = ", ".join(answers[:_ANSWERS]) + (", ..." if len(answers) > _ANSWERS else "")
    return f'{escape(question.text)} <span class="answer">{escape(shown) or "(no answer)"}</span>'


def _picture(sample: Sample) -> str:
    boxes = _boxes(sample.regions) if sample.regions is not None else ""
    if sample.image is None:
        return f'<div class="picture" style="aspect-ratio:1">{boxes}</div>' if boxes else ""
    try:
        image = open_image(sample.image)
        image.draft("RGB", (_LONG_SIDE, _LONG_SIDE))
        picture = image.convert("RGB")
        picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    except (ImageFault, OSError, ValueError, SyntaxError) as error:
        return f'<p class="bad">the image does not decode: {escape(str(error))}</p>'
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<div class="picture"><img alt="" src="data:image/jpeg;base64,{data}">{boxes}</div>'


def _boxes(regions: Regions) -> str:
    order = range(len(regions))
    confidence_R = regions.confidence_R
    if confidence_R is not None:
        order = np.argsort(-confidence_R, kind="stable").tolist()
    lines = []
    for number, row in enumerate(list(order)[:_BOXES]):
        x1, y1, x2, y2 = (float(value) * 100 for value in regions.boxes_R4[row])
        told = f"region {row}" + (f", confidence {float(confidence_R[row]):.2f}" if confidence_R is not None else "")
        lines.append(
            f'<rect x="{x1:.2f}" y="{y1:.2f}" width="{x2 - x1:.2f}" height="{y2 - y1:.2f}" '
            f'stroke="{_COLOURS[number % len(_COLOURS)]}"><title>{told}</title></rect>'
        )
    return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(lines)}</svg>'
