"""Grids: the same command goes on, what makes no grid is refused, and what becomes of runs that can't begin."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

import run as door
from minllm.errors import UserError
from minllm.grid.children import Children
from minllm.grid.manifest import FILE, Grid, code_hash, fingerprint, read
from minllm.grid.multirun import Combination, GridSweeper, Progress
from minllm.runs.find import latest_run, resume_command
from minllm.runs.folder import RunDir
from tests.commands import python

TINY = [
    "model.dim=16",
    "model.n_layers=1",
    "model.attn.n_heads=2",
    "model.attn.n_kv_heads=1",
    "train.steps=3",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=9",
    "train.eval_every=0",
    "train.batch_size=2",
    "train.check=false",
    "train.device=cpu",
    "train.precision=fp32",
    "train.compile=false",
    "sample.max_new_tokens=2",
    "data.seq_len=16",
    "data.truncate=true",
    "data.train_stories=8",
    "data.val_stories=2",
    "tokenizer=bytes",
]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a command: `go("seed=1")` gives (exit code, stdout, stderr).

    It isn't run in this process, which may have threads of torch, and can't be forked safely.
    """
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        done = python("run.py", *words, cwd=Path.cwd(), HYDRA_FULL_ERROR="1")
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def go_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Iterator[Callable]:
    """Do the same in this process, for what is replaced in it or refused before any run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers = logging.getLogger().handlers[:]

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        code = door.main(words)
        return code, *capfd.readouterr()

    yield call
    logging.getLogger().handlers[:] = handlers


def runs_of(grid: Path) -> dict[str, Path]:
    """Return the runs' folders by what tells them apart."""
    runs = {}
    for config in grid.glob("*/config.yaml"):
        cfg = OmegaConf.load(config)
        runs[f"{cfg.choices.norm}{cfg.seed}"] = config.parent
    return runs


def bpb(run: Path) -> float:
    return json.loads((run / "summary.json").read_text())["val_bpb"]


# ---- going on ------------------------------------------------------------------------------------


def test_same_command_continues(go: Callable):
    grid_words = ["-m", "norm=pre,post", "seed=0,1", *TINY]
    code, out, err = go(*grid_words)
    assert code == 0 and not err, err
    assert (
        out.startswith("0/4: norm=pre seed=0\n") and "\n3/4, " in out and " left: norm=post seed=1\n" in out
    )
    (grid,) = Path("outputs").glob("*/*")
    assert "-grid-norm-seed-" in grid.name
    runs = runs_of(grid)
    figures, table = {name: bpb(run) for name, run in runs.items()}, out[out.index("|") :]
    assert len(runs) == 4 and len(set(figures.values())) == 4

    # one was cut off after a checkpoint, one before its first, and one hadn't begun
    whole, cut_off, no_checkpoint, missing = (runs[name] for name in ("pre0", "pre1", "post0", "post1"))
    (cut_off / "summary.json").unlink()
    shutil.rmtree(cut_off / "checkpoints" / "step-000003")
    (no_checkpoint / "summary.json").unlink()
    shutil.rmtree(no_checkpoint / "checkpoints")
    shutil.rmtree(missing)
    before = (whole / "summary.json").stat().st_mtime_ns
    code, out, err = go("-m", "seed=range(2)", *TINY, "norm=post,pre")  # the same, in other words
    assert code == 0 and not err, err
    assert out.startswith(f"1 of 4 runs in {grid} are already complete; continuing with the others.\n1/4: ")
    assert "Continuing from step 2" in out and out.count("Training in ") == 2
    assert runs_of(grid) == runs and [*Path("outputs").glob("*/*")] == [grid]
    assert {name: bpb(run) for name, run in runs.items()} == figures
    assert (whole / "summary.json").stat().st_mtime_ns == before
    assert {line.split("|")[1] for line in out.splitlines() if line.startswith("|")} == {
        line.split("|")[1] for line in table.splitlines() if line.startswith("|")
    }

    code, out, err = go(*grid_words)
    assert code == 0 and out.startswith(f"All 4 runs of this grid in {grid}")
    assert "hydra.sweep.dir=<folder>" in out and "Training in" not in out and "`norm=pre`" in out


