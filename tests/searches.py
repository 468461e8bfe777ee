"""Searches for tests: processes of their own in a folder of their own, with trials that fail in every way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from minllm.sweep.store import JOURNAL, open_study
from tests.commands import PATIENCE, Command

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]

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
    "train.check=false",
    "sample.max_new_tokens=1",
    "sweep.name=test",
]
"""The smallest search; what it searches is added."""

ANY_LR = "optim.lr=tag(log,interval(1e-3,1e-2))"
GRID = "hydra/sweeper/sampler=grid"
ENDLESS = ["train.steps=1000000", "train.evals=100000", "sweep/pruner=none", "optim.fault=rests"]
"""What makes a trial go on for longer than any test, and look up every few steps."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Search(Command):
    """A search that has been started."""

    def ended(self) -> Search:
        """Wait until it has."""
        self.wait(PATIENCE)
        return self

    def well(self) -> Search:
        """Wait until it has ended, which must be a good end."""
        assert self.ended().returncode == 0, self.err
        return self


class Workplace:
    """A folder in which searches run as processes, and are looked for; with it ends whatever runs there.

    Args:
        folder: an empty one.
        words: which every search has, after those of SMALL.
        storage: the study's database, if it has one; searches find its URL in a variable.
        variables: of every search's environment.
    """

    def __init__(self, folder: Path, *words: str, storage: str | None = None, **variables: str):
        self.folder, self.study_folder = folder, folder / "outputs/sweeps/test"
        self.words, self.storage, self.variables = [*SMALL, *words], storage, variables
        self.searches: list[Search] = []
        if storage is not None:
            self.words.append("sweep.storage='${oc.env:STUDY}'")
            self.variables["STUDY"] = storage
        (folder / "conf/optim").mkdir(parents=True)
        shutil.copy(ROOT / "tests/faulty.py", folder)
        (folder / "conf/optim/faulty.yaml").write_text(OPTION)

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *_: object) -> None:
        for search in self.searches:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(search.pid, signal.SIGKILL)
            search.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # ---- searches

    def start(self, *words: str) -> Search:
        """Start a search; `words` come after the workplace's, and win."""
        return self.start_program("sweep.py", *self.words, *words)

    def search(self, *words: str) -> Search:
        """Search to the end, whichever that is."""
        return self.start(*words).ended()

    def start_program(self, program: str, *words: str) -> Search:
        path = os.pathsep.join([str(ROOT), str(self.folder)])
        self.searches.append(Search(program, *words, cwd=self.folder, PYTHONPATH=path, **self.variables))
        return self.searches[-1]

    # ---- the study

    def study(self) -> optuna.Study:
        return open_study("test", self.storage, self.study_folder)

    def trials(self) -> list[FrozenTrial]:
        """Return what the study says; nothing where there's none yet."""
        return self.study().get_trials(deepcopy=False) if self.study_folder.exists() else []

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials()]

    def by_fault(self) -> dict[str, FrozenTrial]:
        return {trial.params["optim.fault"]: trial for trial in self.trials()}

    def all_were_evaluated(self) -> bool:
        trials = self.trials()
        return bool(trials) and all(trial.intermediate_values for trial in trials)

    def finishes(self) -> list[int]:
        """Return the number of each trial as often as the journal says that it was finished."""
        numbers = {trial._trial_id: trial.number for trial in self.trials()}
        lines = map(json.loads, (self.study_folder / JOURNAL).read_text().splitlines())
        told = (line for line in lines if TrialState(line.get("state", TrialState.RUNNING)).is_finished())
        return [numbers[line["trial_id"]] for line in told if "trial_id" in line]

    # ---- processes

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

    def nobody_is_left(self) -> bool:
        """Wait until it is so: what was killed, and what dies with it, takes a moment."""
        return wait_until(lambda: not self.processes())


def wait_until(act: Callable[[], T], process: Command | subprocess.Popen | None = None) -> T:
    """Call `act` until it returns something true, as long as `process` lives, and return that."""
    deadline = time.monotonic() + PATIENCE
    while not (found := act()):
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, f"it has ended already: {said_by(process)}"
        time.sleep(0.05)
    return found


def said_by(process: Command | subprocess.Popen) -> str:
    return process.out + process.err if isinstance(process, Command) else ""


def one_sentence(text: str) -> bool:
    return text.count("\n") == 1 and "Error" not in text
