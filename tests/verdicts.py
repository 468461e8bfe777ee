"""Verdicts for tests: a protocol, arms, and runs by hand whose bits per byte are what a test says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

from optuna.trial import FrozenTrial

from minllm.study.tuning import Tried, Tuning
from minllm.verdict.protocol import Protocol
from minllm.verdict.sequential import VerdictSearch
from tests.comparisons import finished
from tests.instant import complete

ASKED = {
    **{
        "equal": "params",
        "tune": ["optim.lr"],
        "rates": [0.5, 1.0],
        "tuning_runs": 4,
        "trials": 4,
        "span": 8.0,
    },
    **{"tuning_seeds": [1000], "first_seed": 0, "looks": [6, 8], "metric": "val_bpb", "margin": 0.005},
    **{"baseline": None, "aa": False, "prompts": [], "stories": 0, "ledger": True, "champion": False},
}
PROTOCOL = Protocol(**ASKED)

ARMS = ("arms.a=[norm=pre]", "arms.b=[norm=post,model/attn=mha]")
QUESTION = ("arms.a=['norm=pre','model.layout=[attn mlp,mlp]']", *ARMS[1:], "search.equal=null")
"""The arms of an inquiry that several tests look at, and none runs."""


class Trained:
    """Stands in for an inquiry's trials: runs by hand, whose bits per byte are what a test says."""

    def __init__(self, asked: VerdictSearch, bpb, seconds: float, allowed: Mapping[str, int]):
        self.asked, self.bpb, self.seconds, self.allowed = asked, bpb, seconds, allowed
        self.asked_for: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def __call__(
        self, phase: str, name: str, words: Sequence[str], n_trials: int, keep: str
    ) -> Iterator[SimpleNamespace]:
        assert keep == "all" and "optim.lr=0.02" in words

        def run_until(n_trials: int) -> list[FrozenTrial]:
            self.asked_for.append((phase, n_trials))
            n_trials = min(n_trials, self.allowed.get(phase, n_trials))
            for seed in range(n_trials):
                folder = self.asked.folder / phase / f"trial-{seed}"
                if not folder.exists():
                    self.asked.deadline -= self.seconds
                    bpb = self.bpb(name, seed)
                    finished(folder, *self.asked.arms[name], seed=seed, bpb=bpb or 0.0)
                    if bpb is None:  # it crashed
                        (folder / "summary.json").unlink()
            return complete(n_trials, self.seconds)

        def trials() -> list[FrozenTrial]:
            return complete(len(list((self.asked.folder / phase).glob("trial-*"))), self.seconds)

        yield SimpleNamespace(run_until=run_until, trials=trials)


def tuning(unsettled: bool) -> Tuning:
    tried = [
        Tried({"optim.lr": rate}, {1000: loss}) for rate, loss in ((0.01, 2.0), (0.02, 1.9), (0.04, 2.0))
    ]
    why = "its best learning rate is the highest that was tried" if unsettled else ""
    return Tuning(tried, {"optim.lr": 0.02}, "the lowest mean loss", 4, why)


DIVERGED = Tuning(
    [Tried({"optim.lr": rate}, {1000: None}) for rate in (0.02, 0.04, 0.08)],
    {"optim.lr": 0.02},
    "the lowest values that were tried, because training diverged with them",
    3,
    "training diverged with all values that were tried, in 3 runs",
)


def clear(name: str, seed: int) -> float:
    return 2 + (name == "b") * (0.1 + seed / 1000)


def unclear(name: str, seed: int) -> float:
    return 2 + (name == "b") * (0.1 + seed / 1000) * (-1) ** seed


def doubtful(name: str, seed: int) -> float:
    return 2 + (name == "b") * ((0.1 if seed % 3 else -0.03) + seed / 1000)


def open_to_the_end(name: str, seed: int) -> float:
    return doubtful(name, seed) if seed < 9 else unclear(name, seed)


def weak(name: str, seed: int) -> float:
    return 2 + (name == "b") * ((0.1 if seed % 3 else -0.1) + seed / 1000)


def alike(name: str, seed: int) -> float:
    return 2 + (name == "b") * 1e-5 * seed
