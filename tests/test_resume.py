"""Going on after a kill, a failure or a refusal: nothing is lost, and the figures are those of an undisturbed run."""

import json
import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import minllm
from minllm.data.batches import open_data
from minllm.errors import UserError
from minllm.objective.causal import Causal
from minllm.runs import folder as rundir
from minllm.runs.folder import RunDir
from minllm.training import checkpoints, loggers, loop, preparation, summary
from minllm.training import train as task
from minllm.training.memory import OutOfMemory
from tests.kills import every_moment, failing_disk, quick_records
from tests.test_training import CLOCK, TINY
from tests.tiny import unjudged

CLOCK_OF_SUMMARY = {"tokens_per_second", "mfu", "peak_flops", "wall_seconds", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = "\n".join(f"{number} times {number} is {number**2}." for number in range(60))
    (folder / "squares.txt").write_text(text)
    return [*TINY, f"data.path={folder / 'squares.txt'}", f"data.cache={folder / 'stores'}"]


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick_records(monkeypatch)


@pytest.fixture(scope="module")
def cfg(words):
    more = ["train.steps=4", "train.sample_every=2", "train.keep_checkpoints=1", "model.dropout=0.2"]
    return unjudged(*words, *more)


@pytest.fixture(scope="module")
def whole(cfg, tmp_path_factory):
    """What an undisturbed run finds."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(cfg, folder)
    return left(folder)


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


def test_killed_run_resumes_to_the_same_result(cfg):
    copies = every_moment(Path("whole"), Path("killed"), lambda: train(cfg, "whole"))
    expected = left("whole")
    assert len(copies) > 40
    for run, action in copies.items():
        go_on(cfg, run)
        assert left(run) == expected, f"{run}, killed before {action}"


@pytest.mark.parametrize("before", ["checkpoints/.step-000004.partial", ".summary.json.partial"])
def test_run_killed_while_resuming_resumes_again(cfg, before):
    copies = every_moment(Path("whole"), Path("killed"), lambda: train(cfg, "whole"))
    killed = next(copy for copy, action in copies.items() if action == f"os.rename whole/{before}")
    copies = every_moment(killed, Path("again"), lambda: go_on(cfg, killed))
    for run, action in copies.items():
        go_on(cfg, run)
        assert left(run) == left("whole"), f"{run}, killed before {action}"


def test_a_second_process_cannot_go_on_while_the_first_prepares_or_trains(cfg, monkeypatch):
    """The second reads how far the run is, and encodes: the first must not train on meanwhile."""
    train(cfg, "run")
    longer = OmegaConf.merge(cfg, {"train": {"steps": 6}})
    monkeypatch.setattr(rundir, "PROBE_SECONDS", 0.01)
    found = []

    def slow(*args):
        with pytest.raises(UserError, match="Another process is training"):
            train(longer, "run", resume="run")
        found.append(contents("run"))
        return open_data(*args)

    before = contents("run")
    monkeypatch.setattr(preparation, "open_data", slow)
    assert train(longer, "run", resume="run")["steps"] == 6
    assert found == [before]


def test_a_run_that_begins_while_another_prepares_is_not_written_over(cfg, monkeypatch):
    def slow(*args):
        monkeypatch.setattr(preparation, "open_data", open_data)
        train(cfg, "run")
        return open_data(*args)

    monkeypatch.setattr(preparation, "open_data", slow)
    with pytest.raises(UserError, match="There is already a run in"):
        train(OmegaConf.merge(cfg, {"train": {"steps": 2}}), "run")
    assert json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["steps"] == 4


# ---- an end that failed --------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["sample", "cost", "summary", "evaluate", "finish"])
def test_run_that_failed_at_the_end_is_finished_by_resuming(cfg, whole, failing, monkeypatch):
    with monkeypatch.context() as patch:
        if failing == "sample":
            patch.setattr(preparation, "sampler", lambda *args: lambda: 1 / 0)
        elif failing == "cost":
            patch.setattr(summary, "cost", lambda *args: 1 / 0)
        elif failing == "summary":
            patch.setattr(RunDir, "summary", lambda *args: 1 / 0)
        elif failing == "evaluate":
            patch.setattr(loop, "evaluate", lambda *args: 1 / 0)
        else:
            patch.setattr(loggers.Silent, "finish", lambda *args: 1 / 0)
        for _ in range(2):  # going on before it's repaired changes nothing
            if Path("run", "summary.json").exists():
                break
            with pytest.raises(ZeroDivisionError):
                train(cfg, "run", resume="run" if Path("run").exists() else None)
    if failing != "finish":
        go_on(cfg, "run")
    assert left("run")[:3] == whole[:3]


def test_training_is_kept_when_an_evaluation_fails(cfg, monkeypatch):
    """Even where checkpoints are only written at evaluations and at the end."""
    rare = OmegaConf.merge(cfg, {"train": {"checkpoint_every": 0, "eval_every": 0, "evals": 2, "steps": 8}})
    train(rare, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(rare, "run")
    assert checkpoints.find("run", "last").name == "step-000004"
    go_on(rare, "run")
    assert left("run") == left("whole")


def starving(*args, **options):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


def test_a_sample_that_memory_does_not_allow_costs_no_training(cfg, monkeypatch):
    monkeypatch.setattr(Causal, "generate", starving)
    assert train(cfg, "run")["steps"] == 4
    log = Path("run/log.txt").read_text(encoding="utf-8")
    assert "Memory ran out while generating a sample: step 4 has none." in log
    assert not Path("run/samples.txt").exists()


def test_when_memory_runs_out_for_good_training_is_kept(cfg, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", starving)
        with pytest.raises(OutOfMemory, match="a single row"):
            train(cfg, "run")
    assert checkpoints.find("run", "last").name == "step-000003"
    go_on(cfg, "run")
    assert [event["step"] for event in left("run")[0] if "val_loss" in event] == [3, 4]


@pytest.mark.parametrize(
    "where, name",
    [(preparation, "new_model"), (Causal, "generate"), (preparation, "open_data"), (summary, "cost")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_a_sentence(cfg, where, name, error, monkeypatch):
    def starving(*args, **options):
        raise error

    monkeypatch.setattr(where, name, starving)
    if name == "generate":
        train(cfg, "run")
    else:
        with pytest.raises(OutOfMemory, match=r"Memory ran out while .*\. Make model.dim"):
            train(cfg, "run")


# ---- a folder that changes -----------------------------------------------------------------------

CHANGES = {
    "the run is removed": lambda run: shutil.rmtree(run),
    "its parent is removed": lambda run: shutil.rmtree(run.parent),
    "the run is moved away": lambda run: run.rename("elsewhere"),
    "the run becomes a file": lambda run: (shutil.rmtree(run), run.write_text("mine")),
    "checkpoints are removed": lambda run: shutil.rmtree(run / "checkpoints"),
    "checkpoints become a file": lambda run: (
        shutil.rmtree(run / "checkpoints"),
        (run / "checkpoints").touch(),
    ),
    "the log is removed": lambda run: (run / "log.txt").unlink(),
    "the log becomes a folder": lambda run: ((run / "log.txt").unlink(), (run / "log.txt").mkdir()),
    "the metrics become a folder": lambda run: (
        (run / "metrics.jsonl").unlink(),
        (run / "metrics.jsonl").mkdir(),
    ),
    "the metrics become a link": lambda run: (
        (run / "metrics.jsonl").unlink(),
        (run / "metrics.jsonl").symlink_to("/dev/null"),
    ),
    "the summary is a folder": lambda run: (run / "summary.json").mkdir(),
    "the configuration is removed": lambda run: (run / "config.yaml").unlink(),
    "the lock is removed": lambda run: (run / ".lock").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changes_during_training_is_made_again(cfg, whole, change, monkeypatch):
    run = Path("folder/run")

    def log(self, event):
        if event["step"] == 3:
            CHANGES[change](run)

    monkeypatch.setattr(loggers.Silent, "log", log)
    assert train(cfg, run)["steps"] == 4
    found = left(run)
    assert found[0] and found[0][-1] == whole[0][-1]
    assert found[1] == whole[1] and b"=== step 4 ===" in found[2]
    assert {"config.yaml", "environment.json", ".lock"} <= {path.name for path in run.iterdir()}
    model, _, _ = minllm.load(run, which="last")
    assert sum(p.numel() for p in model.parameters()) == found[1]["params"]


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "samples.txt", "state.json", "summary.json", "optimizer.pt"]
)
@pytest.mark.parametrize("error", [28], ids=os.strerror)
def test_a_disk_that_fails_ends_in_a_sentence_with_the_way_to_go_on(cfg, whole, name, error):
    with (
        failing_disk("run/", name, error),
        pytest.raises(UserError, match="Training stopped at step .*resume=run"),
    ):
        train(cfg, "run")
    go_on(cfg, "run")
    assert left("run") == whole


def test_a_log_that_cannot_be_written_costs_no_training(cfg, capsys):
    with failing_disk("run/", "log.txt", 28):
        assert train(cfg, "run")["steps"] == 4
    assert capsys.readouterr().out.count("Can't write run/log.txt") == 1
