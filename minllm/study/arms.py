"""Arms: groups of runs that differ only in their seed, their names, and their differences.

Two arms are compared in pairs of runs with the same seed, which start from the same weights wherever they share a
parameter and see the same batches in the same order. Whether anything else was equal is determined from the runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minllm.errors import UserError, suggest
from minllm.objective import Bound
from minllm.page.markdown import one_line
from minllm.page.units import finite
from minllm.runs.find import WATCHING
from minllm.schema.overrides import format_value, short_names
from minllm.study.selection import LeftOut, TrainedRun, leaves

IGNORED_SECTIONS = (*WATCHING, "seed", "extensions", "sample", "task", "resume", "branch_from")
"""Sections that don't affect what is learned. A requested size counts through the widths that it led to."""

IGNORED_KEYS = (
    *(f"train.{key}" for key in ("log_every", "eval_every", "evals", "checkpoint_every", "keep_checkpoints")),
    "train.branches",
    *("train.sample_every", "train.malloc", "train.check", "data.cache", "data.num_proc"),
)


class Absent:
    """Stands for a key that a configuration doesn't have, as opposed to null."""

    def __repr__(self) -> str:
        return "–"


ABSENT = Absent()

EXACT = 2**53
"""Up to here, a float represents every integer exactly."""


@dataclass(frozen=True)
class Arm:
    """The runs of one configuration, by seed.

    name: what distinguishes it, as overrides
    runs: those that were completed, in the order of their seeds
    diverged: its runs that diverged, if none was completed
    """

    name: str
    runs: Mapping[int, TrainedRun]
    diverged: Sequence[LeftOut] = ()

    @property
    def first(self) -> TrainedRun:
        """The completed run with the first seed, for what is the same in all runs."""
        return next(iter(self.runs.values()))

    @property
    def cfg(self) -> Mapping[str, Any]:
        """The configuration, of which only the seed isn't the same in all runs."""
        return next(run.cfg for run in (*self.runs.values(), *self.diverged) if run.cfg is not None)

    @property
    def seeds(self) -> list[int]:
        """The seeds of its completed runs; of those that diverged, if none was completed."""
        return sorted(self.runs or {run.cfg["seed"] for run in self.diverged if run.cfg is not None})

    @property
    def bound(self) -> Bound:
        """Whether its bits per byte are exact or an upper bound; those of runs that don't record it are exact."""
        return "upper" if "upper" in self.values("val_bound") else "exact"

    @property
    def objective_family(self) -> str:
        """The module of its objective: objectives of one module, such as masked and blocks, bound alike."""
        return str((self.cfg.get("objective") or {}).get("_target_", "")).rpartition(".")[0]

    def values(self, key: str) -> list[Any]:
        """Return a value of summary.json for each run, in the order of their seeds."""
        return [run.summary.get(key) for run in self.runs.values()]


def arms_of(runs: Sequence[TrainedRun], others: Sequence[LeftOut] = ()) -> tuple[list[Arm], list[LeftOut]]:
    """Group runs into arms, in the order in which they appear, and return the runs that were repeated.

    If two runs have the same arm and seed, the later one counts, whichever is better. Arms without a completed run,
    of which some of the `others` diverged, come last.
    """
    grouped: dict[tuple[Any, ...], dict[int, TrainedRun]] = {}
    repeated = []
    for run in runs:
        seeds = grouped.setdefault(identity(run.cfg), {})
        if run.seed in seeds:
            earlier, later = sorted([seeds[run.seed], run], key=finished_at)
            repeated.append(LeftOut(earlier.folder, f"It was run again in {later.folder.name}."))
            run = later
        seeds[run.seed] = run
    arms = [Arm("", dict(sorted(seeds.items()))) for seeds in grouped.values()]
    arms += [Arm("", {}, runs) for key, runs in diverged_by_arm(others).items() if key not in grouped]
    return [replace(arm, name=name) for arm, name in zip(arms, names_of([arm.cfg for arm in arms]))], repeated


def diverged_by_arm(others: Sequence[LeftOut]) -> dict[tuple[Any, ...], list[LeftOut]]:
    """Return the runs that diverged, by the identity of their arm."""
    grouped: dict[tuple[Any, ...], list[LeftOut]] = {}
    for run in others:
        if run.lost == "diverged" and run.cfg is not None:
            grouped.setdefault(identity(run.cfg), []).append(run)
    return grouped


