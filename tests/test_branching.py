"""Shorter runs that start from a checkpoint of a longer one: the same to the bit as if they were trained alone."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import minllm
from minllm.errors import UserError
from minllm.runs.outcome import Outcome, write
from minllm.schema.building import build
from minllm.study.selection import Selection, find
from minllm.training import train as task
from minllm.training.branching import branch_steps, first_difference, steps_of
from minllm.training.schedules import WSD, Cosine
from minllm.training.step import Diverged
from tests.kills import every_moment, quick_records
from tests.test_resume import CLOCK_OF_SUMMARY
from tests.test_training import TINY, figures
from tests.tiny import unjudged

TOKENS = 4 * 16
"""Of a step."""
LONG, SHORT, SHORTEST = 10 * TOKENS, 6 * TOKENS, 5 * TOKENS
STEP = 4
"""Of the shorter run, where its decay begins; that of the shortest one begins at step 3."""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = "\n".join(f"{number} times {number} is {number**2}." for number in range(60))
    (folder / "squares.txt").write_text(text)
    own = [f"data.path={folder / 'squares.txt'}", f"data.cache={folder / 'stores'}", "train.steps=null"]
    own += ["schedule=wsd", "schedule.warmup_steps=1", "schedule.decay_steps=2", "model.dropout=0.2"]
    return [*TINY, *own, "train.ema=0.9", "train.checkpoint_every=0", "train.keep_checkpoints=1"]


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick_records(monkeypatch)


def train(words, *more, run="run"):
    cfg = unjudged(*words, *more)
    return task.train(cfg, Path(run), branch_from=cfg.branch_from)


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory):
    """The folder of a trunk, and of the shorter run as it is when it is trained alone."""
    folder = tmp_path_factory.mktemp("runs")
    branches = f"train.branches=[{SHORTEST},{SHORT}]"
    train(words, f"train.tokens={LONG}", branches, run=folder / "grid/trunk")
    train(words, f"train.tokens={SHORT}", run=folder / "alone")
    return folder


def found(run):
    """All that a run has found from the branching point on, without what depends on the clock or on the trunk."""
    last = Path(run, f"checkpoints/step-{SHORT // TOKENS:06d}")
    assert last.is_dir()
    summary = json.loads(Path(run, "summary.json").read_text(encoding="utf-8"))
    progress = json.loads((last / "state.json").read_text())
    files = {name: crc for name, crc in progress["files"].items() if name != "optimizer.pt"}
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)
    return (
        [event for event in figures(run) if event["step"] > STEP],
        {name: value for name, value in summary.items() if name not in {*CLOCK_OF_SUMMARY, "branch"}},
        [progress[name] for name in ("step", "tokens", "position", "total_steps", "best", "configured")],
        files,
        [(name, tensor.tolist()) for name, tensor in load_file(last / "unaveraged.safetensors").items()],
        str(optimizer),
    )


def test_a_trunk_keeps_the_checkpoints_at_which_shorter_runs_begin_to_decay(runs):
    kept = sorted(path.name for path in (runs / "grid/trunk/checkpoints").iterdir())
    assert kept == ["step-000003", "step-000004", "step-000010"]


def test_a_branch_is_the_run_that_it_would_be_alone(words, runs):
    summary = train(words, f"train.tokens={SHORT}", f"branch_from={runs / 'grid/trunk'}")
    assert found("run") == found(runs / "alone")
    begins = [event for event in figures("run") if event["step"] <= STEP]
    assert begins and begins == [event for event in figures(runs / "alone") if event["step"] <= STEP]
    # what was trained here, apart from all that the model has seen
    assert summary["tokens"] == SHORT
    assert summary["branch"]["step"] == STEP and summary["branch"]["tokens"] == SHORT - STEP * TOKENS
    assert 0 < summary["branch"]["seconds"] < summary["wall_seconds"]
    assert f"Branching from step {STEP} of {runs / 'grid/trunk'}" in Path("run/log.txt").read_text(
        encoding="utf-8"
    )


def test_a_killed_branch_goes_on_to_the_same_result(words, runs):
    cfg = unjudged(*words, f"train.tokens={SHORT}", f"branch_from={runs / 'grid'}")
    copies = every_moment(
        Path("run"), Path("killed"), lambda: task.train(cfg, Path("run"), branch_from=cfg.branch_from)
    )
    for run in [*copies][:: max(1, len(copies) // 8)]:
        if not (run / "summary.json").exists():
            resume = str(run) if (run / "config.yaml").exists() else None
            task.train(cfg, run, resume=resume, branch_from=cfg.branch_from)
        assert found(run) == found(runs / "alone"), copies[run]


def test_a_branch_may_have_nothing_left_to_train(words):
    """Without a decay it is a part of its trunk."""
    words = [*(word for word in words if "decay_steps" not in word), "schedule=constant"]
    train(words, f"train.tokens={LONG}", f"train.branches=[{SHORT}]", "train.eval_every=4", run="trunk")
    train(words, f"train.tokens={SHORT}", run="alone")
    assert train(words, f"train.tokens={SHORT}", "branch_from=trunk")["branch"]["tokens"] == 0
    assert found("run") == found("alone")


def test_a_longer_run_branches_off_a_shorter_one(words, runs):
    """Where the shorter one's decay began."""
    source = runs / "alone"
    with pytest.raises(UserError, match=f"no checkpoint at or before step {STEP}"):
        train(words, f"train.tokens={LONG}", f"branch_from={source}")
    shutil.copytree(runs / "grid/trunk", "cut")
    for late in ("step-000004", "step-000010"):
        shutil.rmtree(f"cut/checkpoints/{late}")
    assert train(words, f"train.tokens={LONG}", "branch_from=cut")["branch"]["step"] == 3


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["optim.weight_decay=0.3"], "optim.weight_decay is 0.3 in this run and 0.1 in .*weight_decay=0.1"),
        (["seed=1"], "neither a run nor a folder that has a run with seed=1"),
        (["train.clip=null"], "train.clip is None in this run and 1.0"),
        (["schedule.warmup_steps=2"], "other learning rates from the first step on.*schedule=wsd"),
        (["train.minutes=1"], "train.minutes limits this run"),
        (["train.tokens=64"], "no checkpoint at or before step 1"),
        (["branch_from=nowhere"], "There is no folder"),
        (["model.dropout=0.0"], "model.dropout is 0.0 in this run and 0.2"),
    ],
)
def test_a_run_that_would_not_be_the_same_is_refused_before_anything_is_written(words, runs, more, sentence):
    with pytest.raises(UserError, match=sentence):
        train(words, f"train.tokens={SHORT}", f"branch_from={runs / 'grid'}", *more)
    assert not Path("run").exists()