def test_a_grid_grows_in_a_folder_that_is_named(go: Callable):
    words = ["-m", *TINY, "train.steps=1", "hydra.sweep.dir=here"]
    assert go(*words, "seed=0,1")[0] == 0
    code, out, _ = go(*words, "seed=0,1,2")
    assert (
        code == 0
        and out.startswith("2 of 3 runs in here are already complete")
        and out.count("Training in") == 1
    )
    assert len(read(Path("here")).names) == 3
    (Path("here") / FILE).write_text("{")
    code, _, err = go(*words, "seed=0,1")
    assert code == 2 and err.count("\n") == 1 and "damaged" in err


@pytest.mark.parametrize("named_by", ["word", "preset"])
def test_grid_with_data_and_folder_elsewhere_continues(go: Callable, tmp_path: Path, monkeypatch, named_by):
    notes, here, mine = tmp_path / "my notes.txt", tmp_path / "here", tmp_path / "mine"
    notes.write_text("A fox saw a bear, and the bear saw a fox. " * 40)
    (mine / "experiment").mkdir(parents=True)
    preset = f"# @package _global_\ndefaults: [{{override /data: text}}]\ndata: {{path: ['{notes}']}}\n"
    (mine / "experiment/notes.yaml").write_text(preset)
    here.mkdir(), monkeypatch.chdir(here)
    data = {
        "word": ["data=text", f"data.path={notes}"],
        "preset": ["--config-dir", str(mine), "experiment=notes"],
    }
    tiny = [word for word in TINY if not word.startswith("data.t") and "stories" not in word]
    words = [
        "-m",
        *data[named_by],
        f"data.cache={tmp_path / 'cache'}",
        *tiny,
        "seed=0,1",
        "hydra.sweep.dir=grid",
    ]
    code, _, err = go(*words)
    assert code == 0 and not err, err
    cut_off = runs_of(Path("grid"))["pre1"]
    before = bpb(cut_off)
    (cut_off / "summary.json").unlink()
    shutil.rmtree(cut_off / "checkpoints" / "step-000003")
    code, out, err = go(*words)
    assert code == 0 and not err and "Continuing from step 2" in out, err
    assert bpb(cut_off) == before


def test_latest_is_the_same_run_in_all_of_a_grid(go: Callable):
    words = [word for word in TINY if not word.startswith(("model.", "train.steps"))]
    assert go(*TINY, "train.steps=1", "hydra.run.dir=outputs/first")[0] == 0
    grid_words = [
        "-m",
        *words,
        "train.steps=1",
        "init_from=latest",
        "seed=1,2",
        "hydra.sweep.dir=outputs/grid",
    ]
    code, out, err = go(*grid_words)
    first = Path("outputs/first").resolve()
    assert code == 0 and out.count(f"Weights are initialised from {first}") == 2, err
    shutil.rmtree(next(Path("outputs/grid").glob("1-*")))
    code, out, err = go(*grid_words)
    assert code == 0 and out.startswith("1 of 2 runs"), err
    assert out.count(f"Weights are initialised from {first}") == 1


def test_other_settings_or_other_code_are_another_grid(go: Callable):
    words = ["-m", *TINY, "train.steps=1", "seed=0,-1"]  # never finished, since one is refused
    assert go(*words)[0] == 2
    (first,) = Path("outputs").glob("*/*")
    assert go(*words, "optim.lr=0.01")[0] == 2
    known = json.loads((first / FILE).read_text())
    (first / FILE).write_text(json.dumps({**known, "code": "another"}))
    code, out, _ = go(*words)
    assert code == 2 and f"hydra.sweep.dir={first}" in out and len([*Path("outputs").glob("*/*")]) == 3
    code, out, _ = go(*words, f"hydra.sweep.dir={first}")
    assert out.startswith(f"1 of 2 runs in {first} are already complete")


