"""The samples on the page of `vlp-data inspect`: picture, boxes, texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from data_tools.inspect.summary import class_name
from vlp.data.imagefile import ImageFault, open_image, upright
from vlp.data.index import Index
from vlp.data.shards import BadSample, ShardReader
from vlp.types import Question, Regions, Sample

_LONG_SIDE = 480
_BOXES = 8
"""Boxes drawn per picture, the most confident first: more hide the picture, and there are so many colours."""
_TEXTS = 12
"""Captions, and questions, shown of one sample."""
_LETTERS = 400
"""Of one text; the rest of a paragraph is left out."""
_ANSWERS = 5
_COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45")

CARD_STYLE = """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 1.2rem; }
.sample { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-wrap: anywhere; }
.sample h3 { font: 12px/1.4 ui-monospace, monospace; color: var(--soft); }
.picture { position: relative; background: var(--fill); } .picture img { display: block; width: 100%; }
.small img { image-rendering: pixelated; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
rect { fill: none; vector-effect: non-scaling-stroke; } .under { stroke: #fff; stroke-width: 3.5; opacity: .6; }
.over { stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .7rem; margin: .5rem 0 0; font-size: 12px; color: var(--soft); }
.legend b { display: inline-block; width: .7em; height: .7em; margin-right: .3em; }
ul { margin: .6rem 0 0; padding-left: 1.1rem; } .answer { color: #0f6b3a; } .more { color: var(--soft); }
.bad { color: #b3261e; margin: .3rem 0; }
"""


def cards(index: Index, pictures: int, class_names: Sequence[str] = ()) -> list[str]:
    """So many samples as HTML, at even distances.

    Args:
        class_names: of the region classes, by their number.
    """
    ends = np.cumsum([entry.samples for entry in index.manifest.shards])
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.unique(np.linspace(0, total - 1, min(pictures, total)).astype(int)).tolist()
    reader = ShardReader(index)
    made = []
    for number in chosen:
        shard = int(np.searchsorted(ends, number, side="right"))
        row = number - (int(ends[shard - 1]) if shard else 0)
        try:
            sample = reader.read(shard, row, image=True, regions=True, texts=True)
            made.append(_card(index.manifest.shards[shard].name, sample, class_names))
        except BadSample as bad:
            made.append(f'<div class="sample"><p class="bad">{escape(str(bad))}</p></div>')
    reader.close()
    return made


def _card(shard: str, sample: Sample, class_names: Sequence[str]) -> str:
    lines = _listed([_text(caption) for caption in sample.captions])
    lines += _listed([_question(question) for question in sample.questions])
    texts = f"<ul>{lines}</ul>" if lines else '<p class="more">no text</p>'
    name = f"{escape(shard.removesuffix('.tar'))}/{escape(sample.key)}"
    return f'<div class="sample"><h3>{name}</h3>{_picture(sample, class_names)}{texts}</div>'


def _listed(lines: list[str]) -> str:
    more = [f'<span class="more">and {len(lines) - _TEXTS} more</span>'] if len(lines) > _TEXTS else []
    return "".join(f"<li>{line}</li>" for line in lines[:_TEXTS] + more)


def _text(text: str) -> str:
    return escape(text if len(text) <= _LETTERS else f"{text[:_LETTERS]} ...")


def _question(question: Question) -> str:
    answers = sorted(set(question.answers), key=lambda answer: (-question.answers.count(answer), answer))
    shown = ", ".join(answers[:_ANSWERS]) + (", ..." if len(answers) > _ANSWERS else "")
    return f'{_text(question.text)} <span class="answer">{escape(shown) or "(no answer)"}</span>'


def _picture(sample: Sample, class_names: Sequence[str]) -> str:
    boxes, legend = _boxes(sample.regions, class_names) if sample.regions is not None else ("", "")
    if sample.image is None:
        return f'<div class="picture" style="aspect-ratio:1">{boxes}</div>{legend}' if boxes else ""
    try:
        image = open_image(sample.image)
        image.draft("RGB", (_LONG_SIDE, _LONG_SIDE))
        picture = upright(image)
        picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    except (ImageFault, OSError, ValueError, SyntaxError) as error:
        return f'<p class="bad">the image does not decode: {escape(str(error))}</p>'
    stream = io.BytesIO()
    small = max(picture.size) <= _LONG_SIDE // 3  # shown enlarged, where a JPEG's traces would be seen
    picture.save(stream, "PNG" if small else "JPEG", quality=80)
    data = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return f'<div class="picture{" small" if small else ""}"><img alt="" src="{data}">{boxes}</div>{legend}'


def _boxes(regions: Regions, class_names: Sequence[str]) -> tuple[str, str]:
    """The surest boxes as a drawing to lay over the picture, and what is known of each."""
    order = range(len(regions))
    if regions.confidence_R is not None:
        order = np.argsort(-regions.confidence_R, kind="stable").tolist()
    drawn, told = [], []
    for number, row in enumerate(list(order)[:_BOXES]):
        x1, y1, x2, y2 = (float(value) * 100 for value in regions.boxes_R4[row])
        place = f'x="{x1:.2f}" y="{y1:.2f}" width="{x2 - x1:.2f}" height="{y2 - y1:.2f}"'
        colour, name = _COLOURS[number], escape(_told(regions, row, class_names))
        drawn.append(
            f'<rect class="under" {place}/><rect class="over" {place} stroke="{colour}"><title>{name}</title></rect>'
        )
        told.append(f'<span><b style="background:{colour}"></b>{name}</span>')
    more = f'<span class="more">and {len(regions) - _BOXES} more regions</span>' if len(regions) > _BOXES else ""
    drawing = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(drawn)}</svg>'
    return drawing, f'<div class="legend">{"".join(told)}{more}</div>'


def _told(regions: Regions, row: int, class_names: Sequence[str]) -> str:
    """A region in a few words: its class, if known, and how sure the detector is."""
    words = []
    if regions.class_probs_RC is not None:
        words.append(class_name(int(regions.class_probs_RC[row].argmax()), class_names))
    elif regions.classes_R is not None:
        words.append(class_name(int(regions.classes_R[row]), class_names))
    words = words or [f"region {row}"]
    if regions.confidence_R is not None:
        words.append(f"{float(regions.confidence_R[row]):.2f}")
    return " ".join(words)
