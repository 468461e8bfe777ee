"""Averaged weights (train.ema): their values, where they are used, and that resuming continues them exactly."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch._subclasses import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import minllm
from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.runs import folder as rundir
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.sweep import prediction
from minllm.sweep.prediction import Imagined, LiveStorages
from minllm.tasks import evaluate
from minllm.training import checkpoints, loop, preparation
from minllm.training import train as task
from minllm.training.averaging import Average, averaged
from tests.kills import every_moment, quick_records
from tests.test_prediction import CPU, LETTERS
from tests.test_resume import contents, go_on, left
from tests.test_training import TINY, figures
from tests.tiny import VOCAB, unjudged

MODEL, UNAVERAGED = "model.safetensors", "unaveraged.safetensors"
STEPS = 5
EXPERTS = [
    "model/mlp=moe_sigmoid",
    "model.mlp.n_experts=4",
    "model.mlp.top_k=2",
]
"""Experts whose router has a buffer that training changes."""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "squares.txt").write_text("\n".join(f"{n} times {n} is {n**2}." for n in range(60)))
    more = [
        f"train.steps={STEPS}",
        "train.sample_every=2",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=9",
    ]
    more += ["model.dropout=0.2", "optim.lr=0.05", "sample.max_new_tokens=30", "sample.min_p=0"]
    return [*TINY, *more, f"data.path={folder / 'squares.txt'}", f"data.cache={folder / 'stores'}"]


@pytest.fixture(scope="module")
def cfg(words):
    return unjudged(*words, "train.ema=0.3", *EXPERTS)


@pytest.fixture(scope="module")
def whole(cfg, tmp_path_factory):
    """An undisturbed run of `cfg`."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rundir, "environment", lambda: {"versions": {}})
        task.train(cfg, folder)
    return folder


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick_records(monkeypatch)


def weights(run, step, name=MODEL):
    return load_file(Path(run) / f"checkpoints/step-{step:06d}" / name)


# ---- the average ---------------------------------------------------------------------------------


def closed_form(values, decay):
    """Return the average of values 0, 1, …, n: a sum in which each value has a weight of its own."""
    decays = [1.0] + [min(decay, (1 + n) / (10 + n)) for n in range(1, len(values))]
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for i, value in enumerate(values):
        weight = 1.0 if i == 0 else 1 - decays[i]
        for later in decays[i + 1 :]:
            weight *= later
        total += weight * value.double()
    return total


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.6, 0.9999])
def test_the_average_is_its_closed_form(decay):
    model = torch.nn.Linear(3, 2)
    average, values = Average(model, decay), [model.weight.detach().clone()]
    for step in range(1, 31):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        values.append(model.weight.detach().clone())
        average.update(step)
        torch.testing.assert_close(
            average.averages[0], closed_form(values, decay).float(), rtol=1e-5, atol=1e-6
        )


