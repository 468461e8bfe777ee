"""The pruners, each as its YAML file has it: whom they stop, and when."""

from __future__ import annotations

import subprocess
import sys
import warnings

import optuna
import pytest
from omegaconf import OmegaConf

from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.checking import check_node
from minllm.schema.groups import CONF

GROUP = CONF / "sweep/pruner"
EVALS = 10

optuna.logging.set_verbosity(optuna.logging.WARNING)


def node(name, **options):
    cfg = OmegaConf.create(
        {"train": {"evals": EVALS}, "sweep": {"pruner": OmegaConf.load(GROUP / f"{name}.yaml")}}
    )
    cfg.sweep.pruner.update(options)
    check_node(cfg.sweep.pruner, "sweep.pruner", {"minllm"})
    return cfg.sweep.pruner


def study_with(name, others=0, **options):
    """A study in which `others` trials are done, with losses from 0 to 1 at each evaluation."""
    study = optuna.create_study(pruner=build(node(name, **options)))
    for number in range(others):
        trial, loss = study.ask(), number / max(others - 1, 1)
        for step in range(1, EVALS + 1):
            trial.report(loss, step)
        study.tell(trial, loss)
    return study


def stopped_at(study, losses):
    """Return after how many evaluations a trial is stopped, or None."""
    trial = study.ask()
    for step, loss in enumerate(losses, 1):
        trial.report(loss, step)
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return step
    study.tell(trial, losses[-1])
    return None


@pytest.mark.parametrize("file", sorted(GROUP.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_file_is_a_pruner(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(build(node(file.stem)), optuna.pruners.BasePruner)
    assert stopped_at(study_with(file.stem), [1.0] * EVALS) is None  # the first of all


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("median", "interval_evals", 0),
        ("median", "n_warmup_evals", -1),
        ("asha", "reduction_factor", 1),
        ("hyperband", "max_evals", 2.5),
        ("patient", "min_delta", -0.1),
        ("none", "patience", 1),
    ],
)
def test_an_impossible_option_is_refused_before_anything_is_built(name, option, value):
    with pytest.raises(UserError, match=rf"sweep\.pruner.*{option}"):
        node(name, **{option: value})


def test_hyperband_needs_room_for_a_rung():
    with pytest.raises(UserError, match=r"min_evals=11 .* max_evals=10"):
        build(node("hyperband", min_evals=EVALS + 1))
    assert stopped_at(study_with("hyperband", min_evals=EVALS), [1.0] * EVALS) is None


def test_median_stops_the_worse_half_after_the_warm_up():
    for warmup in (0, 3, 5):
        study = study_with("median", others=5, n_warmup_evals=warmup)
        assert stopped_at(study, [0.6] * EVALS) == warmup + 1
        assert stopped_at(study, [0.4] * EVALS) is None
    assert stopped_at(study_with("median", others=5), [0.6] * EVALS) == 4
    assert stopped_at(study_with("median", others=4), [0.6] * EVALS) is None


def test_median_looks_only_at_every_so_many_evaluations():
    study = study_with("median", interval_evals=3)
    for _ in range(5):
        assert stopped_at(study, [0.5] * 4 + [0.1] * 6) is None
    assert stopped_at(study, [0.9] * EVALS) == 4
    assert stopped_at(study, [0.4] * EVALS) == 7  # worse from the fifth on


def test_none_stops_nobody():
    assert stopped_at(study_with("none", others=20), [float("inf")] * EVALS) is None


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_loss_that_is_no_number_is_stopped():
    study = study_with("median", others=5)
    assert stopped_at(study, [float("nan")] * EVALS) == 4


def ends_of(name, trials=243, **options):
    """Return how many of so many trials, in a jumbled order, got to each evaluation."""
    study = optuna.create_study(study_name=name, pruner=build(node(name, **options)))
    ends = [stopped_at(study, [(number * 100 % trials) / trials] * EVALS) for number in range(trials)]
    return [sum(end is None or end > step for end in ends) for step in range(EVALS)]


def test_asha_keeps_a_third_at_each_rung():
    got_to = ends_of("asha")
    assert got_to[0] == got_to[1] == 243
    assert 60 < got_to[2] < 110 and got_to[2] == got_to[5]
    assert 18 < got_to[6] < 45 and got_to[6] == got_to[9]


def test_asha_takes_another_factor():
    got_to = ends_of("asha", min_evals=1, reduction_factor=2)
    assert got_to[0] == 243 and 100 < got_to[1] < 150


def test_hyperband_judges_some_early_and_others_late():
    got_to = ends_of("hyperband")
    early, middle, late = 243 - got_to[1], got_to[2] - got_to[3], got_to[8] - got_to[9]
    assert early > middle > late > 0
    assert early + middle + late == 243 - got_to[9]


def test_patient_waits_as_long_as_a_trial_gets_better():
    study = study_with("patient", others=5)
    assert stopped_at(study, [0.99 - step / 100 for step in range(EVALS)]) is None
    assert stopped_at(study, [0.7, 0.69, 0.68, 0.67, 0.66, 0.8, 0.8, 0.8, 0.8, 0.8]) == 8
    assert stopped_at(study, [0.4, 0.3, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]) is None  # its best is good
    assert stopped_at(study_with("patient", others=5, patience=0), [0.7] * 5 + [0.8] * 5) == 6
    assert stopped_at(study_with("patient", others=5, min_delta=0.2), [0.7] * 5 + [0.8] * 5) is None


def test_torch_is_not_imported():
    program = "import sys, minllm.sweep.pruners, minllm.sweep.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=CONF.parent).returncode == 0
