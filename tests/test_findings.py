"""Findings: what decides them, and whole tests with searches that end at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.page.terminal import json_output
from minllm.schema.groups import find_groups
from minllm.schema.overrides import quoted
from minllm.study.findings import outcomes, rows
from minllm.study.findings.outcomes import Outcome, decision
from minllm.study.statistics import verdicts
from minllm.sweep.plugin import NotSettled, PruningSweeper, RepeatedCrashes
from minllm.verdict.finding import FindingSearch, Tested, has_effect, put_to_the_test
from minllm.verdict.finding_protocol import FindingProtocol
from tests.specs import composed

# ---- what decides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([("better", ["better"])], "replicated"),
        ([("better", ["better"]), ("crosses", ["shrinks", "crosses"])], "replicated"),
        ([("equivalent", ["better"])], "contradicted"),
        ([("inconclusive", ["better"])], "undecided"),
        ([("unstable", ["better"]), ("better", ["better"])], "undecided"),
        ([("unknown", ["shrinks"]), ("worse", ["better"])], "contradicted"),
    ],
)
def test_one_outcome_that_is_excluded_contradicts(words, expected):
    assert decision([Outcome("", "b", "a", predicted, word) for word, predicted in words]) == expected


def report_of(differences: Sequence[float], **changed: Any) -> dict[str, Any]:
    """Return what matters here of a verdict's report, of an arm `norm=post` with these differences."""
    (verdict,) = verdicts([differences], margin=0.01)
    pairs = [{"seed": seed, "difference": value} for seed, value in enumerate(differences)]
    contest = {"arm": "norm=post", "baseline": "norm=pre", "outcome": verdict.word, "pairs": pairs}
    return {"metric": "val_bpb", "contests": [{**contest, "verdict": {**asdict(verdict), **changed}}]}


BETTER = [-0.1, -0.11, -0.09, -0.1, -0.105, -0.1, -0.095]
LESS = [value / 2 for value in BETTER]


def test_the_outcome_is_that_of_the_report():
    found = outcomes.of_contest(report_of(BETTER), "norm=post", "", ["better"], bounds=False)
    assert found.word == "better" and found.pairs == 7 and found.unit == "bits per byte"
    assert found.difference == pytest.approx(sum(BETTER) / 7)
    missing = outcomes.of_contest(report_of(BETTER), "norm=none", "", ["better"], bounds=False)
    assert missing.word == "inconclusive" and missing.difference is None


@pytest.mark.parametrize(("bounds", "word"), [(True, "worse"), (False, "inconclusive")])
def test_a_bound_counts_only_for_a_claim_about_bounds(bounds: bool, word: str):
    report = report_of([0.0, 0.3, -0.3, 0.1, -0.1, 0.2, -0.2], unproved="worse")
    assert outcomes.of_contest(report, "norm=post", "", ["worse"], bounds=bounds).word == word


@pytest.mark.parametrize(
    ("first", "last", "word"),
    [(BETTER, LESS, "worse"), (LESS, BETTER, "better"), (BETTER, BETTER, "equivalent")],
)
def test_a_change_is_tested_by_pairs_of_the_same_seed(first, last, word):
    found = outcomes.change(report_of(first), report_of(last), "norm=post", "change", [word], pairs=7)
    (expected,) = verdicts([[b - a for a, b in zip(first, last)]], margin=0.01)
    assert (found.word, found.difference, found.pairs) == (word, expected.difference, 7)


@pytest.mark.parametrize(("first", "last"), [(BETTER, LESS[:6]), (BETTER[:6], LESS), (BETTER[:6], LESS[:6])])
def test_a_change_needs_every_planned_pair_in_both_parts(first, last):
    """Those that are missing weren't trained yet, or diverged."""
    found = outcomes.change(report_of(first), report_of(last), "norm=post", "change", ["worse"], pairs=7)
    assert found.word == "inconclusive" and found.pairs == 6


@pytest.mark.parametrize(("complete", "word"), [(True, "better"), (False, "inconclusive")])
def test_an_unfinished_study_or_ranking_decides_nothing(complete: bool, word: str):
    report = {**report_of(BETTER), "complete": complete}
    assert outcomes.of_contest(report, "norm=post", "", ["better"], bounds=False).word == word


