"""Learning rates, and budgets that move along them."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from minllm.errors import UserError
from minllm.training.budget import ENDLESS, PACE_STEPS, Budget
from minllm.training.schedules import WSD, Constant, Cosine, Linear
from minllm.training.settings import Settings


def cosine(**options):
    return Cosine(
        **{"lr_max": 1.0, "lr_min": 0.1, "warmup_steps": 0, "restarts": 0, "t_mult": 2.0, "flat_steps": 0}
        | options
    )


def linear(**options):
    return Linear(
        **{"lr_max": 1.0, "lr_min": 0.0, "warmup_steps": 0, "restarts": 0, "t_mult": 2.0, "flat_steps": 0}
        | options
    )


def rates(schedule, steps):
    return [schedule.lr(step, steps) for step in range(steps)]


def test_cosine_follows_its_formula():
    for step, rate in enumerate(rates(cosine(), 101)):
        assert rate == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2)


def test_linear_follows_its_formula():
    assert rates(linear(), 5) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_warmup_rises_in_equal_steps_to_the_maximum():
    assert rates(linear(warmup_steps=4), 9) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_warmup_by_default_is_a_tenth_of_a_short_run_and_a_hundred_steps_of_a_long_one():
    schedule = Constant(lr_max=1.0, warmup_steps=None)
    assert rates(schedule, 50).index(1.0) == 5
    assert rates(schedule, 10_000).index(1.0) == 100
    assert rates(schedule, 1) == [1.0]


def test_lr_min_by_default_is_a_tenth():
    assert rates(cosine(lr_max=3.0, lr_min=None), 20)[-1] == pytest.approx(0.3)


def test_restarts_spring_back_in_cycles_each_t_mult_times_as_long():
    # 7 falling units: cycles of 10, 20 and 40 steps
    found = rates(linear(restarts=2, t_mult=2.0), 71)
    assert [step for step in range(71) if found[step] == 1.0] == [0, 10, 30]
    assert (
        found[5] == pytest.approx(0.5) and found[20] == pytest.approx(0.5) and found[50] == pytest.approx(0.5)
    )
    assert found[70] == 0.0


def test_flat_part_ends_the_run_at_the_minimum():
    found = rates(cosine(flat_steps=5), 20)
    assert found[-5:] == pytest.approx([0.1] * 5)
    assert found[-6] > 0.1


def test_wsd_is_flat_and_falls_at_the_end():
    found = rates(WSD(lr_max=1.0, lr_min=0.0, warmup_steps=2, decay_steps=4), 12)
    assert found[2:8] == [1.0] * 6
    assert found[-4:] == pytest.approx([0.75, 0.5, 0.25, 0.0])


@given(
    kind=st.sampled_from([Cosine, Linear]),
    total=st.integers(1, 3000),
    warmup=st.none() | st.integers(0, 50),
    restarts=st.integers(0, 5),
    t_mult=st.floats(0.5, 4),
    flat=st.integers(0, 50),
    share=st.floats(0, 1),
)
def test_rates_stay_between_their_bounds_and_end_at_the_minimum(
    kind, total, warmup, restarts, t_mult, flat, share
):
    schedule = kind(
        lr_max=2.0, lr_min=0.5, warmup_steps=warmup, restarts=restarts, t_mult=t_mult, flat_steps=flat
    )
    try:
        schedule.check(total)
    except UserError:
        assert (warmup or 0) + flat + total // 10 + restarts > total - 1
        return
    rate = schedule.lr(share * (total - 1), total)
    assert 0 < rate <= 2.0
    if schedule.needed_steps(total) < total - 1:
        assert schedule.lr(total - 1, total) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "schedule, steps",
    [
        (Constant(lr_max=1.0, warmup_steps=11), 10),
        (cosine(warmup_steps=6, flat_steps=6), 10),
        (WSD(lr_max=1.0, lr_min=0.0, warmup_steps=6, decay_steps=6), 10),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(schedule, steps):
    with pytest.raises(UserError, match="schedule.warmup_steps"):
        schedule.check(steps)


def test_a_minimum_above_the_maximum_is_refused():
    with pytest.raises(UserError, match="schedule.lr_min=2 is above schedule.lr_max=1"):
        cosine(lr_min=2.0)


# ---- budgets ---------------------------------------------------------------------------------------------------------


def settings(**budgets):
    return Settings(
        **{
            "steps": None,
            "tokens": None,
            "minutes": None,
            "flops": None,
            "batch_size": 4,
            "micro_batch_size": None,
        }
        | {
            "log_every": 1,
            "eval_every": 0,
            "evals": None,
            "checkpoint_every": 0,
            "keep_checkpoints": 1,
            "sample_every": 0,
        }
        | {"precision": "fp32", "compile": False, "device": "cpu", "clip": 1.0, "malloc": "default"}
        | budgets
    )


@pytest.mark.parametrize(
    "budgets, steps",
    [
        ({"steps": 7}, 7),
        ({"tokens": 640}, 10),
        ({"tokens": 641}, 11),
        ({"flops": 6400.0}, 1),
        ({"flops": 64e3}, 10),
        ({"steps": 7, "tokens": 320, "flops": 1e9}, 5),
    ],
)
def test_whichever_budget_is_used_up_first_ends_the_run(budgets, steps):
    budget = Budget.of(settings(**budgets), tokens_per_step=64, flops_per_token=100.0)
    assert budget.total_steps == steps
    assert not budget.spent(steps - 1, seconds=1e9)
    assert budget.spent(steps, seconds=0)


def test_a_run_needs_a_budget():
    with pytest.raises(UserError, match="train.steps=1000"):
        settings()


def test_a_micro_batch_is_no_more_than_the_batch():
    with pytest.raises(UserError, match="train.micro_batch_size=8"):
        settings(steps=1, micro_batch_size=8)


@given(paces=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=5), steps=st.none() | st.integers(8, 300))
@settings_of_hypothesis(max_examples=50, deadline=None)
def test_under_a_budget_of_time_the_schedule_never_jumps_and_ends_with_the_run(paces, steps):
    budget = Budget.of(settings(minutes=1.0, steps=steps), tokens_per_step=64, flops_per_token=100.0)
    seconds, step, moves = 0.0, 0, []
    while not budget.spent(step, seconds):
        before, step_seconds = budget.position, paces[step % len(paces)]
        seconds, step = seconds + step_seconds, step + 1
        budget.advance(step, seconds, step_seconds)
        moves.append(budget.position - before)
    assert min(moves) > 0
    if step > PACE_STEPS:
        assert budget.position == pytest.approx(budget.total_steps)


def test_under_a_budget_of_time_a_steady_pace_goes_through_the_schedule_step_by_step():
    budget = Budget.of(settings(minutes=1.0), tokens_per_step=64, flops_per_token=100.0)
    for step in range(1, 121):
        assert budget.total_steps == (ENDLESS if step <= PACE_STEPS else 120)
        budget.advance(step, step * 0.5, 0.5)
        assert budget.position == pytest.approx(step)


def test_a_pause_makes_the_schedule_quicker_and_not_later():
    budget = Budget.of(settings(minutes=1.0), tokens_per_step=64, flops_per_token=100.0)
    for step in range(1, 61):
        budget.advance(step, step * 0.5, 0.5)
    budget.advance(61, 60 * 0.5 + 15 + 0.5, 0.5)  # compiling, say, took 15 of the 30 seconds that were left
    assert 61.9 < budget.position < 62.1


def test_more_restarts_than_steps_are_refused_and_many_are_no_overflow():
    options = dict(lr_max=1.0, lr_min=0.0, warmup_steps=0, flat_steps=0)
    with pytest.raises(UserError, match="parts take 2000 steps, but the run has only 100"):
        Cosine(restarts=2000, t_mult=2.0, **options).check(100)
    for t_mult in (0.5, 1.0, 2.0):
        assert 0 <= Cosine(restarts=2000, t_mult=t_mult, **options).lr(1500, 4000) <= 1
