"""A grid's manifest, `grid.json`, which lets the same command continue an unfinished grid.

A run is identified by its composed configuration, and not by the overrides or their order: `seed=0,1` and
`seed=range(2)` are the same runs. The file also has a hash of the code. A grid begun with other code isn't continued
automatically, because all arms must be trained by the same code; `hydra.sweep.dir=<its folder>` continues it anyway.
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
from minllm.files.atomic import acquire_lock
from minllm.runs.find import DATA_LOCATION, OUTPUTS, latest_run, remove_if_empty
from minllm.schema.overrides import in_quotes, key_of

TRAINS = "minllm.tasks.train.train"
FILE = "grid.json"
LOCK = ".lock"
PATIENCE_SECONDS = 1.0
"""How long to wait for the processes of a killed grid to end."""


@dataclass
class Grid:
    """A grid's folder.

    group: its name in a logger
    code: a hash of the code that trains its runs
    names: the folder name of each run, by the run's fingerprint
    latest: the run that `latest` referred to when the grid began, before it had runs of its own
    remembered: whether it can be continued; tasks other than training are repeated each time
    """

    folder: Path
    group: str
    code: str
    names: dict[str, str] = field(default_factory=dict)
    latest: str | None = None
    remembered: bool = True

    def name_of(self, identity: str, proposed: str) -> str:
        """Return the name of a run's folder; a new run gets the proposed name, with a number if it is taken."""
        if identity not in self.names:
            taken, name, count = {*self.names.values()}, proposed, 2
            while name in taken:
                name, count = f"{proposed}-{count}", count + 1
            self.names[identity] = name
        return self.names[identity]

    def pin_latest(self, composed: DictConfig) -> None:
        """Make `latest` in `init_from` and the like the same run for the whole grid, also when it is continued."""
        for key in ("resume", "run", "init_from", "branch_from"):
            if composed.get(key) == "latest":
                self.latest = self.latest or str(latest_run())
                composed[key] = self.latest

    def write(self) -> None:
        if self.remembered:
            from minllm.runs.folder import to_json, write_text

            known = {"group": self.group, "code": self.code, "latest": self.latest, "runs": self.names}
            write_text(self.folder / FILE, to_json(known))

    def is_finished(self, identities: Iterable[str]) -> bool:
        return all(is_complete_run(self.folder / self.names[identity]) for identity in identities)

    def remove_if_empty(self) -> None:
        """Remove the folder if it contains no runs."""
        own = {FILE, LOCK}
        if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} <= own:
            for name in own:
                (self.folder / name).unlink(missing_ok=True)
            remove_if_empty(self.folder)


def grid_for(
    config: DictConfig, subject: Sequence[str], identities: Sequence[str], *, remembered: bool
) -> Grid:
    """Return the grid to continue, or a new one, in `hydra.sweep.dir` or else under outputs/.

    Args:
        config: Hydra's configuration, common to all runs.
        subject: the overrides that are varied.
        identities: the runs' fingerprints.
        remembered: whether the grid can be continued.
    """
    place = Path(config.hydra.sweep.dir)
    now = datetime.now()
    code = code_hash(config.get("extensions") or [])
    new = Grid(place, f"{now:%Y-%m-%d %H:%M:%S} {' '.join(map(short, subject))}", code, remembered=remembered)
    if not remembered:
        return new
    if (place / FILE).exists():
        existing = read(place)
        if existing is None:
            raise UserError(f"{place / FILE} is damaged. Choose another folder: hydra.sweep.dir=<folder>.")
        return existing
    if any(key_of(override) == "hydra.sweep.dir" for override in config.hydra.overrides.hydra):
        return new
    alike = [grid for grid in grids() if grid.names.keys() == set(identities)]
    same = [grid for grid in alike if grid.code == code]
    if same:
        return same[0]
    if alike and not alike[0].is_finished(identities):
        folder = printable(str(alike[0].folder))
        print(
            f"{folder} has an unfinished grid of the same runs, but the code has changed, so this is a new grid."
            f" To continue the old one, add hydra.sweep.dir={folder}"
        )
    return new


def grids() -> list[Grid]:
    """Return the readable grids under outputs/, the newest first."""
    files = sorted(OUTPUTS.glob(f"*/*/{FILE}"), reverse=True)
    return [grid for file in files if (grid := read(file.parent)) is not None]


