"""An extraction to files: parts dealt to ranks, each written when it is whole; what is done is not done again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlp.data.workers import in_order
from vlp.distributed import World, barrier, share
from vlp.errors import ConfigError, VlpError
from vlp.features import tars
from vlp.features.extractor import Arrays, Extractor
from vlp.features.files import FORMATS, SUFFIXES, Format, write
from vlp.features.folder import FeatureFolder
from vlp.features.kinds import parse_what
from vlp.features.manifest import lasting
from vlp.features.parts import Part, cut
from vlp.features.preparing import Item
from vlp.features.progress import Progress
from vlp.features.rows import DTYPES, Dtype, Layout, Row
from vlp.features.sources import Source

if TYPE_CHECKING:
    from vlp.vision_language_model import VisionLanguageModel


@dataclass(frozen=True)
class Request:
    """What is extracted, and to what files.

    Raises:
        ConfigError: a choice is not known, or two do not go together.
    """

    what: str | Sequence[str] = "pooled"
    format: Format = "parquet"
    dtype: Dtype = "fp32"
    """Of the numbers in the files. What the model computes in is its own type."""
    part_examples: int = 1024
    """Most examples that are saved at once, fewer where their features are large: of a file, but for tars of shards,
    which are cut as the shards are."""

    def __post_init__(self) -> None:
        for name, value, known in (("format", self.format, FORMATS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise ConfigError(f"--{name}: '{value}' is not known, it should be one of {', '.join(known)}")
        if self.dtype == "bf16" and self.format != "safetensors":
            raise ConfigError(
                f"--dtype: {self.format} has no bf16; take --format safetensors, or fp16, which is as small"
            )


@dataclass(frozen=True)
class Extracted:
    """How an extraction ended, over all ranks."""

    rows: int
    quarantined: int
    """Examples left out, since they cannot be used."""
    before: int
    """Parts that an earlier run had finished."""


def extract_to(
    out: Path,
    model: VisionLanguageModel,
    source: Source,
    request: Request,
    world: World,
    *,
    model_name: str = "",
    micro_tokens: int = 8192,
    workers: int = 0,
    every: float = 10.0,
) -> Extracted:
    """Write the features of every example of a source.

    A run that was killed goes on where it stopped when it is started again, on any number of ranks; the files are the
    same bytes as those of a run that was not. Collective.

    Args:
        model: in the type and on the device that it shall compute in.
        micro_tokens: most tokens of a batch.
        workers: processes that read ahead.
        every: seconds between the lines that say how far it is.
    Raises:
        ConfigError: the model cannot give a feature, or `out` holds something else.
    """
    features = parse_what(request.what)
    extractor = Extractor(model, features, micro_tokens)
    layout = Layout(features, extractor.widths, request.dtype)
    parts = cut(source, features, extractor.widths, request.part_examples)
    folder = FeatureFolder(out, SUFFIXES[request.format], _files(parts, source, request))
    asked = _asked(model, source, layout, request)
    if _first(folder, asked, world):
        rows, quarantined = folder.totals()
        return Extracted(rows, quarantined, len(parts))
    left = [part for part in parts if not folder.done(part.name)]
    barrier(world)  # before any rank finishes a part, or they would not deal the same ones
    progress = Progress(sum(map(len, left)), world.size, every) if world.is_main else lambda examples: None
    for part, made, refused in _made(left[world.rank :: world.size], source, extractor, layout, workers, progress):
        folder.put(part.name, len(made), refused, lambda path, made=made: write(request.format, path, made, layout))  # type: ignore[misc]
    barrier(world)
    folder.join(world.rank, world.size, tars.join)
    barrier(world)
    totals = (0, 0)
    if world.is_main:
        totals = folder.close(_facts(model, model_name, source, layout, request, asked), asked)
    rows, quarantined = share(totals, world)[0]
    return Extracted(rows, quarantined, len(parts) - len(left))


def _files(parts: Sequence[Part], source: Source, request: Request) -> dict[str, list[str]]:
    """The files, each with its parts: a tar for each tar of shards, so that they are read side by side; else a part is
    a file."""
    alike = request.format == "webdataset" and source.kind == "shards"
    groups = source.groups
    files: dict[str, list[str]] = {}
    for part in parts:
        files.setdefault(groups[part.group].name if alike else part.name, []).append(part.name)
    return files


def _first(folder: FeatureFolder, asked: Mapping[str, Any], world: World) -> bool:
    """Let rank 0 open the folder; all ranks learn whether all is done, or fail together."""
    said: bool | str = False
    if world.is_main:
        try:
            said = folder.open(asked)
        except VlpError as error:
            said = str(error)
        except OSError as error:
            said = f"--out: {error.filename or folder.path}: {error.strerror or error}"
    said = share(said, world)[0]
    if isinstance(said, str):
        raise ConfigError(said)
    return said


def _made(
    parts: Sequence[Part], source: Source, extractor: Extractor, layout: Layout, workers: int, progress: Any
) -> Iterator[tuple[Part, list[Row], list[dict[str, str]]]]:
    """Each part with its rows and what was refused."""
    windows = [(part, *window) for part in parts for window in part.windows()]

    def read(number: int) -> list[Item]:
        part, first, last = windows[number]
        return list(source.items(part.group, first, last))

    rows: list[Row] = []
    refused: list[dict[str, str]] = []
    for number, items in enumerate(in_order(read, range(len(windows)), workers=workers)):
        for item, arrays in run(items, extractor):
            row = fitting(item, arrays, layout)
            if isinstance(row, Row):
                rows.append(row)
            else:
                refused.append(row.record)
        progress(len(items))
        part, _, last = windows[number]
        if last == part.last:
            yield part, rows, refused
            rows, refused = [], []


def run(items: Sequence[Item], extractor: Extractor) -> list[tuple[Item, Arrays | None]]:
    """Each item with its features; None, and what is wrong with the item, where there are none."""
    checked = [_checked(item, extractor) for item in items]
    made = iter(extractor.run([item.example for item in checked if item.example is not None]))
    return [(item, None if item.example is None else next(made)) for item in checked]


def _checked(item: Item, extractor: Extractor) -> Item:
    reason = None if item.example is None else extractor.lacking(item.example)
    return item if reason is None else replace(item, example=None, fault=("image", reason))


def fitting(item: Item, arrays: Arrays | None, layout: Layout) -> Row | Item:
    """An item's row, if its features are numbers in the type of the files; else the item with its fault."""
    if arrays is None:
        return item
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            stored = array.astype(layout.numpy, copy=False)
        if not np.isfinite(stored).all():
            return replace(item, example=None, fault=(name, f"is not finite in {layout.dtype}"))
    return Row(item.id, item.key, item.image, item.words, arrays)