def identity(cfg: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that is the same for all runs of one arm."""
    return tuple(sorted((key, normalized(value)) for key, value in training_settings(cfg).items()))


def normalized(value: Any) -> str:
    """Return the same text for values that are equal, such as 1 and 1.0."""
    whole = type(value) is int and abs(value) <= EXACT
    return repr(float(value) if whole else value)


def training_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that affect what is learned, except the seed."""
    return {key: value for key, value in leaves(cfg).items() if not is_ignored(key)}


def is_ignored(key: str) -> bool:
    return re.split("[./]", key)[0] in IGNORED_SECTIONS or key in IGNORED_KEYS


def finished_at(run: TrainedRun) -> float:
    return (run.folder / "summary.json").stat().st_mtime


def names_of(cfgs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what distinguishes each configuration: the choices that differ, and values where choices aren't enough."""
    return [one_line(name) for name in distinct_names(cfgs)]


def distinct_names(cfgs: Sequence[Mapping[str, Any]]) -> list[str]:
    choices = [
        {group: str(option) for group, option in cfg["choices"].items() if not is_ignored(group)}
        for cfg in cfgs
    ]
    presets = [chosen.get("experiment") for chosen in choices]
    if len(set(presets)) == len(presets):
        return [f"experiment={preset}" if len(presets) > 1 else "" for preset in presets]
    names = [" ".join(values) for values in differing_values(choices)]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        for i, values in zip(same, distinguishing_values([cfgs[i] for i in same])):
            names[i] = " ".join(filter(None, [name, *values]))
    return names


def distinguishing_values(cfgs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the values that distinguish the configurations: the overridden ones if they suffice, or else all."""
    prefixes = tuple(
        f"{word.partition('=')[0].lstrip('+')}." for cfg in cfgs for word in cfg.get("typed") or []
    )
    values = [{key: format_value(value) for key, value in training_settings(cfg).items()} for cfg in cfgs]
    chosen = [{key: named[key] for key in named if f"{key}.".startswith(prefixes)} for named in values]
    distinguishing = differing_values(chosen)
    return distinguishing if len(set(map(tuple, distinguishing))) == len(cfgs) else differing_values(values)


def differing_values(named: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return, for each mapping, the values that aren't the same in all of them, as `key=value` with short keys."""
    keys = dict.fromkeys(key for values in named for key in values)
    differ = [key for key in keys if len({values.get(key) for values in named}) > 1]
    short = short_names(differ)
    return [[f"{short[key]}={values.get(key, str(ABSENT))}" for key in differ] for values in named]


def measured(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms with at least one completed run; the others have a configuration and no results."""
    return [arm for arm in arms if arm.runs]


def arm_named(name: str, arms: Sequence[Arm]) -> Arm:
    """Return the arm of this name, or the only one whose name contains it. UserError if there is none, or several."""
    exact = [arm for arm in arms if arm.name == name]
    parts = exact or [
        arm for arm in arms if name in arm.name.replace("=", " ").split() or name in arm.name.split()
    ]
    if len(parts) == 1:
        return parts[0]
    names = [arm.name for arm in arms]
    what = "several arms" if parts else "no arm"
    raise UserError(f"baseline={name} matches {what}. The arms are {', '.join(names)}.{suggest(name, names)}")


def refuse_incomparable(arms: Sequence[Arm]) -> None:
    """Raise UserError unless all arms were validated on the same text, and either all or none of them look ahead."""
    arms = measured(arms)
    ahead = [arm for arm in arms if arm.first.summary["state_bytes_per_sequence"] is None]
    if ahead and len(ahead) < len(arms):
        raise UserError(
            f"{ahead[0].name} looks ahead, so it can't generate and its loss isn't comparable with that of a causal"
            " model. Leave it out."
        )
    texts: dict[str, Arm] = {}
    for arm in arms:
        for run in arm.runs.values():
            texts.setdefault(run.summary["validation_text"], arm)
    if len(texts) > 1:
        first, second = list(texts.values())[:2]
        named = [
            f"{arm.name or arm.first.folder.name} (data={arm.cfg['choices'].get('data')})"
            for arm in (first, second)
        ]
        raise UserError(
            f"{named[0]} and {named[1]} were validated on different texts, so their bits per byte can't be"
            " compared. Leave one out, or train it again with the other's data=."
        )


def config_differences(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """Return the keys in which the arms' configurations differ, with each arm's value, or ABSENT if it has none."""
    configs = [training_settings(arm.cfg) for arm in arms]
    keys = dict.fromkeys(key for values in configs for key in values)
    compared = {
        key: [values.get(key, ABSENT) for values in configs] for key in keys if not key.endswith("_target_")
    }
    return {key: values for key, values in compared.items() if len(set(map(normalized, values))) > 1}


def floor_of(arms: Sequence[Arm]) -> float | None:
    """Return the corpus's entropy in bits per byte, which no model can go below, if it is known."""
    known = [finite(value) for arm in arms for value in arm.values("floor_bpb")]
    return next((value for value in known if value is not None), None)