def test_without_warm_up_it_is_the_average_of_torch():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    decay = 0.18  # less than (1 + 1) / (10 + 1)
    average, oracle = Average(model, decay), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    oracle.update_parameters(model)  # the first call copies the initial values
    for step in range(1, 10):
        with torch.no_grad():
            for param in model.parameters():
                param.normal_()
        average.update(step), oracle.update_parameters(model)
        for ours, theirs in zip(average.averages, oracle.module.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_initial_values_soon_lose_their_weight():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    average = Average(model, 0.9999)
    torch.nn.init.zeros_(model.weight)
    for step in range(1, 21):
        average.update(step)
    # the product of (1 + n) / (10 + n) for n = 1 … 20
    expected = math.factorial(21) * math.factorial(10) / math.factorial(30)
    assert average.averages[0].item() == pytest.approx(expected, rel=1e-5) and expected < 1e-6


def test_the_model_has_the_average_in_the_body_alone_and_keeps_its_buffers():
    model = torch.nn.BatchNorm1d(2)
    average = Average(model, 0.18)
    torch.nn.init.constant_(model.weight, 3.0), model.running_mean.fill_(7)
    average.update(1)
    before = [param.data_ptr() for param in model.parameters()]
    with pytest.raises(KeyError, match="in the body"), averaged(average):
        torch.testing.assert_close(model.weight.detach(), torch.full((2,), 0.18 * 1 + 0.82 * 3))
        assert model.running_mean.tolist() == [7, 7]
        raise KeyError("in the body")
    assert model.weight.tolist() == [3, 3] and [param.data_ptr() for param in model.parameters()] == before
    with averaged(None):
        assert model.weight.tolist() == [3, 3]


# ---- a run ---------------------------------------------------------------------------------------


def test_training_is_the_same_as_without(words):
    plain = unjudged(*words)
    task.train(plain, Path("plain"))
    task.train(OmegaConf.merge(plain, {"train": {"ema": 0.3}}), Path("averaged"))
    losses = [[event for event in figures(run) if "train_loss" in event] for run in ("plain", "averaged")]
    assert losses[0] == losses[1]
    assert not list(Path("plain").rglob(UNAVERAGED))
    for step in range(1, STEPS + 1):
        trained, expected = weights("averaged", step, UNAVERAGED), weights("plain", step)
        assert all(torch.equal(trained[name], expected[name]) for name in expected)
        assert any(not torch.equal(weights("averaged", step)[name], expected[name]) for name in expected)
    assert [event["val_loss"] for event in figures("plain") if "val_loss" in event] != [
        event["val_loss"] for event in figures("averaged") if "val_loss" in event
    ]


def test_checkpoints_have_the_average_of_the_parameters_and_the_current_buffers(cfg, whole):
    run, _, _ = preparation.prepare(cfg, Path("unused"), None, None)
    values = {name: [param.detach()] for name, param in run.model.named_parameters()}
    buffers = [name for name in weights(whole, 1) if name not in values]
    assert any("bias" in name for name in buffers)
    for step in range(1, STEPS + 1):
        average, trained = weights(whole, step), weights(whole, step, UNAVERAGED)
        for name in values.keys() & trained.keys():
            values[name].append(trained[name])
            torch.testing.assert_close(
                average[name].double(), closed_form(values[name], 0.3), rtol=1e-5, atol=1e-6
            )
        assert all(torch.equal(average[name], trained[name]) for name in buffers)
    assert any(weights(whole, STEPS)[name].abs().sum() > 0 for name in buffers)


def test_what_a_run_records_is_of_the_average_and_the_log_says_so(cfg, whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["ema"] == 0.3
    log = (whole / "log.txt").read_text(encoding="utf-8")
    assert "model.safetensors use the exponential moving average of the weights (train.ema=0.3)" in log
    assert "bits per byte, of the averaged weights." in log
    again = OmegaConf.merge(cfg, {"task": {"_target_": "minllm.tasks.evaluate.evaluate"}})
    found = evaluate.evaluate(again, Path("unused"), run=str(whole))
    assert found["val_loss"] == summary["best"]["val_loss"]


def test_samples_are_of_the_average(cfg, whole):
    model, tokenizer, saved = minllm.load(whole, which="last")
    objective = build(saved.objective)
    text = objective.generate(model, tokenizer, [""], build(cfg.sample))[0]
    assert (whole / "samples.txt").read_text(encoding="utf-8").rstrip("\n").endswith(text.rstrip("\n"))
    checkpoints.load_weights(checkpoints.find(whole, "last"), model, UNAVERAGED)
    assert objective.generate(model, tokenizer, [""], build(cfg.sample))[0] != text


def test_another_run_starts_from_the_average(cfg, whole):
    run, _, _ = preparation.prepare(cfg, Path("new"), None, str(whole))
    best = json.loads((whole / "summary.json").read_text())["best"]["step"]
    state, expected = run.model.state_dict(), weights(whole, best)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert all(torch.equal(*pair) for pair in zip(run.average.averages, run.model.parameters()))


# ---- resuming ------------------------------------------------------------------------------------


def files(run):
    return {
        str(path.relative_to(run)): path.read_bytes() for path in sorted(Path(run).rglob("*.safetensors"))
    }


def killed(cfg, run, step, monkeypatch):
    """Train until the process is killed in the step after `step`."""
    gradient = loop.whole_batch_gradient

    def until_the_kill(run, loss_of):
        if run.progress.step == step:
            raise KeyboardInterrupt
        return gradient(run, loss_of)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "whole_batch_gradient", until_the_kill)
        with pytest.raises(KeyboardInterrupt):
            task.train(cfg, Path(run))


@pytest.mark.parametrize("step", range(STEPS))
def test_a_run_killed_at_any_step_continues_both_exactly(cfg, whole, step, monkeypatch):
    killed(cfg, "run", step, monkeypatch)
    task.train(cfg, Path("run"), resume="run")
    assert files("run") == files(whole)
    assert left("run") == left(whole)


def test_a_run_killed_at_any_moment_continues_both_exactly(words):
    cfg = unjudged(*words, "train.steps=2", "train.keep_checkpoints=1", "train.ema=0.3")
    copies = every_moment(Path("whole"), Path("killed"), lambda: task.train(cfg, Path("whole")))
    assert len(copies) > 20
    for run, action in copies.items():
        go_on(cfg, run)
        assert (files(run), left(run)) == (files("whole"), left("whole")), f"{run}, killed before {action}"


def test_a_failed_evaluation_leaves_the_trained_weights(cfg, whole, monkeypatch):
    rare = OmegaConf.merge(cfg, {"train": {"checkpoint_every": 0}})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            task.train(rare, Path("run"))
    assert checkpoints.find("run", "last").name == "step-000003"
    task.train(rare, Path("run"), resume="run")
    for name in (MODEL, UNAVERAGED):
        assert all(
            torch.equal(*pair)
            for pair in zip(weights("run", STEPS, name).values(), weights(whole, STEPS, name).values())
        )


@pytest.mark.parametrize("before, now", [(None, 0.3), (0.3, None), (0.3, 0.9)])
def test_a_resumed_run_keeps_its_decay(words, before, now):
    cfg = unjudged(*words, "train.steps=1", *([f"train.ema={before}"] if before else []))
    task.train(cfg, Path("run"))
    left_before = contents("run")
    longer = OmegaConf.merge(cfg, {"train": {"steps": 2, "ema": now}})
    sentence = f"saved with train.ema={before or 'null'}, so .* Type train.ema={before or 'null'}, or start a new run"
    with pytest.raises(UserError, match=sentence):
        task.train(longer, Path("run"), resume="run")
    assert contents("run") == left_before


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(b"x"), "its checksum doesn't"),
    ],
    ids=["missing", "changed"],
)
def test_damaged_unaveraged_weights_are_refused(cfg, whole, damage, sentence):
    run = Path(shutil.copytree(whole, "run"))
    (run / "summary.json").unlink()
    damage(checkpoints.find(run, "last") / UNAVERAGED)
    with pytest.raises(UserError, match=f"{UNAVERAGED} .*{sentence}"):
        task.train(OmegaConf.merge(cfg, {"train": {"steps": 6}}), run, resume=str(run))
    checkpoints.load(run, which="last")  # which other tasks don't need


