"""Checkpoints: what they keep, how many, and what happens to damaged ones."""

import json

import pytest
import torch

from minllm.errors import UserError
from minllm.model.parameter import Linear, constant, initialise, parameter
from minllm.training import checkpoints
from minllm.training.checkpoints import Progress
from minllm.training.optimizers import AdamW


class Tied(torch.nn.Module):
    """The smallest model with everything a checkpoint may meet: a matrix, a vector, and one tensor with two names."""

    def __init__(self, width=4):
        super().__init__()
        self.embedding = parameter(7, width, kind="embedding", draw=constant(0.5))
        self.inner = Linear(width, width, stream="within", bias=True)
        self.head = torch.nn.Module()
        self.head.weight = self.embedding

    def forward(self, x):
        return self.inner(self.embedding[x]) @ self.head.weight.T


def made(width=4, seed=0):
    model = Tied(width)
    initialise(model, seed)
    return model, AdamW(
        model,
        lr=0.1,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        decay_embeddings=True,
        cautious_decay=False,
    )


def take_steps(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.arange(7)).square().sum().backward()
        optimizer.step()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    return tmp_path


def save(run, step, model, optimizer, *, best=None, keep=2):
    progress = Progress(step=step, best=best and {"step": best, "val_loss": 1.0})
    checkpoints.save(run / "checkpoints", model, optimizer, progress, keep)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_training_goes_on_from_a_checkpoint_to_the_bit(run):
    model, optimizer = made()
    take_steps(model, optimizer, 3)
    save(run, 3, model, optimizer)
    take_steps(model, optimizer, 3)

    again, its_optimizer = made(seed=1)
    checkpoint = checkpoints.find(run, "last")
    checkpoints.load_weights(checkpoint, again)
    checkpoints.load_optimizer(checkpoint, its_optimizer)
    take_steps(again, its_optimizer, 3)
    assert again.head.weight is again.embedding
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_newest_and_the_best_are_kept(run):
    model, optimizer = made()
    for step in (10, 20, 30, 40, 50):
        save(run, step, model, optimizer, best=20 if step >= 20 else 10)
    assert names(run) == ["step-000020", "step-000040", "step-000050"]
    assert checkpoints.find(run, "best").name == "step-000020"
    assert checkpoints.find(run, "last").name == "step-000050"


@pytest.mark.parametrize("fails", ["save_model", "_sync"])
def test_a_best_checkpoint_is_removed_only_once_its_successor_is_written(run, monkeypatch, fails):
    def full(*_):
        raise OSError(28, "No space left on device")

    model, optimizer = made()
    save(run, 10, model, optimizer, best=10, keep=1)
    save(run, 20, model, optimizer, best=10, keep=1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(checkpoints, fails, full)
        save(run, 30, model, optimizer, best=30, keep=1)
    assert names(run) == ["step-000010", "step-000020"]
    assert checkpoints.find(run, "best").name == "step-000010"
    save(run, 30, model, optimizer, best=30, keep=1)
    assert names(run) == ["step-000030"]


def test_steps_beyond_six_digits_are_still_in_order(run):
    model, optimizer = made()
    for step in (999_999, 1_000_000):
        save(run, step, model, optimizer)
    assert checkpoints.find(run, "last").name == "step-1000000"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_a_damaged_file_is_named_with_the_cure(run, name, damage):
    model, optimizer = made()
    take_steps(model, optimizer, 1)
    save(run, 1, model, optimizer)
    save(run, 2, model, optimizer)
    file = run / "checkpoints" / "step-000002" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-20] if damage == "truncated" else b"\x80\x04garbage")

    with pytest.raises(UserError, match=f"(?s)step-000002/{name} is .*Remove the folder .* step 1 "):
        checkpoint = checkpoints.find(run, "last")
        checkpoints.read_progress(checkpoint)
        checkpoints.load_weights(checkpoint, model)
        checkpoints.load_optimizer(checkpoint, optimizer)


def test_an_optimizer_file_cannot_run_code(run, tmp_path):
    model, optimizer = made()
    save(run, 1, model, optimizer)
    checkpoint = checkpoints.find(run, "last")
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return marker.touch, ()

    torch.save(Evil(), checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match="optimizer.pt is damaged"):
        checkpoints.load_optimizer(checkpoint, optimizer)
    assert not marker.exists()


def test_weights_of_another_architecture_are_refused(run):
    save(run, 1, *made(width=4))
    with pytest.raises(UserError, match="different architecture.*shape"):
        checkpoints.load_weights(checkpoints.find(run, "last"), made(width=6)[0])
    with pytest.raises(UserError, match="different architecture.*missing"):
        checkpoints.load_weights(checkpoints.find(run, "last"), torch.nn.Linear(2, 2))


def test_a_failed_write_leaves_the_earlier_checkpoints_alone(run, monkeypatch):
    model, optimizer = made()
    save(run, 1, model, optimizer)
    before = (run / "checkpoints" / "step-000001" / "state.json").read_text()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(run, 2, model, optimizer)
    assert names(run) == ["step-000001"]
    assert (run / "checkpoints" / "step-000001" / "state.json").read_text() == before


def test_a_run_without_checkpoints_is_refused(run):
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.find(run, "last")


def test_progress_survives_json_to_the_bit(run):
    model, optimizer = made()
    losses = [1 / 3, 2e-17, 0.1 + 0.2]
    progress = Progress(
        step=5, seconds=1.23456789, position=4.7, recent_losses=losses, decisions={"compile": False}
    )
    checkpoints.save(run / "checkpoints", model, optimizer, progress, keep=1)
    assert checkpoints.read_progress(checkpoints.find(run, "last")) == progress
    assert json.loads((checkpoints.find(run, "last") / "state.json").read_text())["step"] == 5
