"""Runs as a comparison finds them: where they are, what each came to, and why one can't be compared."""

from __future__ import annotations

import functools
import glob
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.runs import OUTPUTS, command_to_go_on, read_run
from minllm.sweep import outcome
from minllm.training.rundir import STOPPED, is_going_on

NEEDED = (
    "val_bpb",
    "validation_text",
    "seed",
    "params",
    "params_active",
    "params_non_embedding",
    "flops_per_token",
    "state_bytes_per_sequence",
    "tokens",
    "tokens_per_second",
    "wall_seconds",
    "peak_memory_bytes",
    "decisions",
)
NEEDED_OF_ENVIRONMENT = ("versions", "cpu", "gpu", "threads", "git")
VERDICT = "verdict.json"
"""What lies in the folder of a verdict, above those of its searches."""
POINT = {"step", "tokens", "seconds", "val_bpb"}
"""What a line of metrics has that is a point of a learning curve."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that came to its end.

    cfg: what it was configured with
    summary: its summary.json
    environment: its environment.json
    """

    folder: Path
    cfg: DictConfig
    summary: dict[str, Any]
    environment: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.summary["seed"]

    @functools.cached_property
    def evaluations(self) -> list[dict[str, float]]:
        """Its metrics' lines with a validation loss: step, tokens, seconds, val_loss, val_bpb. None if it's lost."""
        metrics = self.folder / "metrics.jsonl"
        if not metrics.exists():
            return []
        events = map(parsed, metrics.read_text(encoding="utf-8", errors="replace").splitlines())
        return [event for event in events if event.keys() >= POINT]


def parsed(line: str) -> dict[str, Any]:
    """Return a line of metrics; one that is torn or isn't ours is empty."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


@dataclass(frozen=True)
class LeftOut:
    """A run that isn't compared, and the reason in a sentence.

    cfg: what it was configured with, if that is known
    failed: whether training it failed, so that its seed may be missing because of what it was
    """

    folder: Path
    why: str
    cfg: DictConfig | None = None
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

    def matches(self, folder: Path, cfg: DictConfig) -> bool:
        made = {f"{group}={option}" for group, option in cfg.choices.items()}
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
            cfg = read_run(folder, extensions)
        except UserError as error:
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
    """Yield the runs in a folder, which may be one itself: what is inside a run, such as W&B's files, is none."""
    if (folder / "config.yaml").is_file():
        yield folder
    elif folder.is_dir():
        for inside in sorted(filter(Path.is_dir, folder.iterdir()), key=in_natural_order):
            yield from runs_in(inside)


def in_natural_order(path: str | Path) -> list[tuple[int, str]]:
    """Sort 2-mqa before 10-mha."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def date_of(folder: Path) -> str:
    """Return the day on which a run was made, by the folder it is in; else by its files."""
    dated = [part for part in folder.parts if re.fullmatch(r"\d{4}-\d\d-\d\d", part)]
    made = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
    return dated[-1] if dated else f"{made:%Y-%m-%d}"


def read(folder: Path, cfg: DictConfig) -> TrainedRun | LeftOut:
    """Return a run, or why it can't be compared."""

    def left_out(why: str, failed: bool = False) -> LeftOut:
        return LeftOut(folder, why, cfg, failed)

    go_on = f"To go on: {command_to_go_on(folder, cfg.get('extensions') or [])}"
    if "${" in (folder / "config.yaml").read_text(encoding="utf-8"):
        return LeftOut(folder, "Its config.yaml refers to other values (${…}), which a run's own never does.")
    if is_going_on(folder):
        return left_out("It's still going.")
    if tried_a_rate(folder):
        return left_out("It tried a learning rate for a verdict.")
    if pruned := pruned_by_search(folder):
        return left_out(pruned, failed=True)
    if not (folder / "summary.json").exists():
        if not (folder / "metrics.jsonl").exists():
            return left_out("It wasn't trained: it has no metrics.jsonl.")
        if STOPPED in last_line(folder / "log.txt"):
            return left_out(f"It was stopped before its end. {go_on}")
        return left_out(f"It crashed or was killed before its end. {go_on}", failed=True)
    try:
        summary, environment = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("summary.json", "environment.json")
        )
        if not isinstance(summary, dict) or not isinstance(environment, dict):
            raise TypeError("another file's")
        lacking = [name for name in NEEDED if name not in summary]
        lacking += [name for name in NEEDED_OF_ENVIRONMENT if name not in environment]
        finite = lacking or math.isfinite(summary["val_bpb"])
    except (OSError, ValueError, TypeError):
        return left_out("Its summary.json or environment.json is damaged.")
    if lacking[:1] == ["validation_text"]:
        return left_out(
            "It was made by an older minllm, which didn't note its validation text. Train it again."
        )
    if lacking:
        return left_out(f"Its summary.json or environment.json has no '{lacking[0]}'.")
    if not finite:
        return left_out("Its validation loss isn't a finite number.", failed=True)
    return TrainedRun(folder, cfg, summary, environment)


def tried_a_rate(folder: Path) -> bool:
    """Whether a run is one of those that a verdict tunes learning rates with."""
    return folder.parent.name.startswith("tune-") and (folder.parents[1] / VERDICT).is_file()


def pruned_by_search(folder: Path) -> str | None:
    try:
        left = json.loads((folder / outcome.FILE).read_text(encoding="utf-8"))
        return None if left["state"] == "complete" else f"Its search ended it. {left['text']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return lines[-1] if lines else ""


def leaves(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration's values by their full keys: {"model.dim": 128, …}."""

    def inside(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from inside(f"{key}.{name}" if key else str(name), inner)
        else:
            yield key, value

    return dict(inside("", OmegaConf.to_container(cfg, resolve=True)))
