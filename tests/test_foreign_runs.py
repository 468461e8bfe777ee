"""Runs from elsewhere, and damaged ones: each is refused in a sentence, and nothing changes, inside or outside."""

import json
import os
import shutil
from pathlib import Path

import pytest

import minllm
from minllm.config.compose import perform
from minllm.errors import UserError
from minllm.runs.find import find_run, read_run
from minllm.runs.folder import RunDir, is_running, write_text
from minllm.training import checkpoints
from tests.test_resume import contents
from tests.test_training import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 4 steps, and the words that made it; nobody changes it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "squares.txt").write_text("\n".join(f"{n} times {n} is {n**2}." for n in range(60)))
    words = [*TINY, f"data.path={folder / 'squares.txt'}", f"data.cache={folder / 'stores'}", "train.steps=4"]
    minllm.train(minllm.compose(words), folder / "run")
    return folder / "run", words


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0], "run")
    # its documents stand beside it, as those of a run of one's own do
    shutil.copy(trained[0].parent / "squares.txt", ".")
    shutil.copytree(trained[0].parent / "stores", "stores")
    config = Path("run/config.yaml")
    text = config.read_text(encoding="utf-8").replace(str(trained[0].parent), str(tmp_path))
    config.write_text(text, encoding="utf-8")
    return Path("run")


def last(run):
    return run / "checkpoints/step-000004"


def add_line(line):
    def change(run):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")

    return change


def state(**values):
    def change(run):
        known = json.loads((last(run) / "state.json").read_text())
        (last(run) / "state.json").write_text(json.dumps({**known, **values}))

    return change


def without_state(name):
    def change(run):
        known = json.loads((last(run) / "state.json").read_text())
        del known[name]
        (last(run) / "state.json").write_text(json.dumps(known))

    return change


def write(name, text):
    return lambda run: (run / name).write_text(text)


nothing = write("log.txt", "as it is")
NAN, INFINITY = float("nan"), float("inf")

