"""The champion: the best arm so far for a kind of question, which search.champion=true makes arm a."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minllm.errors import UserError
from minllm.schema.checking import fits
from minllm.schema.overrides import key_of
from minllm.study import recorded
from minllm.study.arms import identity
from minllm.study.metric import BITS, Name
from minllm.study.selection import VERDICT
from minllm.verdict.entry import of_metric
from minllm.verdict.ledger import Ledger, Line, fault_in, refuse_damage

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from minllm.verdict.sequential import VerdictSearch


def set_champion(search: VerdictSearch, default: DictConfig, overrides: Sequence[str]) -> str:
    """Make the champion, or the one that the verdict began with, arm a; return the kind of question.

    Args:
        default: the configuration of arm a without overrides, which is the champion before the first crowning.
        overrides: the command line's overrides.

    Raises:
        UserError: arms.a is given, too, or the champion's options aren't available.
    """
    if search.arms.get("a") or any(key_of(override) in ("arms", "arms.a") for override in overrides):
        raise UserError(
            "search.champion=true compares with the champion instead of arms.a: leave arms.a out, or search.champion."
        )
    kind = kind_of(default, search.protocol.equal, search.protocol.metric)
    if recorded.is_there(search.folder, VERDICT):
        arms = search.saved_protocol()["protocol"].get("arms")
        if not fits(arms, dict[str, list[str]]) or "a" not in arms:
            raise UserError(f"The arms in {search.folder / VERDICT} are damaged. Restore the file.")
        refuse_unsafe(arms["a"], search.folder / VERDICT)
        search.arms["a"] = arms["a"]
    elif champion := champion_of(kind, search.ledger):
        refuse_unsafe(champion["overrides"], search.ledger.path)
        search.arms["a"] = champion["overrides"]
        try:
            search.composed("a")
        except UserError as error:
            raise UserError(
                f"The champion, {champion['arm']}, can't be built with this command: {error} It was crowned by:"
                f" {champion['command']}"
            ) from error
    return kind


def refuse_unsafe(overrides: Sequence[str], file: Path) -> None:
    """Raise UserError if a champion's overrides in a file allow code or configure Hydra, as only a user may."""
    for override in overrides:
        if re.split("[./]", key_of(override))[0] in ("extensions", "hydra"):
            raise UserError(
                f"The champion in {file} has the override {override}, which only the command line may have. Put it"
                " outside arms when you submit an idea, and remove this crowning from the ledger."
            )


def kind_of(cfg: DictConfig, equal: str | None, metric: Name = BITS.name) -> str:
    """Return a hash of a kind of question: the default arm as it would be trained, the equal quantity, the metric."""
    return of_metric([identity(cfg), equal], metric)[:16]


def champion_of(kind: str, ledger: Ledger) -> Line | None:
    """Return the champion of a kind. UserError if the ledger is damaged, which may hide it."""
    contents = ledger.read()
    refuse_damage(contents)
    champion = contents.champion(kind)
    kinds = {"arm": str, "overrides": list[str], "command": str}
    if champion and (fault := fault_in(champion, kinds, "crowned.")):
        raise UserError(f"The champion in {ledger.path} is damaged: {fault}. Restore the line.")
    return champion
