"""What a grid's folder knows of its runs, by which the same command goes on: `grid.json`.

A run is known by what it was composed of, and not by the words or their order: `seed=0,1` and `seed=range(2)` are the
same runs. Beside the configurations the file names the code. A grid that other code has begun isn't gone on with by
itself, since arms must not be trained by different code; `hydra.sweep.dir=<its folder>` asks for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minllm.errors import UserError, printable
from minllm.runs import OUTPUTS, WHERE_DATA_STAND, latest_run, remove_if_empty
from minllm.training.files import lock_taken
from minllm.words import in_quotes, key_of

TRAINS = "minllm.tasks.train.train"
FILE = "grid.json"
LOCK = ".lock"
PATIENCE_SECONDS = 1.0
"""Until the processes of a grid that was killed are gone too."""


@dataclass
class Grid:
    """A grid's folder.

    group: what a logger calls it
    code: a hash of the code that its runs are trained by
    names: the folder of each run in it, by the run's fingerprint
    latest: the run that `latest` meant when the grid began, which its own runs must not take the place of
    remembered: whether it's gone on with; other tasks than training are done again each time
    """

    folder: Path
    group: str
    code: str
    names: dict[str, str] = field(default_factory=dict)
    latest: str | None = None
    remembered: bool = True

    def name_of(self, identity: str, proposed: str) -> str:
        """Return the name of a run's folder; a run that is new here gets the proposed one, unless it's taken."""
        if identity not in self.names:
            taken, name, count = {*self.names.values()}, proposed, 2
            while name in taken:
                name, count = f"{proposed}-{count}", count + 1
            self.names[identity] = name
        return self.names[identity]

    def pin_latest(self, composed: DictConfig) -> None:
        """Have `init_from=latest` and its like mean the same run in all of the grid, and when it goes on."""
        for key in ("resume", "run", "init_from"):
            if composed.get(key) == "latest":
                self.latest = self.latest or str(latest_run())
                composed[key] = self.latest

    def write(self) -> None:
        if self.remembered:
            from minllm.training.rundir import to_json, write_text

            known = {"group": self.group, "code": self.code, "latest": self.latest, "runs": self.names}
            write_text(self.folder / FILE, to_json(known))

    def is_finished(self, identities: Iterable[str]) -> bool:
        return all(is_whole(self.folder / self.names[one]) for one in identities)

    def remove_if_empty(self) -> None:
        """Remove the folder if no run has left anything in it."""
        own = {FILE, LOCK}
        if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} <= own:
            for name in own:
                (self.folder / name).unlink(missing_ok=True)
            remove_if_empty(self.folder)


def grid_for(
    config: DictConfig, subject: Sequence[str], identities: Sequence[str], *, remembered: bool
) -> Grid:
    """Return the grid to go on with, or a new one: where `hydra.sweep.dir` says, else under outputs/.

    Args:
        config: Hydra's, of all runs.
        subject: the words that are varied.
        identities: the runs' fingerprints.
        remembered: whether to look for one at all.
    """
    place = Path(config.hydra.sweep.dir)
    now = datetime.now()
    code = code_hash(config.get("extensions") or [])
    new = Grid(place, f"{now:%Y-%m-%d %H:%M:%S} {' '.join(map(short, subject))}", code, remembered=remembered)
    if not remembered:
        return new
    if (place / FILE).exists():
        found = read(place)
        if found is None:
            raise UserError(f"{place / FILE} is damaged. Choose another folder: hydra.sweep.dir=<folder>.")
        return found
    if any(key_of(word) == "hydra.sweep.dir" for word in config.hydra.overrides.hydra):
        return new
    alike = [one for one in grids() if one.names.keys() == set(identities)]
    same = [one for one in alike if one.code == code]
    if same:
        return same[0]
    if alike and not alike[0].is_finished(identities):
        folder = printable(str(alike[0].folder))
        print(
            f"An unfinished grid of the same runs is in {folder}, but the code has changed since it began, so"
            f" this is a new one. To go on with that one: hydra.sweep.dir={folder}"
        )
    return new


def grids() -> list[Grid]:
    """Return the grids under outputs/ that can be read, the newest first."""
    files = sorted(OUTPUTS.glob(f"*/*/{FILE}"), reverse=True)
    return [grid for file in files if (grid := read(file.parent)) is not None]


def read(folder: Path) -> Grid | None:
    """Return the grid in a folder; None if its file is damaged, or names a place outside the folder."""
    try:
        known = json.loads((folder / FILE).read_text(encoding="utf-8"))
        group, code, names, latest = (known[name] for name in ("group", "code", "runs", "latest"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = all(isinstance(text, str) for text in (group, code, latest or ""))
    if not texts or not isinstance(names, dict):
        return None
    inside = all(isinstance(name, str) and re.fullmatch(r"\w[^/\\\0]*", name) for name in names.values())
    return Grid(folder, group, code, names, latest) if inside else None


@contextlib.contextmanager
def locked(grid: Grid) -> Iterator[None]:
    """Make the folder, and be the only process that runs this grid while the context lasts; a kill ends that too.

    Raises:
        UserError: another does.
    """
    grid.folder.mkdir(parents=True, exist_ok=True)
    if not grid.remembered:
        yield
        return
    lock = lock_taken(
        grid.folder / LOCK,
        PATIENCE_SECONDS,
        f"Another process is running this grid, in {grid.folder}. Wait until it has ended, or choose another"
        " folder: hydra.sweep.dir=<folder>",
    )
    try:
        yield
    finally:
        lock.release()


# ---- runs ----------------------------------------------------------------------------------------


def is_whole(run: Path) -> bool:
    """Whether a run has come to its end."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    figure = summary.get("val_bpb") if isinstance(summary, dict) else None
    return isinstance(figure, (int, float)) and (run / "config.yaml").is_file()


