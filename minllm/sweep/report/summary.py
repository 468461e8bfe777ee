"""The report of a search as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from minllm.page.markdown import code, lines, sh, table, word
from minllm.schema.overrides import short_names
from minllm.sweep.report.importance import importances, share_called_best
from minllm.sweep.report.trials import (
    DID_NOT_FIT,
    MEANINGS,
    about_bounds,
    accuracies_in,
    best_of,
    counted,
    counted_noun,
    described,
    memory_of,
    ranked,
    rerun,
    shown,
    state_of,
    varying,
)


def summary(study: optuna.Study, *, metric: str, command: str) -> str:
    """Return the text of summary.md."""
    trials = study.get_trials(deepcopy=False)
    sections = [
        ["# Search results", f"This search minimized {metric}:", sh(command)],
        ["## Best trial", *_best(best_of(study), metric, trials)],
        ["## Search space", *_searched(study, trials)],
        ["## How the trials ended", *_counts(trials)],
        ["## Ten best trials", *_ten_best(trials, metric)],
        ["## Memory", " ".join(describe_memory(trials))],
    ]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def no_best(trials: Sequence[FrozenTrial]) -> str:
    """Return a sentence on why there's no best trial."""
    if not any(trial.state.is_finished() for trial in trials):
        return "No trial has ended yet."
    return "No trial has completed, so there is no best trial."


def describe_best(best: FrozenTrial, metric: str) -> str:
    """Return a sentence with the best trial's value, size, memory and time."""
    description = described(best)
    details = [
        description.params and f"{description.params} parameters",
        description.peak and f"{description.peak} peak memory",
        description.elapsed,
    ]
    listed = ", ".join(filter(None, details))
    return f"Trial {best.number} reached the lowest {metric}: {description.value}" + (
        f" ({listed})." if listed else "."
    )


def describe_memory(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return sentences about what fit in memory, what didn't, and how accurate the predictions were."""
    fitted = [trial for trial in trials if _fit_in_memory(trial)]
    did_not_fit = [trial for trial in trials if state_of(trial) in DID_NOT_FIT and memory_of(trial)]
    largest = max(fitted, key=memory_of, default=None)
    smallest = min(did_not_fit, key=memory_of, default=None)
    sentences = []
    if largest is not None:
        sentences.append(f"The largest trial that fit was trial {largest.number}: {_sizes(largest)}.")
    if smallest is not None:
        sentences.append(
            f"The smallest that didn't fit was trial {smallest.number}: {_sizes(smallest)};"
            f" it {MEANINGS[state_of(smallest)]}."
        )
    elif largest is not None:
        sentences.append("No trial is known to have exceeded its memory.")
    if largest and smallest and memory_of(largest) >= memory_of(smallest):
        sentences.append("The two overlap, so the prediction alone doesn't decide what fits.")
    return [*sentences, *_accuracy(trials)] or ["The trials recorded no memory use."]


def _fit_in_memory(trial: FrozenTrial) -> bool:
    """Whether a trial ran and didn't end because of memory."""
    state = state_of(trial)
    ran = state == "complete" or (state.startswith("pruned: ") and state not in DID_NOT_FIT)
    return ran and memory_of(trial) > 0


def _sizes(trial: FrozenTrial) -> str:
    description = described(trial)
    return ", ".join(
        filter(
            None,
            [
                description.predicted and f"{description.predicted} predicted",
                description.peak and f"{description.peak} measured",
            ],
        )
    )


def _accuracy(trials: Sequence[FrozenTrial]) -> list[str]:
    ratios = [
        trial.user_attrs["peak_bytes"] / trial.user_attrs["predicted_bytes"]
        for trial in trials
        if _fit_in_memory(trial)
        and trial.user_attrs.get("peak_bytes")
        and trial.user_attrs.get("predicted_bytes")
    ]
    if not ratios:
        return []
    return [
        f"In the {counted_noun(len(ratios), 'trial')} with both values, the median of measured / predicted was"
        f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})."
    ]


