"""Upper bounds: what they can prove in a comparison, and where they are marked."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minllm
from minllm.config.compose import perform
from minllm.grid.table import grid_table
from minllm.study.arms import Arm
from minllm.study.comparison import Comparison, of_arms
from minllm.study.report import sentences, summary
from minllm.study.report.data import in_a_line, to_json
from minllm.study.report.markdown import to_markdown
from minllm.study.report.page import to_html
from minllm.study.report.tuning import efforts
from minllm.study.selection import LeftOut
from minllm.study.standing import Standing
from minllm.study.statistics import verdicts
from minllm.study.tuning import Tried, Tuning
from minllm.sweep.report import conclusion
from minllm.sweep.report.table import Table
from minllm.verdict.entry import outcome
from tests.comparisons import finished, readings, run, with_documents
from tests.test_report_schema import validate_answer, validate_report
from tests.test_sweep_report import settings, study_of, trial, written

MARGIN = 0.01
WOBBLE = (0.001, -0.001, 0.002, -0.002, 0.0005, -0.0005, 0.0, 0.001)
DIFFERENCES = {"lower": -0.1, "equal": 0.0, "higher": 0.1}

EXACT = ("causal", "minllm.objective.causal.Causal", "exact")
OLDER = ("older", "minllm.objective.causal.Causal", None)
MASKED = ("masked", "minllm.objective.blocks.Masked", "upper")
BLOCKS = ("blocks", "minllm.objective.blocks.Blocks", "upper")
OTHER = ("other", "my_idea.objective.Other", "upper")

ALL = {"lower": "better", "equal": "equivalent", "higher": "worse"}
OF_A_BOUND = {**ALL, "equal": "inconclusive", "higher": "inconclusive"}
OF_AN_EXACT = {**ALL, "equal": "inconclusive", "lower": "inconclusive"}
NOTHING = dict.fromkeys(ALL, "inconclusive")


def arm_of(folder: Path, kind: Sequence[Any], bpbs: Sequence[float], diverged: Sequence[int] = ()) -> Arm:
    """Return an arm with a run for each seed that didn't diverge."""
    name, target, bound = kind
    changed = {} if bound is None else {"val_bound": bound}
    runs = {
        seed: run(folder, name, seed, bpb, **changed) for seed, bpb in enumerate(bpbs) if seed not in diverged
    }
    return Arm(
        name,
        {
            seed: replace(one, cfg={**one.cfg, "objective": {"_target_": target}})
            for seed, one in runs.items()
        },
    )


def two(folder: Path, kind: Sequence[Any], baseline: Sequence[Any], difference: float) -> Comparison:
    """Compare eight pairs of an arm and a baseline, whose mean difference is about this."""
    values = [2.0 + 0.01 * seed for seed in range(len(WOBBLE))]
    arms = [
        arm_of(folder, baseline, values),
        arm_of(folder, kind, [value + difference + noise for value, noise in zip(values, WOBBLE)]),
    ]
    return of_arms(arms, margin=MARGIN)


