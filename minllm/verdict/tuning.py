"""The learning rates that an arm of a verdict tries, and which of them it takes."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from minllm.errors import UserError
from minllm.study.comparison import Tuning
from minllm.sweep.report.trials import is_complete
from minllm.verdict.protocol import Protocol

TIME_WAS_UP = "The time was up {}. The same command goes on; give it more with sweep.minutes=<minutes>."


def rates_of(cfg: DictConfig, protocol: Protocol) -> list[float]:
    """Return the learning rates that an arm tries, lowest first, to three digits."""
    return list(dict.fromkeys(float(f"{cfg.optim.lr * rate:.3g}") for rate in sorted(protocol.rates)))


def chosen_rate(name: str, rates: Sequence[float], trials: Sequence[FrozenTrial], seeds: int) -> Tuning:
    """Choose the rate with the lowest mean over the seeds, of those that came to their end with each seed."""
    if sum(trial.state.is_finished() for trial in trials) < len(rates) * seeds:
        raise UserError(TIME_WAS_UP.format(f"while learning rates of arm {name} were tried"))
    found: dict[float, list[float]] = {rate: [] for rate in rates}
    for trial in filter(is_complete, trials):
        found[trial.params["optim.lr"]].append(trial.value)
    means = {rate: sum(values) / seeds if len(values) == seeds else None for rate, values in found.items()}
    known = {rate: mean for rate, mean in means.items() if mean is not None}
    if not known:
        raise UserError(
            f"Every learning rate that arm {name} tried failed. Try others: search.rates=[0.03,0.1].{_reason(trials)}"
        )
    return Tuning(means, min(known, key=known.__getitem__))


def _reason(trials: Sequence[FrozenTrial]) -> str:
    """Return why the first of some trials failed, as far as it's known."""
    texts = (trial.user_attrs.get("text") for trial in trials)
    first = next(filter(None, texts), None)
    return f" The first one: {first}" if first else ""
