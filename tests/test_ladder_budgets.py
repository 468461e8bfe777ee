"""A ladder whose runs are trained once and read with fewer tokens, by a decay each."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf, read_write

from minllm.errors import UserError
from minllm.study.comparison import compare
from minllm.training import train as task
from minllm.verdict.ladder import LadderSearch
from tests.test_ladder import FOLDER, Written, climbed, composed_once  # noqa: F401 (a fixture for all)
from tests.test_report_schema import validate_report
from tests.test_training import figures

BUDGETS = (
    *("ladder.params=[1e4,2e4,4e4]", "ladder.tokens_per_param=[0.1,0.2]", "train.steps=800"),
    *("sample.max_new_tokens=4", "train.malloc=default", "search.tune=[]"),
    *("schedule=wsd", "schedule.warmup_steps=1", "schedule.decay_steps=2"),
)
ALPHA, BETA = 0.3, 0.4


class OfTokens(Written):
    """Writes runs whose loss depends on parameters and tokens."""

    def loss(self, cfg: DictConfig) -> float:
        params, tokens = cfg.size.params / 1e4, cfg.train.tokens / 1e3 if cfg.train.tokens else 1.0
        key = (cfg.seed, round(params * 10), round(tokens * 1e4), cfg.choices.norm == "sandwich")
        noise = np.random.default_rng(key).normal(0, 0.002)
        gain = 0.9 if cfg.choices.norm == "sandwich" else 1.0
        return 1.5 + gain * (params**-ALPHA + tokens**-BETA) * math.exp(noise)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budgets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert climbed(*BUDGETS, launcher=OfTokens) is True
    return folder


def test_each_size_is_trained_once_and_read_at_each_budget(trained):
    phases = [folder for folder, _ in OfTokens.launched]
    assert [name.partition("-")[0] for name in phases] == ["time"] * 4 + ["seeds"] * 24
    assert phases[4:10] == [f"seeds-{name}-{number}" for number in (3, 2, 1) for name in "ab"]
    assert phases[10:16] == [f"seeds-{name}-{number}-0.1" for number in (3, 2, 1) for name in "ab"]
    for folder, cfg in OfTokens.launched[4:]:
        params, is_branch = cfg.size.params, folder.endswith("-0.1")
        assert cfg.train.tokens == params * (0.1 if is_branch else 0.2)
        trunk = str((trained / FOLDER / folder).resolve()).removesuffix("-0.1")
        assert cfg.branch_from == (trunk if is_branch else None)
        shorter = 128 * math.ceil(params * 0.1 / 128)
        assert cfg.train.branches == (None if is_branch else [shorter])


def test_what_a_ladder_trains_is_the_run_that_it_would_be_alone(trained, monkeypatch):
    monkeypatch.chdir(trained)
    cfgs = {folder: cfg for folder, cfg in OfTokens.launched if cfg.seed == 1}
    trunk, branch = cfgs["seeds-b-2"], cfgs["seeds-b-2-0.1"]
    task.train(trunk, Path("real/trial-1"))
    summary = task.train(branch, Path("branch"), branch_from="real")
    alone = task.train(OmegaConf.merge(branch, {"branch_from": None}), Path("alone"))
    assert summary["val_bpb"] == alone["val_bpb"] and summary["tokens"] == alone["tokens"]
    step = summary["branch"]["step"]
    assert 2 < step == alone["steps"] - 2 and summary["branch"]["tokens"] == 2 * 128
    assert figures("branch")[-1] == figures("alone")[-1]


def test_the_report_has_a_ladder_for_each_budget_and_laws_of_parameters_and_tokens(trained):
    report = json.loads((trained / FOLDER / "report.json").read_text(encoding="utf-8"))
    validate_report(report)
    fewer, more = report["ladders"]
    ratios = [ladder["tokens_per_param"] for ladder in (fewer, more)]
    assert ratios == pytest.approx([0.1, 0.2], rel=0.05)
    assert all(ladder["axis"] == "flops" and len(ladder["rungs"]) == 3 for ladder in (fewer, more))
    assert [ladder["answer"]["word"] for ladder in (fewer, more)] == ["holds", "holds"]
    assert all(f"at {ratio:.3g} tokens per parameter" in report["headline"] for ratio in ratios)
    # of all runs of an arm
    assert [len(side) for side in fewer["runs"]] == [12, 12] and fewer["laws"] == more["laws"]
    for law in more["laws"]:
        assert law["scales"] == ["params", "tokens"] and law["problem"] is None
        for truth, (low, high) in zip((ALPHA, BETA), law["exponent_intervals"]):
            assert low - 0.05 < truth < high + 0.05
    # task=compare of the folder finds the same
    found = compare([trained / FOLDER]).ladders
    assert [ladder.series.tokens_per_param for ladder in found] == ratios
    assert [ladder.answer.word for ladder in found] == ["holds", "holds"]


@pytest.mark.parametrize("changed", ["schedule.decay_steps=7", "schedule.warmup_steps=null"])
def test_schedules_that_depend_on_the_length_are_refused_before_anything_runs(tmp_path, monkeypatch, changed):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="type schedule=wsd and schedule.warmup_steps="):
        climbed(*BUDGETS, changed, launcher=OfTokens)
    assert list(tmp_path.iterdir()) == []


def test_no_run_branches_off_one_for_which_time_ran_out(tmp_path, monkeypatch, capfd):
    """It would fail, and count as tried when the ladder goes on."""

    def end_at_once(self: LadderSearch, config: DictConfig, seconds: float) -> None:
        with read_write(config.hydra):
            config.sweep.minutes = None if config.sweep.name.endswith("-0.1") else 1e-9

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LadderSearch, "end_before", end_at_once)
    assert climbed(*BUDGETS, launcher=OfTokens) is False
    assert {folder.partition("-")[0] for folder, _ in OfTokens.launched} == {"time"}
    assert "time ran out before any rung had a pair" in capfd.readouterr().out
