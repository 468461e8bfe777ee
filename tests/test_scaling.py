"""Laws fitted to runs, and what becomes of a difference at scale."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest

from minllm.study.arms import Arm
from minllm.study.scaling.answer import Rung, answer
from minllm.study.scaling.ladders import families_among, ladders
from minllm.study.scaling.law import Law, fit
from minllm.study.scaling.series import series_of
from minllm.study.scaling.trend import draw
from tests.comparisons import run
from tests.simulate_ladders import World, coverage

REFERENCE = Law(1.8172, (482.01, 2085.43), (0.3478, 0.3658))
"""The fit of Besiroglu et al. (2404.10102) to the runs of Hoffmann et al."""


def test_the_reference_law_is_recovered_from_its_own_draws():
    """Within three of its own standard errors, which for 240 runs with 1 % noise are near the published 0.02."""
    generator = np.random.default_rng(3)
    params, tokens = 10 ** generator.uniform(7.7, 10.2, 240), 10 ** generator.uniform(9, 11.5, 240)
    losses = REFERENCE.at(params, tokens) * np.exp(generator.normal(0, 0.01, 240))
    fitted = fit(losses, [params, tokens], resamples=40)
    assert fitted.problem is None
    for name in ("exponents", "amounts"):
        for at in range(2):
            logs = np.log([getattr(law, name)[at] for law in fitted.resampled])
            assert abs(np.log(getattr(fitted.law, name)[at] / getattr(REFERENCE, name)[at])) < 3 * logs.std()
    floors = [law.floor for law in fitted.resampled]
    assert abs(fitted.law.floor - REFERENCE.floor) < 3 * np.std(floors) < 0.2
    for at in range(2):
        assert 0.005 < np.std([law.exponents[at] for law in fitted.resampled]) < 0.04


def one_scale(noise: float, runs: int = 15, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    sizes = np.repeat(np.geomspace(2e5, 3.2e6, 5), runs // 5)
    return Law(0.3, (60.0,), (0.4,)).at(sizes) * np.exp(generator.normal(0, noise, len(sizes))), sizes


def test_a_known_floor_determines_the_exponent_far_better():
    losses, sizes = one_scale(0.005)
    known, unknown = fit(losses, [sizes], floor=0.3, resamples=60), fit(losses, [sizes], resamples=60)
    spread = [
        np.ptp(result.interval([law.exponents[0] for law in result.resampled])) for result in (known, unknown)
    ]
    assert spread[0] < 0.5 * spread[1]
    deviation = np.std([law.exponents[0] for law in known.resampled])
    assert abs(known.law.exponents[0] - 0.4) < 3 * deviation < 0.05
    at_ends = [[float(law.at(size)) for law in known.resampled] for size in (sizes[0], sizes[-1])]
    assert all(0.001 < np.std(values) / np.mean(values) < 0.01 for values in at_ends)


def test_one_outlier_hardly_changes_a_law():
    losses, sizes = one_scale(0.001, runs=30)
    before = fit(losses, [sizes], floor=0.3, resamples=0).law
    losses[7] *= 1.5
    after = fit(losses, [sizes], floor=0.3, resamples=0).law
    assert after.exponents[0] == pytest.approx(before.exponents[0], abs=0.01)


def test_what_cannot_be_identified_is_reported_instead():
    sizes = np.repeat(np.geomspace(2e5, 3.2e6, 5), 3)
    flat = 1.2 + np.random.default_rng(0).normal(0, 0.02, 15)
    assert "hardly depend on the scale" in fit(flat, [sizes], floor=0.3, resamples=200).problem or ""
    with pytest.raises(ValueError, match="3 parameters needs runs at 3"):
        fit(np.array([1.0, 1.1, 0.9]), [np.array([1e5, 1e5, 2e5])])
    with pytest.raises(ValueError, match="below the known floor"):
        fit(np.array([1.0, 0.9]), [np.array([1e5, 2e5])], floor=0.95)


@pytest.mark.parametrize("bend", [0.0, 0.003, 0.01, 0.03])
def test_predictions_contain_the_truth_whether_or_not_the_law_holds(bend):
    """Of 150 ladders, at least the share that 95 % leaves with a probability of 1e-4; seeded, so never by chance."""
    true, measured, _ = coverage(World(bend=bend), 150)
    assert min(*true, *measured) >= 0.88


def test_an_unknown_floor_is_not_taken_to_be_high_where_the_law_bends():
    """With a prior that is flat in the lines, intervals contain the truth in 82 to 86 %."""
    true, measured, _ = coverage(World(bend=0.01, is_floor_known=False), 100)
    assert min(*true, *measured) >= 0.9


def test_predictions_are_wider_where_the_law_does_not_hold_and_farther_away():
    straight, bent = (coverage(World(bend=bend), 40)[2] for bend in (0.0, 0.03))
    assert (bent > straight).all() and straight[1] > straight[0]


def rungs(ratio, noise: float = 0.002, seeds: int = 4, seed: int = 0) -> list[Rung]:
    """Return four rungs whose reducible losses have a ratio exp(ratio(doublings)) between arm and baseline."""
    generator = np.random.default_rng(seed)
    made = []
    for doublings in range(4):
        baseline = 0.3 + np.exp(-0.25 * doublings + generator.normal(0, 0.005, seeds)) * 0.8
        of_arm = 0.3 + (baseline - 0.3) * np.exp(ratio(doublings) + generator.normal(0, noise, seeds))
        made.append(Rung(2e5 * 2**doublings, baseline.tolist(), of_arm.tolist()))
    return made


@pytest.mark.parametrize(
    ("word", "ratio"),
    [
        ("holds", lambda doublings: -0.2),
        ("grows", lambda doublings: -0.05 - 0.05 * doublings),
        ("shrinks", lambda doublings: -0.4 + 0.02 * doublings),
        ("crosses", lambda doublings: -0.1 + 0.06 * doublings),
        ("unknown", lambda doublings: -0.002),
    ],
)
def test_a_difference_holds_grows_shrinks_crosses_or_is_unknown(word, ratio):
    result = answer(rungs(ratio), floor=0.3)
    assert result.word == word
    for prediction, doublings in zip(result.predictions, (5, 7)):
        truth = 0.8 * np.exp(-0.25 * doublings) * np.expm1(ratio(doublings))
        low, high = prediction.difference.interval
        assert low < truth < high
    if word == "crosses":
        low, high = result.crossing.interval
        assert low < 2e5 * 2 ** (0.1 / 0.06) < high
    else:
        assert result.crossing is None


def test_the_speed_up_is_how_many_times_the_size_the_baseline_needs():
    """With L − E = c · N^-α, a ratio r of the reducible losses is worth r^(-1/α) times the size."""
    result = answer(rungs(lambda doublings: -0.1), floor=0.3)
    truth = np.exp(0.1 / (0.25 / np.log(2)))
    low, high = result.speed_up.interval
    assert low < truth < high and result.speed_up.value == pytest.approx(truth, rel=0.1)


def test_an_unknown_floor_makes_predictions_wider_but_not_wrong():
    known, unknown = (answer(rungs(lambda doublings: -0.2), floor=floor) for floor in (0.3, None))
    widths = [np.ptp(result.predictions[1].difference.interval) for result in (known, unknown)]
    assert widths[1] > widths[0]
    low, high = unknown.predictions[1].difference.interval
    assert low < 0.8 * np.exp(-0.25 * 7) * np.expm1(-0.2) < high


def test_too_few_rungs_or_a_loss_below_the_floor_are_refused():
    some = rungs(lambda doublings: -0.2)
    with pytest.raises(ValueError, match="three sizes"):
        answer(some[:2], floor=0.3)
    with pytest.raises(ValueError, match="known floor"):
        draw([1, 2, 4], [[1.0, 1.1]] * 3, [[0.9, 0.2]] * 3, [8], floor=0.3)


def arms_at(folder, sizes, seeds=range(3), floor=1.5):
    """Return arms of two norms at several sizes, as runs that were never trained."""
    generator = np.random.default_rng(0)
    arms = []
    for norm, gain in (("pre", 1.0), ("sandwich", 0.9)):
        for size in sizes:
            runs = {}
            for seed in seeds:
                bpb = floor + gain * (size / 1e5) ** -0.3 * np.exp(generator.normal(0, 0.0005))
                made = run(folder / str(size), norm, seed, float(bpb), params=int(size))
                made.cfg["model"] = {"dim": int(size**0.5), "mlp": {"hidden": int(size**0.4)}}
                runs[seed] = made
            arms.append(Arm(f"norm={norm} dim={size}", runs))
    return arms


def test_ladders_are_found_among_arms_of_several_sizes(tmp_path):
    arms = arms_at(tmp_path, [1e5, 2e5, 4e5, 8e5])
    assert [family.name for family in families_among(arms)] == ["norm=pre", "norm=sandwich"]
    (found,) = ladders(families_among(arms), 1.5)
    assert (found.arm, found.baseline, found.axis) == ("norm=sandwich", "norm=pre", "params")
    assert [rung.size for rung in found.rungs] == [1e5, 2e5, 4e5, 8e5]
    assert found.answer.word == "holds"
    assert found.laws[0].law.exponents[0] == pytest.approx(0.3, abs=0.03)
    assert ladders(families_among(arms[:3]), 1.5) == ladders(families_among(arms[:6]), 1.5) == []


def pairs_at(places: Iterable[tuple[float, float]]) -> list[tuple[Arm, Arm]]:
    """Return pairs of arms at some places: parameters and tokens."""
    arms = [
        Arm(
            f"{params:g}, {tokens:g}",
            {0: SimpleNamespace(summary={"params": params, "tokens": tokens, "flops_per_token": 6 * params})},
        )
        for params, tokens in places
    ]
    return [(arm, arm) for arm in arms]


SIZES_OF_GRID = (1e5, 2e5, 4e5, 8e5)


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        ([(size, 1e6) for size in SIZES_OF_GRID], [""]),
        ([(size, 20 * size) for size in SIZES_OF_GRID], [""]),
        (
            [(size, tokens) for size in SIZES_OF_GRID for tokens in (1e6, 2e6, 4e6, 8e6)],
            ["1 M tokens", "2 M tokens", "4 M tokens", "8 M tokens"],
        ),
        (
            [(size, ratio * size) for size in SIZES_OF_GRID for ratio in (10, 20, 40)],
            ["10 tokens per parameter", "20 tokens per parameter", "40 tokens per parameter"],
        ),
        ([(1e5, 1e6), (2e5, 1e6)], []),
    ],
)
def test_pairs_are_sorted_into_ladders_by_what_they_have_in_common(places, labels):
    assert [series.label for series in series_of(pairs_at(places))] == labels


@pytest.mark.parametrize("step", [3.0, 4.0])  # with 4, sizes recur at other budgets
def test_several_sizes_at_each_budget_are_one_ladder(step):
    budgets = [1e12 * step**at for at in range(4)]
    places = [
        (size, flops / 6 / size) for flops in budgets for size in np.sqrt(flops / 120) * np.array([0.5, 1, 2])
    ]
    (series,) = series_of(pairs_at(places))
    assert [len(budget) for budget in series.budgets] == [3] * 4 and len(series.pairs) == 12


def test_losses_that_say_nothing_about_other_sizes_are_not_extrapolated(tmp_path):
    arms = arms_at(tmp_path / "bounds", [1e5, 2e5, 4e5])
    for arm in arms:
        for trained in arm.runs.values():
            trained.summary["val_bound"] = "upper"
    (found,) = ladders(families_among(arms), 1.5)
    assert found.answer is None and "upper bounds" in found.problem
    (found,) = ladders(families_among(arms_at(tmp_path / "one", [1e5, 2e5, 4e5], seeds=[0])), 1.5)
    assert found.answer is None and "4 pairs" in found.problem
