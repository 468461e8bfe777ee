"""`python run.py task=compare 'runs=[outputs/…]'`: which arms are better, with what confidence, and a report."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from minllm.config.unasked import asks_judge
from minllm.errors import UserError
from minllm.grading.grader import GraderOption
from minllm.grading.judge import Judge, JudgeOption
from minllm.schema.building import build
from minllm.schema.options import Name, Natural, Place, Share, reads
from minllm.schema.overrides import key_of
from minllm.study.comparison import Comparison
from minllm.study.comparison import compare as compared
from minllm.study.grades import Grading, grade_arms
from minllm.study.metric import METRICS
from minllm.study.metric import Name as MetricName
from minllm.study.reading import Reading, read_arms
from minllm.study.report import write_and_print
from minllm.study.report.data import to_json
from minllm.study.selection import Selection
from minllm.training import machine

if TYPE_CHECKING:
    from minllm.grading.analysis import Analysis


@reads("sample", "train.device")
def compare(
    cfg: DictConfig,
    run_dir: Path,
    *,
    runs: list[Place],
    name: Name | None,
    tag: Name | None,
    choice: list[Name],
    date: Name | None,
    baseline: Name | None,
    margin: Share,
    aa: bool,
    prompts: list[str],
    stories: Natural,
    metric: MetricName = "val_bpb",
    grader: GraderOption | None = None,
    judge: JudgeOption | None = None,
    analysis: bool = False,
) -> Comparison:
    """Compare the arms that runs belong to: print a summary, and write report.html, report.md and report.json.

    Args:
        run_dir: where the report is written.
        runs, name, tag, choice, date: select the runs; see `minllm.study.selection.Selection`.
        baseline, margin, aa: see `minllm.study.comparison.compare`.
        metric: what decides; of an accuracy, higher is better, and the margin is a difference.
        prompts: the prompts that one run of each arm continues, shown side by side.
        stories: the number of held-out texts that are shown with each arm's loss.
        grader: how what the arms write is graded; None doesn't grade it.
        judge: whom `grader=judge` and the analysis ask.
        analysis: whether a judge writes about the report.

    Raises:
        UserError: there are no such runs, only one arm, or the runs can't be compared.
        OSError: the report can't be written.
    """
    if judge and asks_judge(cfg):
        judge().check_ready()
    selection = Selection(runs, name, tag, choice, date)
    comparison = replace(
        compared(
            selection,
            baseline=baseline,
            margin=margin,
            aa=aa,
            extensions=cfg.extensions,
            metric=METRICS[metric],
        ),
        options=[override for override in cfg.typed or () if is_kept(override)],
    )
    device = machine.choose_device(build(cfg.train).device)
    grading = grade_arms(comparison, grader(), device, cfg.extensions) if grader else None
    readings = read_arms(comparison, cfg, prompts, stories)
    words = analysed(judge(), comparison, readings, grading) if analysis and judge else None
    write_and_print(comparison, run_dir, readings, grading=grading, analysis=words)
    return comparison


def is_kept(override: str) -> bool:
    """Whether an override is repeated in the report's command: what is graded, and by which metric is compared."""
    return re.split("[./]", key_of(override))[0] in ("grader", "judge", "analysis", "metric")


def analysed(
    judge: Judge, comparison: Comparison, readings: Sequence[Reading], grading: Grading | None
) -> Analysis:
    """Return what a judge says about the report, or why it says nothing."""
    from minllm.grading.analysis import Analysis, analyse  # takes a moment, and is seldom needed

    try:
        return analyse(judge, json.loads(to_json(comparison, readings, grading=grading)))
    except UserError as error:  # the report is valid without it
        return Analysis(judge.name, (), (), str(error))
