"""A ladder whose runs are trained and then read with fewer tokens, by a decay each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from minllm.errors import UserError
from minllm.runs.outcome import Outcome, write
from minllm.study.comparison import compare
from minllm.sweep.trial import Assignment
from minllm.training import train as task
from tests.instant import Instant
from tests.test_ladder import FOLDER, climbed, composed_once  # noqa: F401 (a fixture for all)
from tests.test_report_schema import validate_report
from tests.test_training import figures

BUDGETS = (
    *("ladder.params=[1e4,1.5e4,2.4e4]", "ladder.tokens_per_param=[0.1,0.2]", "train.steps=800"),
    *("sample.max_new_tokens=4", "train.malloc=default", "search.tune=[]"),
    *("schedule=wsd", "schedule.warmup_steps=1", "schedule.decay_steps=2"),
)


class Trained(Instant):
    """Trains each run here, in this process."""

    def launch(self, job_overrides, initial_job_idx) -> list[JobReturn]:
        assignment = json.loads(Assignment.file(self.folder, initial_job_idx).read_text())
        cfg = OmegaConf.create(assignment["config"])
        run_dir = Path(assignment["run_dir"])
        Trained.launched.append((self.folder.name, cfg))
        summary = task.train(cfg, run_dir, branch_from=cfg.branch_from)
        outcome = Outcome("complete", summary["val_bpb"], figures={"seconds": summary["wall_seconds"]})
        write(outcome, run_dir, assignment["attempt"])
        return [JobReturn(status=JobStatus.COMPLETED)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budgets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        climbed(*BUDGETS, launcher=Trained)
    return folder


def test_each_size_is_trained_once_and_read_at_each_budget(trained):
    phases = [folder for folder, _ in Trained.launched]
    assert [name.partition("-")[0] for name in phases] == ["time"] * 4 + ["seeds"] * 24
    assert phases[4:10] == [f"seeds-{name}-{number}" for number in (3, 2, 1) for name in "ab"]
    assert set(phases[10:16]) == {f"seeds-{name}-{number}-0.1" for number in (1, 2, 3) for name in "ab"}
    for name, cfg in Trained.launched[4:]:
        is_branch = name.endswith("-0.1")
        assert bool(cfg.branch_from) == is_branch and bool(cfg.train.branches) != is_branch


def test_a_branch_in_a_ladder_is_the_run_that_it_would_be_alone(trained):
    (run,) = (
        path.parent
        for path in (trained / FOLDER / "seeds-b-2-0.1").glob("*/config.yaml")
        if OmegaConf.load(path).seed == 1
    )
    cfg = OmegaConf.load(run / "config.yaml")
    task.train(OmegaConf.merge(cfg, {"branch_from": None}), trained / "alone")
    summary, alone = (
        json.loads((folder / "summary.json").read_text()) for folder in (run, trained / "alone")
    )
    assert summary["val_bpb"] == alone["val_bpb"] and summary["tokens"] == alone["tokens"]
    step = summary["branch"]["step"]
    assert 2 < step == summary["steps"] - 2
    assert step < summary["steps"] and summary["branch"]["tokens"] == (summary["steps"] - step) * 128
    assert figures(run)[-1] == figures(trained / "alone")[-1]


def test_the_report_has_a_ladder_for_each_budget_and_laws_of_parameters_and_tokens(trained):
    report = json.loads((trained / FOLDER / "report.json").read_text())
    validate_report(report)
    fewer, more = report["ladders"]
    assert [ladder["tokens_per_param"] for ladder in (fewer, more)] == pytest.approx([0.1, 0.2], rel=0.08)
    assert all(ladder["axis"] == "flops" and len(ladder["rungs"]) == 3 for ladder in (fewer, more))
    assert [len(side) for side in fewer["runs"]] == [12, 12] and fewer["laws"] == more["laws"]
    assert all(law["scales"] == ["params", "tokens"] and len(law["exponents"]) == 2 for law in more["laws"])
    seconds = [run["seconds"] for run in fewer["runs"][0]]
    assert min(seconds) > 0
    assert f"at {more['tokens_per_param']:.3g} tokens per parameter" in report["headline"]
    # task=compare of the folder finds the same
    found = compare([trained / FOLDER]).ladders
    assert [ladder.series.label for ladder in found] == [
        f"{ratio:.3g} tokens per parameter" for ratio in (fewer["tokens_per_param"], more["tokens_per_param"])
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["schedule.decay_steps=7"], "type schedule=wsd and schedule.warmup_steps="),
        (["schedule.warmup_steps=null"], "type schedule=wsd and schedule.warmup_steps="),
    ],
)
def test_schedules_that_depend_on_the_length_are_refused_before_anything_runs(
    tmp_path, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        climbed(*BUDGETS, *words, launcher=Trained)
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_trained_is_predicted_to_take_time(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert climbed(*BUDGETS, "sweep.dry_run=true", launcher=Trained) is None
    rows = [line.strip() for line in capfd.readouterr().out.splitlines()]
    at = rows.index(next(row for row in rows if row.startswith("Rung 1: ")))
    assert rows[at + 1].startswith("From these, by a decay each: 1,024 tokens")
