"""Which runs a comparison finds, which it leaves out and why, who trains in a folder, and what was typed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import run as door
from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.runs import folder as rundir
from minllm.runs.folder import RunDir, is_running
from minllm.runs.outcome import Outcome, write
from minllm.study.comparison import Comparison, compare
from minllm.study.report.commands import compare_command
from minllm.study.report.data import to_json
from minllm.study.selection import Selection, find
from tests.comparisons import POST, PRE, begun, figures, finished, refusal, two_arms
from tests.test_config import idea  # noqa: F401  (a fixture)
from tests.test_doors import go  # noqa: F401  (a fixture)
from tests.test_report_schema import validate_report


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reasons(comparison: Comparison) -> dict[str, str]:
    return {one.folder.name: one.why for one in comparison.left_out}


# ---- finding runs --------------------------------------------------------------------------------


def found(**asked) -> list[str]:
    runs, _ = find(Selection(**{"folders": [], **asked}))
    return [run.folder.name for run in runs]


def test_a_folder_stands_for_all_runs_in_it(here):
    two_arms(here / "outputs/2026-11-25/12-00-00-grid")
    all_four = ["0-norm=pre", "1-norm=pre", "2-norm=post", "3-norm=post"]
    grid = "outputs/2026-11-25/12-00-00-grid"
    assert found(folders=["outputs"]) == found(folders=[grid]) == all_four
    assert found(folders=["outputs/*/*/1-*"]) == found(folders=[f"{grid}/1-norm=pre"]) == ["1-norm=pre"]
    assert found(folders=[f"{grid}/3-norm=post", grid]) == ["3-norm=post", *all_four[:3]], "each once"


def test_runs_are_selected_by_folder_and_configuration(here):
    finished(here / "outputs/2026-11-25/a-grid/0", PRE, "tags=[mine,first]")
    finished(here / "outputs/2026-11-26/another", POST, "model/attn=mqa")
    assert found(name="grid") == found(tag="mine") == found(date="2026-11-25") == ["0"]
    assert found(choice=["norm=post"]) == found(choice=["model/attn=mqa"]) == ["another"]
    assert found(choice=["attn=mqa", "norm=post"], date="2026-11-26") == ["another"]
    assert sorted(found(folders=["outputs"])) == ["0", "another"]
    for nobody in ({"tag": "min"}, {"choice": ["norm=post", "attn=gqa"]}, {"name": "grid", "tag": "third"}):
        with pytest.raises(UserError, match="No run matches"):
            find(Selection([], **nobody))


def test_a_run_in_a_folder_without_a_date_was_made_when_its_files_were(here):
    run = finished(here / "outputs/mine", PRE)
    os.utime(run / "config.yaml", (0, 1_700_000_000))  # 14 November 2023
    assert found(date="2023-11-14") == ["mine"]


def test_the_second_run_of_a_grid_comes_before_its_tenth(here):
    for number in (10, 2, 1):
        finished(here / f"grid/{number}-mqa", PRE, seed=number)
    assert found(folders=["grid"]) == found(folders=["grid/*"]) == ["1-mqa", "2-mqa", "10-mqa"]


def test_missing_selection_is_reported(here):
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=r"^No runs were selected. Type 'runs=\[outputs/…\]'"):
        Selection([])
    for word, sentence in {
        "nowhere": "There is no folder 'nowhere'. Give",
        "empty": "There is no run in 'em",
    }.items():
        with pytest.raises(UserError, match=sentence):
            find(Selection([word]))


# ---- runs that are left out ----------------------------------------------------------------------


def without_validation_text(folder: Path) -> None:
    old = figures(2.0, 0)
    del old["validation_text"]
    (finished(folder, PRE) / "summary.json").write_text(json.dumps(old))


def stopped(folder: Path) -> None:
    finished(folder, PRE)
    (folder / "summary.json").unlink()
    (folder / "log.txt").write_text("Training.\nStopped at step 3. To continue: python run.py resume=x\n")


def pruned(folder: Path) -> None:
    finished(folder, PRE)
    write(Outcome("pruned", reason="pruner", text="Others were better at step 20."), folder, "1")


def diverged(folder: Path) -> None:
    finished(folder, PRE)
    (folder / "summary.json").unlink()
    (folder / "log.txt").write_text(
        "Training.\nThe loss is NaN or infinite at step 3: training diverged. Try\n"
    )


def of_an_extension(folder: Path) -> None:
    file = finished(folder, PRE) / "config.yaml"
    file.write_text(file.read_text().replace("extensions: []", "extensions: [my_idea]"))


LEFT_OUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "stopped by Ctrl-C": (stopped, "It was stopped before it finished. To continue: python run.py resume="),
    "killed": (
        lambda folder: (finished(folder, PRE) / "summary.json").unlink(),
        "It crashed or was killed before it finished. To continue: python run.py resume=",
    ),
    "diverged": (diverged, "Its training diverged: the loss or the gradient became NaN or infinite."),
    "pruned by its search": (pruned, "It was ended by its search. Others were better at step 20."),
    "lost": (
        lambda folder: finished(folder, PRE, bpb=math.nan),
        "Its validation loss is NaN or infinite.",
    ),
    "infinite": (
        lambda folder: finished(folder, PRE, bpb=math.inf),
        "Its validation loss is NaN or infinite.",
    ),
    "torn": (
        lambda folder: (finished(folder, PRE) / "summary.json").write_text('{"val_bpb": 2.'),
        "Its summary.json is damaged: it isn't a JSON object.",
    ),
    "another file's": (
        lambda folder: (finished(folder, PRE) / "summary.json").write_text("[1, 2]"),
        "Its summary.json is damaged: it isn't a JSON object.",
    ),
    "without an environment": (
        lambda folder: (finished(folder, PRE) / "environment.json").unlink(),
        "Its environment.json can't be read: No such file or directory.",
    ),
    "of an older version": (without_validation_text, "It was made by an older minllm"),
    "with code of somebody's": (
        of_an_extension,
        "uses code from my_idea. If you trust it, add 'extensions=[my_idea]'",
    ),
    "imported": (lambda folder: begun(folder, PRE), "It wasn't trained: it has no metrics.jsonl."),
    "damaged": (
        lambda folder: (begun(folder, PRE) / "config.yaml").write_text("model: ["),
        "is damaged: it isn't valid YAML.",
    ),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_run_without_a_result_is_named_with_its_reason_and_the_rest_is_compared(tmp_path, kind):
    make, reason = LEFT_OUT[kind]
    make(two_arms(tmp_path, seeds=1) / "odd")
    comparison = compare([tmp_path])
    assert list(reasons(comparison)) == ["odd"] and reason in reasons(comparison)["odd"]
    assert [len(arm.runs) for arm in comparison.arms] == [1, 1]


def test_divergence_counts_and_other_failures_leave_it_open(tmp_path):
    for seed in range(8):
        finished(tmp_path / f"a{seed}", PRE, seed=seed, bpb=2 + seed / 1000)
        finished(tmp_path / f"b{seed}", POST, seed=seed, bpb=2.1 + seed / 500)
    for seed in (8, 9):
        finished(tmp_path / f"a{seed}", PRE, seed=seed)
        finished(tmp_path / f"b{seed}", POST, seed=seed, bpb=math.nan)
    (contest,) = compare([tmp_path]).contests
    assert (contest.verdict.word, contest.verdict.pairs, len(contest.differences)) == ("worse", 10, 8)
    assert contest.divergence.arm == [8, 9] and contest.divergence.counts == ("2 of 10", "0 of 10")
    (tmp_path / "b8/summary.json").unlink()
    (contest,) = compare([tmp_path]).contests
    assert contest.verdict.word == "inconclusive" and contest.verdict.why.startswith(
        "norm=post failed with seed 8"
    )
    write(Outcome("pruned", reason="diverged", text="The loss is NaN."), tmp_path / "b8", "1")
    assert compare([tmp_path]).contests[0].divergence.arm == [8, 9]


def test_an_arm_that_diverged_with_every_seed_is_compared(tmp_path):
    for seed in range(7):
        finished(tmp_path / f"a{seed}", POST, seed=seed, bpb=math.nan)
        finished(tmp_path / f"b{seed}", PRE, seed=seed, bpb=2 + seed / 1000)
    comparison = compare([tmp_path])
    (contest,) = comparison.contests
    assert [arm.name for arm in comparison.arms] == ["norm=pre", "norm=post"]
    assert (contest.outcome, contest.verdict.pairs, contest.divergence.counts) == (
        "worse", 7, ("7 of 7", "0 of 7")
    )  # fmt: skip
    validate_report(json.loads(to_json(comparison, [])))
    assert compare([tmp_path], baseline="norm=post").contests[0].outcome == "better"


def test_the_command_that_compares_again_names_runs_that_diverged(tmp_path):
    """Also where it can't name their folder, which has a run that wasn't selected."""
    for seed in range(2):
        finished(tmp_path / f"a{seed}", PRE, seed=seed)
        finished(tmp_path / f"b{seed}", POST, seed=seed, bpb=math.nan if seed else 2.0)
    runs = [tmp_path / name for name in ("a0", "a1", "b0", "b1")]
    finished(tmp_path / "c0", "norm=sandwich")
    assert str(tmp_path / "b1") in compare_command(compare(runs))


def test_a_run_that_is_still_going_is_left_out_until_it_ends(tmp_path):
    run = two_arms(tmp_path) / "3-norm=post"
    with RunDir(run).alone():
        assert reasons(compare([tmp_path])) == {run.name: "It's still running."}
    assert compare([tmp_path]).left_out == []


def test_where_no_run_has_a_result_each_has_its_reason(tmp_path):
    stopped(tmp_path / "one")
    pruned(tmp_path / "other")
    said = refusal(tmp_path)
    assert said.startswith("None of these runs can be compared:\n") and said.count("\n") == 2
    assert (
        f"{tmp_path}/one: It was stopped" in said and f"{tmp_path}/other: It was ended by its search" in said
    )


def test_of_the_same_run_twice_the_later_one_counts_even_if_it_is_worse(tmp_path):
    two_arms(tmp_path)
    again = finished(tmp_path / "again", PRE, seed=1, bpb=3.0)
    for place, when in (("1-norm=pre", 2000), ("again", 3000)):
        os.utime(tmp_path / place / "summary.json", (when, when))
    comparison = compare([tmp_path])
    assert comparison.arms[0].runs[1].folder == again and comparison.arms[0].values("val_bpb")[1] == 3.0
    assert reasons(comparison) == {"1-norm=pre": "It was run again in again."}
    os.utime(again / "summary.json", (1000, 1000))
    assert reasons(compare([tmp_path])) == {"again": "It was run again in 1-norm=pre."}


def test_a_run_of_one_arm_says_which_others_were_left_out(tmp_path):
    finished(tmp_path / "a", PRE)
    stopped(tmp_path / "b")
    said = refusal(tmp_path)
    assert said.startswith("All these runs belong to one arm.")
    assert f" Left out:\n  {tmp_path}/b: It was stopped before it finished." in said


# ---- who trains in a folder ----------------------------------------------------------------------


def test_a_folder_has_one_process_that_trains_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "PROBE_SECONDS", 0.01)
    assert not is_running(tmp_path)
    with RunDir(tmp_path).alone():
        assert is_running(tmp_path)
        with pytest.raises(UserError, match=f"Another process is training in {tmp_path}. Wait"):
            RunDir(tmp_path).alone().__enter__()
    assert not is_running(tmp_path)
    with RunDir(tmp_path).alone():  # once more, since looking must not have taken it
        assert is_running(tmp_path)


def test_a_process_that_was_killed_trains_no_more(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from minllm.runs.folder import RunDir\n"
        f"with RunDir(Path({str(tmp_path)!r})).alone(): print('.', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(door.__file__).parent,
    )
    with child:
        assert child.stdout.readline() == b".\n" and is_running(tmp_path)
        child.kill()
        child.wait()
        assert not is_running(tmp_path)


def test_unreadable_lock_does_not_count_as_running(tmp_path):
    """As that of a colleague's run, which nobody else may write to."""
    (tmp_path / ".lock").mkdir()
    assert not is_running(tmp_path)


# ---- what was typed ------------------------------------------------------------------------------


def test_configuration_records_overrides():
    words = ["norm=post", "seed=3", "model.layout=[attn mlp,attn mlp]"]
    assert compose(words).typed == words


def test_interpolated_override_is_recorded_resolved():
    assert compose(["optim.lr=${oc.decode:'0.25'}", "+tags=[a${seed}]"]).typed == [
        "optim.lr=0.25", '+tags=["a0"]',
    ]  # fmt: skip


def test_each_run_of_a_grid_records_its_overrides(go):  # noqa: F811
    code, _, err = go("-m", "word=write", "seed=1,2", "model.dim=8")
    assert code == 0, err
    typed = [OmegaConf.load(file).typed for file in sorted(Path("outputs").rglob("config.yaml"))]
    assert [[word for word in words if "seed" in word] for words in typed] == [["seed=1"], ["seed=2"]]
    assert all(words[0] == "--config-dir=conf" and words[-1] == "model.dim=8" for words in typed)


def test_resumed_run_records_overrides_of_both_commands(here):
    begun(here / "run", "norm=post")
    cfg = compose(["resume=run", "train.steps=900"])
    assert cfg.typed == ["norm=post", "seed=0", "train.steps=900"]
