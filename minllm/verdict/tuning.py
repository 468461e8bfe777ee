"""Learning rate tuning for the arms of a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from minllm.errors import UserError
from minllm.study.comparison import Tuning
from minllm.sweep.report.trials import is_complete
from minllm.verdict.protocol import Protocol

TIME_WAS_UP = (
    "Time ran out {}. Run the same command to continue, with a larger sweep.minutes=<minutes> if needed."
)


def rates_of(cfg: DictConfig, protocol: Protocol) -> list[float]:
    """Return the learning rates that an arm tries, in increasing order, rounded to three digits."""
    return list(dict.fromkeys(float(f"{cfg.optim.lr * rate:.3g}") for rate in sorted(protocol.rates)))


def chosen_rate(name: str, rates: Sequence[float], trials: Sequence[FrozenTrial], seeds: int) -> Tuning:
    """Return the rate with the lowest mean loss over the seeds, among those that completed with every seed.

    Raises:
        UserError: time ran out, or no rate completed with every seed.
    """
    if sum(trial.state.is_finished() for trial in trials) < len(rates) * seeds:
        raise UserError(TIME_WAS_UP.format(f"while tuning the learning rate of arm {name}"))
    losses: dict[float, list[float]] = {rate: [] for rate in rates}
    for trial in filter(is_complete, trials):
        losses[trial.params["optim.lr"]].append(trial.value)
    means = {rate: sum(values) / seeds if len(values) == seeds else None for rate, values in losses.items()}
    known = {rate: mean for rate, mean in means.items() if mean is not None}
    if not known:
        raise UserError(
            f"Every learning rate of arm {name} failed. Try others: search.rates=[0.03,0.1].{_reason(trials)}"
        )
    return Tuning(means, min(known, key=known.__getitem__))


def _reason(trials: Sequence[FrozenTrial]) -> str:
    """Return a sentence on why the first trial failed; "" if unknown."""
    texts = (trial.user_attrs.get("text") for trial in trials)
    first = next(filter(None, texts), None)
    return f" The first failure: {first}" if first else ""
