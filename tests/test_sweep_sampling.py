"""Samplers propose only what can be built, and learn where the wall is."""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import optuna
import pytest
from optuna.samplers import (
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import TrialState

from minllm.errors import UserError
from minllm.runs.outcome import Outcome
from minllm.sweep.reporter import Reporter
from minllm.sweep.sampling import ATTEMPTS, NEEDS, ask, make_sampler
from minllm.sweep.store import open_study, requeue_interrupted
from tests.specs import space, study_of


def installed(sampler: type) -> bool:
    return all(importlib.util.find_spec(package) for package in NEEDS.get(sampler.__name__, ()))


def each(*samplers: type):
    return pytest.mark.parametrize(
        "made",
        [
            pytest.param(
                sampler,
                id=sampler.__name__,
                marks=pytest.mark.skipif(not installed(sampler), reason="a package that it needs is missing"),
            )
            for sampler in samplers
        ],
    )


def seeded(made: type, seed: int):
    """A sampler whose generations are short enough for a search of some dozens of trials."""
    return made(seed=seed, **({"population_size": 8} if made in (NSGAIISampler, NSGAIIISampler) else {}))


# ---- only what can be built --------------------------------------------------------------------------

PARAMS = {
    "model.dim": "range(32,257,32)",
    "model.attn.n_heads": "choice(1,2,3,4,5)",
    "optim.lr": "tag(log,interval(1e-4,1e-1))",
    "schedule": "choice(constant,cosine)",
    "schedule.restarts": "range(0,4)",
    "schedule.t_mult": "choice(1.0,2.0)",
}
WHEN = {"schedule.restarts": {"schedule": ["cosine"]}, "schedule.t_mult": {"schedule.restarts": [1, 2, 3]}}


@pytest.fixture(scope="module")
def given():
    return space(params=PARAMS, when=WHEN, multiples={"model.dim": "model.attn.n_heads"})


def loss(values) -> float:
    return abs(math.log(values["optim.lr"] / 3e-3)) + 100 / values["model.dim"]


@each(TPESampler, RandomSampler, NSGAIISampler, NSGAIIISampler, CmaEsSampler, QMCSampler)
def test_unbuildable_combinations_never_become_trials(made, given):
    search_through(made, given, trials=200)


@each(GPSampler)
@pytest.mark.slow  # a Gaussian process takes a tenth of a second for each guess
def test_unbuildable_combinations_never_become_trials_of_a_gaussian_process(made, given):
    search_through(made, given, trials=18)


def search_through(made, given, trials: int) -> None:
    study = study_of(seeded(made, 0), given, given.misfit)
    for _ in range(trials):
        trial, values = ask(study, given)
        assert trial.params == values and given.misfit(values) is None
        assert ("schedule.restarts" in values) == (values["schedule"] == "cosine")
        assert ("schedule.t_mult" in values) == (values.get("schedule.restarts", 0) > 0)
        study.tell(trial, loss(values))
    assert [trial.number for trial in study.trials] == list(range(trials))
    assert len({values["model.attn.n_heads"] for values in (trial.params for trial in study.trials)}) >= 3


@each(CmaEsSampler)
@pytest.mark.filterwarnings("error")
def test_warnings_are_not_repeated_for_each_trial(made, given, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="optuna")
    study = study_of(made(seed=0), given)
    for _ in range(8):
        trial, values = ask(study, given)
        trial.set_constraint("trained", 1.0)
        study.tell(trial, loss(values))
    assert not caplog.records


class Stubborn(optuna.samplers.BaseSampler):
    """Is sure of its guess, whatever it's told."""

    def __init__(self, guess):
        self.guess, self.asked = guess, 0

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        self.asked += 1
        return {}

    def sample_independent(self, study, trial, name, kind):
        return self.guess[name]


def test_stubborn_sampler_is_perturbed_only_as_needed(given):
    guess = {"model.dim": 256, "model.attn.n_heads": 3, "optim.lr": 0.05, "schedule": "constant"}
    sampler = Stubborn(guess)
    study = study_of(sampler, given, given.misfit)
    drawn = [ask(study, given)[1] for _ in range(40)]
    assert mean(values["optim.lr"] == 0.05 for values in drawn) > 0.5
    assert len({str(values) for values in drawn}) > 5 and sampler.asked < 40 * 10


def test_empty_space_is_reported(given):
    asked = []
    study = study_of(RandomSampler(seed=0), given, lambda values: asked.append(values) or "It's too wide.")
    with pytest.raises(
        UserError, match="None of 300 combinations .* The last was rejected with: It's too wide."
    ):
        ask(study, given)
    assert len(asked) == ATTEMPTS


def test_trials_that_were_put_back_or_given_keep_their_values(given, tmp_path):
    def opened():
        sampler = make_sampler(TPESampler(seed=0), given, given.misfit)
        return open_study("cut-off", None, tmp_path, sampler=sampler, pruner=optuna.pruners.NopPruner())

    study = opened()
    ask(study, given)
    half = study.ask()
    half.suggest_int("model.dim", 32, 256, step=32)
    half.suggest_categorical("model.attn.n_heads", (1, 2, 3, 4, 5))
    before = [trial.params for trial in study.trials]
    wanted = {"model.dim": 96, "model.attn.n_heads": 3, "optim.lr": 0.01, "schedule": "cosine"}
    study.enqueue_trial(wanted)
    study = opened()
    assert requeue_interrupted(study) == [0, 1]
    after = [ask(study, given) for _ in range(3)]
    assert [trial.number for trial, _ in after] == [0, 1, 2]
    assert after[0][1] == before[0]
    assert before[1].items() < after[1][1].items() and given.misfit(after[1][1]) is None
    assert wanted.items() < after[2][1].items() and "schedule.restarts" in after[2][1]


def test_a_package_that_a_sampler_needs_is_named(given, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for sampler, package in ((CmaEsSampler(), "cmaes"), (GPSampler(), "scipy"), (QMCSampler(), "scipy")):
        with pytest.raises(
            UserError, match=f"needs the package {package}: run pip install {package}, or use tpe"
        ):
            make_sampler(sampler, given, given.misfit)


# ---- the wall ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sizes():
    return space(
        "model.dim=range(64,2049,64)", "model.n_layers=range(1,25)", "optim.lr=tag(log,interval(1e-4,1e-1))"
    )


@pytest.fixture(scope="module")
def few_sizes():
    """Of up to 16 values, a Gaussian process rates all at once; among more it searches, a value at a time."""
    return space(
        "model.dim=range(128,2049,128)",
        "model.n_layers=range(2,25,2)",
        "optim.lr=tag(log,interval(1e-4,1e-1))",
    )


def walks_into_the_wall(sampler, sizes, tell_memory, trials: int = 60) -> int:
    """Search where larger is better as long as memory lasts, and count how often it didn't after the first trials."""
    study = study_of(sampler, sizes)
    quiet = SimpleNamespace(ended=lambda trial: None)
    verdicts = Reporter(study, SimpleNamespace(keep_checkpoints="none", max_failures=3), quiet, Path("study"))
    hits = 0
    for number in range(trials):
        trial, values = ask(study, sizes)
        trial.set_user_attr("overrides", [])
        size = values["model.dim"] ** 2 * values["model.n_layers"]
        if size > 5e6:
            tell_memory(study, verdicts, trial)
            hits += number >= 20
        else:
            value = 8 - math.log10(size) + abs(math.log10(values["optim.lr"] / 3e-3))
            verdicts.tell(trial, Outcome("complete", value))
    return hits


def tell_verdict(study, verdicts, trial) -> None:
    verdicts.tell(trial, Outcome("pruned", reason="memory", text="Memory ran out."))


def tell_failed(study, verdicts, trial) -> None:
    study.tell(trial, state=TrialState.FAIL)


@each(TPESampler, CmaEsSampler)
def test_sampler_avoids_pruned_region(made, sizes):
    told, ignored = (hits(made, sizes, tell, range(6)) for tell in (tell_verdict, tell_failed))
    assert told < 0.7 * ignored


@each(GPSampler)
@pytest.mark.slow  # a Gaussian process takes a tenth of a second for each guess
def test_gaussian_process_avoids_pruned_region(made, few_sizes):
    told, ignored = (hits(made, few_sizes, tell, [0], trials=35) for tell in (tell_verdict, tell_failed))
    assert told < 0.5 * ignored


@each(NSGAIISampler, NSGAIIISampler)
def test_evolutionary_sampler_prefers_feasible_trials(made, sizes):
    told, ignored = (hits(made, sizes, tell, range(12)) for tell in (tell_verdict, tell_failed))
    assert told < 0.7 * hits(RandomSampler, sizes, tell_failed, range(12)) and told < 1.2 * ignored


def hits(made, sizes, tell_memory, seeds, trials: int = 60) -> float:
    return mean(walks_into_the_wall(seeded(made, seed), sizes, tell_memory, trials) for seed in seeds)


@each(NSGAIISampler, CmaEsSampler, GPSampler)
def test_the_stand_in_for_a_value_is_the_worst_seen_and_breaks_a_constraint(made, sizes):
    study = study_of(seeded(made, 0), sizes)
    quiet = SimpleNamespace(ended=lambda trial: None)
    verdicts = Reporter(study, SimpleNamespace(keep_checkpoints="none", max_failures=3), quiet, Path("study"))
    told = []
    for outcome in (Outcome("complete", 3.0), Outcome("complete", 5.0), Outcome("pruned", reason="memory")):
        trial, _ = ask(study, sizes)
        trial.set_user_attr("overrides", [])
        told.append(verdicts.tell(trial, outcome))
    assert [trial.state for trial in told] == [TrialState.COMPLETE] * 3 and told[2].value == 5.0
    assert [trial.user_attrs.get("violation") for trial in told] == [None, None, 1.0]
    assert verdicts.kept is None and study.best_trial.number == 0
