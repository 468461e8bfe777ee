"""The smallest search, started as a process of its own in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial

from minllm.sweep.store import open_study

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
STUDY = Path("outputs/sweeps/small")
PATIENCE = 240  # seconds for what takes ten, on a machine that others use too

WORDS = ["search=none", "sweep.name=small", "optim.lr=tag(log,interval(1e-3,1e-2))", "memory.predict=false"]
WORDS += ["tokenizer=bytes", "model.dim=16", "model.n_layers=1", "model.attn.n_heads=2"]
WORDS += ["model.attn.n_kv_heads=1", "data=text", "data.seq_len=16", "data.path=squares.txt"]
WORDS += ["data.cache=stores", "train.batch_size=4", "train.precision=fp32", "train.malloc=default"]
WORDS += ["train.steps=6", "train.evals=2", "schedule.warmup_steps=1", "sample.max_new_tokens=4"]
ENDLESS = ["train.steps=1000000", "train.evals=100000", "sweep/pruner=none"]
"""What makes a trial go on for longer than any test, and look up every few steps."""


def begun(folder: Path, *words: str, **variables: str) -> subprocess.Popen:
    """Start a search in `folder`; what it prints goes into a file there."""
    squares = folder / "squares.txt"
    squares.write_text("\n".join(f"{number} times {number} is {number**2}." for number in range(60)))
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "sweep.py"), *WORDS, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def searched(folder: Path, *words: str, **variables: str) -> str:
    """Search to the end, which must be a good one, and return what was said."""
    process = begun(folder, *words, **variables)
    try:
        status = process.wait(PATIENCE)
    finally:
        end(process)
    assert status == 0, said(folder)
    return said(folder)


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text()


def trials(folder: Path, storage: str | None = None) -> list[FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return open_study("small", storage, folder / STUDY).trials


def states(folder: Path, storage: str | None = None) -> list[str]:
    return [trial.state.name for trial in trials(folder, storage)]


def until(act: Callable[[], T], process: subprocess.Popen | None = None) -> T:
    """Call `act` until it returns something true, as long as `process` lives, and return that."""
    stop = time.monotonic() + PATIENCE
    while not (found := act()):
        assert time.monotonic() < stop, "it took too long"
        assert process is None or process.poll() is None, "the search has ended already"
        time.sleep(0.1)
    return found


def end(process: subprocess.Popen) -> None:
    """End a search and what it has started, if that is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def reported(folder: Path, storage: str | None = None) -> bool:
    """Whether every trial that there is has been evaluated."""
    found = trials(folder, storage) if (folder / STUDY).exists() else []
    return bool(found) and all(trial.intermediate_values for trial in found)
