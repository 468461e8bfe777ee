"""Verdicts by accuracy: what is refused, how ties are tuned and judged, and where accuracies are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from minllm.errors import UserError
from minllm.grid.table import grid_table
from minllm.study.comparison import of_arms
from minllm.study.metric import METRICS
from minllm.study.report import summary, write_report
from minllm.study.report.data import in_a_line
from minllm.study.report.sentences import introduction, noise
from minllm.study.tuning import Tried, Tuning
from minllm.sweep.report.summary import ten_best
from minllm.tasks.ledger import rows_of
from minllm.verdict.champion import kind_of
from minllm.verdict.comparing import compare_pairs, without_runs
from minllm.verdict.entry import entry_for_question, hashed, idea_of
from minllm.verdict.ledger import Ledger
from minllm.verdict.metric import metric_of
from minllm.verdict.random_search import RandomSearch, draws_of
from minllm.verdict.rate_search import RateSearch
from minllm.verdict.sequential import VerdictSearch, reach_verdict
from minllm.verdict.tuning import NothingToCompare
from tests.comparisons import composed, finished
from tests.instant import inquiry
from tests.test_answers import arms_with
from tests.test_grid import run
from tests.test_ledger import compared, question, told
from tests.test_report_schema import validate_answer, validate_report
from tests.test_sweep_report import trial
from tests.tunings import RATES, SEEDS, carried_out, rates_in

ARMS = ("arms.a=[norm=pre]", "arms.b=[norm=post]", "search.equal=null", "train.check=false")
PAIRS = ("data=tales_pairs", *ARMS)
BY_ACCURACY = (*PAIRS, "search.metric=val_accuracy")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*PAIRS, "sweep.metric=val_accuracy"), "^sweep.metric=val_accuracy has no effect in a verdict, whose metric"),
        ((*ARMS, "search.metric=val_exact"), "^search.metric=val_exact needs .* the documents of this data have no"),
        ((*BY_ACCURACY, "arms.b=[objective=masked]"), "those of arm b would have none: this objective doesn't"),
        ((*PAIRS, "train.stop_at_accuracy=0.9"), "^train.stop_at_accuracy=0.9 ends runs .* after which val_bpb can't"),
        (
            (*PAIRS, "train.stop_at_accuracy=0.9", "search.metric=val_exact"),
            "^train.stop_at_accuracy=0.9 ends runs after different numbers of steps, after which val_exact can't",
        ),
        (
            (*BY_ACCURACY, "arms.b=[norm=post,train.stop_at_accuracy=0.9]"),
            "^All arms must end at the same accuracy: put train.stop_at_accuracy outside arms",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_by_accuracy_is_refused(here, words, sentence):
    with pytest.raises(UserError, match=sentence), inquiry(*words):
        pass
    assert list(here.iterdir()) == []


def test_probes_with_several_right_answers_have_no_exact_share():
    cfgs = {"a": composed("data=probe/brevo_small")}
    assert metric_of("val_accuracy", cfgs).is_share
    with pytest.raises(UserError, match="would have none: answers other than the one that is learned may"):
        metric_of("val_exact", cfgs)


def test_the_metric_is_fixed_before_the_first_run_and_in_all_phases(capfd):
    with inquiry(*BY_ACCURACY, "sweep.dry_run=true") as asked:
        reach_verdict(asked.sweeper, asked.overrides)
        assert asked.config_of("tune-a", "none", 1).sweep.metric == "val_accuracy"
        assert "search.metric=val_accuracy" in asked.command()
    assert "Compared: the share of the answers' tokens that are predicted wrong, 1 − val_accuracy; a difference" in (
        capfd.readouterr().out
    )  # fmt: skip
    with inquiry(*BY_ACCURACY) as asked:
        asked.save_protocol()
        (asked.folder / "seeds-a").mkdir()
    with pytest.raises(UserError, match="began with search.metric=val_accuracy"), inquiry(*PAIRS):
        pass


def test_the_metric_belongs_to_the_question():
    """And those by bits per byte are the ones that they were before there were others."""
    by = {name: question(Path("one"), "mine", metric=name) for name in METRICS}
    assert len({asked.key for asked in by.values()}) == 3
    first = by["val_bpb"]
    assert first.key == hashed([[name, idea_of(first.cfgs, (name, name))] for name in first.cfgs])
    assert by["val_exact"].content["metric"] == "val_exact"
    kinds = {kind_of(first.cfgs["a"], "params", metric) for metric in METRICS}
    assert len(kinds) == 3 and kind_of(first.cfgs["a"], "params") in kinds


# ---- tuning --------------------------------------------------------------------------------------


def solved_between(low: float, high: float, other: float = 0.2):
    return lambda values, seed: 0.0 if low <= values["optim.lr"] <= high else other


@pytest.mark.parametrize(
    ("low", "high", "chosen", "how"),
    [
        (0.001, 0.016, 0.004, "the middle one of 5 rates"),
        (0.004, 0.016, 0.008, "the middle one of 3 rates"),
        (0.016, 0.016, 0.016, "the lowest mean loss, which can't be improved"),
        (0.002, 0.002, 0.002, "the lowest mean loss, which can't be improved"),
    ],
)
def test_a_rate_that_cannot_be_improved_is_not_followed_past_an_edge(low, high, chosen, how):
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), solved_between(low, high))
    assert choice.chosen == {"optim.lr": chosen} and choice.how.startswith(how) and not choice.unsettled
    assert rates_in(results, 1000) == list(RATES)


def test_rates_that_are_equally_good_and_not_perfect_say_nothing():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), lambda values, seed: 1.0)
    assert choice.chosen == {"optim.lr": 0.004} and rates_in(results, 1000) == list(RATES)
    assert choice.unsettled.startswith("its learning rates are all equally good after 8 runs")
    capped = RateSearch(RATES, SEEDS, 16, perfect=0.01)
    assert not carried_out(capped, lambda values, seed: 0.01)[0].unsettled


def test_a_random_search_of_ties_is_settled_where_nothing_is_wrong():
    plan = RandomSearch(draws_of({"optim.lr": 0.003}, 12, 8.0), SEEDS, {"optim.lr": 0.003}, 8.0)
    assert not carried_out(plan, solved_between(0.01, 1.0))[0].unsettled, (
        "although all are near the upper end"
    )
    assert "all equally good" in carried_out(plan, lambda values, seed: 0.5)[0].unsettled


# ---- judging -------------------------------------------------------------------------------------


def judged(asked: VerdictSearch, accuracies: dict[str, Sequence[float]], tuning=None):
    """Return the comparison of pairs with these accuracies, whose losses say the opposite of what they say."""
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            folder = asked.folder / f"seeds-{name}" / f"trial-{seed}"
            bpb = 2.5 - (name == "b") * (0.5 + seed / 100)
            figures = {"val_accuracy": value, "val_exact": value**2}
            finished(folder, "data=tales_pairs", *asked.arms[name], seed=seed, bpb=bpb, **figures)
    return compare_pairs(asked, tuning or {}, len(accuracies["a"]))


@pytest.fixture(scope="module")
def asked():
    with inquiry(*BY_ACCURACY, "search.looks=[7,9]", "search.ledger=false") as search:
        yield search


def tuned(*losses: float) -> Tuning:
    tried = [Tried({"optim.lr": rate}, {1000: loss}) for rate, loss in zip(RATES, losses)]
    return Tuning(tried, {"optim.lr": 0.002}, "the lowest mean loss", 16)


def test_a_verdict_by_accuracy_is_reported_in_its_unit(asked, here):
    accuracies = {
        "a": [0.9 - seed / 1000 for seed in range(7)],
        "b": [0.7 + seed / 1000 for seed in range(7)],
    }
    tuning = {"a": tuned(0.3, 0.1, 0.25), "b": tuned(0.5, 0.4, 0.45)}
    comparison = judged(asked, accuracies, tuning)
    (contest,) = comparison.contests
    assert comparison.headline == "By val_accuracy: norm=post is worse than norm=pre."
    assert contest.verdict.margin == 0.005 and contest.verdict.difference == pytest.approx(0.194)
    write_report(comparison, here, [])
    report = json.loads((here / "report.json").read_text())
    validate_report(report)
    first = report["tuning"]["norm=pre"]["tried"][0]
    assert (first["val_accuracy"], first["val_accuracy_by_seed"]) == (
        0.7,
        {"1000": 0.7},
    ) and "val_bpb" not in first
    page = (here / "report.md").read_text()
    assert "In brackets, the mean share of the answers' tokens wrong" in page
    assert "The lowest share of the answers' tokens wrong (median) to expect" in page
    line = in_a_line(comparison, None, None)
    validate_answer({**line, "report": None})
    assert line["metric"] == "val_accuracy"


def test_accuracies_of_one_in_all_runs_are_equivalent(asked):
    comparison = judged(asked, {"a": [1.0] * 7, "b": [1.0] * 7})
    (contest,) = comparison.contests
    assert comparison.headline == "By val_accuracy: norm=post is equivalent to norm=pre."
    assert comparison.is_settled and contest.is_tied and not contest.is_the_same
    assert (
        contest.sentence.endswith("fewer than 34.8 % of the pairs differ.")
        and "same loss" not in contest.sentence
    )
    assert "interval 0.0000 lower to 0.0000 higher" in summary(comparison)


def test_before_every_arm_has_a_run_nothing_is_decided(asked):
    comparison = without_runs(asked, NothingToCompare("time ran out", "Continue."))
    assert comparison.headline == (
        "By val_accuracy: norm=post against norm=pre: inconclusive because time ran out."
    )


@pytest.mark.parametrize("metric", ["val_accuracy", "val_exact"])
def test_runs_that_end_at_an_accuracy_count_up_to_it(here, metric):
    arms = arms_with(here, {"pre": [0.99, 0.998] * 4, "post": [0.991, 1.0] * 4})
    for arm in arms:
        for each in arm.runs.values():
            each.cfg["train"] = {"stop_at_accuracy": 0.99}
    comparison = of_arms(arms, metric=METRICS[metric])
    said = introduction(comparison)
    if metric == "val_accuracy":
        assert set(comparison.contests[0].differences.values()) == {0.0}
        assert "Runs ended at the first evaluation with an accuracy of at least 0.99, after different" in said
    else:
        assert "so values of val_exact are after different numbers of steps and can't be compared" in said


def test_the_ledger_shows_by_what_an_idea_was_judged(here):
    one = question(here, "one", metric="val_exact")
    ledger = Ledger(here / "ledger.jsonl")
    entry = entry_for_question(one, ledger, None, None)
    told(one, entry, compared(one, entry, {"b": [-0.1] * 8}), ledger)
    (row,) = rows_of(ledger.read())
    assert (row.metric, row.question) == ("val_exact", "norm=b against norm=a by val_exact")


# ---- where accuracies are shown ------------------------------------------------------------------


def test_a_grid_has_columns_of_accuracies_if_its_runs_have_them(here):
    folders = [run(here, "mha", bpb, seed=seed) for seed, bpb in enumerate((0.5, 0.6))] + [
        run(here, "mqa", 0.7)
    ]
    for folder, accuracy in zip(folders[:2], (0.25, 0.75)):
        figures = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(
            json.dumps({**figures, "val_accuracy": accuracy, "val_exact": 0.0})
        )
    jobs = [([f"attn={folder.name[:3]}", f"seed={folder.name[-1]}"], folder) for folder in folders]
    head, _, first, second = grid_table(jobs, 120).splitlines()[:4]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (head, first, second)]
    assert cells[0] == ["", "params", "val_bpb", "val_accuracy", "val_exact", "tokens/s", "state, bytes"]
    assert [row[3] for row in cells[1:]] == ["0.5000 ± 0.3536", ""]


def test_a_search_has_columns_of_accuracies_if_its_trials_have_them():
    trials = [trial({"model.dim": 64}, 0.25, val_accuracy=0.75), trial({"model.dim": 128}, 0.5)]
    figures, _, rows = ten_best(trials, "1 − val_accuracy")
    assert figures == ["trial", "1 − val_accuracy", "val_accuracy", "params", "peak"]
    assert [row[2] for row in rows] == ["0.7500", ""]
    assert ten_best(trials[1:], "val_loss")[0] == ["trial", "val_loss", "params", "peak"]


def test_equal_accuracies_of_an_arm_say_little_of_its_noise(here):
    arms = arms_with(here, {"pre": [0.95] * 7, "post": [0.95] * 6 + [0.9]})
    same, other = noise(of_arms(arms, metric=METRICS["val_accuracy"], aa=True))
    assert same.startswith("All 7 runs of pre have exactly the same value") and "in 95 % of cases" in other
