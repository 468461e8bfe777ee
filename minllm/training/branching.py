"""Several lengths from one run: a shorter run starts from a checkpoint of a longer one.

With WSD (2404.06395) and the same seed, runs of different lengths are the same to the bit until the shorter one's decay
begins. The longer run is the trunk; `train.branches` makes it keep its checkpoints at these steps, and `branch_from`
starts a shorter run from the newest one at which both would still be the same.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.files.atomic import contents
from minllm.page import units
from minllm.runs.find import DATA_LOCATION, FIXED_SECTIONS, find_run, read_run, select, unchangeable
from minllm.runs.folder import DIVERGED, RunDir
from minllm.runs.records import METRICS, SAMPLES, Kept
from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, check_node
from minllm.schema.foreign import leaves
from minllm.schema.foreign_runs import refuse_foreign
from minllm.training import checkpoints
from minllm.training.budget import Budget
from minllm.training.checkpoints import Progress
from minllm.training.resuming import same_configuration
from minllm.training.schedules import Schedule
from minllm.training.settings import BUDGETS, Settings
from minllm.training.step import Diverged

FREE = (
    *BUDGETS,
    *("log_every", "eval_every", "evals", "sample_every", "malloc", "check"),
    *("checkpoint_every", "keep_checkpoints", "branches"),
)
"""Options of `train:` in which a run may differ from its trunk: its length, and what is recorded."""
COMPARED = (*(name for name in FIXED_SECTIONS if name != "schedule"), "init_from")
"""Sections in which it may not. Schedules are compared by their learning rates."""


@dataclass(frozen=True)
class Branch:
    """Where a run branches off.

    checkpoint: of the trunk
    progress: from which the run goes on
    kept: the trunk's metrics and samples up to there
    """

    checkpoint: Path
    progress: Progress
    kept: Kept

    @property
    def records(self) -> dict[str, bytes]:
        """The contents of the files that the run begins with."""
        trunk = checkpoints.run_of(self.checkpoint)
        found = {METRICS: self.kept.metrics, SAMPLES: self.kept.samples}
        return {name: contents(trunk / name) if own is None else own for name, own in found.items()}


def branch_of(cfg: DictConfig, place: str) -> Branch:
    """Return where a run branches off its trunk.

    Args:
        place: the trunk's folder, or a folder of runs of which one has this run's configuration and seed.

    Raises:
        UserError: the run wouldn't be the same as the trunk up to any of the trunk's checkpoints.
        Diverged: the trunk diverged while both would have been the same.
    """
    refuse_foreign(place, "branch_from")
    branches, refusals = [], []
    for run, saved in trunks_in(cfg, place):
        try:
            branches.append(branch_at(cfg, run, saved))
        except UserError as error:
            refusals.append(error)
    if not branches:
        raise refusals[0]
    return max(branches, key=lambda branch: branch.progress.step)


def trunks_in(cfg: DictConfig, place: str) -> list[tuple[Path, DictConfig]]:
    """Return the run that a folder is, or the runs in it that have the seed of `cfg`, with their configurations.

    Raises:
        UserError: there is none, or one can't be read.
    """
    folder = Path(place)
    if (folder / "config.yaml").is_file() or not folder.is_dir():
        run = find_run(place)
        return [(run, read_run(run, cfg.extensions))]
    inside = {path.parent: read_run(path.parent, cfg.extensions) for path in folder.glob("*/config.yaml")}
    found = [(run, inside[run]) for run in sorted(inside) if inside[run].get("seed") == cfg.seed]
    if not found:
        raise UserError(
            f"branch_from={place} is neither a run nor a folder that has a run with seed={cfg.seed}. Give a run's"
            " folder, or that of a grid or search with the same seeds."
        )
    return found


def branch_at(cfg: DictConfig, run: Path, saved: DictConfig) -> Branch:
    """Return where a run branches off this trunk, whose configuration is `saved`; see `branch_of`."""
    settings: Settings = build(cfg.train)
    refuse_different(saved, cfg, settings, run)
    found = checkpoints.all_in(run / "checkpoints")
    own_steps = steps_of(settings, cfg.data.seq_len)
    trunk_steps = checkpoints.read_progress(found[-1]).total_steps if found else length_of(saved)
    until = first_difference(build(saved.schedule), trunk_steps or 1, build(cfg.schedule), own_steps)
    usable = [checkpoint for checkpoint in found if checkpoints.step_of(checkpoint) <= until]
    if not usable:
        refuse_unusable(run, found, until, own_steps, settings.batch_size * cfg.data.seq_len)
    checkpoint = usable[-1]
    progress = checkpoints.read_progress(checkpoint)
    same_configuration(progress.configured, unchangeable(saved))
    kept = RunDir(run).kept(progress.step, progress.records)
    branch = Branch(checkpoint, as_begun(progress, run), kept)
    refuse_other_rates(branch, build(cfg.schedule), own_steps, run)
    return branch


def refuse_other_rates(branch: Branch, schedule: Schedule, steps: int, run: Path) -> None:
    """Raise UserError if the trunk's learning rates weren't those of this run, such as if its length was changed."""
    events = [json.loads(line) for line in branch.records[METRICS].splitlines()]
    rates = [(event["step"], event["lr"]) for event in events if "lr" in event]
    for step, rate in [*rates, (branch.progress.step, branch.progress.lr)]:
        if rate is not None and rate != schedule.lr(step - 1, steps):
            raise UserError(
                f"{run} had the learning rate {rate:g} at step {step}, and this run would have"
                f" {schedule.lr(step - 1, steps):g}, so that it can't branch from it. The length of {run.name} may have"
                " been changed when it was resumed: train it again from the beginning."
            )


def as_begun(progress: Progress, run: Path) -> Progress:
    """Return the trunk's progress as that of a run that begins there and has no checkpoint of its own."""
    trunk = {"run": str(run), "step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
    return replace(progress, trunk=trunk, best=None, configured=None, records={}, files=None)


def refuse_unusable(run: Path, found: list[Path], until: int, steps: int, tokens_per_step: int) -> None:
    """Raise an error, because the trunk has no checkpoint at or before the step `until`."""
    log = contents(run / "log.txt").decode("utf-8", "replace").splitlines()
    ended = re.search(rf"at step (\d+): {DIVERGED}", log[-1]) if log else None
    if ended and int(ended[1]) < until:
        raise Diverged(f"The run that this one branches from, {run}, diverged {ended[0]}.")
    if not found:
        raise UserError(f"{run} has no checkpoint yet, so that no run can branch from it.")
    if until == 0:
        raise UserError(
            f"{run} had other learning rates from the first step on, so that this run can't branch from it: type"
            " schedule=wsd and schedule.warmup_steps=<steps> in both, without which they depend on the length."
        )
    raise UserError(
        f"{run} has no checkpoint at or before step {until}, from which its learning rates differ from those of this"
        f" run. Train it with 'train.branches=[{steps * tokens_per_step}]', which keeps one there."
    )


def refuse_different(saved: DictConfig, cfg: DictConfig, settings: Settings, run: Path) -> None:
    """Raise UserError unless a run's configuration is that of its trunk, apart from its length and schedule."""
    for section in ("train", "schedule"):
        check_node(saved[section], section, allowed_packages(cfg))
    trunk = asdict(build(saved.train))
    own = asdict(settings)
    for limit in ("minutes", "flops"):
        if own[limit] is not None or (limit == "minutes" and trunk[limit] is not None):
            where = "this run" if own[limit] is not None else str(run)
            raise UserError(
                f"train.{limit} limits {where}, whose schedule isn't known in advance, so that a run can't branch:"
                " give lengths as train.steps or train.tokens."
            )
    before = {**flat(saved), **{f"train.{key}": trunk[key] for key in trunk if key not in FREE}}
    now = {**flat(cfg), **{f"train.{key}": own[key] for key in own if key not in FREE}}
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{key} is {now.get(key)} in this run and {before.get(key)} in {run}, so that they aren't the same up"
                f" to any step. A branch may differ in its length and decay alone: type {key}={before.get(key)}."
            )