def test_a_trunk_whose_length_was_changed_after_its_decay_is_refused(words):
    train(words, f"train.tokens={SHORT}", run="trunk")
    longer = minllm.compose(["resume=trunk", f"train.tokens={LONG}", f"train.branches=[{8 * TOKENS}]"])
    task.train(longer, Path("trunk"), resume="trunk")
    assert Path("trunk/checkpoints/step-000006").is_dir()
    with pytest.raises(UserError, match="had the learning rate .* at step 6.*may have been changed"):
        train(words, f"train.tokens={8 * TOKENS}", "branch_from=trunk")


def test_a_trunk_from_elsewhere_can_run_no_code(words, runs):
    shutil.copytree(runs / "grid/trunk", "trunk")
    cfg = OmegaConf.load("trunk/config.yaml")
    OmegaConf.update(cfg, "schedule._target_", "os.system")
    OmegaConf.save(cfg, "trunk/config.yaml")
    with pytest.raises(UserError, match=r"os\.system"):
        train(words, f"train.tokens={SHORT}", "branch_from=trunk")


def test_a_branch_from_elsewhere_reads_no_run_outside_the_working_directory(words, runs):
    """Killed before its first checkpoint, it needs its trunk again."""
    train(words, f"train.tokens={SHORT}", f"branch_from={runs / 'grid'}")
    shutil.rmtree("run/checkpoints")
    Path("run/summary.json").unlink()
    Path("run/environment.json").write_text("{}", encoding="utf-8")  # the signature
    data = [word for word in words if word.startswith(("data.path", "data.cache"))]
    cfg = minllm.compose(["resume=run", *data])
    with pytest.raises(UserError, match="outside the working directory.*type branch_from="):
        task.train(cfg, Path("run"), resume="run", branch_from=cfg.branch_from)
    cfg = minllm.compose(["resume=run", *data, f"branch_from={runs / 'grid'}"])
    task.train(cfg, Path("run"), resume="run", branch_from=cfg.branch_from)
    assert found("run") == found(runs / "alone")


