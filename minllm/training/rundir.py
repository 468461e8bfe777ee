"""The folder of a run: what is in it, and how it is written so that it is never half written.

config.yaml       the composed configuration
environment.json  versions, machine and git commit; a mark by which this machine knows its own runs
metrics.jsonl     one line an event: the source of truth
log.txt           what was said, in plain lines
samples.txt       what the model wrote along the way
summary.json      the figures at the end
tokenizer/        what the run's tokenizer needs, where it needs anything
checkpoints/
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from minllm.elsewhere import mark
from minllm.errors import UserError, printable
from minllm.tokenizer import Tokenizer
from minllm.training.files import (
    contents,
    lock_taken,
    refuse_links,
    set_aside,
    without_links,
    write_bytes,
    write_text,
)
from minllm.training.records import METRICS, SAMPLES, Kept, kept_of, sample_text

if TYPE_CHECKING:
    from filelock import FileLock

LOCK = ".lock"
LOOKED_AT_SECONDS = 1.0
"""Longer than anyone holds a run's lock who only looks whether it's held."""
STOPPED = "Stopped at step"
"""How the last line of a log begins when a run was stopped before its end."""
FILES = ("config.yaml", "environment.json", "metrics.jsonl", "log.txt", "samples.txt", "summary.json", LOCK)
FOLDERS = ("checkpoints", "tokenizer")
APPENDED = ("metrics.jsonl", "log.txt", "samples.txt", LOCK)
CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What a write fails with when the folder was removed, or something else was put in a file's place."""