def flat(cfg: DictConfig) -> dict[str, Any]:
    """Return the values that a run and its trunk must have in common, except those of `train:`."""
    resolved = OmegaConf.create({name: plain(select(cfg, name)) for name in COMPARED})
    return {key: value for key, value in leaves(resolved) if key not in DATA_LOCATION}


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def steps_of(settings: Settings, seq_len: int) -> int:
    return Budget.of(settings, settings.batch_size * seq_len, math.nan).total_steps


def length_of(saved: DictConfig) -> int | None:
    """Return the steps of a run by its configuration; None if a limit in FLOPs doesn't say without its model."""
    settings: Settings = build(saved.train)
    return None if settings.flops is not None else steps_of(settings, saved.data.seq_len)


def first_difference(one: Schedule, steps: int, other: Schedule, other_steps: int) -> int:
    """Return the first step at which two runs have different learning rates, or the end of the shorter one."""
    shorter = min(steps, other_steps)
    differ = (step for step in range(shorter) if one.lr(step, steps) != other.lr(step, other_steps))
    return next(differ, shorter)


# ---- the trunk -----------------------------------------------------------------------------------


def branch_steps(settings: Settings, schedule: Schedule, steps: int, tokens_per_step: int) -> tuple[int, ...]:
    """Return the steps whose checkpoints a trunk keeps for shorter runs.

    Raises:
        UserError: a run of one of these lengths would have other learning rates from the beginning, or be longer.
    """
    found = []
    for tokens in settings.branches or []:
        shorter = math.ceil(tokens / tokens_per_step)
        if settings.minutes is not None or shorter > steps:
            raise UserError(
                f"train.branches={settings.branches} are the tokens of shorter runs, but this run has"
                f" {'a limit in minutes' if settings.minutes is not None else units.count(steps * tokens_per_step)}."
                " Make it longer, in train.steps or train.tokens."
            )
        until = first_difference(schedule, steps, schedule, shorter)
        if until <= schedule.warmup(steps) + 1:
            raise UserError(
                f"A run of {tokens:g} tokens has other learning rates than this one from step {until} on, so that it"
                " can't branch from it: type schedule=wsd and schedule.warmup_steps=<steps>, and let warm-up and decay"
                " leave some steps between them."
            )
        found.append(until)
    return tuple(found)
