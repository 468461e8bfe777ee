"""An optimizer that does what `fault` says at step `at`. Searches have it as an extension, in a folder of theirs."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minllm.model.attention.attention import Attention
from minllm.schema.options import Count
from minllm.training.optimizers import SGD

GIGABYTE = 1 << 30
FOLDER = Path.cwd()


class Faulty(SGD):
    def __init__(
        self,
        model: nn.Module,
        *,
        fault: str,
        at: Count,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        decay_embeddings: bool,
        cautious_decay: bool,
    ):
        super().__init__(
            model,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            decay_embeddings=decay_embeddings,
            cautious_decay=cautious_decay,
        )
        self.act, self.at, self.step_number = getattr(self, fault), at, 0
        if fault in ("large_batch", "large_row"):
            hold_much(model, per_row=GIGABYTE // 4 if fault == "large_batch" else 8 * GIGABYTE)

    def move(self) -> None:
        self.step_number += 1
        if self.step_number == self.at:
            self.act()
        super().move()

    def weights(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def none(self) -> None:
        pass

    large_batch = large_row = none  # whose fault lies in the model

    def slow(self) -> None:
        self.at = self.step_number + 1  # again at the next step
        for p in self.weights():
            p.grad.mul_(1e-3)

    # ---- memory

    def allocates(self) -> None:
        held = []
        while True:
            held.append(torch.empty(GIGABYTE // 4, dtype=torch.int8))

    def chained(self) -> None:
        try:
            bytearray(64 * GIGABYTE)
        except MemoryError as error:
            raise ValueError("an idea that didn't work out") from error

    def bad_alloc(self) -> None:
        ctypes.CDLL("libstdc++.so.6")._ZSt17__throw_bad_allocv()

    # ---- ends

    def kills_itself(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def segfaults(self) -> None:
        ctypes.string_at(0)

    def bug(self) -> None:
        raise ValueError(f"a bug of step {self.step_number} with lr {self.param_groups[0]['lr']:.3f}")

    def exits(self) -> None:
        sys.exit(3)

    def vanishes(self) -> None:
        os._exit(0)

    def scribbles(self) -> None:
        (run_dir() / "trial.json").write_bytes(b"{oops" + bytes(range(256)))
        os._exit(0)

    def removes_its_folder(self) -> None:
        shutil.rmtree(run_dir())

    def leaves_a_process(self) -> None:
        subprocess.Popen(["sleep", "1000"])

    # ---- numbers

    def not_a_number(self) -> None:
        for p in self.weights():
            p.fill_(float("nan"))

    def diverges(self) -> None:
        for p in self.weights():
            p.mul_(-10)

    # ---- time

    def hangs(self) -> None:
        time.sleep(1e6)

    def stops(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def ignores(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()

    def rests(self) -> None:
        """In each step from now on, because a trial that others wait for needn't keep a core busy."""
        self.at = self.step_number + 1
        time.sleep(0.05)

    def makes_room(self) -> None:
        """Give this job of submitit the signal that others need its place; when it has begun again, take a day."""
        told = FOLDER / "told to make room"
        if told.exists():
            now = time.monotonic
            time.monotonic = lambda: now() + 24 * 3600
        else:
            told.touch()
            os.kill(os.getpid(), signal.SIGUSR2)

    def waits(self) -> None:
        while not (FOLDER / "go").exists():
            time.sleep(0.02)


def hold_much(model: nn.Module, per_row: int) -> None:
    """Have attention take so many bytes for each row that it's given."""

    def hold(mixer: Attention, args: tuple[Any, ...]) -> None:
        torch.empty(len(args[0]) * per_row, dtype=torch.int8)

    next(part for part in model.modules() if isinstance(part, Attention)).register_forward_pre_hook(hold)


def run_dir() -> Path:
    """Where this trial's output goes."""
    return Path(os.readlink("/proc/self/fd/1")).parent
