"""Find the runs to compare, and say why a run can't be compared."""

from __future__ import annotations

import functools
import glob
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.runs.documents import DocumentLosses
from minllm.runs.find import OUTPUTS, resume_command
from minllm.runs.folder import DIVERGED, STOPPED, is_running
from minllm.schema.foreign_runs import is_own, without_foreign_paths
from minllm.study import recorded

VERDICT = "verdict.json"
"""A file in the folder of a verdict, which contains the folders of its searches."""
LADDER = "ladder.json"
"""The same of a ladder."""
PROFILE = "profile.json"
"""The same of a profile."""
RATES = "rates.json"
"""The same of a study of learning rates."""
RANKING = "ranking.json"
"""The same of a ranking."""
PROTOCOLS = (VERDICT, LADDER, PROFILE, RATES, RANKING)


@dataclass(frozen=True)
class TrainedRun:
    """A completed run.

    cfg: its configuration, as plain values
    summary: its summary.json
    environment: its environment.json
    """

    folder: Path
    cfg: Mapping[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.summary["seed"]

    @functools.cached_property
    def config(self) -> DictConfig:
        """Its configuration to build from, without outside paths unless the run was made here."""
        cfg = OmegaConf.create(self.cfg)
        return cfg if is_own(self.folder) else without_foreign_paths(cfg)

    @functools.cached_property
    def events(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl; empty if it is lost. Damaged if a line isn't an event."""
        return recorded.read_metrics(self.folder)

    @functools.cached_property
    def train_losses(self) -> tuple[float, ...]:
        """Its finite training losses, one for each line of metrics that has one."""
        losses = [event.get("train_loss") for event in self.events]
        return tuple(loss for loss in losses if isinstance(loss, int | float) and math.isfinite(loss))

    @functools.cached_property
    def documents(self) -> DocumentLosses | None:
        """The loss of each validation document; None if it wasn't recorded. Damaged if its file is."""
        return recorded.read_documents(self.folder, self.summary["val_bpb"])

    @functools.cached_property
    def evaluations(self) -> list[dict[str, float]]:
        """Its metrics with a validation loss: step, tokens, seconds, val_loss, val_bpb. Empty if metrics.jsonl is lost.

        Raises:
            Damaged: a line isn't an event; `read` leaves out such a run.
        """
        return [event for event in self.events if recorded.POINT in event]


@dataclass(frozen=True)
class LeftOut:
    """A run that isn't compared, and the reason as a sentence.

    cfg: its configuration, if known
    lost: how its training failed: it diverged, which is a result, or it ended in another way, such as a crash, that may
        or may not be due to its arm; None if it didn't fail
    """

    folder: Path
    why: str
    cfg: Mapping[str, Any] | None = None
    lost: Literal["diverged", "ended"] | None = None


@dataclass(frozen=True)
class Selection:
    """Which runs to compare: those in `folders`, or all under outputs/, that match the other fields.

    folders: of runs, of grids and searches, or of anything above them; * is a wildcard, and `latest` is the grid that
        was started last
    name: part of the name of the run's folder, or of its grid's
    tag: one of the run's tags
    choice: choices of the run, such as norm=pre
    date: the day of the run, such as 2026-11-25
    """

    folders: Sequence[str]
    name: str | None = None
    tag: str | None = None
    choice: Sequence[str] = ()
    date: str | None = None

    def __post_init__(self):
        if not self.folders and self.is_by_folder:
            raise UserError(
                "No runs were selected. Type 'runs=[outputs/…]', where a grid's folder selects all its runs, or select"
                " runs by name=, tag=, 'choice=[norm=pre]' or date=."
            )

    @property
    def is_by_folder(self) -> bool:
        return not (self.name or self.tag or self.choice or self.date)

    def matches(self, folder: Path, cfg: Mapping[str, Any]) -> bool:
        made = {f"{group}={option}" for group, option in cfg["choices"].items()}
        made |= {choice.rpartition("/")[2] for choice in made}
        return (
            (self.name is None or self.name in "/".join(folder.parts[-3:]))
            and (self.tag is None or self.tag in (cfg.get("tags") or []))
            and all(choice in made for choice in self.choice)
            and (self.date is None or self.date == date_of(folder))
        )


def find(selection: Selection, extensions: Iterable[str] = ()) -> tuple[list[TrainedRun], list[LeftOut]]:
    """Return the completed runs in the order of their folders, and the others with the reason why they are left out.

    Args:
        extensions: packages besides minllm that a run's configuration may use code from.

    Raises:
        UserError: a folder doesn't exist or has no runs, or no run matches.
    """
    runs: list[TrainedRun] = []
    left_out: list[LeftOut] = []
    for folder in folders_of(selection.folders):
        try:
            cfg = recorded.read_config(folder, extensions)
        except recorded.Damaged as error:
            if selection.is_by_folder:  # otherwise it is unknown whether it was selected
                left_out.append(LeftOut(folder, str(error)))
            continue
        if selection.matches(folder, cfg):
            run = read(folder, cfg)
            (left_out if isinstance(run, LeftOut) else runs).append(run)
    if not runs and not left_out:
        raise UserError(
            "No run matches. A run's `choices` and `tags` are in its config.yaml, and its date is the day in its"
            " folder's name, such as date=2026-11-25."
        )
    return runs, left_out


def folders_of(patterns: Sequence[str]) -> list[Path]:
    """Return the folders of all runs in the named folders, without duplicates."""
    folders: dict[Path, None] = {}
    for pattern in patterns or [str(OUTPUTS)]:
        place = latest_grid() if pattern == "latest" else Path(pattern).expanduser()
        matches = [str(place)] if place.exists() else sorted(glob.glob(str(place)), key=in_natural_order)
        inside = [folder for match in matches for folder in runs_in(Path(match))]
        if not inside:
            where = f"There is no folder '{pattern}'" if not matches else f"There is no run in '{pattern}'"
            raise UserError(
                f"{where}. Give the folder of a run, a grid or a search, such as outputs/<date>/…"
            )
        folders.update(dict.fromkeys(folder.resolve() for folder in inside))
    return list(folders)


def latest_grid() -> Path:
    """Return the folder of the grid that was started last."""
    grids = sorted(OUTPUTS.glob("*/*-grid-*"))
    if not grids:
        raise UserError(
            f"There is no grid under {OUTPUTS.resolve()} yet. Train one: python run.py -m norm=pre,post seed=0,1,2"
        )
    return grids[-1]


def runs_in(folder: Path) -> Iterator[Path]:
    """Yield the runs in a folder, which may itself be a run. Folders inside a run, such as W&B's, aren't searched.

    A folder that can't be read is yielded too, so that it is reported. A folder reached again by links is skipped.
    """
    yield from runs_below(folder, set())


def runs_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if recorded.is_there(folder, "config.yaml"):  # even a damaged run, so that it is reported
        yield folder
    elif folder.is_dir() and (real := folder.resolve()) not in seen:
        seen.add(real)
        try:
            inside = sorted(filter(Path.is_dir, folder.iterdir()), key=in_natural_order)
        except OSError:
            yield folder
            return
        for inner in inside:
            yield from runs_below(inner, seen)


def in_natural_order(path: str | Path) -> list[tuple[int, str]]:
    """Sort 2-mqa before 10-mha."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def date_of(folder: Path) -> str:
    """Return the day of a run from its folder's path, or else from its files."""
    dated = [part for part in folder.parts if re.fullmatch(r"\d{4}-\d\d-\d\d", part)]
    made = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
    return dated[-1] if dated else f"{made:%Y-%m-%d}"


def read(folder: Path, cfg: Mapping[str, Any]) -> TrainedRun | LeftOut:
    """Return a run, or why it can't be compared."""

    def left_out(why: str, lost: Literal["diverged", "ended"] | None = None) -> LeftOut:
        return LeftOut(folder, why, cfg, lost)

    go_on = f"To continue: {resume_command(folder, cfg.get('extensions') or [])}"
    if is_running(folder):
        return left_out("It's still running.")
    if is_tuning_run(folder):
        return left_out("It tried a learning rate or took a measurement for a verdict or another protocol.")
    try:
        ending = recorded.read_ending(folder)
        if ending.get("state", "complete") != "complete":
            lost = "diverged" if ending.get("reason") == "diverged" else "ended"
            return left_out(f"It was ended by its search. {ending['text']}", lost)
        if not recorded.is_there(folder, "summary.json"):
            if not recorded.is_there(folder, "metrics.jsonl"):
                return left_out("It wasn't trained: it has no metrics.jsonl.")
            if STOPPED in last_line(folder):
                return left_out(f"It was stopped before it finished. {go_on}")
            if DIVERGED in last_line(folder):
                return left_out(
                    "Its training diverged: the loss or the gradient became NaN or infinite.", "diverged"
                )
            return left_out(f"It crashed or was killed before it finished. {go_on}", "ended")
        run = TrainedRun(folder, cfg, recorded.read_summary(folder), recorded.read_environment(folder))
        if run.seed != cfg["seed"]:
            return left_out(
                f"Its summary.json has seed {run.seed}, but its config.yaml has seed {cfg['seed']}."
            )
        run.evaluations  # noqa: B018  (read now, to find damage before anything is compared)
    except recorded.Diverged:
        return left_out("Its validation loss is NaN or infinite.", "diverged")
    except recorded.Damaged as error:
        return left_out(str(error))
    return run


def is_tuning_run(folder: Path) -> bool:
    """Whether a protocol made this run to tune a learning rate, or to measure its time or its loss at the start."""
    made = any((folder.parents[1] / file).is_file() for file in PROTOCOLS)
    return folder.parent.name.startswith(("tune-", "time-", "start-")) and made


def last_line(folder: Path) -> str:
    """Return the last line of a run's log, or "" if it can't be read."""
    try:
        lines = recorded.read_text(folder, "log.txt").splitlines()
    except recorded.Damaged:
        return ""
    return lines[-1] if lines else ""


def leaves(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as a flat dict with full keys: {"model.dim": 128, …}."""

    def inside(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from inside(f"{key}.{name}" if key else str(name), inner)
        else:
            yield key, value

    return dict(inside("", OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg))
