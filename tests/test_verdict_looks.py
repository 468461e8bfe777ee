"""Looks of a verdict: which one settles it, which runs are trained before it, and what it says of them."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from minllm.errors import UserError
from minllm.study.report import sentences, summary, write_report
from minllm.verdict import sequential
from minllm.verdict.comparing import compare_pairs
from minllm.verdict.sequential import VerdictSearch
from minllm.verdict.tuning import NothingToCompare
from tests.comparisons import run_all_until
from tests.instant import inquiry
from tests.test_report_schema import validate_report
from tests.verdicts import (
    DIVERGED,
    PROTOCOL,
    QUESTION,
    Trained,
    alike,
    clear,
    doubtful,
    open_to_the_end,
    tuning,
    unclear,
    weak,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerdictSearch]:
    with inquiry(*QUESTION) as asked:
        yield asked


@pytest.fixture
def settled(asked: VerdictSearch, here: Path, monkeypatch: pytest.MonkeyPatch):
    """Settle it with trials whose bits per byte are given, and return the comparison and what was asked for."""

    def settle(
        bpb,
        *,
        seconds=1.0,
        time_left=math.inf,
        allowed=None,
        unsettled=(),
        diverged=(),
        again=False,
        **protocol,
    ):
        if not again:
            shutil.rmtree(asked.folder, ignore_errors=True)
        trials = Trained(asked, bpb, seconds, allowed or {})
        monkeypatch.setattr(asked, "opened", trials)
        monkeypatch.setattr(sequential, "run_all_until", run_all_until)
        monkeypatch.setattr(asked, "seconds", {})
        monkeypatch.setattr(asked, "deadline", time.monotonic() + time_left)
        monkeypatch.setattr(asked, "protocol", replace(PROTOCOL, **protocol))
        tuned = {name: DIVERGED if name in diverged else tuning(name in unsettled) for name in asked.arms}
        return asked.train_pairs(tuned), trials.asked_for

    return settle


def test_the_first_look_that_settles_it_is_the_last(settled, capfd):
    comparison, asked_for = settled(clear, looks=[7, 9])
    assert asked_for[-1] == ("seeds-b", 7) and max(pairs for _, pairs in asked_for) == 7
    assert (
        comparison.headline == "norm=post model/attn=mha is worse than norm=pre model.layout=[attn mlp,mlp]."
    )
    assert comparison.contests[0].seeds == list(range(7))
    assert capfd.readouterr().out == f"After 7 pairs: {comparison.headline}\n"
    assert set(comparison.tuning) == {"norm=pre model.layout=[attn mlp,mlp]", "norm=post model/attn=mha"}
    assert comparison.commands[0].startswith("python sweep.py search=verdict")


@pytest.mark.parametrize(("n_jobs", "turns"), [
    (1, ["a1", "b1", "b2", "a2", "a3", "b3", "b4", "a4", "a5", "b5", "b6", "a6"]),
    (2, ["a1", "b1", "b2", "a2", "a3", "b3", "b4", "a4", "a5", "b5", "b6", "a6"]),
    (3, ["a3", "b3", "b6", "a6"]),
    (4, ["a2", "b2", "b4", "a4", "a6", "b6"]),
])  # fmt: skip
def test_arms_take_turns_and_each_begins_as_often(settled, asked, monkeypatch, n_jobs, turns):
    """What slows the machine meanwhile slows both, so that their tokens per second can be compared."""
    monkeypatch.setattr(asked.sweeper, "n_jobs", n_jobs)
    _, asked_for = settled(clear, looks=[6])
    assert [f"{phase[-1]}{pairs}" for phase, pairs in asked_for] == turns


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_arm_whose_tuning_is_not_settled_decides_nothing(settled, capfd, name):
    """Not even where it's ahead, and no further pairs are trained."""
    comparison, asked_for = settled(clear, looks=[7, 9], unsettled=[name])
    called = {"a": "norm=pre model.layout=[attn mlp,mlp]", "b": "norm=post model/attn=mha"}
    verdict = comparison.contests[0].verdict
    assert (verdict.word, verdict.pairs) == ("inconclusive", 7) and max(pairs for _, pairs in asked_for) == 7
    assert comparison.headline == (
        f"{called['b']} against {called['a']}: inconclusive because the tuning of {called[name]} isn't settled."
    )
    assert verdict.why.startswith(f"{called[name]}: its best learning rate is the highest that was tried.")
    assert capfd.readouterr().out == f"After 7 pairs: {comparison.headline}\n"
    warned = [line for line in summary(comparison).splitlines() if line.startswith("WARNING")]
    assert len(warned) == 1 and f"The tuning of {called[name]} isn't settled" in warned[0]


