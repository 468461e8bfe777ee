"""Answers on disk: one small JSON file for each, named after everything that the answer depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minllm.errors import UserError
from minllm.files.atomic import contents, write_text
from minllm.grading.judge.fitting import misfit

if TYPE_CHECKING:
    from minllm.grading.judge import Answer, Question


@dataclass(frozen=True)
class Cache:
    """The answers of one judge.

    folder: of the files
    identity: the judge and its settings
    """

    folder: Path
    identity: Mapping[str, Any]

    def key(self, question: Question) -> str:
        content = [question.instructions, question.text, question.schema, self.identity]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, questions: Mapping[str, Question], attempts: int) -> dict[str, Answer | None]:
        """Return the cached answers by key. Damaged files are ignored.

        Args:
            attempts: missing answers, which are None, are returned if at least so many attempts were made; 0 means
                that they aren't.
        """
        answers: dict[str, Answer | None] = {}
        for key, question in questions.items():
            entry = read_entry(self._path(key))
            if "answer" in entry and misfit(entry["answer"], question.schema) is None:
                answers[key] = entry["answer"]
            elif attempts and isinstance(made := entry.get("attempts"), int) and made >= attempts:
                answers[key] = None
        return answers

    def prepare(self) -> None:
        """Make the folder. UserError if it can't be made, before anything is asked that can't be kept."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, answer: Answer) -> None:
        self._write(key, {"answer": answer})

    def write_missing(self, key: str, reason: str, attempts: int) -> None:
        self._write(key, {"missing": reason, "attempts": attempts})

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _write(self, key: str, entry: Mapping[str, Any]) -> None:
        path = self._path(key)
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            # another command that writes the same answer may have renamed the temporary file
            with contextlib.suppress(FileNotFoundError):
                write_text(path, json.dumps({**entry, "judge": self.identity}) + "\n")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"judge.cache={self.folder} can't be written: {error.strerror}. Choose another folder."
            ) from error


def read_entry(path: Path) -> Mapping[str, Any]:
    """Return the content of a file; empty if it doesn't exist or is damaged."""
    try:
        entry = json.loads(contents(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
