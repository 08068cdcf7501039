"""The door of `vlp-data`. A user's mistake ends in one plain sentence and an exit code, never in a traceback."""

from __future__ import annotations

import sys

import typer

from data_tools.importers.coco import coco
from data_tools.importers.daquar import daquar
from data_tools.importers.easy_vqa import easy_vqa
from data_tools.importers.flickr import flickr
from data_tools.importers.folder import folder
from data_tools.importers.gqa import gqa
from data_tools.importers.karpathy import karpathy
from data_tools.importers.table import csv, jsonl
from data_tools.importers.text import text
from data_tools.importers.tsv import tsv
from data_tools.importers.vg import vg
from data_tools.importers.vqa import vqa
from data_tools.index import index
from data_tools.inspect.command import inspect
from data_tools.regions.command import regions
from data_tools.tokenizer import tokenizer
from data_tools.verify.command import verify
from data_tools.world.shapes import shapes
from vlp.errors import VlpError

app = typer.Typer(
    name="vlp-data",
    help="Make shards and indexes from datasets, and look into them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (coco, karpathy, flickr, vqa, gqa, vg, daquar, easy_vqa, tsv, csv, jsonl, folder, text):
    app.command()(command)
for command in (regions, shapes, tokenizer, index, inspect, verify):
    app.command()(command)


def main() -> None:
    """Run `vlp-data` and exit: 0 done, 1 failed, 2 used wrongly."""
    try:
        app()
    except VlpError as error:
        print(f"vlp-data: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"vlp-data: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
