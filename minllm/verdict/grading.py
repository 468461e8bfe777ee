"""Grading what the arms of a verdict write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from minllm.config.unasked import asks_judge, refuse_unasked
from minllm.grading.grader import Grader
from minllm.runs.find import named_keys
from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, check_node
from minllm.study.comparison import Comparison
from minllm.study.grades import Grading, grade_arms
from minllm.training import machine

if TYPE_CHECKING:
    from minllm.verdict.sequential import VerdictSearch


def chosen_grader(config: DictConfig, cfgs: Iterable[DictConfig], overrides: Sequence[str]) -> Grader | None:
    """Return the grader of a verdict; None if nothing is to be graded.

    Args:
        cfgs: the configurations of the arms.

    Raises:
        UserError: an option doesn't exist or has an invalid value, the grader can't grade an arm's corpus, or an
            override is for a judge that nobody asks.
    """
    refuse_unasked(config, named_keys(overrides))
    if "grader" not in config:
        return None
    for section in ("judge", "grader"):
        check_node(config[section], section, allowed_packages(config))
    if asks_judge(config):
        build(config.judge).check_ready()
    grader: Grader = build(config.grader)
    for cfg in cfgs:
        grader.check(build(cfg.data))
    return grader


def graded(search: VerdictSearch, comparison: Comparison) -> Grading | None:
    """Return the grades of what the arms write; None if they aren't graded."""
    if search.grader is None:
        return None
    device = machine.choose_device(search.config.train.device)
    return grade_arms(comparison, search.grader, device, search.config.extensions)