def _best(best: FrozenTrial | None, metric: str, trials: Sequence[FrozenTrial]) -> list[str]:
    if best is None:
        return [no_best(trials)]
    line, folder = rerun(best), best.user_attrs.get("run")
    return [
        " ".join(filter(None, [describe_best(best, metric), about_bounds(trials)])),
        *lines([f"- {code(name)}: {word(shown(value))}" for name, value in best.params.items()]),
        *(["To run it again:", sh(line)] if line else ["Its overrides weren't recorded."]),
        *([f"Run folder: {code(folder)}"] if folder else []),
    ]


def _searched(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[str]:
    names, shares, best = varying(trials), importances(study), best_of(study)
    if not names:
        return ["No parameter has been chosen yet."]
    chosen = best.params if best else {}
    rows = [
        [
            code(name),
            _ranges(name, trials),
            word(shown(chosen[name])) if name in chosen else "",
            f"{shares[name]:.0%}" if name in shares else "",
        ]
        for name in sorted(names, key=lambda name: -shares.get(name, 0))
    ]
    return [
        table(["parameter", "searched", "best", "importance"], rows, "lllr"),
        _importance_note(trials, shares),
    ]


def _ranges(name: str, trials: Sequence[FrozenTrial]) -> str:
    """Return the range in which a parameter was searched; several ranges if the search has changed."""
    distributions = [trial.distributions[name] for trial in trials if name in trial.distributions]
    return "; ".join(dict.fromkeys(map(_range, distributions)))


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(word(shown(choice)) for choice in distribution.choices)
    step = f" in steps of {shown(distribution.step)}" if distribution.step not in (None, 1) else ""
    return (
        f"{shown(distribution.low)} to {shown(distribution.high)}{step}{', log' if distribution.log else ''}"
    )


def _importance_note(trials: Sequence[FrozenTrial], shares: Mapping[str, float]) -> str:
    complete = sum(state_of(trial) == "complete" for trial in trials)
    if not shares:
        return "Importances need two complete trials with different values."
    return (
        f"Importance is each parameter's share in what distinguishes the best {share_called_best(complete):.0%} of"
        f" {complete} complete trials from all of them (PED-ANOVA). With fewer than a few dozen trials, it's only a"
        " hint."
    )


def _counts(trials: Sequence[FrozenTrial]) -> list[str]:
    counts = counted(trials)
    rows = [[state, MEANINGS.get(state, ""), str(count)] for state, count in counts.items()]
    failed = [
        f"- Trial {trial.number} failed. {described(trial).why}".rstrip()
        for trial in trials
        if state_of(trial) == "failed"
    ]
    return [
        table(["", "what happened", "trials"], [*rows, ["all", "", str(len(trials))]], "llr"),
        *lines(failed),
    ]


def _ten_best(trials: Sequence[FrozenTrial], metric: str) -> list[str]:
    figures, settings, rows = ten_best(trials, metric)
    if not rows:
        return ["No trial has completed."]
    cells = [[*row[: len(figures)], *map(word, row[len(figures) :])] for row in rows]
    sides = "r" * len(figures) + "l" * len(settings)
    return [table([*figures, *map(code, settings)], cells, sides)]


def ten_best(
    trials: Sequence[FrozenTrial], metric: str
) -> tuple[Sequence[str], Sequence[str], list[list[str]]]:
    """Return the headings of figures and of parameters, and a row with both for each of the ten best trials."""
    shorts = short_names(varying(trials))
    best = [described(trial) for trial in ranked(trials) if state_of(trial) == "complete"][:10]
    accuracies = accuracies_in(best)
    rows = [
        [
            str(description.number),
            description.value,
            *(description.accuracies.get(name, "") for name in accuracies),
            description.params,
            description.peak,
            *(description.settings.get(name, "") for name in shorts),
        ]
        for description in best
    ]
    return ["trial", metric, *accuracies, "params", "peak"], list(shorts.values()), rows