@pytest.mark.parametrize("lost", ["a", "b"])
def test_an_arm_that_diverges_in_all_of_its_tuning_is_worse(settled, lost):
    def bpb(name: str, seed: int) -> float:
        return math.nan if name == lost else 2.0

    comparison, asked_for = settled(bpb, looks=[6, 7, 9], diverged=[lost])
    contest = comparison.contests[0]
    assert contest.outcome == {"a": "better", "b": "worse"}[lost] and comparison.is_answered
    name = comparison.arms["ab".index(lost)].name
    because = (
        f"because in the tuning of {name}, training diverged with all values that were tried, in 3 runs."
    )
    assert comparison.headline.endswith(because)
    (warning,) = (one for one in sentences.warnings(comparison) if name in one)
    assert "It can't be better than another arm, only worse." in warning


def test_an_arm_that_diverges_in_all_of_its_tuning_and_not_afterwards_decides_nothing(settled):
    """The loss that it has with the lowest rate isn't the one that tuning would give it."""
    contest = settled(clear, looks=[7], diverged=["a"])[0].contests[0]
    assert contest.outcome == "inconclusive" and "tuning of norm=pre" in contest.reason
    contest = settled(lambda name, seed: 2.0, looks=[7], diverged=["a", "b"])[0].contests[0]
    assert contest.outcome == "inconclusive"


def test_arms_that_are_equivalent_settle_it_too(settled):
    comparison, asked_for = settled(alike, looks=[7, 9])
    assert comparison.contests[0].verdict.word == "equivalent" and len(asked_for) == 14


def test_each_look_must_be_surer_where_there_are_several(settled):
    """Six pairs of one sign settle it if they are looked at once, and not if that was the first look of many."""
    assert settled(clear, looks=[6])[0].contests[0].verdict.word == "worse"
    comparison, asked_for = settled(clear, looks=[6, 7, 20])
    assert max(pairs for _, pairs in asked_for) == 7
    verdict = comparison.contests[0].verdict
    assert [(look.pairs, look.word) for look in verdict.looks] == [(6, "inconclusive"), (7, "worse")]
    assert all(look.level < 0.05 for look in verdict.looks) and verdict.confidence == 0.95


def test_what_no_look_settles_is_inconclusive_after_the_last(settled):
    comparison, asked_for = settled(open_to_the_end, looks=[6, 9, 20])
    assert max(pairs for _, pairs in asked_for) == 20 and not comparison.is_settled
    assert (
        comparison.headline
        == "norm=post model/attn=mha against norm=pre model.layout=[attn mlp,mlp]: inconclusive."
    )


def test_what_no_look_can_settle_any_more_is_given_up(settled, capfd):
    """Differences of alternating sign: after six pairs, a seventh and an eighth change nothing."""
    comparison, asked_for = settled(unclear, looks=[6, 7, 8])
    contest = comparison.contests[0]
    assert max(pairs for _, pairs in asked_for) == 6 and contest.verdict.futile and contest.is_settled
    assert contest.verdict.word == "inconclusive"
    said = "The remaining looks, up to 8 pairs, are unlikely to settle it (chance below 14 %)."
    assert said in contest.sentence and said in capfd.readouterr().out


def test_a_turn_may_go_beyond_a_look_which_uses_the_first_pairs_only(settled, asked, monkeypatch):
    monkeypatch.setattr(asked.sweeper, "n_jobs", 4)
    comparison, asked_for = settled(clear, looks=[6, 7, 20])
    assert asked_for[-1][1] == 8 and comparison.contests[0].seeds == list(range(7))


def test_the_same_runs_have_the_same_looks_again(settled, asked):
    first, _ = settled(doubtful, looks=[6, 7, 9, 20])
    looks = [compare_pairs(asked, {}, pairs).contests[0].verdict.looks for pairs in (6, 7, 9, 20)]
    assert looks[-1] == first.contests[0].verdict.looks and len(looks[-1]) == 4
    assert all(looks[-1][: len(earlier)] == earlier for earlier in looks)


def test_pairs_that_there_is_no_time_for_are_not_begun(settled):
    """Two runs of ten seconds make a pair, and a look at a number that wasn't planned would be one too many."""
    comparison, asked_for = settled(doubtful, looks=[6, 20], seconds=10, time_left=170)
    assert asked_for[-1] == ("seeds-a", 8) and list(comparison.contests[0].seeds) == list(range(6))
    comparison, asked_for = settled(clear, looks=[6, 20], seconds=10, time_left=45)
    assert [pairs for _, pairs in asked_for] == [1, 1, 2, 2]
    verdict = comparison.contests[0].verdict
    assert (verdict.word, verdict.pairs) == ("inconclusive", 2)
    assert verdict.why.startswith(
        "Time ran out before the first look at 6 pairs. Run the same command to continue"
    )


