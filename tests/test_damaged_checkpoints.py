"""A run whose checkpoint, records or configuration were damaged or edited: refused unchanged, or the same figures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import minllm
from minllm.errors import UserError
from minllm.runs import folder as rundir
from minllm.runs.folder import RunDir
from minllm.runs.records import SAMPLE_HEAD, marked, sample_text
from minllm.tasks import train as task
from minllm.training import checkpoints, loop
from tests.test_resume import contents, left
from tests.test_training import TINY


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A configuration, what an undisturbed run of it finds, and a run that was killed after step 6."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "squares.txt").write_text("\n".join(f"{n} times {n} is {n**2}." for n in range(60)))
    words = [*TINY, f"data.path={folder / 'squares.txt'}", f"data.cache={folder / 'stores'}"]
    more = ["train.steps=8", "train.sample_every=2", "model.dropout=0.2", "train.check=false"]
    cfg = minllm.compose([*words, *more])

    def until_the_kill(run, loss_of):
        if run.progress.step == 7:
            raise KeyboardInterrupt
        return gradient(run, loss_of)

    gradient = loop.whole_batch_gradient
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir, "environment", lambda: {"versions": {}})
        task.train(cfg, folder / "whole")
        patch.setattr(loop, "whole_batch_gradient", until_the_kill)
        with pytest.raises(KeyboardInterrupt):
            task.train(cfg, folder / "killed")
    return cfg, left(folder / "whole"), folder / "killed"


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "environment", lambda: {"versions": {}})
    return Path(shutil.copytree(made[2], tmp_path / "run"))


@pytest.fixture
def go_on(made, run):
    return lambda: task.train(made[0], run, resume=str(run))


def refused(run, go_on, sentence):
    before = contents(run)
    with pytest.raises(UserError, match=sentence):
        go_on()
    assert contents(run) == before


def last(run):
    return checkpoints.find(run, "last")


# ---- the checkpoint ------------------------------------------------------------------------------


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
@pytest.mark.parametrize(
    "damage", [flip, lambda content: content[:-1], lambda content: b"", lambda content: bytes(len(content))]
)
def test_a_changed_file_is_noticed(run, go_on, name, damage):
    file = last(run) / name
    file.write_bytes(damage(file.read_bytes()))
    refused(run, go_on, f"step-000006/{name} is damaged.*Remove the folder.*to use step 4 instead")
    if name == "model.safetensors":
        with pytest.raises(UserError, match="is damaged"):
            minllm.load(run, which="last")
    shutil.rmtree(last(run))  # as the sentence says
    assert go_on()["steps"] == 8


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_file_of_another_checkpoint_is_noticed(run, go_on, name):
    shutil.copy(checkpoints.all_in(run / "checkpoints")[0] / name, last(run) / name)
    refused(run, go_on, f"{name} is damaged")


def test_weights_without_a_number_are_noticed(run, go_on):
    file = last(run) / "model.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file)
    refused(run, go_on, "is damaged")


def changed(state, name, value):
    state["state"][0][name] = value


STATES = {
    "another shape": lambda state: changed(state, "exp_avg", torch.zeros(3, 3)),
    "one number": lambda state: changed(state, "exp_avg", torch.zeros(1)),
    "a number that stands for all": lambda state: changed(
        state, "exp_avg", torch.zeros(1).expand(state["state"][0]["exp_avg"].shape)
    ),
    "whole numbers": lambda state: changed(state, "exp_avg", state["state"][0]["exp_avg"].long()),
    "text": lambda state: changed(state, "exp_avg_sq", "x"),
    "sparse": lambda state: changed(state, "exp_avg", state["state"][0]["exp_avg"].to_sparse()),
    "several steps": lambda state: changed(state, "step", torch.zeros(3)),
    "parameters in another order": lambda state: state["param_groups"][0]["params"].reverse(),
    "a parameter too many": lambda state: state["state"].update({999: {}}),
    "a group too few": lambda state: state["param_groups"].pop(),
    "an option too few": lambda state: state["param_groups"][0].pop("betas"),
    "half an option": lambda state: state["param_groups"][0].update(betas=(0.9,)),
    "an option that is text": lambda state: state["param_groups"][0].update(eps="small"),
    "another thing": lambda state: state.clear(),
}


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_does_not_fit_is_refused_even_where_no_checksum_tells(run, go_on, state):
    """A fused kernel writes beyond the end of a state that is too small."""
    file = last(run) / "optimizer.pt"
    saved = torch.load(file, weights_only=True)
    STATES[state](saved)
    torch.save(saved, file)
    progress = json.loads((last(run) / "state.json").read_text())
    (last(run) / "state.json").write_text(json.dumps({**progress, "files": None}))
    refused(run, go_on, "optimizer.pt is damaged: .*Remove the folder")


def test_checkpoints_of_before_are_read(made, run, go_on):
    state = last(run) / "state.json"
    known = json.loads(state.read_text())
    new = {"files", "records", "configured"}
    state.write_text(json.dumps({name: value for name, value in known.items() if name not in new}))
    go_on()
    assert left(run) == made[1]


@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("moment", ["read_progress", "rebuild_model", "refuse_changed", "load_model"])
def test_a_checkpoint_that_training_removes_meanwhile_is_read_from_the_next(run, monkeypatch, which, moment):
    """Another task of a run that is still training, such as evaluate."""
    act, found = getattr(checkpoints, moment), last(run)

    def after_training_went_on(*args, **options):
        if found.is_dir():
            later = run / "checkpoints/step-000007"
            shutil.copytree(found, later)
            state = json.loads((later / "state.json").read_text())
            (later / "state.json").write_text(json.dumps({**state, "step": 7}))
            for old in checkpoints.all_in(run / "checkpoints")[:-1]:
                shutil.rmtree(old)
        return act(*args, **options)

    monkeypatch.setattr(checkpoints, moment, after_training_went_on)
    model, _, _ = minllm.load(run, which=which)
    assert not found.is_dir() and sum(p.numel() for p in model.parameters()) > 0


# ---- the configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["seed", "optim.lr", "optim.weight_decay", "model.dropout", "data.packing", "train.batch_size"]
)
def test_an_edited_configuration_is_refused(run, key):
    cfg = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(cfg, key, {"data.packing": "pad", "model.dropout": 0.5}.get(key, 3))
    OmegaConf.save(cfg, run / "config.yaml")
    section = key if key == "train.batch_size" else key.partition(".")[0]
    refused(
        run, lambda: minllm.train(minllm.compose([f"resume={run}"])), f"{section} in the run's config.yaml"
    )


def test_a_checkpoint_of_another_seed_is_refused(made, run, go_on, tmp_path):
    task.train(OmegaConf.merge(made[0], {"seed": 3, "train": {"steps": 6}}), tmp_path / "other")
    shutil.rmtree(last(run))
    shutil.copytree(last(tmp_path / "other"), run / "checkpoints/step-000006")
    refused(run, go_on, "seed in the run's config.yaml")


# ---- metrics and samples -------------------------------------------------------------------------

FUTURE = b'{"step": 99, "tokens": 1, "seconds": 1.0, "val_loss": 0.1}\n'
REPAIRED = {
    "half a line": ("metrics.jsonl", lambda old: old + b'{"step": 8, "tok'),
    "half of the last line": ("metrics.jsonl", lambda old: old[:-20]),
    "zeros of a power cut": ("metrics.jsonl", lambda old: old + bytes(100)),
    "all twice": ("metrics.jsonl", lambda old: old + old),
    "the last line twice": ("metrics.jsonl", lambda old: old + old.splitlines(True)[-1]),
    "a line of the future": ("metrics.jsonl", lambda old: FUTURE + old + FUTURE),
    "half a head": ("samples.txt", lambda old: old + b"=== step 8"),
    "half a sample": ("samples.txt", lambda old: old[:-3]),
    "half a sample's head": ("samples.txt", lambda old: old[: old.index(b"step 6")]),
    "a sample and zeros": ("samples.txt", lambda old: old + bytes(50)),
    "samples of the future": ("samples.txt", lambda old: old + b"=== step 99 ===\nhello\n\n"),
    "all samples twice": ("samples.txt", lambda old: old + old),
}


@pytest.mark.parametrize("damage", REPAIRED)
def test_what_was_written_after_the_checkpoint_is_written_again(made, run, go_on, damage):
    name, change = REPAIRED[damage]
    (run / name).write_bytes(change((run / name).read_bytes()))
    go_on()
    assert left(run) == made[1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
def test_lines_that_are_missing_are_told(run, go_on, name, capsys):
    lines = (run / name).read_bytes().splitlines(True)
    (run / name).write_bytes(b"".join(lines[3:]))
    go_on()
    assert f"{name} in {run} changed after the checkpoint was saved" in capsys.readouterr().out
    assert "changed after" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    "line", [b"\xef\xbb\xbf{}\n", '{"step": 1}\n'.encode("utf-16"), b'{"step": -1}\n', b"\n"]
)
def test_a_line_that_is_no_event_is_refused(run, go_on, line):
    (run / "metrics.jsonl").write_bytes(line + (run / "metrics.jsonl").read_bytes())
    refused(run, go_on, "metrics.jsonl is damaged: line 1 ")


def test_a_sample_that_looks_like_a_head_is_kept_whole(tmp_path):
    folder = RunDir(tmp_path)
    texts = ["once\n=== step 2 ===\nupon\n=== step 99 ===", "=== step 4 ===\n\n=== step 5 ==="]
    folder.samples(2, texts)
    marks = marked(tmp_path)
    folder.samples(4, texts)
    whole = (tmp_path / "samples.txt").read_bytes()
    assert [int(head[1]) for head in SAMPLE_HEAD.finditer(whole)] == [2, 4]
    for known in (marks, {}):
        kept = folder.kept(4, known)
        assert kept.samples is None and "upon\n === step 99 ===" in kept.sample
        assert folder.kept(2, known).samples == sample_text(2, texts).encode()


def test_a_lock_that_is_a_folder_is_named(run, go_on):
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    refused(run, go_on, "lock is a folder")
