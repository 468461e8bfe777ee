"""The training loop on the smallest model there is: what a step computes, and when a run stops."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from minllm.data.batches import IGNORED, Batch
from minllm.errors import UserError
from minllm.model.parameter import Linear, initialise, normal, parameter
from minllm.objective import Objective
from minllm.runs.folder import RunDir
from minllm.training import checkpoints, machine, memory
from minllm.training.budget import ENDLESS, Budget
from minllm.training.checkpoints import Progress
from minllm.training.loggers import Silent
from minllm.training.loop import fit, part_ended
from minllm.training.optimizers import AdamW
from minllm.training.run import Run
from minllm.training.schedules import Constant
from minllm.training.settings import Settings
from minllm.training.step import whole_batch_gradient

ROWS, LENGTH, VOCABULARY = 6, 5, 11


class Bigram(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = parameter(VOCABULARY, 8, kind="embedding", draw=normal(0.5))
        self.head = Linear(8, VOCABULARY, stream="reads")

    def forward(self, tokens_BT):
        return self.head(F.dropout(F.embedding(tokens_BT, self.embedding), 0.25, self.training))


class NextToken(Objective):
    def loss(self, model, inputs):
        return self.each(model, inputs).sum()

    def nats(self, model, batch, noise):
        return self.each(model, batch).sum(1)

    def inputs(self, batch, noise, model):
        return batch

    def each(self, model, batch):
        return F.cross_entropy(model(batch.tokens_BT).mT, batch.targets_BT, reduction="none")


class Batches:
    """Rows with very different numbers of counted targets, drawn from the step alone."""

    rows, tokens, bytes = 2 * ROWS, 40, 100

    def batch(self, step):
        drawn = torch.randint(VOCABULARY, (2, ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
        tokens_BT, targets_BT = drawn
        return Batch(
            tokens_BT, targets_BT.masked_fill(torch.ones(ROWS, LENGTH).triu(1).bool(), IGNORED), None
        )

    def batches(self, first, every):
        whole = [(range(i * ROWS, (i + 1) * ROWS), self.batch(1000 + i)) for i in range(2)]
        return whole[first::every]


def make_run(path, steps=8, **changed):
    options = {"steps": steps, "tokens": None, "minutes": None, "flops": None, "batch_size": ROWS}
    options |= {
        "micro_batch_size": None,
        "log_every": 2,
        "eval_every": 3,
        "evals": None,
        "checkpoint_every": 4,
    }
    options |= {
        "keep_checkpoints": 9,
        "sample_every": 0,
        "precision": "fp32",
        "compile": False,
        "device": "cpu",
    }
    settings = Settings(**{**options, "clip": 1.0, "malloc": "default", **changed})
    model = Bigram()
    initialise(model, seed=0)
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    return Run(
        seed=0,
        settings=settings,
        folder=RunDir(path),
        logger=Silent(),
        model=model,
        objective=NextToken(),
        optimizer=AdamW(
            model,
            lr=0.01,
            weight_decay=0.1,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            decay_embeddings=True,
            cautious_decay=False,
        ),
        schedule=Constant(lr_max=0.01, warmup_steps=0),
        budget=Budget.of(settings, ROWS * LENGTH, 100.0),
        progress=Progress(decisions={"micro_batch_size": settings.micro_batch_size or ROWS}),
        train_batches=Batches(),
        validation=Batches(),
        floor_bpb=None,
        sample=lambda: [("", "text")],
        device=torch.device("cpu"),
        precision="fp32",
        tokens_per_step=ROWS * LENGTH,
    )


def resumed(path, **changed):
    run = make_run(path, **changed)
    checkpoint = checkpoints.all_in(path / "checkpoints")[-1]
    run.progress = checkpoints.read_progress(checkpoint)
    run.budget.go_on(run.progress.step, run.progress.seconds, run.progress.position, run.progress.total_steps)
    checkpoints.load_weights(checkpoint, run.model)
    checkpoints.load_optimizer(checkpoint, run.optimizer)
    run.folder.resume_at(run.progress.step, run.progress.records)
    return run


def figures(path):
    """The metrics of a run without what depends on the clock."""
    clock = {"seconds", "tokens_per_second", "mfu", "memory_bytes"}
    events = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in event.items() if name not in clock} for event in events]


def gradient(run):
    loss = whole_batch_gradient(run, run.objective.loss)
    return loss.item(), [param.grad.clone() for param in run.model.parameters()]


@pytest.mark.parametrize(
    "changed, steps",
    [({"evals": 4}, [2, 4, 6, 8]), ({"evals": 3}, [3, 6, 8]), ({"evals": 2, "eval_every": 3}, [3, 4, 6, 8])],
    ids=str,
)
def test_evaluations_can_be_spread_evenly_over_a_run(tmp_path, changed, steps):
    fit(make_run(tmp_path, **{"eval_every": 0, **changed}))
    assert [event["step"] for event in figures(tmp_path) if "val_loss" in event] == steps


def test_a_run_whose_length_is_not_known_yet_is_not_divided():
    budget = Budget(steps=None, seconds=60.0, total_steps=ENDLESS)
    budget.advance(1, 0.1, 0.1)
    assert budget.passed(10) == 0 and budget.passed(None) == 0


def test_running_out_of_memory_is_known_by_what_an_error_came_from():
    def chain(first: BaseException) -> BaseException:
        try:
            try:
                raise first
            except BaseException as error:
                raise RuntimeError("a step failed") from error
        except RuntimeError as error:
            return error

    assert memory.ran_out(chain(MemoryError())) and memory.ran_out(chain(torch.OutOfMemoryError()))
    assert memory.ran_out(chain(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")))
    assert not memory.ran_out(chain(ValueError("no")))


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_micro_batches_give_the_whole_batch_its_loss_and_gradient(tmp_path, rows):
    whole, parts = make_run(tmp_path), make_run(tmp_path, micro_batch_size=rows)
    whole.model.eval(), parts.model.eval()  # dropout draws differ with the shape
    loss, grads = gradient(whole)
    loss_in_parts, grads_in_parts = gradient(parts)
    assert loss_in_parts == pytest.approx(loss, rel=1e-6)
    for one, other in zip(grads, grads_in_parts):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_and_resuming_gives_the_same_figures_to_the_bit(tmp_path, number):
    fit(make_run(tmp_path / "whole", steps=8))
    stopped = make_run(tmp_path / "parts", steps=8)

    class Stop(Silent):
        def log(self, event):
            if event["step"] == 4:
                os.kill(os.getpid(), number)

    stopped.logger = Stop()
    assert fit(stopped) == number
    assert [event["step"] for event in figures(tmp_path / "parts")] == [2, 3, 4]
    assert fit(resumed(tmp_path / "parts", steps=8)) is None
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


@pytest.mark.parametrize("evals", [1, 3, 5, 20])
@pytest.mark.parametrize("pace", [lambda step: 1.0, lambda step: 0.2 + step % 7, lambda step: 9.0 / step])
def test_a_resumed_run_knows_whether_its_step_ended_a_part_however_long_steps_take(evals, pace):
    """Under a budget of minutes a step moves the run by its share of the time that is left, and not by one."""
    budget, progress, seconds, ended = Budget(None, 60.0, ENDLESS), Progress(), 0.0, 0
    run = SimpleNamespace(budget=budget, progress=progress, settings=SimpleNamespace(evals=evals))
    for step in range(1, 40):
        seconds += pace(step)
        if seconds >= 60:
            break
        evaluated, progress.before = budget.passed(evals), [budget.position, budget.total_steps]
        budget.advance(step, seconds, pace(step))
        progress.position, progress.total_steps = budget.position, budget.total_steps
        again = Budget(None, 60.0, ENDLESS)
        again.go_on(step, seconds, progress.position, progress.total_steps)
        resumed_run = SimpleNamespace(budget=again, progress=progress, settings=run.settings)
        assert part_ended(resumed_run) == part_ended(run) == (budget.passed(evals) > evaluated), step
        ended += part_ended(run)
    assert ended or evals == 1


def test_resuming_between_two_lines_keeps_their_mean(tmp_path):
    fit(make_run(tmp_path / "whole", log_every=3))
    # as after a kill: the last checkpoint is of step 4, metrics go further, and a line is torn
    fit(make_run(tmp_path / "parts", log_every=3))
    for step in (6, 8):
        for file in (tmp_path / "parts" / "checkpoints" / f"step-00000{step}").iterdir():
            file.unlink()
        file.parent.rmdir()
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "tok')
    fit(resumed(tmp_path / "parts", log_every=3))
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_samples_after_the_checkpoint_are_cut(tmp_path):
    run = make_run(tmp_path)
    for step in (2, 4, 6):
        run.folder.samples(step, [f"text of {step}"])
    run.folder.resume_at(4, {})
    assert (
        tmp_path / "samples.txt"
    ).read_text() == "=== step 2 ===\ntext of 2\n\n=== step 4 ===\ntext of 4\n\n"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()],
)
def test_when_memory_runs_out_micro_batches_halve_and_the_step_stays(tmp_path, error):
    class Hungry(NextToken):
        def loss(self, model, inputs):
            if len(inputs.tokens_BT) > 2:
                raise error
            return super().loss(model, inputs)

    hungry, calm = make_run(tmp_path / "hungry"), make_run(tmp_path / "calm", micro_batch_size=1)
    hungry.objective = Hungry()
    hungry.model.eval(), calm.model.eval()
    loss, grads = gradient(hungry)
    assert hungry.progress.decisions["micro_batch_size"] == 1
    assert loss == gradient(calm)[0]
    for one, other in zip(grads, gradient(calm)[1]):
        assert torch.equal(one, other)
    assert "continuing with 3" in (tmp_path / "hungry" / "log.txt").read_text()


def test_when_memory_runs_out_in_an_evaluation_it_goes_on_with_fewer_rows(tmp_path):
    class Hungry(NextToken):
        def nats(self, model, batch, noise):
            if run.validation.batch_size > 2:
                raise RuntimeError("can't allocate memory")
            return super().nats(model, batch, noise)

    run = make_run(tmp_path, steps=3)
    run.objective = Hungry()
    fit(run)
    assert run.progress.decisions["micro_batch_size"] == 1 and run.model.training
    assert "val_loss" in figures(tmp_path)[-1]


def test_when_memory_runs_out_at_one_row_the_user_is_told_what_to_do(tmp_path):
    class Starving(NextToken):
        def loss(self, *args):
            raise torch.OutOfMemoryError("CUDA out of memory")

    run = make_run(tmp_path)
    run.objective = Starving()
    with pytest.raises(UserError, match="data.seq_len"):
        fit(run)


def test_other_errors_keep_their_traceback(tmp_path):
    class Broken(NextToken):
        def loss(self, *args):
            raise RuntimeError("shapes don't match")

    run = make_run(tmp_path)
    run.objective = Broken()
    with pytest.raises(RuntimeError, match="shapes"):
        fit(run)


def test_divergence_stops_the_run_before_it_spoils_the_weights(tmp_path):
    class Diverging(NextToken):
        def loss(self, model, inputs):
            loss = super().loss(model, inputs)
            return loss * float("nan") if model.training and run.progress.step == 5 else loss

    run = make_run(tmp_path)
    run.objective = Diverging()
    with pytest.raises(UserError, match="NaN or infinite at step 5.*optim.lr.*step-000004"):
        fit(run)
    assert all(param.isfinite().all() for param in run.model.parameters())


def test_the_best_evaluation_has_a_checkpoint_even_between_two_periodic_ones(tmp_path):
    run = make_run(tmp_path, checkpoint_every=0, keep_checkpoints=1)
    fit(run)
    kept = {checkpoints.step_of(path) for path in checkpoints.all_in(tmp_path / "checkpoints")}
    assert kept == {run.progress.best["step"], 8}
    best = min((e for e in figures(tmp_path) if "val_loss" in e), key=lambda e: e["val_loss"])
    assert run.progress.best == {"step": best["step"], "val_loss": best["val_loss"]}


def test_a_budget_of_time_ends_the_run_with_an_evaluation_and_a_checkpoint(tmp_path):
    run = make_run(tmp_path, steps=None, minutes=0.5 / 60)
    fit(run)
    assert 0.5 <= run.progress.seconds < 3
    assert "val_loss" in figures(tmp_path)[-1]
    assert checkpoints.all_in(tmp_path / "checkpoints")[-1].name == f"step-{run.progress.step:06d}"


def test_compile_auto_decides_once_and_a_resumed_run_decides_the_same(tmp_path, monkeypatch):
    asked = []

    def choose(device, seconds_left):
        asked.append(seconds_left)
        return False, "asked"

    monkeypatch.setattr(machine, "choose_compile", choose)
    fit(make_run(tmp_path, compile="auto"))
    assert len(asked) == 1 and asked[0] < 60
    again = resumed(tmp_path, steps=12, compile="auto")
    fit(again)
    assert len(asked) == 1 and again.progress.decisions["compile"] is False


def test_compiling_pays_in_long_runs_only(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/c++")
    assert machine.choose_compile(torch.device("cpu"), seconds_left=60)[0] is False
    assert machine.choose_compile(torch.device("cpu"), seconds_left=3600)[0] is True
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.choose_compile(torch.device("cpu"), seconds_left=3600)[0] is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="train.device=cpu"):
        machine.choose_device("cuda")


def test_auto_precision_is_the_faster_one(monkeypatch):
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(machine, "_product_seconds", seconds.get)
    monkeypatch.setattr(machine, "_onednn_has_bf16", lambda: False)
    assert machine.choose_precision("auto", torch.device("cpu"))[0] == "fp32"
    monkeypatch.setattr(machine, "_onednn_has_bf16", lambda: True)
    assert machine.choose_precision("auto", torch.device("cpu"))[0] == "bf16"
    seconds[torch.bfloat16] = 300.0
    assert machine.choose_precision("auto", torch.device("cpu"))[0] == "fp32"
    assert machine.choose_precision("bf16", torch.device("cpu"))[0] == "bf16"


def test_the_optimizer_takes_the_steps_that_torch_takes(tmp_path):
    run = make_run(tmp_path)
    other = make_run(tmp_path)
    options = {"decay_embeddings": True, "cautious_decay": False}
    ours = AdamW(run.model, lr=0.1, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-6, **options)
    torchs = torch.optim.AdamW(other.model.parameters(), lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    for optimizer, model in ((ours, run.model), (torchs, other.model)):
        for step in range(3):
            optimizer.zero_grad()
            model.eval()(Batches().batch(step).tokens_BT).square().mean().backward()
            optimizer.step()
    for one, another in zip(run.model.parameters(), other.model.parameters()):
        torch.testing.assert_close(one, another)