class RunDir:
    """Writes the folder of one run. A full disk and a forbidden folder raise OSError."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        # a progress bar on a terminal; plain lines anywhere else
        self.on_terminal = sys.stderr.isatty()
        self._lock: FileLock | None = None
        self._begun: tuple[str, str, Tokenizer] | None = None
        self._described: list[Path] = []
        self._logs = True

    def refuse_another_run(self) -> None:
        """Raise UserError if there is a run in this folder already."""
        if (self.path / "config.yaml").exists():
            raise UserError(
                f"There is a run in {self.path} already. Go on with it (resume={self.path}), remove it, or choose"
                " another place with hydra.run.dir=<folder>."
            )

    def begin(self, cfg: DictConfig, tokenizer: Tokenizer) -> None:
        """Make the folder and write down what is about to be done, and where."""
        config = OmegaConf.to_yaml(cfg, resolve=True)
        self._begun = config, to_json({**environment(), "mark": mark(config)}), tokenizer
        self._describe()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and be the only process that trains in it while the context lasts; a kill ends that too.

        A folder in which no run has begun when the context ends is left as it was.

        Raises:
            UserError: another process trains in it, or it has links that lead elsewhere.
        """
        if self._lock is not None:  # held by an outer context
            yield
            return
        refuse_links(self.path, appended=APPENDED)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        unlocked = not (self.path / LOCK).exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            yield
        finally:
            if unlocked and self._begun is None:
                (self.path / LOCK).unlink(missing_ok=True)
            self._release()
            with contextlib.suppress(OSError):  # it's in use
                for folder in made:
                    folder.rmdir()

    def kept(self, step: int, marks: Mapping[str, list[int]]) -> Kept:
        """Return what stays of metrics and samples if the run goes on from `step`; nothing is written.

        What was written after `step` goes, and so does a last line or sample that a kill has torn.

        Args:
            marks: what the checkpoint of that step has noted of these files.

        Raises:
            UserError: a line of the metrics is damaged.
        """
        return kept_of(self.path, step, marks, torn=self._sampling.exists())

    def resume_at(self, step: int, marks: Mapping[str, list[int]]) -> Kept:
        """Cut what was written after `step`, as if the run had stopped there, and return what is kept."""
        kept = self.kept(step, marks)
        if kept.metrics is not None:
            write_bytes(self.path / METRICS, kept.metrics)
        if kept.samples is not None:
            write_bytes(self.path / SAMPLES, kept.samples)
        self._sampling.unlink(missing_ok=True)
        (self.path / "summary.json").unlink(missing_ok=True)  # of an end that isn't the end any more
        return kept

    def is_finished(self, step: int) -> bool:
        """Whether the run has written its summary after `step` steps."""
        try:
            summary = json.loads(contents(self.path / "summary.json"))
        except (ValueError, RecursionError):
            return False
        return isinstance(summary, dict) and summary.get("steps") == step

    def say(self, line: str) -> None:
        """Tell the user, and log.txt."""
        line = printable(line)
        tqdm.write(line)
        self._log(line)

    def event(self, event: dict) -> None:
        """Write a line of metrics. A terminal has the progress bar instead; elsewhere the line is printed too."""
        self._append(METRICS, json.dumps(event) + "\n")
        line = printable("  ".join(f"{name} {_short(value)}" for name, value in event.items()))
        self._log(line)
        if not self.on_terminal:
            print(line, flush=True)

    def samples(self, step: int, texts: list[str]) -> None:
        # while the mark is there, the last sample may be torn
        self.written(self._sampling.touch)
        self._append(SAMPLES, sample_text(step, texts))
        self._sampling.unlink(missing_ok=True)

    def summary(self, summary: dict) -> None:
        self.written(lambda: write_text(self.path / "summary.json", to_json(summary)))

    def written(self, write: Callable[[], None]) -> None:
        """Do `write`; if the folder was removed or changed while the run was going on, make it again and retry."""
        try:
            write()
        except OSError as error:
            if error.errno not in CHANGED or self._begun is None:
                raise
            self.mend()
            write()

    def mend(self) -> None:
        """Make again what was removed from the folder while the run was going on."""
        if self._begun is None or not (self._replaced() or self._missing()):
            return
        for path in self._replaced():
            set_aside(path)
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is not None and not (self.path / LOCK).exists():
            self._release()
            self._acquire()
        self._describe()
        self.say(f"Files of {self.path} were removed or replaced during training. They were written again.")

    def _missing(self) -> list[Path]:
        return [path for path in self._described if not path.exists()]

    def _replaced(self) -> list[Path]:
        """Return what stands in the place of the run's own files and folders."""
        folders = [self.path, *(self.path / name for name in FOLDERS)]
        places = [path for path in folders if path.exists() and not path.is_dir()]
        for path in (self.path / name for name in FILES):
            if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                places.append(path)
        return places[:1] if self.path in places else places

    def _describe(self) -> None:
        config, machine, tokenizer = self._begun
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        tokenizer.save(self.path / "tokenizer")
        write_text(self.path / "environment.json", machine)
        # last: with it the folder counts as a run
        write_text(self.path / "config.yaml", config)
        names = ("config.yaml", "environment.json", LOCK, *FOLDERS)
        self._described = [self.path / name for name in names if (self.path / name).exists()]

    def _acquire(self) -> None:
        self._lock = lock_taken(
            self.path / LOCK,
            LOOKED_AT_SECONDS,
            f"Another process is training in {self.path}. Wait until it has ended, or stop it.",
        )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def _sampling(self) -> Path:
        return self.path / ".samples.txt.partial"

    def _log(self, line: str) -> None:
        try:
            self._append("log.txt", line + "\n")
        except OSError as error:  # metrics and checkpoints are what counts
            if self._logs:
                tqdm.write(
                    printable(f"Can't write {self.path / 'log.txt'}: {error.strerror}. Training goes on.")
                )
            self._logs = False

    def _append(self, name: str, text: str) -> None:
        def append() -> None:
            with open(self.path / name, "a", encoding="utf-8", opener=without_links) as file:
                file.write(text)

        self.written(append)


def is_going_on(run: Path) -> bool:
    """Whether a process of this machine is training in a run's folder right now, as far as we may look."""
    from filelock import FileLock, Timeout

    lock = run / LOCK
    if lock.is_symlink() or not lock.is_file():  # opening a link could change a file elsewhere
        return False
    try:
        with FileLock(run / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # its lock isn't ours to open: that of a colleague, or on a disk that is only read
        return False


def to_json(values: dict) -> str:
    return json.dumps(values, indent=2) + "\n"


def environment() -> dict:
    """Return what a figure may depend on besides the configuration."""
    packages = ["minllm", "torch", "numpy", "hydra-core", "omegaconf", "safetensors", "sentencepiece"]
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = (
        re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if cpuinfo.exists()
        else None
    )
    return named[1] if named else platform.processor() or platform.machine()


def _git(*command: str) -> str | None:
    """Return what git says of the folder that this code is in; None where there is no git."""
    try:
        done = subprocess.run(
            ["git", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
