"""Runs as a comparison finds them: where they are, what each came to, and why one can't be compared."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.elsewhere import is_own, without_places
from minllm.errors import UserError
from minllm.runs import OUTPUTS, command_to_go_on
from minllm.study import recorded
from minllm.training.rundir import STOPPED, is_going_on

VERDICT = "verdict.json"
"""What lies in the folder of a verdict, above those of its searches."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that came to its end.

    cfg: what it was configured with, as plain values
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
        """What it was configured with, to build from; without places outside, if it wasn't made here."""
        cfg = OmegaConf.create(self.cfg)
        return cfg if is_own(self.folder) else without_places(cfg)

    @functools.cached_property
    def evaluations(self) -> list[dict[str, float]]:
        """Its metrics' lines with a validation loss: step, tokens, seconds, val_loss, val_bpb. None if it's lost.

        Raises:
            Damaged: a line isn't an event; `read` leaves such a run out.
        """
        return [event for event in recorded.read_metrics(self.folder) if recorded.POINT in event]


@dataclass(frozen=True)
class LeftOut:
    """A run that isn't compared, and the reason in a sentence.

    cfg: what it was configured with, if that is known
    failed: whether training it failed, so that its seed may be missing because of what it was
    """

    folder: Path
    why: str
    cfg: Mapping[str, Any] | None = None
    failed: bool = False


@dataclass(frozen=True)
class Selection:
    """Which runs to look at: those in `folders`, or all under outputs/, as far as the rest says.

    folders: of runs, of grids and searches, or anything above them; a * stands for anything, and latest for the grid
        that was begun last
    name: a part of the folder's name, or of its grid's
    tag: one of its tags
    choice: choices that it has made, such as norm=pre
    date: the day it was made on, such as 2026-11-25
    """

    folders: Sequence[str]
    name: str | None = None
    tag: str | None = None
    choice: Sequence[str] = ()
    date: str | None = None

    def __post_init__(self):
        if not self.folders and self.is_by_folder:
            raise UserError(
                "Say which runs to compare: 'runs=[outputs/…]', where a grid's folder stands for its runs, or by"
                " name=, tag=, 'choice=[norm=pre]' or date=."
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
    """Return the runs that came to their end, in the order of their folders, and the others with the reason.

    Args:
        extensions: packages besides minllm that a run's configuration may take code from.

    Raises:
        UserError: a folder isn't there or has no runs, or nothing is as wanted.
    """
    found: list[TrainedRun] = []
    left_out: list[LeftOut] = []
    for folder in folders_of(selection.folders):
        try:
            cfg = recorded.read_config(folder, extensions)
        except recorded.Damaged as error:
            if selection.is_by_folder:  # else nobody knows whether it was meant
                left_out.append(LeftOut(folder, str(error)))
            continue
        if selection.matches(folder, cfg):
            run = read(folder, cfg)
            (left_out if isinstance(run, LeftOut) else found).append(run)
    if not found and not left_out:
        raise UserError(
            "No run matches. A run's config.yaml has its `choices` and `tags`, and its date is the day in its folder's"
            " name: date=2026-11-25."
        )
    return found, left_out


def folders_of(named: Sequence[str]) -> list[Path]:
    """Return the folders of all runs in some folders, each once."""
    found: dict[Path, None] = {}
    for word in named or [str(OUTPUTS)]:
        place = latest_grid() if word == "latest" else Path(word).expanduser()
        matches = [str(place)] if place.exists() else sorted(glob.glob(str(place)), key=in_natural_order)
        inside = [folder for match in matches for folder in runs_in(Path(match))]
        if not inside:
            where = f"There is no folder '{word}'" if not matches else f"There is no run in '{word}'"
            raise UserError(
                f"{where}. Name the folder of a run, of a grid or of a search, such as outputs/<date>/…"
            )
        found.update(dict.fromkeys(folder.resolve() for folder in inside))
    return list(found)


def latest_grid() -> Path:
    """Return the folder of the grid that was begun last."""
    grids = sorted(OUTPUTS.glob("*/*-grid-*"))
    if not grids:
        raise UserError(
            f"There is no grid under {OUTPUTS.resolve()} yet. Train one: python run.py -m norm=pre,post seed=0,1,2"
        )
    return grids[-1]


def runs_in(folder: Path) -> Iterator[Path]:
    """Yield the runs in a folder, which may be one itself: what is inside a run, such as W&B's files, is none.

    A folder that can't be looked into is yielded too, so that it's named; one that links lead to again, once.
    """
    yield from runs_below(folder, set())


def runs_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if recorded.is_there(folder, "config.yaml"):  # whatever it is, so that a damaged run is named
        yield folder
    elif folder.is_dir() and (real := folder.resolve()) not in seen:
        seen.add(real)
        try:
            inside = sorted(filter(Path.is_dir, folder.iterdir()), key=in_natural_order)
        except OSError:
            yield folder
            return
        for one in inside:
            yield from runs_below(one, seen)


def in_natural_order(path: str | Path) -> list[tuple[int, str]]:
    """Sort 2-mqa before 10-mha."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def date_of(folder: Path) -> str:
    """Return the day on which a run was made, by the folder it is in; else by its files."""
    dated = [part for part in folder.parts if re.fullmatch(r"\d{4}-\d\d-\d\d", part)]
    made = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
    return dated[-1] if dated else f"{made:%Y-%m-%d}"


def read(folder: Path, cfg: Mapping[str, Any]) -> TrainedRun | LeftOut:
    """Return a run, or why it can't be compared."""

    def left_out(why: str, failed: bool = False) -> LeftOut:
        return LeftOut(folder, why, cfg, failed)

    go_on = f"To go on: {command_to_go_on(folder, cfg.get('extensions') or [])}"
    if is_going_on(folder):
        return left_out("It's still going.")
    if tried_a_rate(folder):
        return left_out("It tried a learning rate for a verdict.")
    try:
        ending = recorded.read_ending(folder)
        if ending.get("state", "complete") != "complete":
            return left_out(f"Its search ended it. {ending['text']}", failed=True)
        if not recorded.is_there(folder, "summary.json"):
            if not recorded.is_there(folder, "metrics.jsonl"):
                return left_out("It wasn't trained: it has no metrics.jsonl.")
            if STOPPED in last_line(folder):
                return left_out(f"It was stopped before its end. {go_on}")
            return left_out(f"It crashed or was killed before its end. {go_on}", failed=True)
        run = TrainedRun(folder, cfg, recorded.read_summary(folder), recorded.read_environment(folder))
        if run.seed != cfg["seed"]:
            return left_out(
                f"Its summary.json is of seed {run.seed}, and its config.yaml of seed {cfg['seed']}."
            )
        run.evaluations  # noqa: B018  (read now: what is damaged must be known before anything is compared)
    except recorded.Diverged:
        return left_out("Its validation loss isn't a finite number.", failed=True)
    except recorded.Damaged as error:
        return left_out(str(error))
    return run


def tried_a_rate(folder: Path) -> bool:
    """Whether a run is one of those that a verdict tunes learning rates with."""
    return folder.parent.name.startswith("tune-") and (folder.parents[1] / VERDICT).is_file()


def last_line(folder: Path) -> str:
    """Return the last line of a run's log; "" where there is none to read."""
    try:
        lines = recorded.read_text(folder, "log.txt").splitlines()
    except recorded.Damaged:
        return ""
    return lines[-1] if lines else ""


def leaves(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's values by their full keys: {"model.dim": 128, …}."""

    def inside(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from inside(f"{key}.{name}" if key else str(name), inner)
        else:
            yield key, value

    return dict(inside("", OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg))
