"""`python sweep.py search=profile 'mixers=[attn=mha,rec=mamba2]'`: what each mixer can and can't do.

Probe after probe, all mixers side by side:

1. Size: each mixer gets as many parameters as the first.
2. Tuning: each tries the same learning rates and weight decays, on seeds that aren't used later.
3. Seeds: each trains with the best values and new seeds. A run ends when it has solved the probe.
4. Report, from everything that was trained so far.

A mixer on a probe is a search with its own folder, so an interrupted profile continues with the same command.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from minllm.errors import UserError, printable
from minllm.model.build import build_shapes
from minllm.model.cost import params
from minllm.schema.building import build
from minllm.schema.options import Fraction
from minllm.study import recorded
from minllm.study.profile.cells import Cell, Probe, ProbeRun, Profile
from minllm.study.profile.report import write_and_print
from minllm.study.selection import PROFILE
from minllm.study.tuning import RATE, Tuning
from minllm.sweep.launchers import shared_server
from minllm.sweep.plugin import PruningSweeper
from minllm.sweep.report.trials import counted_noun, is_complete
from minllm.training.answers import refuse_hidden_answers, why_none
from minllm.verdict.cells_search import CellsSearch, rest_of
from minllm.verdict.profile_protocol import ProfileProtocol, difficulty_of, mixers_in, probes_in
from minllm.verdict.profile_tuning import RatesAndDecays, score
from minllm.verdict.rate_search import rates_of
from minllm.verdict.results import value_of
from minllm.verdict.tuning import configured

EVALUATIONS = 10
"""How often a run is evaluated, unless the command line says otherwise: it can end at each of them."""
SUMMARY: Mapping[str, Any] = {
    "val_accuracy": Fraction,
    "val_accuracy_interval": list[float],
    "val_answer_tokens": int,
    "steps": int,
}


def profile(sweeper: PruningSweeper, overrides: Sequence[str]) -> Profile | None:
    """Train each mixer on each probe, and write the report; return the profile, or None if dry.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.

    Raises:
        UserError: a mixer can't be built or can't learn a probe, or its runs fail.
        RepeatedCrashes: too many trials crashed in a row.
    """
    search = ProfileSearch(sweeper, overrides)
    if not search.begin():
        return None
    began = time.monotonic()
    with shared_server(search.config, sweeper.n_jobs) as search.server:
        for done, probe in enumerate(search.probes, 1):
            is_over = not search.train(probe)
            print(printable(search.progress(probe, done, time.monotonic() - began)), flush=True)
            if is_over:
                break
    made = search.profile()
    print()
    write_and_print(made, search.folder)
    return made


class ProfileSearch(CellsSearch):
    """The mixers and probes of a profile, and the searches that train them."""

    file = PROFILE
    metric = "val_accuracy"
    evaluations = EVALUATIONS
    protocol: ProfileProtocol

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        self.words = probes_in(sweeper.config.probes)
        super().__init__(sweeper, overrides)
        self.precision = self.precision_override()
        bases = {name: self.composed(next(iter(self.arms)), own) for name, own in self.words.items()}
        self.probes = [self.probe(name, cfg) for name, cfg in bases.items()]
        self.rungs = {
            p.name: (*self.words[p.name], *self.size_on(bases[p.name]), self.end_of(p)) for p in self.probes
        }
        """The overrides of each probe, with the size of the mixers and the end of a run."""
        self.compose_cells(sized=self.protocol.equal is not None)
        self.plans = {key: self.plan_of(*key) for key in self.cfgs}
        self.cells = {
            (self.names[arm], p.name): Cell(self.names[arm], p, self.solved_at(p), self.protocol.seeds)
            for p in self.probes
            for arm in self.arms
        }

    def read_arms(self) -> dict[str, list[str]]:
        return self.named_arms(mixers_in(self.config.mixers), "mixers")

    # ---- mixers and probes

    def probe(self, name: str, cfg: DictConfig) -> Probe:
        source, objective = build(cfg.data), build(cfg.objective)
        refuse_hidden_answers(source, objective)
        if why := why_none(source, objective):
            raise UserError(f"A profile compares val_accuracy, and {name} has none: {why}.")
        task, difficulty = difficulty_of(name, list(self.words))
        chance, ceiling = getattr(source, "chance", None), getattr(source, "ceiling", 1.0)
        return Probe(name, task, self.words[name], difficulty, chance, ceiling)

    def solved_at(self, probe: Probe) -> float:
        """Return the accuracy at which a run ends, rounded as runs are told it."""
        return float(f"{self.protocol.solved * probe.ceiling:.6g}")

    def end_of(self, probe: Probe) -> str:
        """Return the override that ends a run when it has solved a probe."""
        return f"train.stop_at_accuracy={self.solved_at(probe):g}"

    def size_on(self, first: DictConfig) -> list[str]:
        """Return the override that gives each mixer the first one's size on a probe."""
        return self.size_override(first) if len(self.arms) > 1 else []

    def plan_of(self, arm: str, probe: str) -> RatesAndDecays:
        cfg, protocol = self.cfgs[arm, probe], self.protocol
        if "weight_decay" not in cfg.optim:
            raise UserError(
                "A profile tunes optim.weight_decay, which this optimizer lacks: choose optim=adamw."
            )
        rates = rates_of(configured(arm, cfg, RATE), protocol.rates)
        return RatesAndDecays(
            rates, tuple(protocol.decays), tuple(protocol.tuning_seeds), protocol.tuning_runs
        )

    def plan(self) -> str:
        """Return a description of what will be run."""
        first = next(iter(self.plans.values()))
        each = len(first.planned_values) + self.protocol.seeds
        runs = len(self.cells) * each
        seeds = "seed 0" if self.protocol.seeds == 1 else f"seeds 0 to {self.protocol.seeds - 1}"
        return "\n".join(
            [
                *(f"{self.names[arm]}: {' '.join(words)}" for arm, words in self.arms.items()),
                *(f"{probe.name}: {' '.join(self.rungs[probe.name])}" for probe in self.probes),
                f"Each mixer tries {first.description}, on each probe; then it trains with {seeds}.",
                f"{counted_noun(len(self.arms), 'mixer')} on {counted_noun(len(self.probes), 'probe')}:"
                f" {runs} runs or more of up to {next(iter(self.cfgs.values())).train.steps} steps,"
                f" {self.sweeper.n_jobs} at a time.",
            ]
        )

    def protocol_data(self) -> dict[str, Any]:
        return {
            **asdict(self.protocol),
            "mixers": list(self.config.mixers),
            "probes": list(self.config.probes),
        }

    # ---- training

    def train(self, probe: Probe) -> bool:
        """Tune and train all mixers on a probe; return whether there was time for all."""
        trained = self.trained_on(probe.name, partial(score, solved_at=self.solved_at(probe)))
        for arm, (tuning, trials) in trained.items():
            key = self.names[arm], probe.name
            self.cells[key] = with_runs(self.cells[key], tuning, trials)
        return all(self.cells[self.names[arm], probe.name].is_complete for arm in self.arms)

    def sweeps(self, plan: RatesAndDecays) -> list[str]:
        return plan.space(self.protocol.seeds)

    def progress(self, probe: Probe, done: int, seconds: float) -> str:
        """Return what became of a probe, and how long the rest will take at this pace."""
        cells = [self.cells[self.names[arm], probe.name] for arm in self.arms]
        found = (f"{cell.mixer} {100 * cell.estimate.value:.1f} %" for cell in cells if cell.estimate)
        rest = rest_of("probe", done, len(self.probes), seconds)
        return f"{probe.name}: {', '.join(found) or 'the time was up'}.{rest}"

    # ---- the report

    def profile(self) -> Profile:
        """Return everything that was trained so far."""
        sizes = {
            (self.names[arm], probe): params(build_shapes(cfg, build(cfg.tokenizer).vocab_size))
            for (arm, probe), cfg in self.cfgs.items()
        }
        equal = self.protocol.equal
        same = f"with the same {equal} on each" if equal and len(self.arms) > 1 else "each with its own size"
        return Profile(list(self.names.values()), self.probes, self.cells, same, self.command(), sizes)


