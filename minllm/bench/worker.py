"""A contestant in its own process, so that its peak memory and malloc settings are isolated.

    with Worker(job) as worker:
        worker.ask("train", seconds=1.0)       {"steps": 3, "tokens": 12288, "seconds": 1.2, "loss": 8.3}

The process lives until the `with` block ends and is idle between questions, so that contestants can take turns on a
shared machine. Each question and each answer is a line of JSON, through the process's stdin and stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minllm.bench.contestants import MAKERS, Name, Setting, Shape, config, step_run
from minllm.bench.references import ATTENTION
from minllm.runs.interpreter import command
from minllm.training import memory, step

PROMPT_TOKENS = 8
WARM_UP_STEPS = 3
AT_ONCE = 8
"""Steps between synchronisations with a GPU: the host may be a few steps ahead, as in training."""


@dataclass(frozen=True)
class Job:
    """What a worker measures."""

    contestant: Name
    keep_pages: bool
    """Use minllm's malloc settings (`train.malloc=keep`)."""
    shape: Shape
    setting: Setting
    device: str
    mixer: str = ATTENTION
    """Attention, or an option of model/rec."""
    words: Sequence[str] = ()
    """Further overrides."""

    @classmethod
    def read(cls, text: str) -> Job:
        values = json.loads(text)
        return cls(**{**values, "shape": Shape(**values["shape"]), "setting": Setting(**values["setting"])})


class Worker:
    """A handle to the process.

    Raises:
        RuntimeError: the process failed; the message ends with its last output.
    """

    def __init__(self, job: Job):
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command("minllm.bench.worker", json.dumps(asdict(job))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=Path(__file__).resolve().parents[2],
            # no compile caches, because reusing earlier results would change memory use
            env={**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
            encoding="utf-8",
        )

    def ask(self, name: str, **arguments: float) -> dict[str, Any]:
        """Call the method of `Contest` with this name in the process, and return its answer."""
        try:
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"the benchmark process ended during '{name}':\n{self.errors.read()[-4000:]}")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *failure: object) -> None:
        self.process.kill()  # it has nothing to clean up
        self.process.communicate()
        self.errors.close()


class Contest:
    """The process's side: a contestant, and the questions it answers."""

    def __init__(self, job: Job):
        self.device = torch.device(job.device)
        if job.keep_pages:
            memory.keep_pages()
        self.shape = job.shape
        torch.manual_seed(0)
        cfg = config(job.shape, job.setting, job.mixer, job.words)
        self.contestant = MAKERS[job.contestant](job.shape, cfg, self.device)
        self.run = step_run(self.contestant, job.shape, job.setting, cfg, self.device)
        self.compiled = job.setting.compiled
        self.loss_of = self.run.objective.loss
        if self.compiled:
            # minllm compiles in its own way, which is part of what is measured
            self.loss_of = (
                step.compile_steps(self.run, say=print)
                if job.contestant == "minllm"
                else torch.compile(self.loss_of)
            )
        self.lr = cfg.optim.lr

    def warm_up(self) -> dict[str, float]:
        """Take the first steps, which compile and fill caches, and then reset the peak memory."""
        seconds = self._seconds(lambda: [self._step() for _ in range(WARM_UP_STEPS)])
        if self.compiled:
            memory.trim()
        memory.reset_peak(self.device)
        return {"seconds": seconds}

    def train(self, seconds: float) -> dict[str, float]:
        """Train until `seconds` have passed, for at least one step."""
        self._synchronize()
        steps, begun, loss = 0, time.perf_counter(), torch.nan
        while not steps or time.perf_counter() - begun < seconds:
            loss = self._step()
            steps += 1
            if steps % AT_ONCE == 0:
                self._synchronize()
        self._synchronize()
        taken = time.perf_counter() - begun
        tokens = steps * self.shape.tokens_per_step
        return {"steps": steps, "tokens": tokens, "seconds": taken, "loss": float(loss)}

    def memory(self) -> dict[str, int]:
        """Return the peak memory since the warm-up."""
        return {"bytes": memory.peak_bytes(self.device)}

    def generate(self, rows: int, new_tokens: int) -> dict[str, float]:
        """Continue `rows` prompts by `new_tokens` each."""
        prompt = [i % self.shape.vocab_size for i in range(PROMPT_TOKENS)]
        seconds = self._seconds(lambda: self.contestant.generate([prompt] * rows, new_tokens))
        return {"tokens": rows * new_tokens, "seconds": seconds}

    def _step(self) -> Tensor:
        loss = step.whole_batch_gradient(self.run, self.loss_of)
        step.update(self.run, self.lr)
        self.run.progress.step += 1
        return loss

    def _seconds(self, act: Callable[[], object]) -> float:
        begun = time.perf_counter()
        act()
        self._synchronize()
        return time.perf_counter() - begun

    def _synchronize(self) -> None:
        torch.get_device_module(self.device).synchronize()


def main() -> None:
    # stdout is for answers only: what libraries print goes to stderr
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    contest = Contest(Job.read(sys.argv[1]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(getattr(contest, name)(**arguments)) + "\n")
        answers.flush()
