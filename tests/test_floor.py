"""A figure below what no model can be below is an error in capitals, wherever it appears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from minllm.config.compose import compose
from minllm.data.floor import LUCK, above_floor, below_floor
from minllm.errors import UserError
from minllm.grid.table import grid_table
from minllm.study.comparison import compare
from minllm.study.report import summary, write_report
from minllm.sweep.trial import value_of
from minllm.tasks.evaluate import evaluate
from minllm.training.train import train
from tests.comparisons import FLOOR, comparison, finished, readings
from tests.test_laws import TINY

ERROR = "BELOW THE CORPUS FLOOR"


def test_a_figure_is_an_error_once_luck_and_rounding_do_not_explain_it():
    """A set of 100,000 bytes leaves a tenth of a thousandth of a bit a byte to luck."""
    n_bytes = 100_000
    assert "below_floor" not in above_floor(1.5, 1.5, n_bytes)
    assert "below_floor" not in above_floor(1.5 - 0.9 * LUCK / n_bytes, 1.5, n_bytes)
    assert ERROR in above_floor(1.5 - 1.3 * LUCK / n_bytes, 1.5, n_bytes)["below_floor"]
    assert above_floor(1.0, None, n_bytes) == {}
    error = above_floor(1.25, 1.5, n_bytes)["below_floor"]
    assert error == error.upper() and "0.2500" in error


def test_runs_from_before_sizes_were_noted_are_judged_too():
    assert below_floor({"bpb_above_floor": -0.001}) and not below_floor({"bpb_above_floor": -0.00001})
    assert below_floor({}) is None and below_floor({"bpb_above_floor": None}) is None


def test_an_arm_below_the_floor_is_not_better(tmp_path):
    one = comparison(tmp_path, {"honest": FLOOR + 0.3, "leaking": FLOOR - 0.25})
    assert [contest.verdict.word for contest in one.contests] == ["inconclusive"]
    assert "is better" not in one.headline
    write_report(one, tmp_path / "report", readings(one))
    for text in [summary(one), *(file.read_text() for file in (tmp_path / "report").iterdir())]:
        # in HTML the apostrophe is written otherwise
        assert "leaking" in text and "BELOW THE CORPUS" in text
    one = comparison(tmp_path / "other", {"leaking": FLOOR - 0.25, "honest": FLOOR + 0.3})
    assert [contest.verdict.word for contest in one.contests] == ["inconclusive"]


def test_an_arm_of_which_one_seed_is_below_the_floor_is_not_better_than_any(tmp_path):
    one = comparison(tmp_path, {"a": FLOOR + 0.3, "b": FLOOR + 0.2, "c": FLOOR - 0.001}, baseline="all")
    words = {(contest.arm.name, contest.baseline.name): contest.verdict.word for contest in one.contests}
    assert words == {("b", "a"): "better", ("c", "a"): "inconclusive", ("c", "b"): "inconclusive"}
    assert not one.headline.startswith("c ")


def test_a_grid_says_so_and_puts_it_last(tmp_path):
    jobs = [
        (["model/attn=mqa"], finished(tmp_path / "a", "model/attn=mqa", bpb=FLOOR - 0.25)),
        (["model/attn=mha"], finished(tmp_path / "b", "model/attn=mha", bpb=FLOOR + 0.5)),
    ]
    for _, folder in jobs:
        text = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(text | {"device": "cpu"}))
    table = grid_table(jobs)
    assert ERROR in table and table.index("mha") < table.index("mqa")


@pytest.mark.parametrize("checked, told", [(True, False), (False, True)])
def test_the_report_names_arms_that_were_not_checked(tmp_path, checked, told):
    means = {"one": FLOOR + 0.1, "other": FLOOR + 0.2}
    one = comparison(tmp_path, means, changed={"checked": checked})
    write_report(one, tmp_path / "report", readings(one))
    for text in [summary(one), *(file.read_text() for file in (tmp_path / "report").iterdir())]:
        assert ("one is unchecked (trained with train.check=false)" in text) == told


def older(folder: Path, *words: str) -> Path:
    """Write a finished run of a minllm that didn't check models."""
    finished(folder, *words, "model.dim=32", "model.n_layers=1")
    text = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({k: v for k, v in text.items() if k != "checked"}))
    return folder


def test_runs_from_before_there_was_a_check_are_checked_when_they_are_compared(tmp_path):
    """And are called unchecked, since the code may have been another when they were trained."""
    for name in ("mqa", "mha"):
        older(tmp_path / name, f"model/attn={name}")
    one = compare([str(tmp_path)])
    assert "attn=mqa is unchecked (trained by an older minllm that didn't check models)" in summary(one)


@pytest.mark.parametrize("place, name", [("model.attn", "NextToken"), ("model.mlp", "LookingMLP")])
def test_an_older_run_whose_model_sees_the_future_is_refused(tmp_path, place, name):
    older(tmp_path / "honest", "model/attn=mqa")
    folder = older(tmp_path / "leaking", "model/attn=mha")
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, place, {"_target_": f"tests.test_laws.{name}"}, merge=False)
    OmegaConf.save(cfg, folder / "config.yaml")
    with pytest.raises(UserError, match=rf"can't be compared\. {place} \({name}\) looks ahead") as refused:
        compare([str(tmp_path)], extensions=["tests"])
    assert "To train it" not in str(refused.value)


def test_an_older_run_whose_model_can_not_be_built_any_more_stays_unchecked(tmp_path):
    older(tmp_path / "honest", "model/attn=mqa")
    folder = older(tmp_path / "gone", "model/attn=mha")
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, "model.attn.of_old", 1, force_add=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    assert "attn=mha is unchecked" in summary(compare([str(tmp_path)]))


def test_whether_a_run_was_checked_makes_no_other_arm(tmp_path):
    for seed, check in enumerate(["true", "false"]):
        finished(tmp_path / check, f"train.check={check}", "model/attn=mqa", seed=seed)
        finished(tmp_path / f"{check}-mha", "model/attn=mha", seed=seed)
    assert len(compare([str(tmp_path)]).arms) == 2


def test_a_trial_of_a_search_has_no_value_below_the_floor():
    honest = {"val_loss": 1.2, "val_bpb": FLOOR + 0.1}
    assert value_of(honest, "val_loss") == 1.2
    with pytest.raises(UserError, match=ERROR):
        value_of({**honest, **above_floor(FLOOR - 0.1, FLOOR, 10_000)}, "val_bpb")


def test_a_run_and_its_evaluation_say_so(tmp_path, monkeypatch, capsys):
    """With a floor above what such a model reaches."""
    monkeypatch.setattr("minllm.data.tales.Tales.floor_bits_per_byte", lambda self: 20.0)
    cfg = compose([*TINY, f"data.cache={tmp_path / 'cache'}"])
    summary = train(cfg, tmp_path / "run")
    assert ERROR in summary["below_floor"] and ERROR in (tmp_path / "run/summary.json").read_text()
    assert ERROR in (tmp_path / "run/log.txt").read_text()
    capsys.readouterr()
    figures = evaluate(cfg, tmp_path, run=str(tmp_path / "run"))
    assert ERROR in figures["below_floor"] and ERROR in capsys.readouterr().out
