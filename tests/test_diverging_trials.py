"""When a trial counts as diverged: its loss isn't finite, or it trains to a loss above its first one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import optuna
import pytest

from minllm.sweep.trial import PruningLogger
from minllm.training.step import Diverged

FIRST = 5.0


def logger(init_from: str | None = None) -> PruningLogger:
    """Return the logger of a trial whose run has begun with a training loss of `FIRST`."""
    trial = optuna.create_study(storage="sqlite://").ask()
    trial.set_user_attr("attempt", "1")
    config = {"init_from": init_from, "branch_from": None}
    assignment = SimpleNamespace(metric="val_loss", attempt="1", config=config, minutes=None)
    run = SimpleNamespace(
        logger=SimpleNamespace(log=lambda event: None),
        progress=SimpleNamespace(recent_losses=[FIRST]),
        model=SimpleNamespace(vocab_size=16),
        budget=SimpleNamespace(spent=lambda step, seconds: True),
        settings=SimpleNamespace(evals=None),
    )
    made = PruningLogger(trial, assignment, None)
    made.watch(run)
    made.log({"train_loss": FIRST})
    return made


def evaluate(to: PruningLogger, train_loss: float, val_loss: float) -> None:
    """Log a step's training loss, of which nothing is kept afterwards, and an evaluation."""
    to.run.progress.recent_losses = [FIRST, train_loss]
    to.log({"train_loss": (FIRST + train_loss) / 2})
    to.run.progress.recent_losses = []
    to.log({"step": 2, "seconds": 1.0, "val_loss": val_loss})


@pytest.mark.parametrize("val_loss", [1.0, FIRST, 3 * FIRST])
def test_a_model_that_overfits_or_is_validated_on_longer_texts_has_not_diverged(val_loss):
    evaluate(logger(), 0.5, val_loss)


def test_nor_has_one_with_a_difficult_batch_or_within_the_noise():
    evaluate(logger(), 3 * FIRST, 0.5)
    evaluate(logger(), 1.04 * FIRST, 1.04 * FIRST)


@pytest.mark.parametrize("factor", [1.06, 2])
def test_a_model_whose_losses_have_risen_has(factor):
    with pytest.raises(
        Diverged, match=f"^The loss is {factor * FIRST:.3f} at step 2, above its initial 5.000.$"
    ):
        evaluate(logger(), factor * FIRST, factor * FIRST)


@pytest.mark.parametrize("val_loss", [math.nan, math.inf])
def test_a_model_whose_loss_is_not_finite_has(val_loss):
    with pytest.raises(Diverged, match=f"^The loss is {val_loss} at step 2.$"):
        evaluate(logger(), 0.5, val_loss)


def test_a_run_that_is_resumed_for_an_evaluation_is_compared_with_a_uniform_guess():
    resumed = logger()
    resumed.start_loss, resumed.run.progress.recent_losses = math.inf, []
    resumed.log({"step": 1, "seconds": 1.0, "val_loss": 0.5})
    evaluate(resumed, math.log(16), math.log(16))


def test_a_pretrained_model_is_compared_with_its_first_evaluation():
    pretrained = logger(init_from="outputs/run")
    evaluate(pretrained, 0.5, 0.5)
    with pytest.raises(Diverged, match="above its initial 0.500"):
        evaluate(pretrained, 0.6, 0.6)
