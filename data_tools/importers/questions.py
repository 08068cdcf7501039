"""Questions gathered by image: sources list them one by one, a sample holds all of its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_tools.importing.command import Record
from data_tools.report import Report
from vlp.types import Question


class QuestionsByImage:
    """Images in the order of their first question, each with its questions in theirs.

    Millions of questions fit into memory, since equal answers and types are kept once.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._questions: dict[str, list[Question]] = {}
        self._metadata: dict[str, Mapping[str, Any]] = {}
        self._ids: set[str] = set()
        self._answers: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._types: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def add(
        self,
        file: str,
        text: str,
        answers: tuple[str, ...],
        id: str,
        types: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a question, unless its id was there before.

        Args:
            file: the image, as in `Record`.
            metadata: of the image; that of its first question counts.
        """
        if id in self._ids:
            self.skip("question id stands twice", id)
        else:
            self._report.count("questions")
            self._ids.add(id)
            types = types or {}
            answers = self._answers.setdefault(answers, answers)
            types = self._types.setdefault(tuple(types.items()), types)
            self._questions.setdefault(file, []).append(Question(text, answers, id, types))
            self._metadata.setdefault(file, metadata or {})

    def skip(self, reason: str, name: str) -> None:
        """A question was read, and is left out."""
        self._report.count("questions")
        self._report.skip(reason, name)

    def records(self) -> list[Record]:
        self._report.count("images", len(self._questions))
        return [
            Record(file, questions=tuple(asked), metadata=self._metadata[file])
            for file, asked in self._questions.items()
        ]
