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
from minllm.runs import OUTPUTS, read_run
from minllm.sweep import outcome
from minllm.training.rundir import is_going_on


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
        events = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
        return [event for event in events if "val_bpb" in event]


@dataclass(frozen=True)
class LeftOut:
    """A run that isn't compared, and the reason in a sentence."""

    folder: Path
    why: str


@dataclass(frozen=True)
class Wanted:
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
        if not (self.folders or self.name or self.tag or self.choice or self.date):
            raise UserError(
                "Say which runs to compare: 'runs=[outputs/…]', where a grid's folder stands for its runs, or by"
                " name=, tag=, 'choice=[norm=pre]' or date=."
            )

    def has(self, folder: Path, cfg: DictConfig) -> bool:
        made = {f"{group}={option}" for group, option in cfg.choices.items()}
        made |= {choice.rpartition("/")[2] for choice in made}
        return (
            (self.name is None or self.name in "/".join(folder.parts[-3:]))
            and (self.tag is None or self.tag in (cfg.get("tags") or []))
            and all(choice in made for choice in self.choice)
            and (self.date is None or self.date == date_of(folder))
        )


def find(wanted: Wanted, extensions: Iterable[str] = ()) -> tuple[list[TrainedRun], list[LeftOut]]:
    """Return the runs that came to their end, in the order of their folders, and the others with the reason.

    Args:
        extensions: packages besides minllm that a run's configuration may take code from.

    Raises:
        UserError: a folder isn't there or has no runs, or nothing is as wanted.
    """
    found: list[TrainedRun] = []
    left_out: list[LeftOut] = []
    for folder in folders_of(wanted.folders):
        try:
            cfg = read_run(folder, extensions)
        except UserError as error:
            left_out.append(LeftOut(folder, str(error)))
            continue
        if wanted.has(folder, cfg):
            why = unfinished(folder)
            if why is None:
                found.append(trained(folder, cfg))
            else:
                left_out.append(LeftOut(folder, why))
    if not found and not left_out:
        raise UserError(
            "No run is as you say. Each run's folder has its choices, tags and date in config.yaml."
        )
    return found, left_out


def folders_of(named: Sequence[str]) -> list[Path]:
    """Return the folders of all runs in some folders, each once."""
    found: dict[Path, None] = {}
    for word in named or [str(OUTPUTS)]:
        place = latest_grid() if word == "latest" else Path(word).expanduser()
        matches = sorted(glob.glob(str(place)), key=in_natural_order)
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
    """Yield the runs in a folder, which may be one itself."""
    if (folder / "config.yaml").is_file():
        yield folder
    else:
        yield from sorted((file.parent for file in folder.rglob("config.yaml")), key=in_natural_order)


def in_natural_order(path: str | Path) -> list[tuple[int, str]]:
    """Sort 2-mqa before 10-mha."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def date_of(folder: Path) -> str:
    """Return the day on which a run was made, by the folder it is in; else by its files."""
    dated = [part for part in folder.parts if re.fullmatch(r"\d{4}-\d\d-\d\d", part)]
    made = datetime.fromtimestamp((folder / "config.yaml").stat().st_mtime)
    return dated[-1] if dated else f"{made:%Y-%m-%d}"


def unfinished(folder: Path) -> str | None:
    """Say why a run can't be compared; None if it came to its end as it should."""
    go_on = f"To go on: python run.py resume={folder}"
    if is_going_on(folder):
        return "It's still going."
    if pruned := pruned_by_search(folder):
        return pruned
    if not (folder / "summary.json").exists():
        if not (folder / "metrics.jsonl").exists():
            return "It wasn't trained: it has no metrics.jsonl."
        if "Stopped at step" in last_line(folder / "log.txt"):
            return f"It was stopped before its end. {go_on}"
        return f"It crashed or was killed before its end. {go_on}"
    try:
        summary, environment = notes(folder)
    except (OSError, ValueError):
        summary = environment = None
    if not isinstance(summary, dict) or not isinstance(environment, dict):
        return "Its summary.json or environment.json is damaged."
    if not math.isfinite(summary.get("val_bpb") or math.nan):
        return "Its validation loss is no number."
    if "validation_text" not in summary:
        return "It was made by an older minllm, which didn't note its validation text. Train it again."
    return None


def pruned_by_search(folder: Path) -> str | None:
    try:
        left = json.loads((folder / outcome.FILE).read_text(encoding="utf-8"))
        return None if left["state"] == "complete" else f"Its search ended it. {left['text']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return lines[-1] if lines else ""


def trained(folder: Path, cfg: DictConfig) -> TrainedRun:
    return TrainedRun(folder, cfg, *notes(folder))


def notes(folder: Path) -> list[Any]:
    """Return what a run's summary.json and environment.json hold."""
    return [
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("summary.json", "environment.json")
    ]


def leaves(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration's values by their full keys: {"model.dim": 128, …}."""

    def inside(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from inside(f"{key}.{name}" if key else str(name), inner)
        else:
            yield key, value

    return dict(inside("", OmegaConf.to_container(cfg, resolve=True)))
