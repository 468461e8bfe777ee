"""Checkpoints from elsewhere: what isn't real weights, or not the state of this optimizer, is damage and never code."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minllm
from minllm.config import build
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.tokenizer.bytes import Bytes
from minllm.training import checkpoints
from minllm.training.optimizers import wrong_state
from tests.test_foreign_runs import last, run, trained  # noqa: F401
from tests.test_resume import contents
from tests.test_training import TINY


class Runs:
    def __reduce__(self):
        return (os.system, ("touch PWNED",))


def shorter(saved):
    for state in saved["state"].values():
        state["exp_avg"] = torch.zeros(1)


def spread(saved):
    for state in saved["state"].values():
        state["exp_avg_sq"] = torch.zeros(1).expand_as(state["exp_avg_sq"])


STATES = {
    "code": lambda saved: saved.update(more=Runs()),
    "too small a tensor": shorter,
    "one number in place of many": spread,
    "a tensor of integers": lambda saved: saved["state"][0].update(
        exp_avg=saved["state"][0]["exp_avg"].int()
    ),
    "a sparse tensor": lambda saved: saved["state"][0].update(
        exp_avg=saved["state"][0]["exp_avg"].to_sparse()
    ),
    "a step of many numbers": lambda saved: saved["state"][0].update(step=torch.zeros(9)),
    "a step that is text": lambda saved: saved["state"][0].update(step="x"),
    "a tensor is missing": lambda saved: saved["state"][0].pop("exp_avg"),
    "a parameter too many": lambda saved: saved["state"].update({999: {}, 1000: {"exp_avg": torch.zeros(9)}}),
    "an option of another type": lambda saved: saved["param_groups"][0].update(betas=5),
    "an option too many": lambda saved: saved["param_groups"][0].update(more=5),
    "no groups": lambda saved: saved.pop("param_groups"),
    "a list of states": lambda saved: saved.update(state=[1]),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_is_not_the_optimizers_is_damage(run, case):  # noqa: F811
    saved = torch.load(last(run) / "optimizer.pt", weights_only=True)
    STATES[case](saved)
    torch.save(saved, last(run) / "optimizer.pt")
    before = contents(run)
    with pytest.raises(UserError, match=r"optimizer\.pt is damaged"):
        minllm.train(minllm.compose(["resume=run", "train.steps=6"]))
    assert contents(run) == before and not Path("PWNED").exists()


@pytest.mark.parametrize("optim", ["adamw", "lion", "muon", "sgd"])
def test_an_optimizers_own_state_is_taken(optim):
    cfg = minllm.compose([*TINY, "data.path=unused", f"optim={optim}"])
    model = build_model(cfg, Bytes())
    first, again = build(cfg.optim, model), build(cfg.optim, model)
    assert wrong_state(again, first.state_dict()) is None
    model.logits(model.hidden(torch.zeros(1, 8, dtype=torch.long))).sum().backward()
    first.step()
    assert wrong_state(again, first.state_dict()) is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_no_real_numbers_are_damage(run, dtype):  # noqa: F811
    file = last(run) / "model.safetensors"
    save_file({name: weight.to(dtype) for name, weight in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        checkpoints.load("run", which="last")
