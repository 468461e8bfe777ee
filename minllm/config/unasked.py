"""Whether a command asks a judge; options of a judge that nobody asks are rejected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minllm.errors import UserError


def asks_judge(cfg: Mapping[str, Any]) -> bool:
    """Whether the grader of a configuration, or an analysis of a report, asks a judge."""
    return bool(cfg.get("analysis")) or ("grader" in list(cfg) and "judge" in list(cfg["grader"]))


def refuse_unasked(cfg: Mapping[str, Any], named: Iterable[str]) -> None:
    """Raise UserError if an override sets an option of a judge, and no judge is asked.

    Args:
        named: the keys of the overrides.
    """
    if asks_judge(cfg):
        return
    unread = sorted(key for key in named if f"{key}.".startswith("judge."))
    if unread:
        because = "the grader asks no judge" if "grader" in list(cfg) else "nothing is graded"
        raise UserError(
            f"{unread[0]} would do nothing, because {because}: add grader=judge, or leave it out."
        )
