"""What importers share: the options, and the way from records to shards once they have read their source.

An importer is a reader, which gives records, and a command of the form

    @importer
    def coco(captions: Annotated[Path, ...], images: Images, into: Into) -> None:
        report = into.report(captions=captions, images=images)
        into.write(read_coco(captions, report), images=images, report=report)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

from data_tools.importing.record import Record
from data_tools.importing.run import import_records
from data_tools.options import OF_IMAGES, Choices, shared_options
from data_tools.report import Report

__all__ = ["Into", "Record", "importer"]

_NO_MATTER = ("out", "overwrite", "workers")
"""Options that do not change what is written."""


@dataclass(frozen=True, slots=True)
class Into:
    """Where an import goes and how: what `@importer` hands to a command in place of the shared options."""

    command: str
    choices: Choices

    def report(self, **arguments: object) -> Report:
        """A report that knows the command and its arguments, the shared ones that were given included.

        Args:
            arguments: paths, texts, numbers, or lists of such; the import is refused where another one, begun with
                other arguments or with files of another size, is unfinished.
        """
        given = {name: _text(value) for name, value in arguments.items()}
        inputs = [item for value in arguments.values() for item in _each(value) if isinstance(item, Path)]
        if self.choices.regions is not None:
            inputs.append(self.choices.regions)
        return Report({"command": self.command, **given, **self._given()}, inputs=inputs)

    def write(
        self,
        records: Iterable[Record],
        *,
        report: Report,
        images: Path | None = None,
        regions: Path | None = None,
        text_only: bool = False,
    ) -> None:
        """Write the records that hold, index the shards, and report.

        Args:
            records: in the order in which they are to stand in the shards.
            report: with what the importer has read and skipped so far.
            images: directory of the images; without one, samples have regions alone (or nothing, if `text_only`).
            regions: region features in place of what `--regions` names.
            text_only: samples have neither image nor regions; the manifest says so.
        Raises:
            ConfigError: a directory that is not there, or neither images nor regions.
            DataError: shards are there already, or no record is left.
        """
        regions = regions or self.choices.regions
        import_records(records, self.choices, report, images=images, regions=regions, text_only=text_only)

    def _given(self) -> dict[str, Any]:
        usual = Choices(out=self.choices.out)
        chosen = {field.name: getattr(self.choices, field.name) for field in fields(Choices)}
        return {
            name: dict(value) if name == "split" else str(value) if isinstance(value, Path) else value
            for name, value in chosen.items()
            if name not in _NO_MATTER and value != getattr(usual, name)
        }


def _each(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text(value: object) -> str:
    return " ".join(str(item) for item in _each(value) if item is not None)


Command = Callable[..., None]


@overload
def importer(function: Command) -> Command: ...


@overload
def importer(*, images: bool) -> Callable[[Command], Command]: ...


def importer(function: Command | None = None, *, images: bool = True) -> Command | Callable[[Command], Command]:
    """Make a command of a function that takes `into: Into`: the options that all importers share stand in its place.

    Args:
        images: the source has images; without, `--regions`, `--resize` and the like are left out.
    """
    if function is None:
        return lambda function: _command(function, images)
    return _command(function, images)


def _command(function: Command, images: bool) -> Command:
    own = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
        if name != "into"
    }
    shared = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(shared_options, eval_str=True).parameters.items()
        # A source's own option takes the place of a shared one: `--split` where there are official lists.
        if (images or name not in OF_IMAGES) and name not in own
    }
    name = function.__name__.replace("_", "-")

    def command(**values: Any) -> None:
        chosen = {name: values.pop(name) for name in shared if name in values}
        function(**values, into=Into(name, shared_options(**chosen)))

    both = {**own, **shared}
    command.__name__, command.__doc__, command.__module__ = function.__name__, function.__doc__, function.__module__
    # Typer reads both; it calls by name.
    command.__signature__ = inspect.Signature(list(both.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in both.items()}
    return command