def test_where_the_trunk_diverged_so_would_its_branch(words, runs):
    shutil.copytree(runs / "grid/trunk", "trunk")
    shutil.rmtree("trunk/checkpoints")
    with Path("trunk/log.txt").open("a", encoding="utf-8") as log:
        log.write("The loss is NaN or infinite at step 2: training diverged. Try a lower optim.lr.\n")
    with pytest.raises(Diverged, match="at step 2: training diverged"):
        train(words, f"train.tokens={SHORT}", "branch_from=trunk")
    # a search adds its own record, by which a comparison counts it as diverged
    write(Outcome("pruned", reason="diverged", text="It diverged."), Path("run"), "attempt")
    (run,) = find(Selection(["run"]))[1]
    assert run.lost == "diverged" and run.cfg["train"]["tokens"] == SHORT


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            [f"train.tokens={SHORT}", f"train.branches=[{LONG}]"],
            "the tokens of shorter runs, but this run has",
        ),
        (
            [f"train.tokens={LONG}", f"train.branches=[{SHORT}]", "schedule.decay_steps=9"],
            "type schedule=wsd",
        ),
        (
            [f"train.tokens={LONG}", f"train.branches=[{SHORT}]", "schedule.warmup_steps=null"],
            "schedule.warmup_steps=<steps>",
        ),
    ],
)
def test_branches_that_a_trunk_cannot_have_are_refused(words, more, sentence):
    with pytest.raises(UserError, match=sentence):
        train(words, *more)
    assert not Path("run").exists()


def test_the_commands_of_the_page_on_scale_fit_each_other():
    page = (Path(__file__).parents[1] / "docs/scale.md").read_text(encoding="utf-8")
    typed = [
        shlex.split(line)[2:] for line in page.splitlines() if line.startswith("python run.py schedule=wsd")
    ]
    trunk, branch = (
        minllm.compose([word for word in words if word != "branch_from=latest"]) for words in typed
    )
    assert "branch_from=latest" in typed[1]
    settings, schedule = build(trunk.train), build(trunk.schedule)
    kept = branch_steps(settings, schedule, settings.steps, settings.batch_size * trunk.data.seq_len)
    own = steps_of(build(branch.train), branch.data.seq_len)
    assert first_difference(schedule, settings.steps, build(branch.schedule), own) in kept


def test_runs_are_the_same_up_to_the_first_difference_of_their_learning_rates():
    wsd = WSD(lr_max=0.1, lr_min=0.0, warmup_steps=10, decay_steps=None)
    assert first_difference(wsd, 1010, wsd, 510) == first_difference(wsd, 510, wsd, 1010) == 510 - 100
    assert first_difference(wsd, 510, wsd, 510) == 510
    other = Cosine(lr_max=0.1, lr_min=0.0, warmup_steps=10, restarts=0, t_mult=1.0, flat_steps=0)
    assert first_difference(other, 1010, other, 510) == 11
    warmed = WSD(lr_max=0.1, lr_min=0.0, warmup_steps=None, decay_steps=None)
    assert first_difference(warmed, 1010, warmed, 510) == 0
