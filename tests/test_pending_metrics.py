"""Figures that are read some steps later, and inputs prepared ahead, as on a GPU; here on a CPU."""

import threading
from functools import partial

import pytest
import torch

from minllm.training import checkpoints
from minllm.training.loop import fit
from minllm.training.pending import PendingMetrics
from minllm.training.prefetch import prefetching
from minllm.training.step import Diverged, prepared
from tests.test_loop import Batches, NextToken, figures, make_run


class Broken(NextToken):
    """Has a loss or a gradient that isn't finite in one step."""

    def __init__(self, of, factor):
        self.of, self.factor, self.calls = of, factor, 0

    def loss(self, model, inputs):
        if model.training:
            self.calls += 1
        loss = super().loss(model, inputs)
        if self.calls != self.of + 1 or not model.training:
            return loss
        return loss * self.factor


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.inf


class BrokenGradient(Broken):
    def loss(self, model, inputs):
        loss = super().loss(model, inputs)
        return InfiniteGradient.apply(loss) if self.calls == self.of + 1 and model.training else loss


def test_figures_are_read_as_many_steps_later_as_the_lag_or_when_all_are_due():
    pending = PendingMetrics(lag=2)
    for step in range(4):
        pending.add(step, {"train_loss": torch.tensor(float(step)), "grad_norm": torch.tensor(2.0)})
    assert list(pending.read(everything=False)) == [
        (0, {"train_loss": 0.0, "grad_norm": 2.0}),
        (1, {"train_loss": 1.0, "grad_norm": 2.0}),
    ]
    assert [step for step, _ in pending.read(everything=True)] == [2, 3]
    assert list(pending.read(everything=True)) == []


def test_a_run_that_reads_later_records_the_same(tmp_path):
    fit(make_run(tmp_path / "now", steps=20, log_every=7))
    later = make_run(tmp_path / "later", steps=20, log_every=7)
    later.pending = PendingMetrics(lag=2)
    fit(later)
    assert figures(tmp_path / "later") == figures(tmp_path / "now")
    assert len(later.pending.queue) == 0


@pytest.mark.parametrize("broken", [Broken(9, torch.nan), Broken(9, torch.inf), BrokenGradient(9, 1.0)])
@pytest.mark.parametrize("lag", [0, 2])
def test_divergence_is_told_with_its_step_within_the_lag_and_reaches_no_checkpoint(tmp_path, broken, lag):
    run, broken.calls = make_run(tmp_path, steps=99, log_every=50, eval_every=0, checkpoint_every=3), 0
    run.pending, run.objective = PendingMetrics(lag=lag), broken
    what = "gradient" if isinstance(broken, BrokenGradient) else "loss"
    with pytest.raises(Diverged, match=f"The {what} is NaN or infinite at step 9: .*step-000009"):
        fit(run)
    assert run.progress.step <= 9 + lag and broken.calls <= 9 + lag + 1
    kept = checkpoints.all_in(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step-000003", "step-000006", "step-000009"]
    checkpoints.load_weights(kept[-1], run.model)
    assert all(param.isfinite().all() for param in run.model.parameters())


def test_a_failing_step_after_an_unread_divergence_saves_nothing(tmp_path):
    class Failing(Broken):
        def loss(self, model, inputs):
            if self.calls == 11:
                raise ValueError("a bug")
            return super().loss(model, inputs)

    run = make_run(tmp_path, steps=99, log_every=50, eval_every=0, checkpoint_every=0)
    run.pending, run.objective = PendingMetrics(lag=2), Failing(9, torch.nan)
    with pytest.raises(ValueError, match="a bug"):
        fit(run)
    assert checkpoints.all_in(tmp_path / "checkpoints") == []


def test_inputs_prepared_ahead_are_those_of_each_step_and_the_thread_ends(tmp_path):
    run, threads = make_run(tmp_path), threading.active_count()
    with prefetching(partial(prepared, run)) as ahead:
        for step in (0, 1, 2, 7, 8, 3):
            (inputs, counted), (expected, expected_counted) = ahead.take(step), prepared(run, step)
            assert torch.equal(inputs.tokens_BT, expected.tokens_BT) and counted == expected_counted
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads


def test_a_run_whose_inputs_are_prepared_ahead_records_the_same(tmp_path):
    fit(make_run(tmp_path / "now"))
    run = make_run(tmp_path / "ahead")
    with prefetching(partial(prepared, run)) as run.prefetcher:
        fit(run)
    assert figures(tmp_path / "ahead") == figures(tmp_path / "now")


def test_an_error_in_the_thread_belongs_to_its_own_step_and_keeps_the_steps_before(tmp_path):
    class Torn(Batches):
        def batch(self, step):
            if step == 5:
                raise OSError("torn")
            return super().batch(step)

    run = make_run(tmp_path, eval_every=0, checkpoint_every=0)
    run.train_batches, threads = Torn(), threading.active_count()
    with pytest.raises(OSError, match="torn"), prefetching(partial(prepared, run)) as run.prefetcher:
        fit(run)
    assert run.progress.step == 5 and threading.active_count() == threads
    assert [path.name for path in checkpoints.all_in(tmp_path / "checkpoints")] == ["step-000005"]


def test_an_error_of_a_step_that_is_never_taken_is_no_error(tmp_path):
    class Short(Batches):
        def batch(self, step):
            if step == 8:
                raise OSError("beyond the end")
            return super().batch(step)

    run = make_run(tmp_path, steps=8)
    run.train_batches = Short()
    with prefetching(partial(prepared, run)) as run.prefetcher:
        assert fit(run) is None
