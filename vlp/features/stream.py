"""Features of any iterable of pairs, in a program: `vlp.extract`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlp.data.given import count_of
from vlp.data.samples import Fault
from vlp.errors import ConfigError, DataError
from vlp.features.extractor import Extractor
from vlp.features.job import fitting, run
from vlp.features.kinds import parse_what
from vlp.features.parts import WINDOW
from vlp.features.preparing import Files, Item, Preparing
from vlp.features.rows import Layout, Row

if TYPE_CHECKING:
    from vlp.vision_language_model import VisionLanguageModel

_KEYS = ("id", "image", "text", "regions")


def extract(
    model: VisionLanguageModel,
    pairs: Iterable[Mapping[str, Any] | tuple[Any, str]],
    what: str | Sequence[str] = "pooled",
    *,
    bad: Callable[[dict[str, str]], object] | None = None,
    window: int = WINDOW,
    micro_tokens: int = 8192,
) -> Iterator[Row]:
    """The features of pairs, in their order, as they come: some hundred pairs are read, batched by length, and given.

        for row in vlp.extract(model, [{"image": "1.jpg", "text": "a dog"}], "pooled,itm"):
            row.id, row.arrays["pooled"]

    Args:
        pairs: mappings with any of `image` (a picture or a path), `text`, `regions` and `id`; or (image, text).
        what: names as of `vlp extract --what`.
        bad: is told of each pair that cannot be used (`id`, `member`, `error`), which is then left out.
        window: pairs that are held at once.
        micro_tokens: most tokens of a batch.
    Raises:
        ConfigError: the model cannot give a feature, or a pair has unknown keys.
        DataError: a pair cannot be used, and `bad` is not given.
    """
    if not hasattr(model, "network"):
        raise ConfigError(f"extract: model is a {type(model).__name__}; give VisionLanguageModel.from_pretrained(...)")
    if not isinstance(pairs, Iterable) or isinstance(pairs, (str, Mapping)):
        raise ConfigError(f"extract: pairs is a {type(pairs).__name__}; give a list or any other iterable of pairs")
    window, micro_tokens = count_of("extract: window", window), count_of("extract: micro_tokens", micro_tokens)
    if bad is not None and not callable(bad):
        raise ConfigError(f"extract: bad is a {type(bad).__name__}; give something that can be called, as list.append")
    extractor, preparing = Extractor(model, parse_what(what), micro_tokens), Preparing(model)
    layout = Layout(extractor.features, extractor.widths)
    return _rows(pairs, extractor, preparing, layout, bad, window)


def _rows(
    pairs: Iterable[Any],
    extractor: Extractor,
    preparing: Preparing,
    layout: Layout,
    bad: Callable[[dict[str, str]], object] | None,
    window: int,
) -> Iterator[Row]:
    source = enumerate(pairs)
    while items := [_item(preparing, number, pair) for number, pair in islice(source, window)]:
        for item, arrays in run(items, extractor):
            row = fitting(item, arrays, layout)
            if isinstance(row, Row):
                yield row
            elif bad is None:
                raise DataError("pair {id}: {member} {error}".format(**row.record))
            else:
                bad(row.record)


def _item(preparing: Preparing, number: int, pair: Any) -> Item:
    try:
        values = _values(number, pair)
    except Fault as fault:
        return Item(str(number), str(number), "", fault=(fault.member, fault.reason))
    id = str(values.get("id", number))
    image, regions = values.get("image"), values.get("regions")
    name = next((str(given) for given in (image, regions) if isinstance(given, (str, Path))), "")
    return preparing.item(id, id, values.get("text") or "", Files(image, regions), name)


def _values(number: int, pair: Any) -> Mapping[str, Any]:
    """What a pair gives, by name; raises Fault where it is none."""
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        pair = dict(zip(("image", "text"), pair, strict=True))
    if not isinstance(pair, Mapping):
        size = f" of {len(pair)}" if isinstance(pair, (tuple, list)) else ""
        raise Fault("it", f"is a {type(pair).__name__}{size}; give (image, text), or a mapping of {', '.join(_KEYS)}")
    unknown = [name for name in pair if name not in _KEYS]
    if unknown:
        raise ConfigError(f"extract: pair {number} has an unknown '{unknown[0]}' (known: {', '.join(_KEYS)})")
    text = pair.get("text")
    if text is not None and not isinstance(text, str):
        raise Fault("text", f"is of type {type(text).__name__}; give a str")
    return pair
