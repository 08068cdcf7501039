"""What `vlp extract` does on each rank: open a model and its inputs, extract, say the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from vlp.assemble import open_dataset
from vlp.data.index import open_index
from vlp.data.storage import local_path, remote_url
from vlp.distributed import world
from vlp.errors import ConfigError, DataError
from vlp.features.folder import QUARANTINE
from vlp.features.job import Request, extract_to
from vlp.features.kinds import Feature, parse_what
from vlp.features.preparing import Preparing
from vlp.features.sources import FolderSource, ShardSource, Source, Texts
from vlp.features.tables import COLUMNS, SUFFIXES, TableSource
from vlp.freed import keep
from vlp.vision_language_model import VisionLanguageModel

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MINUTES = 7 * 24 * 60
"""That ranks wait for each other: none waits but at the end, and then for the slowest."""


@dataclass(frozen=True)
class Inputs:
    """What features are extracted of."""

    data: str
    """A directory or URL of indexed shards, a folder of images, or a table of pairs."""
    texts: str | None = None
    """Which texts of shards; None for what the model was trained with."""
    columns: str | None = None
    """What a table calls our columns, as `image=file,text=title`."""
    images: Path | None = None
    """The folder that a table's images are relative to."""
    regions: Path | None = None
    """A folder of npz files, for a model that reads regions."""