def test_a_ladder_answers_at_its_smallest_size_and_at_scale():
    fitted = [{"value": -0.1, "interval": [-0.12, -0.08]}, {"value": -0.02, "interval": [-0.06, 0.02]}]
    rungs = [{"baseline": [2.0] * 4, "arm": [1.9] * 4} for _ in range(2)]
    ladder = {"arm": "norm=post", "rungs": rungs, "answer": {"word": "shrinks", "fitted": fitted}}
    report = {"metric": "val_bpb", "baseline": "norm=pre", "margin": 0.005, "ladders": [ladder]}

    def smallest(planned: Sequence[int] = (4, 4)) -> str:
        return outcomes.at_smallest(report, "norm=post", "", ["better"], planned).word

    at_scale = outcomes.at_scale(report, "norm=post", "at scale", ["shrinks"], [4, 4])
    assert (at_scale.word, at_scale.difference, at_scale.unit) == ("shrinks", -0.02, "bits per byte")
    assert smallest() == "better"
    assert smallest([6, 6]) == smallest([4, 4, 4]) == "inconclusive"  # runs are missing
    assert outcomes.at_scale(report, "norm=post", "", ["shrinks"], [6, 6]).word == "unknown"
    fitted.reverse()
    assert smallest() == "inconclusive"
    fitted[0]["interval"] = [-0.009, 0.002]  # within 0.5 % of 2.0
    assert smallest() == "equivalent"
    ladder["answer"] = None
    assert smallest() == "inconclusive"


# ---- whole tests ---------------------------------------------------------------------------------


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[DictConfig, list[str]]]:
    """Make every search end at once with the report of `BETTER` and list them, in an empty folder."""
    done: list[tuple[DictConfig, list[str]]] = []

    def sweep(self: PruningSweeper, words: list[str]) -> None:
        done.append((self.config, words))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report_of(LESS if folder.name == "time" else BETTER)))
        raise NotSettled

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PruningSweeper, "sweep", sweep)
    return done


def put(*words: str, act: Callable = put_to_the_test) -> Any:
    """Test in the current folder as `python sweep.py search=finding <words>` would."""
    typed = [quoted(word) for word in ("search=finding", *words)]
    with composed(*typed) as (master, context):
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, hydra_context=context, task_function=lambda cfg: None
        )
        return act(sweeper, typed)


def run(*args: Any) -> None:
    FindingProtocol(preset="laptop", first_seed=0).run(*args)


def outcome_by_finding(tested: Tested) -> dict[str, str]:
    return {row.finding: row.decision for row in tested.rows}


def test_each_finding_is_the_command_of_its_search(searched, capfd):
    with json_output():
        found = put("finding=pre_norm_no_warmup", "train.steps=5", "sweep.minutes=9")
    (config, words), folder = searched[0], Path("outputs/sweeps/a-search")
    assert words[0] == "search=verdict" and {"search.ledger=false", "train.steps=5"} < set(words)
    assert config.train.steps == 5 and config.arms.b == ["norm=post"] and "finding" not in config
    assert config.hydra.sweep.dir == str(folder / "pre_norm_no_warmup") and 8 < config.sweep.minutes < 9
    assert outcome_by_finding(found) == {"pre_norm_no_warmup": "contradicted"}  # it is predicted to be worse
    (row,) = rows.read()
    assert row.typed == ["train.steps=5"] and row.command.endswith("finding=pre_norm_no_warmup train.steps=5")
    line = json.loads(capfd.readouterr().out)
    assert line["status"] == "settled" and line["findings"][0]["decision"] == "contradicted"
    assert (folder / "findings.md").is_file() and Path(line["report"]).is_file()


def test_parts_share_the_time_and_their_change_is_tested(searched):
    put("finding=muon_steps_time", "sweep.minutes=4")
    (first, _), (last, _) = searched
    assert first.train.steps and last.train.minutes and last.train.steps is None
    assert Path(first.hydra.sweep.dir).name == "steps" and Path(last.hydra.sweep.dir).name == "time"
    assert 1.9 < first.sweep.minutes < 2 and last.sweep.minutes == pytest.approx(4, abs=0.1)
    assert last.sweep.name != first.sweep.name


def test_several_findings_share_the_time_and_one_word_chooses_all(searched):
    found = put("finding=gated_mlp,wsd_cosine", "sweep.minutes=10")
    assert [4.9 < searched[0][0].sweep.minutes < 5, 9.9 < searched[1][0].sweep.minutes < 10] == [True, True]
    assert list(outcome_by_finding(found)) == ["gated_mlp", "wsd_cosine"]
    chosen = put("finding=glob(*)", act=lambda *args: [test.name for test in FindingSearch(*args).tests])
    assert chosen == list(find_groups()["finding"])