REFUSED = {
    "a finished run": (nothing, [], "used up its budget"),
    "a smaller budget": (nothing, ["train.steps=2"], "used up its budget"),
    "garbage in the metrics": (add_line("garbage"), ["train.steps=6"], "metrics.jsonl is damaged: line"),
    "a step that is text": (add_line('{"step": "x"}'), ["train.steps=6"], "metrics.jsonl is damaged"),
    "a step that is infinite": (add_line('{"step": 1e999}'), ["train.steps=6"], "metrics.jsonl is damaged"),
    "a step that is true": (add_line('{"step": true}'), ["train.steps=6"], "metrics.jsonl is damaged"),
    "a list": (add_line("[1]"), ["train.steps=6"], "metrics.jsonl is damaged"),
    "a deep list": (add_line("[" * 100_000), ["train.steps=6"], "metrics.jsonl is damaged"),
    "bytes": (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"), ["train.steps=6"], "is damaged"),
    "another model": (nothing, ["train.steps=6", "model.dim=32"], "can't change"),
    "another seed": (nothing, ["train.steps=6", "seed=1"], "can't change"),
    "another batch": (nothing, ["train.steps=6", "train.batch_size=8"], "can't change"),
    "too long a warm-up": (nothing, ["train.steps=6", "train.micro_batch_size=9"], "micro_batch_size"),
    "no budget": (nothing, ["train.steps=null"], "never end"),
    "no weights": (lambda run: (last(run) / "model.safetensors").unlink(), ["train.steps=6"], "is missing"),
    "garbage as weights": (
        write("checkpoints/step-000004/model.safetensors", "x"),
        ["train.steps=6"],
        "damaged",
    ),
    "garbage as optimizer": (
        write("checkpoints/step-000004/optimizer.pt", "x"),
        ["train.steps=6"],
        "is damaged",
    ),
    "garbage as state": (write("checkpoints/step-000004/state.json", "x"), ["train.steps=6"], "is damaged"),
    "no tokenizer": (write("config.yaml", "seed: 0\n"), ["train.steps=6"], "is damaged"),
    "a project that W&B refuses": (
        nothing,
        ["train.steps=6", "logger=wandb", "logger.project=a/b"],
        "Weights &",
    ),
    "an empty tag": (nothing, ["train.steps=6", "logger=wandb", "tags=['']"], "tags must be"),
    "no checkpoints": (
        lambda run: shutil.rmtree(run / "checkpoints"),
        ["train.steps=6"],
        "has no checkpoint",
    ),
}
ODD = {}
for name, values in {
    "step": [-1, 5, "4", 4.0, True, None, [4], 10**30],
    "tokens": [-1, "x", 1.5, None, 10**400],
    "seconds": [-1.0, NAN, INFINITY, "x", None, 0],
    "position": [-1, NAN, INFINITY, "x", None, 1e300],
    "total_steps": [-1, 0, "x", 2.5],
    "timed_steps": [-1, "x"],
    "timed_seconds": [NAN, "x", 0],
    "best": [5, {}, {"step": "x", "val_loss": 1.0}, {"step": 1, "val_loss": "x"}],
    "val_loss": ["x", [1]],
    "tokenizer": [5],
    "data": [5, "x"],
    "recent_losses": [5, ["x"], [None]],
    "recent_figures": [5, [5], [{"a": "x"}]],
    "decisions": [
        5,
        [],
        {"precision": "fp8"},
        {"compile": 1},
        {"micro_batch_size": 0},
        {"micro_batch_size": "4"},
    ],
    "unknown": [1],
}.items():
    for value in values:
        ODD[f"{name}={str(value)[:24]}"] = state(**{name: value})
ODD["no step"] = without_state("step")
for case in ("step=-1", "seconds=nan", "best={}", "unknown=1", "no step"):
    REFUSED[case] = (ODD[case], ["train.steps=6"], "state.json is damaged")


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_leaves_the_run_as_it_was(run, case, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    change, words, said = REFUSED[case]
    change(run)
    before = contents(run)
    with pytest.raises(UserError, match=said):
        minllm.train(minllm.compose(["resume=run", *words]))
    assert contents(run) == before


@pytest.mark.parametrize("case", ODD)
def test_values_that_no_run_writes_are_damage(run, case):
    ODD[case](run)
    with pytest.raises(UserError, match="state.json is damaged"):
        checkpoints.read_progress(checkpoints.find("run", "last"))


@pytest.mark.parametrize(
    "word", [-0.5, float("inf"), 17, True, ["run"], "~nobody-has-this-name/x", "x" * 5000]
)
def test_a_number_is_no_run(word):
    with pytest.raises(UserError, match="There is no folder|A run is given as its folder or as latest"):
        find_run(word)


@pytest.mark.parametrize("words", ["resume=inf", "init_from=-0.5", "task=generate run=1e400"])
def test_a_number_typed_for_a_run_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="must be a run's folder or latest"):
        minllm.train(minllm.compose(words.split()), "new")
    assert not list(tmp_path.iterdir())


# ---- links ---------------------------------------------------------------------------------------

FILES = [
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "log.txt",
    "samples.txt",
    "summary.json",
    ".lock",
]
PARTIAL = [
    ".summary.json.partial",
    ".config.yaml.partial",
    ".samples.txt.partial",
    "checkpoints/.step-000006.partial",
]
INSIDE = [
    "checkpoints",
    "checkpoints/step-000004",
    "checkpoints/step-000006",
    "checkpoints/step-000004/state.json",
]
OTHERS = ["tokenizer", "wandb", "tokenizer/characters.json"]


@pytest.mark.parametrize("name", [*FILES, *PARTIAL, *INSIDE, *OTHERS])
@pytest.mark.parametrize("exists", [True, False], ids=["to something", "to nothing"])
def test_links_that_lead_out_of_a_run_are_refused_before_anything_is_written(run, name, exists, tmp_path):
    outside, path = tmp_path / "outside", run / name
    path.parent.mkdir(exist_ok=True)
    if not exists:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    elif path.exists():
        path.rename(outside)
    elif name in ("wandb", "tokenizer") or "step-" in name:
        outside.mkdir()
        (outside / "mine.txt").write_text("mine")
    else:
        outside.write_text("mine")
    path.symlink_to(outside)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="is a symbolic link"), RunDir(run).alone():
        pass
    if name in ("log.txt", "checkpoints", ".lock", "summary.json"):
        with pytest.raises(UserError):
            minllm.train(minllm.compose(["resume=run", "train.steps=6"]))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["log.txt", "samples.txt", "metrics.jsonl", ".lock"])
