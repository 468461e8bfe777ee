"""`python run.py task=compare 'runs=[outputs/…]'`: which arms are better, with what confidence, and a report."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from minllm.schema.building import build
from minllm.schema.options import Name, Natural, Place, Share, reads
from minllm.study.comparison import Comparison
from minllm.study.comparison import compare as compared
from minllm.study.grades import grade_arms
from minllm.study.reading import read_arms
from minllm.study.report import write_and_print
from minllm.study.selection import Selection
from minllm.tasks.grade import GraderOption, JudgeOption
from minllm.training import machine


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
    grader: GraderOption | None = None,
    judge: JudgeOption | None = None,
    analysis: bool = False,
) -> Comparison:
    """Compare the arms that runs belong to: print a summary, and write report.html, report.md and report.json.

    Args:
        run_dir: where the report is written.
        runs, name, tag, choice, date: select the runs; see `minllm.study.selection.Selection`.
        baseline, margin, aa: see `minllm.study.comparison.compare`.
        prompts: the prompts that one run of each arm continues, shown side by side.
        stories: the number of held-out texts that are shown with each arm's loss.
        grader: how what the arms write is graded; None doesn't grade it.
        judge: whom `grader=judge` and the analysis ask.
        analysis: whether a judge writes about the report.

    Raises:
        UserError: there are no such runs, only one arm, or the runs can't be compared.
        OSError: the report can't be written.
    """
    selection = Selection(runs, name, tag, choice, date)
    comparison = compared(selection, baseline=baseline, margin=margin, aa=aa, extensions=cfg.extensions)
    device = machine.choose_device(build(cfg.train).device)
    grading = grade_arms(comparison, grader(), device, cfg.extensions) if grader else None
    readings = read_arms(comparison, cfg, prompts, stories)
    write_and_print(comparison, run_dir, readings, grading=grading)
    return comparison
