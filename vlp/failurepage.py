"""A page of what a model gets wrong, with pictures: one HTML file that needs nothing beside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from vlp.data.dataset import Dataset
from vlp.tasks.outcomes import Judgement, Outcome, pictures

_SIDE = 240
"""Longest side of a picture on the page, in pixels."""

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.4 sans-serif; margin: 2em; color: #222; }}
main {{ display: flex; flex-wrap: wrap; gap: 1em; }}
article {{ width: 250px; border: 1px solid #ccc; border-radius: 6px; padding: .6em; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }} .said {{ color: #a00; }} .wanted {{ color: #060; }} small {{ color: #666; }}
</style></head><body><h1>{title}</h1><p>{summary}</p><main>
"""


def failures(judgement: Judgement, most: int) -> list[Outcome]:
    """The outcomes with the lowest scores, worst first; of equal ones some from everywhere, if there are too many.

    What scores full marks (by its first score, where 1 is best) is none.
    """
    wrong = [outcome for outcome in judgement.outcomes if _score(outcome) < 1]
    worst = sorted(wrong, key=_score)
    cut = _score(worst[most - 1]) if len(worst) > most else 1.0
    sure = [outcome for outcome in worst if _score(outcome) < cut]
    rest = [outcome for outcome in worst if _score(outcome) == cut] if len(worst) > most else worst[len(sure) :]
    left = min(most - len(sure), len(rest))
    return sure + [rest[number * len(rest) // left] for number in range(left)]


def write_page(path: Path, judgement: Judgement, dataset: Dataset, title: str, most: int) -> int:
    """Write the page; returns how many failures it shows."""
    shown = failures(judgement, most)
    places = [outcome.place for outcome in shown]
    # Where a picture was the answer, it stands on the page too.
    images = pictures(dataset, [*places, *(outcome.said for outcome in shown)])
    total = sum(_score(outcome) < 1 for outcome in judgement.outcomes)
    scored = sum(bool(outcome.scores) for outcome in judgement.outcomes)
    summary = f"{len(shown)} of {total} failures among {scored} examples"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [_HEAD.format(title=escape(title), summary=summary), *_articles(shown, images), "</main></body></html>\n"]
    path.write_text("".join(parts), encoding="utf-8")
    return len(shown)


def _articles(shown: Sequence[Outcome], images: Mapping[str, bytes]) -> list[str]:
    def picture(place: str) -> str:
        data = _small(images[place]) if place in images else None
        return (
            f'<img src="data:image/jpeg;base64,{data}" alt="">' if data else "<small>no picture in the shards</small>"
        )

    articles = []
    for outcome in shown:
        said = picture(outcome.said) if outcome.said in images else escape(outcome.said)
        wanted = " / ".join(escape(each) for each in outcome.wanted)
        articles.append(
            f"<article>{picture(outcome.place)}<p>{escape(outcome.asked)}</p>"
            f'<p class="said">said: {said}</p><p class="wanted">right: {wanted}</p>'
            f"<small>{escape(outcome.id)}, score {_score(outcome):.2f}</small></article>\n"
        )
    return articles


def _score(outcome: Outcome) -> float:
    """The first score; an outcome without any is no failure."""
    return next(iter(outcome.scores.values()), 1.0)


def _small(data: bytes) -> str | None:
    try:
        with Image.open(BytesIO(data)) as image:
            image.draft("RGB", (_SIDE, _SIDE))
            small = image.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            target = BytesIO()
            small.save(target, "JPEG", quality=80)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return b64encode(target.getvalue()).decode()