def fingerprint(model: VisionLanguageModel) -> str:
    """Changes whenever a weight, the config or the tokenizer does."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(model.config.model_dump_json().encode())
    digest.update(model.text.fingerprint.encode() if model.text else b"")
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _asked(model: VisionLanguageModel, source: Source, layout: Layout, request: Request) -> dict[str, Any]:
    """What must be the same for a run to go on with another's parts."""
    return {
        "what": [one.name for one in layout.features],
        "format": request.format,
        "dtype": request.dtype,
        "precision": str(next(model.network.parameters()).dtype).removeprefix("torch."),
        "model": fingerprint(model),
        "data": source.fingerprint,
        "texts": source.texts,
        "part_examples": request.part_examples,
    }


def _facts(
    model: VisionLanguageModel,
    name: str,
    source: Source,
    layout: Layout,
    request: Request,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """What the manifest says of the features."""
    return {
        "what": [one.name for one in layout.features],
        "shapes": {one.name: layout.shape(one) for one in layout.features},
        "widths": dict(layout.widths),
        "format": request.format,
        "dtype": request.dtype,
        "data": source.fingerprint,
        "source": lasting(source.place),
        "source_kind": source.kind,
        "images": lasting(source.images),
        "options": {name: value if name == "columns" else lasting(value) for name, value in source.options.items()},
        "texts": source.texts,
        "model": {
            "name": lasting(name),
            "fingerprint": asked["model"],
            "task": model.task.task.name if model.task else None,
            "config": model.config.plain(),
        },
    }
