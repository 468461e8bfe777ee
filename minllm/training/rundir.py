"""The folder of a run: what is in it, and how it is written so that it is never half written.

config.yaml       the composed configuration
environment.json  versions, machine and git commit
metrics.jsonl     one line an event: the source of truth
log.txt           what was said, in plain lines
samples.txt       what the model wrote along the way
summary.json      the figures at the end
tokenizer/        what the run's tokenizer needs, where it needs anything
checkpoints/
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from minllm.errors import UserError
from minllm.tokenizer import Tokenizer

LOCK = ".lock"
LOOKED_AT_SECONDS = 1.0
"""Longer than anyone holds a run's lock who only looks whether it's held."""
STOPPED = "Stopped at step"
"""How the last line of a log begins when a run was stopped before its end."""
SAMPLE_HEAD = re.compile(r"^=== step (\d+) ===$", re.MULTILINE)


class RunDir:
    """Writes the folder of one run. A full disk and a forbidden folder raise OSError."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        # a progress bar on a terminal; plain lines anywhere else
        self.on_terminal = sys.stderr.isatty()

    def refuse_another_run(self) -> None:
        """Raise UserError if there is a run in this folder already."""
        if (self.path / "config.yaml").exists():
            raise UserError(
                f"There is a run in {self.path} already. Go on with it (resume={self.path}), remove it, or choose"
                " another place with hydra.run.dir=<folder>."
            )

    def begin(self, cfg: DictConfig, tokenizer: Tokenizer) -> None:
        """Make the folder and write down what is about to be done, and where."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        write_text(self.path / "environment.json", to_json(environment()))
        tokenizer.save(self.path / "tokenizer")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and be the only process that trains in it while the context lasts; a kill ends that too.

        Raises:
            UserError: another does.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=LOOKED_AT_SECONDS)
        except NotImplementedError:  # a disk without locks
            pass
        except Timeout as error:
            raise UserError(
                f"Another process is training in {self.path}. Wait for its end, or stop it."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def resume_at(self, step: int) -> None:
        """Cut what was written after `step`, and a last line torn by a kill, as if the run had stopped there."""
        (self.path / "summary.json").unlink(missing_ok=True)  # of an end that isn't the end any more
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            steps = [_step_of(line, metrics, number) for number, line in enumerate(whole, 1)]
            write_text(metrics, "".join(line for line, its_step in zip(whole, steps) if its_step <= step))
        samples = self.path / "samples.txt"
        if samples.exists():
            text = samples.read_text(encoding="utf-8", errors="replace")
            later = [head.start() for head in SAMPLE_HEAD.finditer(text) if int(head[1]) > step]
            write_text(samples, text[: later[0]] if later else text)

    def say(self, line: str) -> None:
        """Tell the user, and log.txt."""
        tqdm.write(line)
        self._append("log.txt", line + "\n")

    def event(self, event: dict) -> None:
        """Write a line of metrics. A terminal has the progress bar instead; elsewhere the line is printed too."""
        self._append("metrics.jsonl", json.dumps(event) + "\n")
        line = "  ".join(f"{name} {_short(value)}" for name, value in event.items())
        self._append("log.txt", line + "\n")
        if not self.on_terminal:
            print(line, flush=True)

    def samples(self, step: int, texts: list[str]) -> None:
        self._append(
            "samples.txt", f"=== step {step} ===\n" + "".join(text.rstrip() + "\n\n" for text in texts)
        )

    def summary(self, summary: dict) -> None:
        write_text(self.path / "summary.json", to_json(summary))

    def _append(self, name: str, text: str) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)


def is_going_on(run: Path) -> bool:
    """Whether a process of this machine is training in a run's folder right now, as far as we may look."""
    from filelock import FileLock, Timeout

    if not (run / LOCK).exists():
        return False
    try:
        with FileLock(run / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # its lock isn't ours to open: that of a colleague, or on a disk that is only read
        return False


def write_text(path: Path, text: str) -> None:
    """Write a file beside `path` and rename it, so that `path` is always whole."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


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


def _step_of(line: str, metrics: Path, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{metrics} is damaged: line {number} is no event with a step. Remove that line, and resume again."
        ) from error


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
