"""Going on after a kill, a failure or a refusal: nothing is lost, and the figures are those of an undisturbed run."""

import json
from pathlib import Path

import pytest

import minllm
from minllm.errors import UserError
from minllm.tasks import train as task
from minllm.training import rundir
from tests.kills import every_moment
from tests.test_training import CLOCK, TINY

CLOCK_OF_SUMMARY = {"tokens_per_second", "wall_seconds", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = "\n".join(f"{number} times {number} is {number**2}." for number in range(60))
    (folder / "squares.txt").write_text(text)
    return [*TINY, f"data.path={folder / 'squares.txt'}", f"data.cache={folder / 'stores'}"]


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir, "environment", lambda: {"versions": {}})  # git takes longer than such a run


@pytest.fixture(scope="module")
def cfg(words):
    more = ["train.steps=4", "train.sample_every=2", "train.keep_checkpoints=1", "model.dropout=0.2"]
    return minllm.compose([*words, *more])


def train(cfg, run, **how):
    return task.train(cfg, Path(run), **how)


def go_on(cfg, run):
    """What a person does after a kill: resume, or the same again where no run has begun."""
    if Path(run, "summary.json").exists():
        with pytest.raises(UserError, match="used up its budget"):
            train(cfg, run, resume=run)
    else:
        train(cfg, run, resume=run if Path(run, "config.yaml").exists() else None)


def left(run):
    """All that a run has found, without what depends on the clock."""
    events = [
        json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    summary = json.loads(Path(run, "summary.json").read_text(encoding="utf-8"))
    return (
        [{name: value for name, value in event.items() if name not in CLOCK} for event in events],
        {name: value for name, value in summary.items() if name not in CLOCK_OF_SUMMARY},
        Path(run, "samples.txt").read_bytes(),
        sorted(path.name for path in Path(run, "checkpoints").iterdir()),
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): (path.readlink() if path.is_symlink() else path.read_bytes())
        for path in sorted(Path(folder).rglob("*"))
        if path.is_symlink() or path.is_file()
    }


# ---- kills ---------------------------------------------------------------------------------------


def test_killed_at_any_moment_a_run_goes_on_to_what_it_would_have_found(cfg):
    with every_moment(Path("whole"), Path("killed")) as moments:
        train(cfg, "whole")
    expected = left("whole")
    assert len(moments.copies) > 40
    for run, action in moments.copies.items():
        go_on(cfg, run)
        assert left(run) == expected, f"{run}, killed before {action}"


@pytest.mark.parametrize("before", ["checkpoints/.step-000004.partial", ".summary.json.partial"])
def test_killed_while_it_goes_on_a_run_goes_on_again(cfg, before):
    with every_moment(Path("whole"), Path("killed")) as moments:
        train(cfg, "whole")
    killed = next(copy for copy, action in moments.copies.items() if action == f"os.rename whole/{before}")
    with every_moment(killed, Path("again")) as moments:
        go_on(cfg, killed)
    for run, action in moments.copies.items():
        go_on(cfg, run)
        assert left(run) == left("whole"), f"{run}, killed before {action}"