def with_runs(cell: Cell, tuning: Tuning, trials: Sequence[FrozenTrial]) -> Cell:
    """Return a cell with its runs.

    Raises:
        UserError: a run failed, other than by divergence, or its summary is damaged.
    """
    where = f"{cell.mixer} on {cell.probe.name}"
    lost = [trial.params["seed"] for trial in trials if value_of(trial, where) is None]
    runs = [run_of(Path(trial.user_attrs["run"])) for trial in trials if is_complete(trial)]
    return replace(cell, runs=runs, lost=lost, tuning=tuning)


def run_of(folder: Path) -> ProbeRun:
    """Return what a run recorded. UserError if its summary is damaged."""
    try:
        summary = recorded.read_object(folder, "summary.json")
        recorded.check(summary, {**SUMMARY, "seed": int}, "summary.json")
    except recorded.Damaged as error:
        raise UserError(f"In {folder}: {error} Start another profile: sweep.name=<name>.") from error
    low, high = summary["val_accuracy_interval"]
    return ProbeRun(
        seed=summary["seed"],
        accuracy=summary["val_accuracy"],
        interval=(low, high),
        exact=summary.get("val_exact"),
        tokens=summary["val_answer_tokens"],
        steps=summary["steps"],
        folder=str(folder),
    )
