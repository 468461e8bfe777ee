"""A study that comes from elsewhere: the paths in it lead nowhere, and a machine's own limits hold."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import create_trial

from minllm.errors import UserError
from minllm.files.atomic import acquire_lock, refuse_links_at_top
from minllm.grid.manifest import prepare_folder
from minllm.runs.outcome import Outcome
from minllm.sweep import limits
from minllm.sweep.plugin import RepeatedCrashes
from minllm.sweep.reporter import Reporter, folder_of
from minllm.sweep.space import distribution, parsed
from minllm.sweep.store import APPENDED, open_study
from minllm.verdict.protocol import arms_in

quiet = SimpleNamespace(ended=lambda trial: None)


def checkpoint_in(folder: Path) -> Path:
    file = folder / "checkpoints/step-000001/model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def verdicts_of(study: optuna.Study, folder: Path, keep: str = "none") -> Reporter:
    return Reporter(study, SimpleNamespace(keep_checkpoints=keep, max_failures=9), quiet, folder)


def told(study: optuna.Study, folder: Path, run: object, state: str = "complete") -> Reporter:
    study.sampler.ignores_pruned = False
    trial = study.ask()
    trial.set_user_attr("run", run)
    trial.set_user_attr("overrides", [])
    verdicts = verdicts_of(study, folder)
    value = 1.0 if state == "complete" else None
    verdicts.tell(trial, Outcome(state, value, reason=None if value else "crash", text="a bug"))
    return verdicts


@pytest.mark.parametrize("how", ["absolute", "dots", "link", "link inside", "the study itself"])
def test_only_checkpoints_below_the_study_are_removed(tmp_path: Path, how: str):
    study_folder, outside = tmp_path / "study", tmp_path / "outside"
    kept = checkpoint_in(study_folder if how == "the study itself" else outside)
    study_folder.mkdir(exist_ok=True)
    (study_folder / "trial-0").symlink_to(outside)
    (study_folder / "trial-1").mkdir()
    (study_folder / "trial-1/checkpoints").symlink_to(outside / "checkpoints")
    named = {
        "absolute": outside,
        "dots": study_folder / "../outside",
        "link": study_folder / "trial-0",
        "link inside": study_folder / "trial-1",
        "the study itself": study_folder,
    }[how]
    told(optuna.create_study(), study_folder, str(named))
    assert kept.exists()


def test_checkpoints_of_the_study_are_removed(tmp_path: Path):
    removed = checkpoint_in(tmp_path / "trial-0")
    told(optuna.create_study(), tmp_path, str(tmp_path / "trial-0"))
    assert not removed.exists()


@pytest.mark.parametrize("named", [5, None, ["/"], "", "\0", "a" * 5000, {"x": 1}])
def test_invalid_path_is_no_folder(tmp_path: Path, named: object):
    assert folder_of(create_trial(value=1.0, user_attrs={"run": named}), tmp_path) is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_search_of_which_every_trial_crashed_fails(tmp_path: Path, count: int):
    study = optuna.create_study()
    for _ in range(count):
        verdicts = told(study, tmp_path, str(tmp_path / "trial-0"), state="failed")
    with pytest.raises(RepeatedCrashes, match="Every trial crashed.*trial"):
        verdicts.refuse_only_crashes()
    study.add_trial(create_trial(value=1.0))
    verdicts.refuse_only_crashes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process whose limit can be lowered")
def test_a_hard_limit_below_the_trials_own_is_kept():
    child = os.fork()
    if child == 0:
        hard = 1 << 40
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        limits.hold_to(1 << 50, threads=1, device=torch.device("cpu"))
        fits = limits.at_most_hard_limit(1 << 50) == hard and limits.at_most_hard_limit(1 << 30) == 1 << 30
        os._exit(0 if fits else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- spaces that hold nothing, or the same twice --------------------------------------------------


@pytest.mark.parametrize(
    "values",
    ["interval(nan,1)", "interval(0,inf)", "interval(-inf,1)", "interval(2,1)", "tag(log,interval(0,1))"]
    + ["range(0)", "range(5,1)", "range(1,9,0)", "range(nan,3)", "choice(nan,1)", "choice(a,a)", "1,2,1"],
)
def test_a_space_that_holds_nothing_or_the_same_twice_is_refused(values: str):
    with pytest.raises(UserError, match="Can't search optim.lr="):
        distribution(parsed(OverridesParser.create(), f"optim.lr={values}"))


@pytest.mark.parametrize("name", ["study.journal", "study.journal.flock", ".lock", ".assignments", "trial-3"])
@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "pipe"])
def test_a_study_with_links_is_refused_before_anything_is_written(tmp_path: Path, name: str, kind: str):
    study, outside = tmp_path / "study", tmp_path / "outside"
    study.mkdir()
    if kind != "dangling":
        outside.write_text("precious\nhalf")
    if kind == "pipe":
        os.mkfifo(study / name)
    elif kind == "hard":
        os.link(outside, study / name)
    else:
        (study / name).symlink_to(outside)
    shared = kind == "hard" and name not in APPENDED
    with contextlib.nullcontext() if shared else pytest.raises(UserError, match="is a sym|hard link|regular"):
        refuse_links_at_top(study, APPENDED)
    assert outside.exists() == (kind != "dangling")


def test_a_lock_that_is_a_link_is_not_taken(tmp_path: Path):
    (tmp_path / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is a symbolic link"):
        acquire_lock(tmp_path / ".lock", 0, "taken")
    assert not (tmp_path / "outside").exists()


def test_a_grid_does_not_go_on_in_a_run_elsewhere(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "0-mha").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is a symbolic link"):
        prepare_folder(tmp_path / "0-mha")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"op_code": 99, "worker_id": "x"}'])
def test_a_journal_that_is_no_journal(tmp_path: Path, line: str):
    open_study("s", None, tmp_path)
    with (tmp_path / "study.journal").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="study.journal is damaged"):
        open_study("s", None, tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "\x1b[31mx", "", ".hidden"])
def test_the_name_of_an_arm_is_a_folders(name: str):
    with pytest.raises(UserError, match="The name of an arm must be a folder's name"):
        arms_in({name: ["model/attn=mqa"], "b": []}, SimpleNamespace(aa=False))
