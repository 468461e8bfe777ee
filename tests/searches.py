"""Searches for tests: processes of their own in a folder of their own, with trials that fail in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from minllm.sweep.store import JOURNAL, open_study

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 180  # seconds for what takes a few, on a machine that others use too

FAULTS = '''
"""An optimizer that does what `fault` says at step `at`."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from minllm.model.mixers.attention import Attention
from minllm.options import Count
from minllm.training.optimizers import SGD

GIGABYTE = 1 << 30
FOLDER = Path.cwd()


def run_dir():
    return Path(os.readlink("/proc/self/fd/1")).parent


class Faulty(SGD):
    def __init__(self, model, *, fault: str, at: Count, lr: float, weight_decay: float, momentum: float,
                 nesterov: bool, decay_embeddings: bool, cautious_decay: bool):
        super().__init__(model, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
                         decay_embeddings=decay_embeddings, cautious_decay=cautious_decay)
        self.act, self.at, self.step_number = getattr(self, fault), at, 0
        if fault in ("large_batch", "large_row"):
            per_row = GIGABYTE // 4 if fault == "large_batch" else 8 * GIGABYTE
            mixer = next(part for part in model.modules() if isinstance(part, Attention))

            def hold(mixer, args):
                torch.empty(len(args[0]) * per_row, dtype=torch.int8)

            mixer.register_forward_pre_hook(hold)

    def move(self):
        self.step_number += 1
        if self.step_number == self.at:
            self.act()
        super().move()

    def weights(self):
        return [p for group in self.param_groups for p in group["params"]]

    def none(self): pass

    large_batch = large_row = none

    def slow(self):
        self.at = self.step_number + 1  # again at the next step
        for p in self.weights():
            p.grad.mul_(1e-3)

    def allocates(self):
        held = []
        while True:
            held.append(torch.empty(GIGABYTE // 4, dtype=torch.int8))

    def chained(self):
        try:
            bytearray(64 * GIGABYTE)
        except MemoryError as error:
            raise ValueError("an idea that didn't work out") from error

    def bad_alloc(self): ctypes.CDLL("libstdc++.so.6")._ZSt17__throw_bad_allocv()

    def kills_itself(self): os.kill(os.getpid(), signal.SIGKILL)

    def segfaults(self): ctypes.string_at(0)

    def bug(self): raise ValueError(f"a bug of step {self.step_number} with lr {self.param_groups[0]['lr']:.3f}")

    def exits(self): sys.exit(3)

    def vanishes(self): os._exit(0)

    def scribbles(self):
        (run_dir() / "trial.json").write_bytes(b"{oops" + bytes(range(256)))
        os._exit(0)

    def removes_its_folder(self): shutil.rmtree(run_dir())

    def leaves_a_process(self): subprocess.Popen(["sleep", "1000"])

    def not_a_number(self):
        for p in self.weights():
            p.fill_(float("nan"))

    def diverges(self):
        for p in self.weights():
            p.mul_(-100)

    def hangs(self): time.sleep(1e6)

    def stops(self): os.kill(os.getpid(), signal.SIGSTOP)

    def ignores(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass

    def waits(self):
        while not (FOLDER / "go").exists():
            time.sleep(0.02)
'''

OPTION = """# An optimizer with a fault
_target_: faulty.Faulty
fault: none
at: 2
lr: 0.5
weight_decay: 0.0
momentum: 0.0
nesterov: false
decay_embeddings: true
cautious_decay: false
"""

SMALL = [
    "--config-dir=conf",
    "extensions=[faulty]",
    "optim=faulty",
    "search=none",
    "memory.predict=false",
    "tokenizer=bytes",
    "data.train_stories=32",
    "data.val_stories=2",
    "data.seq_len=32",
    "data.packing=pack",
    "model.dim=16",
    "model.n_layers=1",
    "model/attn=mha",
    "model.attn.n_heads=2",
    "train.device=cpu",
    "train.precision=fp32",
    "train.batch_size=4",
    "train.steps=4",
    "train.evals=4",
    "sweep.name=test",
]
"""The smallest search; what it searches is added."""


class Workplace:
    """A folder in which searches run as processes, and are looked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "conf/optim").mkdir(parents=True)
        (folder / "faulty.py").write_text(FAULTS)
        (folder / "conf/optim/faulty.yaml").write_text(OPTION)

    def start(self, *words: str, script: str = "sweep.py", **options: object) -> subprocess.Popen[str]:
        """Start a search, or a run; `words` come after those of SMALL, and win."""
        path = os.pathsep.join([str(ROOT), str(self.folder)])
        return subprocess.Popen(
            [sys.executable, str(ROOT / script), *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def search(self, *words: str) -> subprocess.CompletedProcess[str]:
        return ended(self.start(*SMALL, *words))

    def trials(self, name: str = "test") -> list[FrozenTrial]:
        """Return what the study on disk says; nothing where there's none yet."""
        folder = self.folder / "outputs/sweeps" / name
        if not (folder / JOURNAL).exists():
            return []
        return open_study(name, None, folder).get_trials(deepcopy=False)

    def processes(self) -> dict[int, str]:
        """Return the processes that live and have this folder for their own: searches, servers, trials, their own."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state = entry.joinpath("stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and Path(os.readlink(entry / "cwd")) == self.folder:
                    found[int(entry.name)] = entry.joinpath("cmdline").read_text().replace("\0", " ")
            except OSError:  # it has ended, or isn't ours
                continue
        return found

    def wait_for_a_trial(self, search: subprocess.Popen[str]) -> None:
        """Wait until a search, its server and a trial of it live, or the search has ended."""
        assert soon(lambda: len(self.processes()) > 2 or search.poll() is not None)

    def nobody_is_left(self) -> bool:
        return soon(lambda: not self.processes())

    def finishes(self, name: str = "test") -> list[int]:
        """Return the number of each trial as often as the journal says that it was finished."""
        journal = self.folder / "outputs/sweeps" / name / JOURNAL
        numbers = {trial._trial_id: trial.number for trial in self.trials(name)}
        lines = map(json.loads, journal.read_text().splitlines())
        told = (line for line in lines if TrialState(line.get("state", TrialState.RUNNING)).is_finished())
        return [numbers[line["trial_id"]] for line in told if "trial_id" in line]

    def end_all(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def soon(is_so: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Wait until something is so; False if it never was."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and "Error" not in text


def by_fault(trials: Sequence[FrozenTrial]) -> dict[str, FrozenTrial]:
    return {trial.params["optim.fault"]: trial for trial in trials}


optuna.logging.set_verbosity(optuna.logging.WARNING)
