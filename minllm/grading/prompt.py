"""Prompts, which are files that a person can edit, and the questions that are made from them.

    # Instructions            the system message
    # With a beginning        the user message, with placeholders such as $beginning
    # Without a beginning     the user message for a text that was written from nothing

Texts of models are foreign: one may say that it ends here, and that the grader should give it 10. So each stands
between marks with a code that no text of the question contains. The code is a hash of these texts, so that the same
question is the same to the last character when it is asked again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from minllm.data.source import expanded
from minllm.errors import UserError, suggest
from minllm.grading.judge import Question

HEADING = re.compile(r"^# +(.+?) *$", re.MULTILINE)
INSTRUCTIONS = "Instructions"
WITH_BEGINNING, WITHOUT_BEGINNING = "With a beginning", "Without a beginning"


@dataclass(frozen=True)
class Prompt:
    """A prompt: instructions, and one or more messages with placeholders.

    path: of its file, for messages
    sections: the text under each heading
    """

    path: str
    sections: Mapping[str, str]

    def question(self, section: str, texts: Mapping[str, str], schema: Mapping[str, Any]) -> Question:
        """Return a question in which each placeholder stands for a foreign text between marks."""
        code = code_for(texts.values())
        delimited = {name: between_marks(name, text, code) for name, text in texts.items()}
        return Question(self.sections[INSTRUCTIONS], self.filled(section, delimited), schema)

    def filled(self, section: str, texts: Mapping[str, str]) -> str:
        """Return a section in which each placeholder is replaced by its text."""
        return Template(self.sections[section]).substitute(texts)

    @property
    def digest(self) -> str:
        """A hash of the text, by which reports tell prompts apart."""
        return hashlib.sha256(repr(sorted(self.sections.items())).encode()).hexdigest()[:12]


def read_prompt(
    built_in: str, placeholders: Mapping[str, Iterable[str]], path: str | None = None, key: str = ""
) -> Prompt:
    """Read a prompt from a file.

    Args:
        built_in: the name of the prompt of minllm that is read if `path` is None.
        placeholders: for each section besides the instructions, the placeholders that it must have.
        key: the option that names the file, for messages.

    Raises:
        UserError: the file can't be read, or lacks a section or a placeholder.
    """
    if path is None:
        file = resources.files("minllm.grading") / "prompts" / f"{built_in}.md"
        return parsed(file.read_text(encoding="utf-8"), f"the prompt {built_in}.md", placeholders)
    return parsed(text_of(expanded(path, key), key), path, placeholders)


def text_of(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{key}={path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={path} isn't UTF-8 text. Save it as UTF-8.") from error


def parsed(text: str, path: str, placeholders: Mapping[str, Iterable[str]]) -> Prompt:
    """Return the sections of a prompt, if they have all placeholders and no others."""
    before, *parts = HEADING.split(text)
    sections = {name: body.strip() for name, body in zip(parts[::2], parts[1::2])}
    for name in (INSTRUCTIONS, *placeholders):
        if not sections.get(name):
            raise UserError(
                f"{path} has no text under the heading '# {name}'. A prompt needs these headings:"
                f" {', '.join(f'# {needed}' for needed in (INSTRUCTIONS, *placeholders))}."
            )
    for name, needed in placeholders.items():
        refuse_placeholders(Template(sections[name]), f"{path}, under '# {name}',", set(needed))
    return Prompt(path, sections)


def refuse_placeholders(template: Template, where: str, needed: set[str]) -> None:
    """Raise UserError if a section lacks a placeholder, or has one that nothing fills."""
    given = [match.groupdict() for match in template.pattern.finditer(template.template)]
    if any(match["invalid"] is not None for match in given):
        raise UserError(f"{where} has a $ that isn't part of a placeholder: write $$ for a dollar sign.")
    names = {match["named"] or match["braced"] for match in given} - {None}
    for name in sorted(needed - names):
        raise UserError(f"{where} has no ${name}: write it where that text is to be inserted.")
    for name in sorted(names - needed):
        raise UserError(f"{where} has ${name}, which nothing fills.{suggest(name, needed)}")


def code_for(texts: Iterable[str]) -> str:
    """Return a code that none of these texts contains, always the same for the same texts."""
    joined = "\0".join(texts)
    code = hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    while code in joined:
        code = hashlib.sha256(code.encode()).hexdigest()[:16]
    return code


def between_marks(name: str, text: str, code: str) -> str:
    return f"[{name} {code}]\n{text}\n[end of {name} {code}]"
