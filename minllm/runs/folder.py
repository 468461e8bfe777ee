"""The folder of a run: its files, and how they are written so that none is ever left incomplete.

config.yaml       the composed configuration
environment.json  versions, machine and git commit; a signature by which this machine recognises its own runs
metrics.jsonl     one line per event: the source of truth
log.txt           the log as plain lines
samples.txt       texts that the model generated during training
summary.json      the final metrics
documents.safetensors   the loss of each validation document at the end
tokenizer/        the files of the run's tokenizer, if it has any
checkpoints/
"""

from __future__ import annotations

import contextlib
import errno
import functools
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

from minllm.errors import UserError, printable
from minllm.files.atomic import (
    acquire_lock,
    contents,
    refuse_links,
    set_aside,
    without_links,
    write_bytes,
    write_text,
)
from minllm.runs.documents import DOCUMENTS, DocumentLosses
from minllm.runs.records import METRICS, SAMPLES, Kept, kept_of, sample_text
from minllm.schema.foreign_runs import mark

if TYPE_CHECKING:
    from filelock import FileLock

    from minllm.tokenizer import Tokenizer


LOCK = ".lock"
PROBE_SECONDS = 1.0
"""Longer than a process holds the lock just to check it."""
STOPPED = "Stopped at step"
"""How the last line of a log begins if the run was stopped early."""
DIVERGED = "training diverged"
"""What the last line of a log contains if the loss or the gradient became NaN or infinite."""
FILES = (
    *("config.yaml", "environment.json", "metrics.jsonl", "log.txt", "samples.txt", "summary.json"),
    *(DOCUMENTS, LOCK),
)
FOLDERS = ("checkpoints", "tokenizer")
APPENDED = ("metrics.jsonl", "log.txt", "samples.txt", LOCK)
CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""The errors of a write after the folder was removed, or a file was replaced by something else."""


class RunDir:
    """Writes the folder of one run. Raises OSError if the disk is full or the folder isn't writable."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        # a progress bar on a terminal; plain lines elsewhere
        self.on_terminal = sys.stderr.isatty()
        self._lock: FileLock | None = None
        self._begun: tuple[str, str, Tokenizer] | None = None
        self._described: list[Path] = []
        self._logs = True

    def refuse_another_run(self) -> None:
        """Raise UserError if there is a run in this folder already."""
        if (self.path / "config.yaml").exists():
            raise UserError(
                f"There is already a run in {self.path}. Resume it (resume={self.path}), remove it, or choose"
                " another folder with hydra.run.dir=<folder>."
            )

    def begin(self, cfg: DictConfig, tokenizer: Tokenizer) -> None:
        """Create the folder and write the configuration, the environment and the tokenizer."""
        config = OmegaConf.to_yaml(cfg, resolve=True)
        self._begun = config, to_json({**environment(), "mark": mark(config)}), tokenizer
        self._describe()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Create the folder and hold its lock, so that no other process trains in it; a killed process loses the lock.

        If no run has begun when the context ends, the folder is left as it was.

        Raises:
            UserError: another process is training in it, or it has links that lead out of it.
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
            with contextlib.suppress(OSError):  # not empty
                for folder in made:
                    folder.rmdir()

    def kept(self, step: int, marks: Mapping[str, list[int]]) -> Kept:
        """Return which metrics and samples are kept if the run continues from `step`; nothing is written.

        Everything written after `step` is dropped, and so is an incomplete last line or sample.

        Args:
            marks: the lengths and checksums of these files in the checkpoint of that step.

        Raises:
            UserError: a line of the metrics is damaged.
        """
        return kept_of(self.path, step, marks, torn=self._sampling.exists())

    def resume_at(self, step: int, marks: Mapping[str, list[int]]) -> None:
        """Cut off everything written after `step`, as if the run had stopped there."""
        kept = self.kept(step, marks)
        if kept.metrics is not None:
            write_bytes(self.path / METRICS, kept.metrics)
        if kept.samples is not None:
            write_bytes(self.path / SAMPLES, kept.samples)
        self._sampling.unlink(missing_ok=True)
        (self.path / "summary.json").unlink(missing_ok=True)  # it describes an end that is no longer the end

    def begin_with(self, records: Mapping[str, bytes]) -> None:
        """Write the metrics and samples of the run that this one branches from, instead of its own if it has any."""
        for name, content in records.items():
            if content or (self.path / name).exists():
                write_bytes(self.path / name, content)
        self._sampling.unlink(missing_ok=True)

    def is_finished(self, step: int) -> bool:
        """Whether the run wrote its summary at `step`."""
        try:
            summary = json.loads(contents(self.path / "summary.json"))
        except (ValueError, RecursionError):
            return False
        return isinstance(summary, dict) and summary.get("steps") == step

    def say(self, line: str) -> None:
        """Print a line, and append it to log.txt."""
        line = printable(line)
        tqdm.write(line)
        self._log(line)

    def note(self, line: str) -> None:
        """Append a line to log.txt that is printed elsewhere."""
        self._log(printable(line))

    def event(self, event: dict) -> None:
        """Append a line to metrics.jsonl and log.txt; print it too if there's no progress bar."""
        self._append(METRICS, json.dumps(event) + "\n")
        line = printable("  ".join(f"{name} {_short(value)}" for name, value in event.items()))
        self._log(line)
        if not self.on_terminal:
            print(line, flush=True)

    def samples(self, step: int, texts: list[str]) -> None:
        # while this file exists, the last sample may be incomplete
        self.written(self._sampling.touch)
        self._append(SAMPLES, sample_text(step, texts))
        self._sampling.unlink(missing_ok=True)

    def documents(self, losses: DocumentLosses) -> None:
        self.written(lambda: write_bytes(self.path / DOCUMENTS, losses.to_bytes()))

    def summary(self, summary: dict) -> None:
        self.written(lambda: write_text(self.path / "summary.json", to_json(summary)))

    def written(self, write: Callable[[], None]) -> None:
        """Call `write`; if the folder was removed or replaced during the run, restore it and retry."""
        try:
            write()
        except OSError as error:
            if error.errno not in CHANGED or self._begun is None:
                raise
            self.mend()
            write()

    def mend(self) -> None:
        """Restore what was removed from the folder during the run."""
        if self._begun is None or not (self._replaced() or self._missing()):
            return
        for path in self._replaced():
            set_aside(path)
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is not None and not (self.path / LOCK).exists():
            self._release()
            self._acquire()
        self._describe()
        self.say(
            f"Files in {self.path} were removed or replaced during training. They have been written again."
        )

    def _missing(self) -> list[Path]:
        return [path for path in self._described if not path.exists()]

    def _replaced(self) -> list[Path]:
        """Return the paths where something else has replaced the run's files and folders."""
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
        # last: it makes the folder a run
        write_text(self.path / "config.yaml", config)
        names = ("config.yaml", "environment.json", LOCK, *FOLDERS)
        self._described = [self.path / name for name in names if (self.path / name).exists()]

    def _acquire(self) -> None:
        self._lock = acquire_lock(
            self.path / LOCK,
            PROBE_SECONDS,
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
        except OSError as error:  # training doesn't depend on log.txt
            if self._logs:
                tqdm.write(
                    printable(f"Can't write {self.path / 'log.txt'}: {error.strerror}. Training continues.")
                )
            self._logs = False

    def _append(self, name: str, text: str) -> None:
        def append() -> None:
            with open(self.path / name, "a", encoding="utf-8", opener=without_links) as file:
                file.write(text)

        self.written(append)


class SilentRunDir(RunDir):
    """The folder of a run that another process writes: nothing is written, printed or locked."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.on_terminal = False

    def refuse_another_run(self) -> None:
        pass

    def begin(self, cfg: DictConfig, tokenizer: Tokenizer) -> None:
        pass

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        yield

    def resume_at(self, step: int, marks: Mapping[str, list[int]]) -> None:
        pass

    def begin_with(self, records: Mapping[str, bytes]) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def note(self, line: str) -> None:
        pass

    def event(self, event: dict) -> None:
        pass

    def samples(self, step: int, texts: list[str]) -> None:
        pass

    def written(self, write: Callable[[], None]) -> None:
        pass

    def mend(self) -> None:
        pass


def is_running(run: Path) -> bool:
    """Whether a process on this machine is training in a run folder now; False if its lock can't be opened."""
    from filelock import FileLock, Timeout

    lock = run / LOCK
    if lock.is_symlink() or not lock.is_file():  # opening a link could change a file elsewhere
        return False
    try:
        with FileLock(run / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # no permission, or a read-only disk
        return False


def to_json(values: dict) -> str:
    return json.dumps(values, indent=2) + "\n"


def environment() -> dict:
    """Return what the results may depend on besides the configuration."""
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


@functools.cache  # the code that runs is that of when it was imported
def _git(*command: str) -> str | None:
    """Return git's output for the folder of this code; None without git or outside a repository."""
    try:
        done = subprocess.run(
            # without locks, because a run that is killed meanwhile would leave the repository locked
            ["git", "--no-optional-locks", *command],
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