def test_a_checkpoint_from_before_the_option_continues(words):
    cfg = unjudged(*words, "train.steps=2")
    task.train(cfg, Path("run"))
    state = checkpoints.find("run", "last") / "state.json"
    progress = json.loads(state.read_text())
    assert progress.pop("ema") is None
    state.write_text(json.dumps(progress))
    longer = OmegaConf.merge(cfg, {"train": {"steps": 3}})
    del longer.train.ema
    assert task.train(longer, Path("run"), resume="run")["steps"] == 3


# ---- what it takes -------------------------------------------------------------------------------


def test_it_holds_one_copy_of_the_parameters_as_predicted():
    small = ["model.dim=64", "model.n_layers=1", "data.seq_len=16", "train.batch_size=1"]
    held, predicted = {}, {}
    for ema in ("null", "0.999"):
        cfg = minllm.compose([*small, f"train.ema={ema}"])
        with LiveStorages(CPU) as real:
            prediction.train(cfg, LETTERS, 1, CPU, "fp32", real)
        with FakeTensorMode(), Imagined(CPU) as fake:
            prediction.train(cfg, LETTERS, 1, CPU, "fp32", fake)
        held[ema], predicted[ema] = real.peak_bytes, fake.peak_bytes
    copy = sum(4 * param.numel() for param in build_shapes(cfg, VOCAB).parameters())
    assert held["0.999"] - held["null"] == predicted["0.999"] - predicted["null"] == copy


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1", "nan", "true", "fast"])
def test_wrong_decays_are_refused(value):
    with pytest.raises(UserError, match="train.ema must be a number above 0 and below 1, or null"):
        validate(minllm.compose([f"train.ema={value}"]))