def test_a_foreign_grid_names_no_place_outside(tmp_path: Path):
    for name in ("../x", "/etc", ".", "..", "a/b", ".hidden", "", 5):
        (tmp_path / FILE).write_text(
            json.dumps({"group": "", "code": "", "latest": None, "runs": {"a": name}})
        )
        assert read(tmp_path) is None, name
    known = {"group": "", "code": "", "latest": None, "runs": {}}
    for text in ("[]", "5", "null", "{}", *(json.dumps({**known, name: [1]}) for name in known)):
        (tmp_path / FILE).write_text(text)
        assert read(tmp_path) is None, text


def test_code_is_known_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_idea.py").write_text("rate = 1")
    before = code_hash(["my_idea"])
    assert before == code_hash(["my_idea"]) != code_hash([]) == code_hash(["not_there"])
    (tmp_path / "my_idea.py").write_text("rate = 2")
    assert code_hash(["my_idea"]) != before


def test_equal_numbers_are_equal_runs():
    def of(**values: object) -> str:
        return fingerprint(
            OmegaConf.create({**values, "hydra": {"runtime": {"choices": {"norm": "pre", "hydra/x": "y"}}}})
        )

    assert of(seed=0) == of(seed=0.0) != of(seed=1)
    assert (
        of(a=[1e3, {"b": 2}]) == of(a=[1000, {"b": 2.0}]) and of(a=True) != of(a=1) and of(a=None) != of(a=0)
    )


# ---- what makes no grid --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=range(0)"], "seed=range(0) has no values"),
        (["norm=glob(zz*)"], "norm=glob(zz*) has no values"),
        (["norm=glob(*,exclude=*)"], "has no values"),
        (["seed=0,0"], "seed=0 and seed=0"),
        (["seed=0,0.0"], "seed=0 and seed=0.0"),
        (["norm=pre,pre", "seed=0,1"], "norm=pre seed=0 and norm=pre seed=0"),
        (["optim.lr=1e-3,0.001"], "the same run"),
        (["model.layout=[attn],[attn]"], "the same run"),
        (["train={steps: 5},{steps: 5.0}"], "the same run"),
        (["seed=0,1", "seed=3"], "seed is given twice"),
        (["seed=0"], "leave out -m"),
        ([], "leave out -m"),
        (["optim.lr=interval(0,1)"], "To search a range, use sweep.py"),
        (["seed=0,1", "hydra.sweeper.n_jobs=0"], "n_jobs must be a whole number of 1 or more"),
        (["seed=0,1", "hydra.run.dir=x"], "hydra.sweep.dir="),
        (["seed=0,1", "hydra/launcher=submitit_local"], "hydra.sweeper.n_jobs=2"),
        (["seed=0,1", "hydra/sweeper=optuna"], "python sweep.py"),
        (["seed=0,1", "hydra/sweeper=basic"], "python sweep.py"),
    ],
    ids=str,
)
def test_refused_before_anything_runs(go_here: Callable, words: list[str], expected: str):
    code, out, err = go_here("-m", *words)
    assert code == 2 and expected in err and err.count("\n") == 1 and not out, err
    assert not Path("outputs").exists()


def test_composing_many_combinations_says_how_far_it_is(go_here: Callable, monkeypatch, capfd):
    composed = []

    def compose(self: object, config: object, words: list[str]) -> None:
        composed.append((len(composed), capfd.readouterr().out))
        if len(composed) == 120:
            raise UserError("That is enough.")

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", compose)
    code, _, err = go_here("-m", "seed=range(500)")
    assert code == 2 and "enough" in err
    said = {number: out for number, out in composed if out}
    assert said == {0: "Composing 500 configurations.\n", 50: "50/500 composed\n", 100: "100/500 composed\n"}