def extract_features(
    model_name: str, inputs: Inputs, out: Path, request: Request, *, micro_tokens: int, precision: str, workers: int
) -> None:
    """Write features and say how many."""
    if precision not in _PRECISIONS:
        raise ConfigError(f"--precision: '{precision}' is not right, it should be one of {', '.join(_PRECISIONS)}")
    features = parse_what(request.what)
    with world(timeout_minutes=_MINUTES) as ranks:
        if ranks.device.type == "cpu":
            keep()
        model = VisionLanguageModel.from_pretrained(model_name)
        source = open_source(inputs, model, features)
        model.to(ranks.device, _PRECISIONS[precision])
        done = extract_to(
            out,
            model,
            source,
            request,
            ranks,
            model_name=model_name,
            micro_tokens=micro_tokens,
            workers=workers,
        )
        where = out / QUARANTINE
        if ranks.is_main:
            if done.before:
                print(f"{_counted(done.before, 'part')} done before", file=sys.stderr)
            print(f"{_counted(done.rows, 'example')}: {', '.join(one.name for one in features)} in {out}", flush=True)
            if done.quarantined:
                were = "was" if done.quarantined == 1 else "were"
                told = f"{_counted(done.quarantined, 'example')} cannot be used and {were} left out"
                print(f"{told}: see {where}", flush=True)
        if done.quarantined and not done.rows:
            raise DataError(f"{inputs.data}: none of the examples can be used ({_first_fault(out)}); see {where}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _first_fault(out: Path) -> str:
    with (out / QUARANTINE).open(encoding="utf-8") as file:
        record = json.loads(file.readline())
    return f"{record['id']}: {record['member']} {record['error']}"[:300]


def open_source(inputs: Inputs, model: VisionLanguageModel, features: Sequence[Feature] = ()) -> Source:
    """The inputs, as what they are: shards, images, or pairs.

    Args:
        features: what is wanted of them, so that a table without images is refused where these need one.
    Raises:
        ConfigError: an option that these inputs do not take, or there is nothing of that name.
        DataError: they cannot be read, or do not have what the model reads.
    """
    inputs = replace(inputs, data=str(local_path(inputs.data)))
    preparing, path = Preparing(model), Path(inputs.data)
    if remote_url(inputs.data) or (path.is_dir() and any(path.glob("*.tar"))):
        _refuse(inputs, "shards", "columns", "images", "regions")
        shards = _shards(inputs, model, preparing)
        if preparing.wants_image and any(one.side != "text" for one in features) and not shards.has_images():
            raise DataError(f"{inputs.data}: the model reads photos, and these shards hold none; give shards that do")
        return shards
    if inputs.texts is not None:
        raise ConfigError(f"--texts: {inputs.data} holds no shards, whose texts could be chosen from")
    if path.is_dir():
        _refuse(inputs, "a folder of images", "columns", "images")
        _check_folders(inputs, preparing)
        if preparing.wants_regions and inputs.regions is None:
            raise ConfigError(
                f"--data: {path} is a folder of images, and the model reads regions of a detector; give --regions DIR "
                "with an npz for each (`vlp-data regions` makes them)"
            )
        return FolderSource(path, preparing, inputs.regions)
    if path.suffix in SUFFIXES:
        _check_folders(inputs, preparing)
        table = TableSource(path, preparing, _columns(inputs.columns), inputs.images, inputs.regions)
        _check_table(inputs, table, preparing, features)
        return table
    raise ConfigError(
        f"--data: {inputs.data} is no directory and no table; give indexed shards, a folder of images, or a file that "
        f"ends in {', '.join(SUFFIXES)}"
    )


def _check_folders(inputs: Inputs, preparing: Preparing) -> None:
    """Refuse folders that are not there, that hold nothing, or that the model has no use for."""
    if inputs.regions is not None and not preparing.wants_regions:
        raise ConfigError("--regions: the model reads photos, not regions of a detector; leave it out")
    for option, folder, pattern in (("images", inputs.images, "*"), ("regions", inputs.regions, "*.npz")):
        if folder is None:
            continue
        if not folder.is_dir():
            raise ConfigError(f"--{option}: {folder}: there is no such folder")
        if next(folder.rglob(pattern), None) is None:
            raise ConfigError(f"--{option}: {folder} holds {'no npz' if option == 'regions' else 'nothing'}")


def _check_table(inputs: Inputs, table: TableSource, preparing: Preparing, features: Sequence[Feature]) -> None:
    """Refuse a table without a column that the features cannot do without."""
    needs = {"image"} if preparing.wants_image else set()
    if preparing.wants_regions and inputs.regions is None:
        needs.add("regions")
    wanted = [(name, one) for one in features for name in sorted(needs) if one.side != "text"]
    wanted += [("text", one) for one in features if one.side == "text" or one.name == "itm"]
    for name, one in wanted:
        if name not in table.columns:
            where = ", or give --regions DIR" if name == "regions" else ""
            raise ConfigError(
                f"--data: {table.place} has no column '{name}', without which there is no '{one.name}'; name its own "
                f"with --columns {name}=NAME{where}"
            )


def _shards(inputs: Inputs, model: VisionLanguageModel, preparing: Preparing) -> ShardSource:
    texts = inputs.texts or (model.task.task.texts if model.task else "captions")
    if texts not in get_args(Texts):
        raise ConfigError(f"--texts: '{texts}' is not right, it should be one of {', '.join(get_args(Texts))}")
    if texts == "none":
        index = open_index(inputs.data)
    else:
        otherwise = "give shards that do, or say with --texts which to take"
        dataset = open_dataset(inputs.data, texts, preparing.text, otherwise=otherwise)  # type: ignore[arg-type]
        index = dataset.index
    source, found = model.config.image.source, index.manifest.feature_width
    width = getattr(source, "width", None)
    if preparing.wants_regions and width != found:
        raise DataError(
            f"{inputs.data}: the model reads regions of {width} numbers, but those there have {found or 'no'} features"
        )
    return ShardSource(index if texts == "none" else dataset, preparing)


def _columns(text: str | None) -> dict[str, str]:
    """`image=file,text=title` as a mapping of our names to the table's."""
    pairs = [part.partition("=") for part in (text or "").split(",") if part]
    for ours, _, theirs in pairs:
        if ours not in COLUMNS or not theirs:
            raise ConfigError(f"--columns: '{ours}={theirs}' is not right, give {'=NAME, '.join(COLUMNS)}=NAME")
    return {ours: theirs for ours, _, theirs in pairs}


def _refuse(inputs: Inputs, kind: str, *options: str) -> None:
    for option in options:
        if getattr(inputs, option) is not None:
            raise ConfigError(f"--{option}: {inputs.data} is {kind}, which does not take it")
