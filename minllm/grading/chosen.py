"""The grader that a command chooses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minllm.errors import UserError
from minllm.grading.grader import Grader
from minllm.runs.find import named_keys
from minllm.schema.building import build


def chosen_grader(cfg: Mapping[str, Any], overrides: Iterable[str]) -> Grader | None:
    """Return the grader of a configuration; None if nothing is to be graded.

    Raises:
        UserError: its options are refused, or an override is for a judge that nobody asks.
    """
    has_grader = "grader" in list(cfg)
    refuse_unasked(overrides, is_asked=has_grader and "judge" in list(cfg["grader"]), is_graded=has_grader)
    return build(cfg["grader"]) if has_grader else None


def refuse_unasked(overrides: Iterable[str], *, is_asked: bool, is_graded: bool = False) -> None:
    """Raise UserError if an override is for a judge, and no judge is asked anything."""
    if is_asked:
        return
    keys = named_keys(override for override in overrides if not override.startswith("-"))
    unread = sorted(key for key in keys if f"{key}.".startswith("judge."))
    if unread:
        because = "this grader asks no judge" if is_graded else "nothing is graded"
        raise UserError(
            f"{unread[0]} would do nothing, because {because}: add grader=judge, or leave it out."
        )