# ---- all combinations ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", DIFFERENCES)
@pytest.mark.parametrize(
    ("arm", "baseline", "words"),
    [
        (EXACT, OLDER, ALL),
        (MASKED, EXACT, OF_A_BOUND),
        (MASKED, OLDER, OF_A_BOUND),
        (EXACT, MASKED, OF_AN_EXACT),
        (OLDER, MASKED, OF_AN_EXACT),
        (BLOCKS, MASKED, ALL),
        (MASKED, BLOCKS, ALL),
        (OTHER, MASKED, NOTHING),
        (MASKED, OTHER, NOTHING),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_proved(tmp_path, arm, baseline, words, side):
    (contest,) = two(tmp_path, arm, baseline, DIFFERENCES[side]).contests
    verdict = contest.verdict
    assert verdict.word == words[side] == contest.outcome
    assert contest.is_answered == (words[side] != "inconclusive")
    assert verdict.unproved == (None if contest.is_answered else ALL[side])
    assert math.copysign(1, verdict.difference) == math.copysign(1, DIFFERENCES[side]) or side == "equal"
    bounds = [kind[0] for kind in (arm, baseline) if kind[2] == "upper"]
    if contest.is_answered:
        assert contest.reason == ""
        kinds = {
            0: "",
            1: "is an upper bound, so its true value may be lower still.",
            2: "loose to different degrees",
        }
        assert kinds[len(bounds)] in contest.sentence and ("bound" in contest.sentence) == bool(bounds)
        return
    because = {
        "equal": f"the value of {bounds[0]} is an upper bound, so equivalence can't be proved",
        "other": f"the value of {bounds[0]} is an upper bound, so a higher value proves nothing",
    }
    wanted = because.get(side, because["other"])
    if len(bounds) == 2:
        wanted = (
            f"the values of {arm[0]} and {baseline[0]} are upper bounds of different families, which may rank"
        )
    assert contest.sentence.startswith(f"{arm[0]} against {baseline[0]}: inconclusive because {wanted}")
    assert (verdict.settling == "More pairs like these can't settle it.") == (
        side != "equal" or len(bounds) == 2 or verdict.seeds_to_settle is None
    )


def test_an_arm_whose_runs_disagree_is_a_bound(tmp_path):
    """Its mean is above its true mean if one of its runs is."""
    mixed = arm_of(tmp_path, MASKED, [2.0, 2.0])
    mixed.runs[0].summary["val_bound"] = "exact"
    assert mixed.bound == "upper" and Arm("none", {}).bound == "exact"


# ---- divergence ----------------------------------------------------------------------------------


def with_divergence(folder: Path, kinds: Sequence[Any], difference: float, *diverged: Sequence[int]):
    """Compare eight pairs of arms that diverged with these seeds: the first kind is the baseline's."""
    arms, left_out = [], []
    for kind, more, lost in zip(kinds, (0.0, difference), diverged):
        arm = arm_of(folder, kind, [2.0 + more + noise for noise in WOBBLE], lost)
        left_out += [
            LeftOut(folder / f"lost-{kind[0]}-{seed}", "It diverged.", {**arm.cfg, "seed": seed}, "diverged")
            for seed in lost
        ]
        arms.append(arm)
    return of_arms(arms, left_out, margin=MARGIN).contests[0]


@pytest.mark.parametrize(
    ("kinds", "word"),
    [((EXACT, MASKED), "worse"), ((MASKED, EXACT), "worse"), ((MASKED, OTHER), "worse")],
    ids=str,
)
@pytest.mark.parametrize("difference", [-0.1, 0.1])
def test_an_arm_that_diverges_is_worse_whatever_its_values_bound(tmp_path, kinds, word, difference):
    contest = with_divergence(tmp_path, kinds, difference, [], range(7))
    assert contest.outcome == word and contest.verdict.unproved is None
    assert "because" not in contest.sentence
    by_values_too = difference > 0 and kinds == (MASKED, EXACT)
    assert ("true value may be lower" in contest.sentence) == by_values_too


@pytest.mark.parametrize("kinds", [(EXACT, MASKED), (MASKED, EXACT), (MASKED, OTHER)], ids=str)
def test_a_baseline_that_diverges_makes_the_arm_better(tmp_path, kinds):
    assert with_divergence(tmp_path, kinds, 0.1, range(7), []).outcome == "better"


def test_a_few_runs_that_diverged_add_nothing_to_a_higher_bound(tmp_path):
    """By ranks all pairs are against it, but the values of six of them prove nothing."""
    contest = with_divergence(tmp_path, (EXACT, MASKED), 0.1, [], [3, 5])
    assert (contest.outcome, contest.verdict.unproved) == ("inconclusive", "worse")
    assert (
        with_divergence(tmp_path / "exact", (EXACT, BLOCKS[:2] + ("exact",)), 0.1, [], [3, 5]).outcome
        == "worse"
    )


# ---- looks ---------------------------------------------------------------------------------------

LOOKS = [8, 12, 16, 20]


def looked(values: Sequence[float], provable: Sequence[str], margin: float = 0.01, looks=LOOKS):
    (verdict,) = verdicts([values], margin=margin, looks=looks, provable=[provable])
    return verdict


def test_a_higher_bound_ends_a_study_at_the_first_look():
    rising = [0.1 + 0.01 * noise for noise in np.random.default_rng(0).normal(size=20)]
    verdict = looked(rising, ["better"])
    assert (verdict.word, verdict.unproved, verdict.pairs, verdict.futile) == (
        "inconclusive",
        "worse",
        8,
        True,
    )
    assert verdict.settling == "More pairs like these can't settle it." and verdict.seeds_to_settle is None
    assert looked(rising, ["better", "equivalent", "worse"]).word == "worse"


def test_a_rejection_in_the_other_direction_is_never_turned_into_a_claim():
    """Without an end at the first look, its small p-value would make the later, lower mean a proof."""
    verdict = looked([0.1 + 0.001 * i for i in range(8)] + [-0.3] * 12, ["better"])
    assert (verdict.word, verdict.pairs) == ("inconclusive", 8)


@pytest.mark.parametrize(
    ("mean", "provable", "futile"),
    [
        (-0.02, ["better"], False),
        (0.03, ["better"], True),
        (0.03, ["worse"], False),
        (0.03, ["better", "equivalent", "worse"], False),
        (0.0, [], True),
    ],
)
def test_what_can_not_be_proved_is_given_up(mean, provable, futile):
    """The noise is such that no look so far has settled it."""
    values = [mean + 0.05 * noise for noise in (1.0, -1.0, 0.5, -0.5, 0.8, -0.8, 0.1, -0.1)]
    verdict = looked(values, provable)
    assert (verdict.word, verdict.unproved, verdict.futile) == ("inconclusive", None, futile)
    hopeless = verdict.settling == "More pairs like these can't settle it."
    assert hopeless == (("better" if mean < 0 else "worse") not in provable and "equivalent" not in provable)


def test_equivalent_values_of_a_bound_may_still_prove_that_it_is_better():
    """A difference too small to matter is one that could be larger in truth."""
    values = [-0.001 + 0.0001 * i for i in range(8)]
    assert looked(values, ["better", "equivalent", "worse"]).word == "equivalent"
    assert looked(values, ["better"]).word == "better"


def test_false_claims_stay_as_rare_as_they_are_without_bounds():
    draw, claims = np.random.default_rng(1), []
    for _ in range(400):
        claims.append(looked(draw.normal(size=12).tolist(), ["better"], 0.1, [6, 8, 12]).word)
    assert set(claims) <= {"better", "inconclusive"} and claims.count("better") <= 0.025 * 400 + 8


# ---- all ideas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "difference", "holds"),
    [
        ((MASKED, EXACT), -0.1, True),
        ((MASKED, EXACT), 0.1, False),
        ((EXACT, MASKED), -0.1, False),
        ((MASKED, BLOCKS), -0.1, True),
        ((MASKED, OTHER), -0.1, False),
    ],
    ids=str,
)
def test_only_what_is_proved_is_a_discovery(tmp_path, kinds, difference, holds):
    (contest,) = two(tmp_path, *kinds, difference).contests
    assert contest.verdict.p_overall < 0.01
    line = outcome(replace(contest, standing=Standing(1, 0.01, ("better", "worse"))))
    assert line["holds"] == holds and not line["open"]
    assert (line["outcome"] == "better") == holds


# ---- reports -------------------------------------------------------------------------------------


def test_reports_mark_bounds(tmp_path):
    one = with_documents(two(tmp_path, MASKED, EXACT, 0.1))
    mean = np.mean(one.arms[1].values("val_bpb"))
    told = [summary(one), to_markdown(one, []), to_html(one, [])]
    for text in told:
        assert f"≤ {mean:.4f}" in text and "≤ 2.0350" not in text
        assert text.count("marks an upper bound") == 1
        assert "No difference proved, because a value is an upper bound" in text or text is not told[0]
        assert "orse on" not in text and "etter on" not in text
    assert "objective, different (" in told[0]
    seed = f"{one.arms[1].runs[0].summary['val_bpb']:.4f}"
    assert f"≤ {seed}" in told[1] and f"≤ {seed}" in told[2]
    assert "The values of masked are upper bounds." in told[2]
    content = json.loads(to_json(one, readings(one)))
    validate_report(content)
    assert [arm["val_bound"] for arm in content["arms"]] == ["exact", "upper"]
    assert content["measures"][0]["provable"] == ["better"]
    line = in_a_line(one, None, None)
    validate_answer(line)
    assert line["contests"][0]["outcome"] == "inconclusive" and "upper bound" in line["contests"][0]["reason"]


def tuned_at(loss: float) -> Tuning:
    tried = [Tried({"optim.lr": 0.001 * i}, {1000: loss + 0.0001 * i}) for i in range(1, 25)]
    return Tuning(tried, {"optim.lr": 0.001}, "the lowest", 24)


@pytest.mark.parametrize(("difference", "proved"), [(-0.1, True), (0.1, False)])
def test_tuning_marks_bounds_and_concludes_nothing_from_a_higher_one(tmp_path, difference, proved):
    one = two(tmp_path, MASKED, EXACT, difference)
    one = replace(one, tuning={"masked": tuned_at(2.0 + difference), "causal": tuned_at(2.0)})
    (effort,) = efforts(one)
    assert effort.separate_at and ("the difference survives tuning" in effort.sentence) == proved
    assert ("but a value is an upper bound, so this proves nothing" in effort.sentence) != proved
    curves = to_markdown(one, []).partition("## Tuning")[2].partition("## Config")[0]
    assert f"| ≤ {2.0 + difference:.2f}" in curves and "≤ 2.00" not in curves
    few = replace(tuned_at(2.0), tried=tuned_at(2.0).tried[:2])
    assert "0.001 (≤ 2.0001); 0.002 (≤ 2.0002)" in sentences.tuned(few, "upper")
    assert "0.001 (2.0001)" in sentences.tuned(few, "exact")


def test_reports_without_bounds_do_not_mention_them(tmp_path):
    one = two(tmp_path, EXACT, OLDER, -0.1)
    for text in (summary(one), to_markdown(one, []), to_html(one, [])):
        assert "≤" not in text and "bound:" not in text and "upper bound" not in text


def test_a_bound_is_checked_when_a_run_is_read(tmp_path):
    for norm, bound in (("pre", "upper"), ("post", "loose")):
        finished(tmp_path / norm, f"norm={norm}", val_bound=bound)
    one = minllm_compare(tmp_path)
    assert [arm.bound for arm in one.arms] == ["upper"]
    assert 'val_bound is "loose"' in one.left_out[0].why


def minllm_compare(folder: Path) -> Comparison:
    from minllm.study.comparison import compare

    finished(folder / "pre-1", "norm=pre", seed=1, val_bound="upper")
    return compare([folder], aa=True)


def test_the_table_of_a_grid_marks_bounds(tmp_path):
    jobs = []
    for name, bound in (("masked", "upper"), ("causal", "exact"), ("older", None)):
        for seed in (0, 1):
            more = {"device": "cpu"} | ({} if bound is None else {"val_bound": bound})
            folder = finished(tmp_path / f"{name}-{seed}", seed=seed, bpb=2.0 + seed, **more)
            jobs.append(([f"objective={name}", f"seed={seed}"], folder))
    table = grid_table(jobs, 100)
    assert table.count("≤ 2.5000 ± 0.7071") == 1 and table.count("2.5000 ± 0.7071") == 3
    assert "marks an upper bound" in table and "marks an" not in grid_table(jobs[2:], 100)


def test_the_tables_of_a_search_mark_bounds(tmp_path, capsys):
    exact, older = trial(settings(64), 2.0, val_bound="exact"), trial(settings(192), 2.2)
    bound = trial(settings(128), 1.9, val_bound="upper", overrides=["objective=masked"])
    study = study_of(exact, bound, older)
    said = conclusion(study, metric="val_bpb", written=[])
    for text in (said, *written(study, tmp_path)):
        assert "≤ 1.9000" in text and "≤ 2.0000" not in text
        assert text.count("≤ marks values that are upper bounds.") == 1 and "favours the exact ones" in text
    assert "favours" not in conclusion(study_of(bound), metric="val_bpb", written=[])
    assert "≤" not in conclusion(study_of(exact, older), metric="val_bpb", written=[])
    table = Table("size", "val_bpb", 3, 1)
    for each in study.get_trials():
        table.ended(each)
    assert "val_bpb ≤ 1.9000" in (lines := capsys.readouterr().out) and "best ≤ 1.9000 (trial 1)" in lines


# ---- runs ----------------------------------------------------------------------------------------

TINY = [
    *("model.dim=16", "model.n_layers=1", "tokenizer=bytes", "data=tales", "data.packing=pad"),
    *("data.train_stories=32", "data.val_stories=2", "data.seq_len=32", "train.batch_size=2"),
    *("train.steps=2", "train.check=false", "sample.max_new_tokens=2"),
]


@pytest.mark.parametrize(
    ("objective", "bound"), [(["objective=causal"], "exact"), (["objective=masked"], "upper")], ids=str
)
def test_a_run_and_its_evaluation_say_what_their_losses_are(tmp_path, monkeypatch, capsys, objective, bound):
    monkeypatch.chdir(tmp_path)
    trained = perform(minllm.compose([*objective, *TINY]), Path("run"))
    assert trained["val_bound"] == bound
    mark = "≤ " * (bound == "upper")
    said = capsys.readouterr().out
    assert (
        f"Validation: {mark}{trained['val_loss']:.4f} nats per token, {mark}{trained['val_bpb']:.4f} bits"
        in said
    )
    assert ("marks an estimate of an upper bound" in said) == (bound == "upper")
    found = perform(minllm.compose(["task=evaluate", "run=run"]), Path("unused"))
    said = capsys.readouterr().out
    assert found["val_bound"] == bound and f"val_bound       {bound}" in said
    assert f"val_bpb         {mark}{found['val_bpb']:.6f}" in said
    assert ("marks an estimate of an upper bound" in said) == (bound == "upper")


def test_the_exact_likelihood_of_a_masked_model_is_called_exact(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shorter = ["data.val_stories=1", "data.seq_len=16"]  # there is a pass for each token
    perform(minllm.compose(["objective=masked", *TINY, *shorter]), Path("run"))
    found = perform(
        minllm.compose(["task=evaluate", "run=run", "+objective.chain_rule=true"]),
        Path("unused"),
    )
    assert found["val_bound"] == "exact" and "≤ " not in capsys.readouterr().out.rpartition("val_loss")[2]