def test_pairs_that_are_there_count_when_there_is_no_time_for_more(settled):
    first, _ = settled(doubtful, looks=[6, 7, 9, 20])
    again, asked_for = settled(doubtful, looks=[6, 7, 9, 20], time_left=0, again=True)
    assert asked_for == [] and again.headline == first.headline
    assert [one.verdict for one in again.contests] == [one.verdict for one in first.contests]


@pytest.mark.parametrize("aa", [False, True])
def test_only_pairs_that_were_trained_count_where_the_time_runs_out_within_a_turn(settled, capfd, aa):
    """The second arm's last runs weren't begun any more."""
    runs = 2 if aa else 1
    allowed = {"seeds-a": 7 * runs, "seeds-b": 7 * runs - 1}
    comparison, asked_for = settled(weak, looks=[6, 7, 20], allowed=allowed, aa=aa)
    assert asked_for[-1][1] == 7 * runs and len(comparison.contests[0].seeds) == 6 * runs
    assert "After 6 pairs" in (said := capfd.readouterr().out) and "After 7 pairs" not in said
    allowed = {"seeds-a": 3 * runs, "seeds-b": 3 * runs - 1}
    verdict = settled(unclear, looks=[6, 7], allowed=allowed, aa=aa)[0].contests[0].verdict
    assert verdict.pairs == 2 * runs and "before the first look at 6 pairs" in verdict.why


def test_pairs_are_counted_by_the_seeds_that_every_arm_has():
    trials = [
        optuna.trial.create_trial(
            state=state,
            value=None if state == TrialState.RUNNING else 1.0,
            params={"seed": seed},
            distributions={"seed": IntDistribution(0, 999)},
        )
        for seed, state in enumerate([TrialState.COMPLETE] * 5 + [TrialState.RUNNING, TrialState.COMPLETE])
    ]
    one, two = PROTOCOL, replace(PROTOCOL, aa=True)
    assert one.pairs_in([trials, trials[:4]]) == 4 and one.pairs_in([trials, trials]) == 5
    assert two.pairs_in([trials]) == 2 and one.pairs_in([trials, []]) == 0


def test_a_seed_that_crashed_leaves_it_undecided_and_no_further_pairs_are_trained(settled, capfd):
    comparison, asked_for = settled(
        lambda name, seed: None if (name, seed) == ("b", 3) else clear(name, seed), looks=[7, 9, 11]
    )
    contest = comparison.contests[0]
    assert (contest.verdict.word, contest.verdict.pairs, contest.divergence) == ("inconclusive", 6, None)
    assert contest.verdict.why.startswith(
        "norm=post model/attn=mha failed with seed 3, so the remaining seeds may be"
    )
    assert max(pairs for _, pairs in asked_for) == 7 and contest.is_settled
    assert "would settle it" not in summary(comparison) + capfd.readouterr().out


def test_an_arm_that_diverges_and_is_no_better_elsewhere_is_worse(settled):
    comparison, asked_for = settled(
        lambda name, seed: math.nan if (name, seed) == ("b", 3) else clear(name, seed), looks=[7, 9, 11]
    )
    contest = comparison.contests[0]
    assert (contest.verdict.word, contest.verdict.pairs, len(contest.seeds)) == ("worse", 7, 6)
    assert contest.verdict.diverged == (1, 0) and max(pairs for _, pairs in asked_for) == 7
    name, other = "norm=post model/attn=mha", "norm=pre model.layout=[attn mlp,mlp]"
    assert contest.sentence.startswith(
        f"{name} is worse than {other}. Training diverged with 1 of 7 seeds of {name} and 0 of 7 of {other} (exact"
        " McNemar test: p = 1)."
    )


@pytest.mark.parametrize("lost", ["a", "b"])
def test_an_arm_that_diverges_with_every_seed_is_worse(settled, lost, tmp_path):
    comparison, asked_for = settled(
        lambda name, seed: math.nan if name == lost else clear("a", seed), looks=[6, 7, 9]
    )
    contest = comparison.contests[0]
    assert contest.outcome == {"a": "better", "b": "worse"}[lost] and contest.is_settled
    assert contest.seeds == [] and contest.verdict.difference is None
    pairs = contest.verdict.pairs
    assert max(asked for _, asked in asked_for) == pairs
    assert f"{pairs} of {pairs}" in contest.sentence
    assert f"{pairs} pairs: at least one run of each diverged, p = 0." in contest.sentence
    arms = {arm.name: len(arm.runs) for arm in comparison.arms}
    assert sorted(arms.values()) == [0, pairs]
    write_report(comparison, tmp_path / "report", [])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    validate_report(report)
    assert report["contests"][0]["verdict"]["difference"] is None
    assert len(report["contests"][0]["divergence"][{"a": "baseline", "b": "arm"}[lost]]) == pairs