def can_go_on(run: Path) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return (run / "config.yaml").is_file() and any((run / "checkpoints").glob("step-*"))


def going_on(composed: DictConfig, words: Sequence[str], run: Path) -> list[str]:
    """Return a run's words, or those that resume it if there is something to resume in its folder."""
    if composed.task.get("_target_") != TRAINS or not can_go_on(run):
        return list(words)
    composed.resume = str(run)
    trusted = [word for word in words if key_of(word) in ("extensions", *WHERE_DATA_STAND)]
    return [f"resume={in_quotes(str(run))}", *trusted]


def make_ready(run: Path) -> None:
    """Empty the folder of a run that stopped before its first checkpoint: it begins again.

    Raises:
        UserError: it hasn't stopped, or is a link, so that the run would be written elsewhere.
    """
    from minllm.training.rundir import is_going_on

    if run.is_symlink():
        raise UserError(f"{run} is a link to elsewhere, so the run in it can't go on. Remove the link.")
    if (run / "config.yaml").exists() and not can_go_on(run):
        if is_going_on(run):
            raise UserError(f"Another process is training in {run}. Wait until it has ended, or stop it.")
        shutil.rmtree(run)


def fingerprint(composed: DictConfig) -> str:
    """Return what two runs have in common that were composed alike, however they were typed."""
    choices = composed.hydra.runtime.choices.items()
    chosen = {group: choice for group, choice in choices if not str(group).startswith("hydra/")}
    return hashed({**values(composed, aside=()), "choices": chosen})


def likeness(composed: DictConfig) -> str:
    """Return what runs have in common that compute the same, whatever their tags and their logger."""
    return hashed(values(composed, aside=("logger", "tags")))


def hashed(known: Mapping[str, Any]) -> str:
    text = json.dumps(canonical(known), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def values(composed: DictConfig, aside: Sequence[str]) -> dict[str, Any]:
    """Return a configuration's values, but for Hydra's and those of the sections `aside`."""
    known: dict[str, Any] = {}
    for name in composed:
        if name not in ("hydra", "choices", *aside):
            node = composed._get_node(name)
            known[str(name)] = plain(composed, str(name)) if OmegaConf.is_config(node) else node._value()
    return known


def plain(composed: DictConfig, name: str) -> Any:
    try:
        return OmegaConf.to_container(composed[name], resolve=True)
    except OmegaConfBaseException:  # the run will say what is wrong
        return OmegaConf.to_container(composed[name], resolve=False)


def canonical(value: Any) -> Any:
    """Return a value in which equal numbers are written alike: 1e3 as 1000."""
    if isinstance(value, Mapping):
        return {str(key): canonical(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(inner) for inner in value]
    is_whole_number = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole_number else value


# ---- code ----------------------------------------------------------------------------------------


def code_hash(extensions: Iterable[str]) -> str:
    """Return a hash of minllm's code and that of the packages besides."""
    digest = hashlib.sha256()
    for file in (
        *sources(Path(__file__).parent),
        *(file for name in extensions for file in found(str(name))),
    ):
        with contextlib.suppress(OSError):  # an extension's that isn't ours to read
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def found(package: str) -> list[Path]:
    """Return the files of a package or module, without importing it."""
    spec = PathFinder.find_spec(package.partition(".")[0], [*sys.path, "."])
    if spec is None:
        return []
    places = [Path(folder) for folder in spec.submodule_search_locations or []]
    return [file for folder in places for file in sources(folder)] or [Path(spec.origin or "")]


@functools.cache
def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def short(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{re.split('[./]', key_of(key))[-1]}={value}"