def test_grid_options_need_multirun(go: Callable):
    for word in ("hydra.sweeper.n_jobs=2", "hydra.sweep.dir=x", "hydra/sweeper=optuna"):
        code, _, err = go(word)
        assert code == 2 and err.count("\n") == 1 and ("-m" in err or "sweep.py" in err)


# ---- runs that can't begin -----------------------------------------------------------------------


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine that refuses further processes for as many times as the list's number says."""
    refusals, fork = [0], os.fork

    def forked() -> int:
        if refusals[0] > 0:
            refusals[0] -= 1
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", forked)
    return refusals


def test_a_machine_without_room_for_a_process_is_a_sentence(go_here: Callable, crowded: list[int]):
    crowded[0] = 1
    code, _, err = go_here("-m", "seed=0,1", *TINY)
    assert code == 2 and err.count("\n") == 1 and "no process can be started (Resource temporarily" in err
    assert not Path("outputs").exists()


@pytest.fixture
def sweeper(monkeypatch: pytest.MonkeyPatch) -> GridSweeper:
    """A grid's, whose runs end at once."""
    made = GridSweeper(2)
    monkeypatch.setattr(made, "work", lambda run: lambda: 0)
    return made


def combination(folder: Path) -> Combination:
    return Combination([f"norm={folder.name}"], OmegaConf.create(), folder, [])


def test_second_process_waits_if_it_cannot_start(
    crowded: list[int], sweeper: GridSweeper, monkeypatch, tmp_path: Path
):
    runs, grid = [combination(tmp_path / name) for name in "abc"], Grid(tmp_path, "", "")
    with Children[Combination](2) as children:
        start = children.start
        monkeypatch.setattr(children, "start", lambda *given: (start(*given), crowded.__setitem__(0, 1)))
        assert sweeper.run_missing(children, grid, runs, Progress(3, 0, 2)) == [0, 0, 0]


def test_a_run_that_another_process_trains_is_left_alone(sweeper: GridSweeper, tmp_path: Path, capfd):
    """Here one that hasn't a checkpoint yet, which would begin again."""
    runs, grid = [combination(tmp_path / name) for name in "ab"], Grid(tmp_path, "", "")
    for run in runs:
        run.folder.mkdir()
        (run.folder / "config.yaml").touch()
    folder = RunDir(runs[0].folder)
    with folder.alone(), Children[Combination](2) as children:
        assert sorted(sweeper.run_missing(children, grid, runs, Progress(2, 0, 2))) == [0, 2]
    assert (runs[0].folder / "config.yaml").exists() and not runs[1].folder.exists()
    assert f"norm=a: Another process is training in {runs[0].folder}" in capfd.readouterr().err


# ---- finding runs --------------------------------------------------------------------------------


def test_run_folders_are_not_descended_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With hundreds of runs, each with thousands of W&B's files, `latest` is found at once."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        run = Path("outputs", "2026-11-27", f"grid-{number}", "run")
        (run / "checkpoints" / "step-000001").mkdir(parents=True)
        (run / "wandb" / "inner" / "deep").mkdir(parents=True)
        (run / "config.yaml").touch()
        os.utime(run / "checkpoints", (number, number))
    newest = run
    shutil.rmtree(newest / "checkpoints" / "step-000001")  # its first checkpoint isn't written yet
    os.utime(newest / "checkpoints", (9, 9))
    Path("outputs", "loop").symlink_to("../outputs")
    looked_at = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looked_at.append(str(folder)) or scandir(folder))
    assert latest_run() == Path("outputs/2026-11-27/grid-1/run").resolve()
    assert len(looked_at) == 8 and not [folder for folder in looked_at if "wandb" in folder]


def test_advice_to_go_on_names_the_packages_that_it_needs():
    assert resume_command(Path("a/b"), []) == "python run.py resume=a/b"
    assert resume_command(Path("a b"), ["x", "y"]) == "python run.py 'extensions=[x,y]' 'resume=a b'"