def test_where_every_arm_diverges_with_every_seed_there_is_nothing_to_compare(settled):
    with pytest.raises(NothingToCompare, match="training diverged with every seed of every arm"):
        settled(lambda name, seed: math.nan, looks=[6, 7])


@pytest.mark.parametrize("unstable", ["a", "b"])
def test_an_arm_that_is_better_only_where_it_survives_is_unstable_and_settles_it(settled, unstable):
    def bpb(name: str, seed: int) -> float:
        if name != unstable:
            return 2.0
        return math.nan if seed in (2, 5) else 1.81 + seed / 10_000

    comparison, asked_for = settled(bpb, looks=list(range(6, 29)))
    contest = comparison.contests[0]
    names = ["norm=pre model.layout=[attn mlp,mlp]", "norm=post model/attn=mha"]
    name, other = names if unstable == "a" else reversed(names)
    assert comparison.headline == (
        f"{name} is unstable: training diverged with 2 of 7 seeds (against 0 of 7 of {other}), although it reached"
        " 0.1897 bits per byte less where it didn't."
    )
    assert (contest.verdict.word, contest.outcome, contest.is_settled) == ("inconclusive", "unstable", True)
    assert max(pairs for _, pairs in asked_for) == 7 and contest.verdict.interval == (-math.inf, math.inf)


def test_an_arm_that_needs_no_more_pairs_is_not_trained_further(settled, asked, monkeypatch):
    monkeypatch.setattr(asked, "arms", {**asked.arms, "c": ["norm=sandwich"]})

    def bpb(name: str, seed: int) -> float:
        return doubtful("b", seed) if name == "c" else clear(name, seed)

    comparison, asked_for = settled(bpb, looks=[8, 9, 20])
    most = {phase: max(pairs for which, pairs in asked_for if which == phase) for phase, _ in asked_for}
    assert most == {"seeds-a": 20, "seeds-b": 8, "seeds-c": 20}
    assert [one.verdict.pairs for one in comparison.contests] == [8, 20]
    again, asked_for = settled(bpb, looks=[8, 9, 20], time_left=0, again=True)
    assert asked_for == [] and again.contests == comparison.contests


def test_what_would_settle_it_is_said_after_each_look(settled, capfd):
    comparison, _ = settled(open_to_the_end, looks=[6, 9, 20])
    settling = comparison.contests[0].verdict.settling
    assert settling.startswith("About ") and settling.endswith("stay the same.")
    looks = [line for line in capfd.readouterr().out.splitlines() if line.startswith("After ")]
    assert len(looks) == 3 and looks[2] == f"After 20 pairs: {comparison.headline} {settling}"


def test_the_margin_is_said_to_be_kept_where_it_was(settled):
    comparison, _ = settled(clear, looks=[7])
    assert sentences.KEPT in sentences.introduction(comparison)


@pytest.mark.parametrize("seeds", [0, 1])
def test_a_time_that_is_up_before_each_arm_has_a_run_is_said(settled, seeds):
    with pytest.raises(NothingToCompare, match="time ran out before every arm had a run"):
        settled(clear, allowed={"seeds-a": seeds, "seeds-b": 0})


def test_an_arm_whose_runs_are_all_lost_is_named_with_the_reason(settled):
    with pytest.raises(
        UserError,
        match=r"None of the 6 runs of arm b .* can be .* first is \S+seeds-b/trial-0: It crashed",
    ):
        settled(lambda name, seed: 2.0 if name == "a" else None)


def test_each_against_each_and_each_against_itself(settled):
    comparison, asked_for = settled(clear, looks=[6], aa=True, baseline="b")
    assert asked_for[-2:] == [("seeds-b", 12), ("seeds-a", 12)], "two seeds of an arm make a pair with itself"
    assert (
        comparison.headline == "norm=pre model.layout=[attn mlp,mlp] is better than norm=post model/attn=mha."
    )
    assert [noise.verdict.pairs for noise in comparison.noise] == [6, 6]


def test_an_only_arm_has_a_noise_floor(settled, asked, monkeypatch):
    monkeypatch.setattr(asked, "arms", {"a": ["norm=pre"]})
    comparison, asked_for = settled(lambda name, seed: 2 + seed % 3 / 1e5, looks=[6, 8], aa=True)
    assert asked_for == [("seeds-a", 2 * pairs) for pairs in range(1, len(asked_for) + 1)]
    assert comparison.contests == [] and comparison.noise[0].verdict.word == "equivalent"