def read(folder: Path) -> Grid | None:
    """Return the grid in a folder; None if its file is damaged or names a path outside the folder."""
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
    """Create the folder and hold its lock, which is also released if the process is killed.

    Raises:
        UserError: another process runs this grid.
    """
    grid.folder.mkdir(parents=True, exist_ok=True)
    if not grid.remembered:
        yield
        return
    lock = acquire_lock(
        grid.folder / LOCK,
        PATIENCE_SECONDS,
        f"Another process is running this grid in {grid.folder}. Wait until it has ended, or choose another"
        " folder: hydra.sweep.dir=<folder>",
    )
    try:
        yield
    finally:
        lock.release()


# ---- runs ----------------------------------------------------------------------------------------


def is_complete_run(run: Path) -> bool:
    """Whether a run is complete."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    metric = summary.get("val_bpb") if isinstance(summary, dict) else None
    return isinstance(metric, (int, float)) and (run / "config.yaml").is_file()


def has_checkpoint(run: Path) -> bool:
    """Whether a run has a checkpoint to resume from."""
    return (run / "config.yaml").is_file() and any((run / "checkpoints").glob("step-*"))


def overrides_to_continue(composed: DictConfig, overrides: Sequence[str], run: Path) -> list[str]:
    """Return a run's overrides, or those that resume it if its folder has a checkpoint."""
    if composed.task.get("_target_") != TRAINS or not has_checkpoint(run):
        return list(overrides)
    composed.resume = str(run)
    trusted = [override for override in overrides if key_of(override) in ("extensions", *DATA_LOCATION)]
    return [f"resume={in_quotes(str(run))}", *trusted]


def prepare_folder(run: Path) -> None:
    """Remove the folder of a run that stopped before its first checkpoint, so that it starts again.

    Raises:
        UserError: the run is still training, or its folder is a symbolic link.
    """
    from minllm.runs.folder import is_running

    if run.is_symlink():
        raise UserError(f"{run} is a symbolic link, so the run can't be continued in it. Remove the link.")
    if (run / "config.yaml").exists() and not has_checkpoint(run):
        if is_running(run):
            raise UserError(f"Another process is training in {run}. Wait until it has ended, or stop it.")
        shutil.rmtree(run)


def fingerprint(composed: DictConfig) -> str:
    """Return a hash of a run's composed configuration and choices, whatever the overrides were."""
    choices = composed.hydra.runtime.choices.items()
    chosen = {group: choice for group, choice in choices if not str(group).startswith("hydra/")}
    return hashed({**values(composed, ignored=()), "choices": chosen})


def computation_hash(composed: DictConfig) -> str:
    """Return a hash that is equal for runs that compute the same; tags and logger don't count."""
    return hashed(values(composed, ignored=("logger", "tags")))


def hashed(known: Mapping[str, Any]) -> str:
    text = json.dumps(canonical(known), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def values(composed: DictConfig, ignored: Sequence[str]) -> dict[str, Any]:
    """Return a configuration's values, except those of Hydra and of the sections `ignored`."""
    known: dict[str, Any] = {}
    for name in composed:
        if name not in ("hydra", "choices", *ignored):
            node = composed._get_node(name)
            known[str(name)] = plain(composed, str(name)) if OmegaConf.is_config(node) else node._value()
    return known


def plain(composed: DictConfig, name: str) -> Any:
    try:
        return OmegaConf.to_container(composed[name], resolve=True)
    except OmegaConfBaseException:  # the run reports it
        return OmegaConf.to_container(composed[name], resolve=False)


def canonical(value: Any) -> Any:
    """Normalize numbers so that equal ones are written alike: 1e3 as 1000."""
    if isinstance(value, Mapping):
        return {str(key): canonical(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(inner) for inner in value]
    is_whole_number = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole_number else value


# ---- code ----------------------------------------------------------------------------------------


def code_hash(extensions: Iterable[str]) -> str:
    """Return a hash of the code of minllm and of the given packages."""
    digest = hashlib.sha256()
    for file in (
        *sources(Path(__file__).parent),
        *(file for name in extensions for file in package_files(str(name))),
    ):
        with contextlib.suppress(OSError):  # an unreadable file of an extension
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def package_files(package: str) -> list[Path]:
    """Return the files of a package or module, without importing it."""
    spec = PathFinder.find_spec(package.partition(".")[0], [*sys.path, "."])
    if spec is None:
        return []
    places = [Path(folder) for folder in spec.submodule_search_locations or []]
    return [file for folder in places for file in sources(folder)] or [Path(spec.origin or "")]


@functools.cache
def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{re.split('[./]', key_of(key))[-1]}={value}"