@pytest.mark.parametrize("error", [UserError("No such file."), RepeatedCrashes("Every trial crashed.")])
def test_the_others_are_tested_before_one_that_fails_is_reported(searched, monkeypatch, error: Exception):
    sweep = PruningSweeper.sweep

    def failing(self: PruningSweeper, words: list[str]) -> None:
        if "gated_mlp" in self.config.hydra.sweep.dir:
            raise error
        sweep(self, words)

    monkeypatch.setattr(PruningSweeper, "sweep", failing)
    with pytest.raises(type(error), match=str(error)):
        put("finding=gated_mlp,wsd_cosine")
    assert [row.finding for row in rows.read()] == ["wsd_cosine"]


def test_other_seeds_and_presets_have_folders_of_their_own(searched):
    put("finding=gated_mlp", "search.first_seed=100", "search.preset=gpu", "hydra.sweeper.n_jobs=3")
    ((config, _),) = searched
    assert config.search.first_seed == 100 and config.model.dim == 256
    assert Path(config.hydra.sweep.dir).name == "gated_mlp-gpu-from-100"
    assert "search.preset=gpu search.first_seed=100 hydra.sweeper.n_jobs=3" in rows.read()[0].command


def test_time_that_is_up_leaves_the_rest_for_the_same_command(searched, capsys):
    with pytest.raises(NotSettled):
        put("finding=gated_mlp,wsd_cosine", "sweep.minutes=1e-9", act=run)
    assert not searched
    assert "before these findings: gated_mlp, wsd_cosine" in capsys.readouterr().out


def test_minutes_add_up_and_a_finding_that_has_changed_is_refused(searched):
    put("finding=gated_mlp")
    state = Path("outputs/sweeps/a-search/gated_mlp/finding.json")
    content = json.loads(state.read_text(encoding="utf-8"))
    state.write_text(json.dumps({**content, "seconds": 600}), encoding="utf-8")
    (row,) = put("finding=gated_mlp").rows
    assert row.minutes >= 10
    state.write_text(json.dumps({**content, "digest": "other"}), encoding="utf-8")
    with pytest.raises(UserError, match="finding=gated_mlp has changed since its test in .* began"):
        put("finding=gated_mlp")


def test_a_damaged_ledger_is_reported_before_anything_is_trained(searched):
    rows.FILE.parent.mkdir(parents=True)
    rows.FILE.write_text("{\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1, is damaged"):
        put("finding=gated_mlp")
    assert not searched


def test_a_finding_is_saved_before_its_first_run(searched, monkeypatch):
    """So that one whose prediction is changed after a crash is refused, too."""

    def killed(self: PruningSweeper, words: list[str]) -> None:
        assert Path("outputs/sweeps/a-search/gated_mlp/finding.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(PruningSweeper, "sweep", killed)
    with pytest.raises(KeyboardInterrupt):
        put("finding=gated_mlp")


@pytest.mark.parametrize(
    ("word", "typed"), [("sweep.trial_minutes=1", True), ("sweep.max_failures=2", False)]
)
def test_settings_of_all_trials_make_another_test(word: str, typed: bool):
    assert has_effect(word) is typed


def test_a_dry_run_shows_the_plans_and_writes_nothing(searched, capsys):
    assert put("finding=muon_steps_time", "sweep.dry_run=true") is None
    assert len(searched) == 2 and all(config.sweep.minutes is None for config, _ in searched)
    assert (
        "Muon is better than AdamW" in capsys.readouterr().out and not Path("outputs/findings.jsonl").exists()
    )


def test_an_inconclusive_finding_is_undecided_and_not_settled(searched, monkeypatch):
    noise = report_of([0.1, -0.1, 0.2, -0.2, 0.05, -0.05, 0.01])
    monkeypatch.setattr("minllm.verdict.finding.report_in", lambda folder: noise)
    with pytest.raises(NotSettled):
        put("finding=pre_norm_no_warmup", act=run)
    monkeypatch.setattr("minllm.verdict.finding.report_in", lambda folder: None)
    assert outcome_by_finding(put("finding=pre_norm_no_warmup")) == {"pre_norm_no_warmup": "undecided"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Choose a finding, several with commas, or 'finding=glob"),
        (
            ("finding=gated_mlp", "+finding.minutes=3"),
            "minutes=3 has no effect: a finding is what its file says",
        ),
        (("finding=gated_mlp,gated_mpl",), "There is no finding 'gated_mpl'. Did you mean 'gated_mlp'"),
        (
            ("finding=qk_norm_rates", "search.first_seed=9"),
            "finding=qk_norm_rates is tested by search=rates: leave one",
        ),
    ],
)
def test_what_is_no_finding_is_refused(searched, words, sentence):
    with pytest.raises(UserError, match=sentence):
        put(*words)
