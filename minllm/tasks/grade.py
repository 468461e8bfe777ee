"""`python run.py task=grade run=latest`: what the texts of a trained model are worth."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from minllm.config.unasked import asks_judge
from minllm.errors import UserError, printable
from minllm.grading.grader import GraderOption
from minllm.grading.judge import JudgeOption
from minllm.page.terminal import answer
from minllm.schema.building import build
from minllm.schema.options import RunPlace, reads
from minllm.study.grades import Grading, grade_run
from minllm.study.report.graded_run import in_a_line, lines, write_grades
from minllm.training import machine, memory


@reads("model", "norm", "objective", "tokenizer", "data", "train.device")
def grade(
    cfg: DictConfig,
    run_dir: Path,
    *,
    run: RunPlace,
    grader: GraderOption | None = None,
    judge: JudgeOption | None = None,
) -> Grading:
    """Have a run's best checkpoint write, grade its texts, print the grades, and write grades.html, .md and .json.

    Args:
        run_dir: where the files are written.
        run: the run's folder, or `latest`.
        grader: how the texts are graded.
        judge: whom `grader=judge` asks.

    Raises:
        UserError: there is no such run, its model can't generate, or its texts can't be graded.
        OSError: a file can't be written.
    """
    if grader is None:
        raise UserError("task=grade needs a grader: leave grader=null out, or choose another one.")
    if judge and asks_judge(cfg):
        judge().check_ready()
    device = machine.choose_device(build(cfg.train).device)
    with memory.running_out("the texts were graded"):
        grading = grade_run(cfg, Path(run), grader(), device)
    written = write_grades(grading, Path(run), run_dir)
    print(printable("\n".join(lines(grading))))
    print(f"The grades are in {' and '.join(map(str, written))}", flush=True)
    answer(in_a_line(grading, Path(run), written[-1]))
    return grading
