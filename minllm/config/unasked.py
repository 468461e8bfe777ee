"""Reject options of a judge that nobody asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minllm.errors import UserError


def refuse_unasked(cfg: Mapping[str, Any], named: Iterable[str]) -> None:
    """Raise UserError if an override sets an option of a judge, and neither the grader nor an analysis asks a judge.

    Args:
        named: the keys of the overrides.
    """
    has_grader = "grader" in list(cfg)
    if cfg.get("analysis") or (has_grader and "judge" in list(cfg["grader"])):
        return
    unread = sorted(key for key in named if f"{key}.".startswith("judge."))
    if unread:
        because = "the grader asks no judge" if has_grader else "nothing is graded"
        raise UserError(
            f"{unread[0]} would do nothing, because {because}: add grader=judge, or leave it out."
        )