def test_a_file_with_a_second_name_elsewhere_is_not_written_to(run, name, tmp_path):
    (run / name).unlink()
    (tmp_path / "outside").write_text("")
    os.link(tmp_path / "outside", run / name)
    with pytest.raises(UserError, match="hard link"):
        minllm.train(minllm.compose(["resume=run", "train.steps=6"]))
    assert (tmp_path / "outside").read_text() == ""


def test_a_new_run_does_not_follow_links_that_lie_in_its_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside/step-000001").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="symbolic link"):
        minllm.train(minllm.compose(trained[1]), "run")
    assert (tmp_path / "outside/step-000001").is_dir()


def test_wandb_links_inside_its_folder_are_allowed(run):
    (run / "wandb/offline-run-1").mkdir(parents=True)
    (run / "wandb/latest-run").symlink_to("offline-run-1")
    assert minllm.train(minllm.compose(["resume=run", "train.steps=5"]))["steps"] == 5


def test_temporary_file_does_not_follow_a_link(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / ".file.partial").symlink_to(tmp_path / "outside")
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "outside").read_text() == "mine" and (tmp_path / "file").read_text() == "text"


# ---- pipes and devices ---------------------------------------------------------------------------

READ = ["config.yaml", "summary.json", "metrics.jsonl", "checkpoints/step-000004/state.json"]
READ += [
    "checkpoints/step-000004/model.safetensors",
    "checkpoints/step-000004/optimizer.pt",
    "tokenizer/x.json",
]


@pytest.mark.parametrize("name", READ)
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused(run, name):
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run / name)
    for _ in range(2):
        with pytest.raises(UserError, match="is not a regular file|is not a run"):
            read_run("run")
        (run / name).unlink()
        (run / name).symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "task", ["task=generate run=run", "task=evaluate run=run", "resume=run", "init_from=run"]
)
def test_no_task_waits_for_a_pipe(run, task):
    (last(run) / "state.json").unlink()
    os.mkfifo(last(run) / "state.json")
    with pytest.raises(UserError, match="state.json is not a regular file"):
        perform(minllm.compose(task.split()), Path("unused"))


def test_linked_lock_is_not_opened(run, tmp_path):
    (tmp_path / "outside").write_text("mine")
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(tmp_path / "outside")
    assert not is_running(run) and (tmp_path / "outside").read_text() == "mine"


# ---- terminals -----------------------------------------------------------------------------------


def test_control_characters_reach_a_file_and_no_terminal(run, monkeypatch, capsys):
    evil = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e\rdone"
    folder = RunDir(run)
    folder.say(f"text {evil}")
    folder.event({"step": 4, evil: 1.0})
    folder.samples(4, [evil])
    monkeypatch.setattr(
        "minllm.objective.causal.Causal.generate",
        lambda self, model, tokenizer, prompts, sampling, stream=None: [
            stream(evil) if stream else None,
            evil,
        ][1:],
    )
    perform(minllm.compose(["task=generate", "run=run", "prompts=[a]"]), Path("unused"))
    perform(minllm.compose(["task=generate", "run=run", "prompts=[a,b]"]), Path("unused"))
    out = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e\r") & set(out) and out.count("\\x1b]0;owned\\x07") == 4
    assert evil in (run / "samples.txt").read_bytes().decode()
    assert checkpoints.find("run", "last").name == "step-000004"
