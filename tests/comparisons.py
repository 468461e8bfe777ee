"""Comparisons of runs that were never trained: folders and figures made up by hand."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.runs.documents import DOCUMENTS, DocumentLosses
from minllm.study.arms import Arm
from minllm.study.comparison import Comparison, compare, of_arms
from minllm.study.reading import Guess, Reading
from minllm.study.selection import TrainedRun

FLOOR = 1.5
PRE, POST = "norm=pre", "norm=post"
ENVIRONMENT = {
    "cpu": "an abacus",
    "gpu": None,
    "threads": 1,
    "versions": {"torch": "2.13.0", "minllm": "0.1.0"},
    "git": {"commit": "0123456789abcdef", "dirty": False},
}


def run(folder: Path, name: str, seed: int, bpb: float, **changed: Any) -> TrainedRun:
    """Make the folder of a run whose loss falls to `bpb`. What is changed is its summary, `typed` or `tokens`."""
    tokens = changed.pop("tokens", [1000, 2000, 3000, 4000])
    typed = changed.pop("typed", [f"norm={name}", f"seed={seed}", "model.layout=[attn mlp]"])
    words = {} if typed is None else {"typed": typed}
    cfg = {"seed": seed, "norm": {"kind": name}, "optim": {"lr": 0.003}, "choices": {"norm": name}, **words}
    folder = folder / f"{name.replace('/', '_')}-{seed}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    write_metrics(folder, bpb, seed, tokens)
    return TrainedRun(
        folder, OmegaConf.create(cfg), figures(bpb, seed, tokens=tokens[-1], **changed), ENVIRONMENT
    )


def figures(bpb: float, seed: int, **changed: Any) -> dict[str, Any]:
    """Return what summary.json says of a run."""
    return {
        **{"val_bpb": bpb, "floor_bpb": FLOOR, "bpb_above_floor": bpb - FLOOR, "validation_text": "abc"},
        **{"params": 1_234_567, "params_active": 1_000_000, "params_non_embedding": 900_000},
        **{"flops_per_token": 6e6, "state_bytes_per_sequence": 4096, "tokens": 4000, "seed": seed},
        **{"tokens_per_second": 1e5, "wall_seconds": 130.0, "peak_memory_bytes": 3 * 2**28},
        **{"decisions": {"precision": "bf16"}, "checked": True},
        **changed,
    }


def write_metrics(folder: Path, bpb: float, seed: int, tokens: Sequence[int]) -> None:
    events = [
        {"step": i + 1, "tokens": at, "seconds": at / 1000 + seed / 10, "val_bpb": bpb + 4000 / at - 1}
        for i, at in enumerate(tokens)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def finished(
    folder: Path,
    *words: str,
    seed: int = 0,
    bpb: float = 2.0,
    environment: Mapping[str, Any] = ENVIRONMENT,
    **changed: Any,
) -> Path:
    """Write what `python run.py <words> seed=<seed>` leaves when it has ended; what is changed is its summary."""
    begun(folder, *words, seed=seed)
    write_metrics(folder, bpb, seed, [1000, 2000, 4000])
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "summary.json").write_text(json.dumps(figures(bpb, seed, **changed)))
    (folder / "log.txt").write_text("Training.\nThe last line.\n")
    return folder


def begun(folder: Path, *words: str, seed: int = 0) -> Path:
    """Write the folder of a run that has come as far as its configuration."""
    own = {"seed": seed, "typed": [*words, f"seed={seed}"]}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml_without_seed(*words) + OmegaConf.to_yaml(own), encoding="utf-8")
    return folder


def two_arms(folder: Path, seeds: int = 2, apart: float = 0.1) -> Path:
    """Write the runs of a grid of norm=pre and norm=post, which is so much worse."""
    for number, norm in enumerate([PRE, POST]):
        for seed in range(seeds):
            where, bpb = folder / f"{number * seeds + seed}-{norm}", 2 + number * apart + seed / 1000
            finished(where, norm, seed=seed, bpb=bpb)
    return folder


@functools.cache
def composed(*words: str) -> DictConfig:
    """Return what `words` compose, which takes a tenth of a second; nobody changes it."""
    return compose(words)


@functools.cache
def yaml_without_seed(*words: str) -> str:
    """Return the file of a configuration, but for what tells the runs of an arm apart."""
    cfg = OmegaConf.to_container(composed(*words), resolve=True)
    return OmegaConf.to_yaml({name: value for name, value in cfg.items() if name not in ("seed", "typed")})


def comparison(
    folder: Path,
    means: Mapping[str, float],
    seeds: Sequence[int] = range(7),
    changed: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Comparison:
    """Compare arms around some means, the first of which is the baseline."""
    chance = random.Random(0)
    arms = [
        Arm(name, {s: run(folder, name, s, mean + chance.gauss(0, 0.003), **(changed or {})) for s in seeds})
        for name, mean in means.items()
    ]
    return of_arms(arms, **asked)


def refusal(*folders: Path, **asked) -> str:
    with pytest.raises(UserError) as refused:
        compare(folders, **asked)
    return str(refused.value)


def with_documents(one: Comparison, spread_of_documents: float = 0.0) -> Comparison:
    """Write the file of each run's documents, which differ between arms by the same amount up to a spread."""
    chance = np.random.default_rng(0)
    sizes = chance.integers(300, 900, 40)
    for arm in one.arms:
        shape = 1 + spread_of_documents * chance.standard_normal(40)
        for run in arm.runs.values():
            nats = sizes * shape
            nats *= run.summary["val_bpb"] * math.log(2) * sizes.sum() / nats.sum()
            (run.folder / DOCUMENTS).write_bytes(DocumentLosses(nats, sizes).to_bytes())
    return one


def readings(one: Comparison) -> list[Reading]:
    story = [Guess("Once", 6.5, 40, 4), Guess(" upon", 0.1, 1, 5), Guess("<E2>", 3.0, 4, 1)]
    return [Reading(arm.name, 0, [("Once", " there was a fox.")], [story], None) for arm in one.arms]


def run_all_until(searches: Sequence[SimpleNamespace], n_trials: int, n_jobs: int) -> None:
    """What replaces `minllm.sweep.search.run_all_until` for searches whose runs are written by hand."""
    for search in searches:
        search.run_until(n_trials)
