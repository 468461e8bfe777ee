"""Whole runs, from a configuration to a folder: what they leave, and how they stop and go on."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

import minllm
import run as door
from minllm.errors import UserError
from minllm.runs import folder
from minllm.training import checkpoints, loggers, loop
from tests.commands import Command
from tests.tiny import options, unjudged

TINY = [
    "tokenizer=bytes",
    "model.dim=16",
    "model.n_layers=1",
    "model.attn.n_heads=2",
    "model.attn.n_kv_heads=1",
]
TINY += [
    "data=text",
    "data.seq_len=16",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.compile=false",
    "train.check=false",
]
TINY += ["train.log_every=2", "train.eval_every=3", "train.checkpoint_every=2", "train.sample_every=0"]
TINY += ["sample.max_new_tokens=8", "schedule=constant", "schedule.warmup_steps=1", "train.malloc=default"]
CLOCK = {"seconds", "tokens_per_second", "mfu", "memory_bytes"}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """What is typed for the smallest run, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    text = "\n".join(f"{number} times {number} is {number**2}." for number in range(60))
    Path("squares.txt").write_text(text, encoding="utf-8")
    return [*TINY, f"data.path={tmp_path / 'squares.txt'}", f"data.cache={tmp_path / 'stores'}"]


def train(words, *more, run_dir=None):
    return minllm.train(unjudged(*words, *more), run_dir)


def figures(run):
    """The metrics of a run without what depends on the clock."""
    events = [
        json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [{name: value for name, value in event.items() if name not in CLOCK} for event in events]


def started(words, *more, run):
    """Start a run as a process of its own; return it once it has some checkpoints."""
    words = [*words, *more, f"hydra.run.dir={run}"]
    process = Command("run.py", *words, cwd=Path.cwd())
    while not Path(run, "checkpoints", "step-000004").exists() and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.slow  # torch.compile takes its time, even for a model this small
def test_compiled_steps_compute_what_eager_ones_do(words):
    """In rows whose documents mustn't see each other, with padding that isn't left out, and with the same dropout.

    The norm of the gradient is among the metrics, so that what the backward pass drops is compared too.
    """
    # scalar code: checking which vector instructions the compiler supports takes as long as compiling the steps
    with inductor.patch({"cpp.vec_isa_ok": False}):
        for compiled in ("true", "false"):
            train(
                words,
                *("train.steps=1", "train.batch_size=48", f"train.compile={compiled}", "data.packing=pack"),
                *("model.n_layers=1", "model.dropout=0.2", "data.separator='.'", "data.seq_len=24"),
                run_dir=compiled,
            )
    for compiled, eager in zip(figures("true"), figures("false"), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)


def test_a_run_leaves_a_folder_that_tells_all_about_it(words):
    summary = train(words, "train.steps=5", "seed=3", run_dir="run")
    assert json.loads(Path("run/summary.json").read_text(encoding="utf-8")) == summary
    assert summary.keys() >= {
        "val_loss", "val_bpb", "params", "params_active", "params_non_embedding", "flops_per_token",
        "state_bytes_per_sequence", "tokens", "tokens_per_second", "wall_seconds", "peak_memory_bytes", "seed",
        "choices", "mfu", "peak_flops", "peak_flops_source",
    }  # fmt: skip
    used = summary["tokens_per_second"] * summary["flops_per_token"]
    assert summary["mfu"] == pytest.approx(used / summary["peak_flops"])
    assert summary["peak_flops_source"] == "measured"
    assert summary["tokens"] == 5 * 4 * 16 and summary["seed"] == 3
    assert summary["choices"]["model/attn"] == "gqa" and summary["choices"]["tokenizer"] == "bytes"

    events = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(event.keys() >= {"step", "tokens", "seconds"} for event in events)
    steps = [event["step"] for event in events if "train_loss" in event]
    assert steps == [2, 4, 5]
    assert events[-1]["val_loss"] == summary["val_loss"] and events[-1]["val_bpb"] == summary["val_bpb"]
    logged = events[0].keys()
    assert logged >= {"train_loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes"}

    environment = json.loads(Path("run/environment.json").read_text(encoding="utf-8"))
    assert torch.__version__.startswith(
        environment["versions"]["torch"]
    )  # which may lack a build such as +cu130
    assert environment["threads"] == torch.get_num_threads() and "commit" in environment["git"]
    assert Path("run/samples.txt").read_text(encoding="utf-8").startswith("=== step 5 ===\n")
    log = Path("run/log.txt").read_text(encoding="utf-8")
    assert "Validation: " in log and re.search(
        r"tokens/s \(mfu [\d.]+% of a measured [\d.e+-]+ TFLOP/s\)", log
    )
    assert not list(Path("run").rglob("*.partial"))


def test_bits_a_byte_are_those_of_the_whole_validation_set(words):
    summary = train(words, "train.steps=1", run_dir="run")
    # with bytes as tokens there is one prediction a byte, and one more for each document's end
    text = Path("squares.txt").read_text(encoding="utf-8")
    bytes_, nats = round(len(text) * 0.1), summary["val_loss"]
    assert summary["val_bpb"] == pytest.approx(nats / 0.6931 * (bytes_ + 1) / bytes_, rel=0.02)


def test_the_seed_decides_everything(words):
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(words, "train.steps=4", f"seed={seed}", "model.dropout=0.2", run_dir=run)
    assert figures("a") == figures("b")
    assert figures("a") != figures("c")


def test_a_trained_run_loads_and_writes_what_it_wrote(words):
    summary = train(words, "train.steps=6", run_dir="run")
    model, tokenizer, cfg = minllm.load("run")
    assert not model.training and cfg.model.dim == 16
    assert sum(p.numel() for p in model.parameters()) == summary["params"]
    last, _, _ = checkpoints.load("run", which="last")
    options = {"max_new_tokens": 8, "temperature": cfg.sample.temperature, "min_p": cfg.sample.min_p}
    text = minllm.generate(last, tokenizer, [""], **options, seed=cfg.sample.seed)[0]
    assert (
        text.rstrip()
        == Path("run/samples.txt").read_text(encoding="utf-8").split("=== step 6 ===\n")[1].rstrip()
    )


def test_evaluate_finds_what_training_found(words):
    summary = train(words, "train.steps=6", run_dir="run")
    from minllm.config.compose import perform

    found = perform(minllm.compose(["task=evaluate", "run=run"]), Path("unused"))
    assert found["val_loss"] == pytest.approx(summary["best"]["val_loss"], rel=1e-6)
    assert not Path("unused").exists()


@pytest.mark.parametrize("optim", options("optim"))
def test_a_longer_run_is_a_shorter_one_resumed(words, optim):
    train(words, optim, "train.steps=9", "model.dropout=0.3", run_dir="whole")
    train(words, optim, "train.steps=4", "model.dropout=0.3", run_dir="parts")
    # the shorter run evaluated at its end, which the longer one had no reason to
    extra = [event for event in figures("parts") if event["step"] == 4 and "val_loss" in event]
    minllm.train(minllm.compose(["resume=parts", "train.steps=9"]))
    assert [event for event in figures("parts") if event not in extra] == figures("whole")
    assert len(extra) == 1


def test_a_finished_run_needs_a_larger_budget_to_go_on(words):
    train(words, "train.steps=4", run_dir="run")
    before = figures("run")
    with pytest.raises(UserError, match="train.steps=8"):
        minllm.train(minllm.compose(["resume=run"]))
    assert figures("run") == before


@pytest.mark.slow  # a process of its own, which imports torch
def test_killed_at_any_moment_a_run_goes_on_as_if_it_had_not_been(words):
    process = started(words, "train.steps=100000", "model.dropout=0.3", "train.malloc=keep", run="killed")
    process.kill()
    process.wait()
    step = checkpoints.step_of(checkpoints.find("killed", "last"))
    minllm.train(minllm.compose(["resume=killed", f"train.steps={step + 5}"]))
    train(words, f"train.steps={step + 5}", "model.dropout=0.3", run_dir="whole")
    assert figures("killed") == figures("whole")
    assert not list(Path("killed").rglob("*.partial"))
    if platform.libc_ver()[0] == "glibc":
        assert "glibc keeps freed pages" in Path("killed/log.txt").read_text(encoding="utf-8")


@pytest.mark.slow  # a process of its own, which imports torch
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_way_to_go_on(words):
    process = started(words, "train.steps=100000", run="run")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM and "Traceback" not in process.err
    step = checkpoints.step_of(checkpoints.find("run", "last"))
    assert f"Stopped at step {step}. To continue: python run.py resume=" in Path("run/log.txt").read_text(
        encoding="utf-8"
    )
    assert not Path("run/summary.json").exists()
    minllm.train(minllm.compose(["resume=run", f"train.steps={step + 1}"]))
    assert figures("run")[-1]["step"] == step + 1


def test_init_from_begins_a_new_run_with_the_best_weights_of_another(words):
    first = train(words, "train.steps=6", run_dir="first")
    second = train(words, "init_from=first", "train.steps=1", "optim.lr=1e-9", run_dir="second")
    assert second["val_loss"] == pytest.approx(first["best"]["val_loss"], rel=1e-4)
    assert figures("second")[0]["step"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [("model.dim=24", "different architecture"), ("tokenizer=tales_512", "was trained with tokenizer=bytes")],
)
def test_init_from_another_kind_of_model_is_refused(words, change, said):
    train(words, "train.steps=1", run_dir="first")
    with pytest.raises(UserError, match=said):
        train(words, "init_from=first", change, "train.steps=1", run_dir="second")
    assert not Path("second").exists()


def performed(*words):
    from minllm.config.compose import perform

    return perform(minllm.compose(list(words)), Path("unused"))


def test_a_checkpoint_knows_its_tokenizer(words):
    train(words, "train.steps=1", run_dir="run")
    assert checkpoints.read_progress(checkpoints.find("run", "last")).tokenizer == "bytes"
    said = r"was trained with tokenizer=bytes \(bytes\) and can.t read tokens of tokenizer=tales_512 \(\w{8}\).*Leave"
    for task in ("generate", "evaluate"):
        with pytest.raises(UserError, match=said):
            performed(f"task={task}", "run=run", "tokenizer=tales_512")
        short = ["sample.max_new_tokens=2"] if task == "generate" else []
        performed(f"task={task}", "run=run", "tokenizer=bytes", *short)


def test_a_checkpoint_of_before_has_its_runs_tokenizer(words):
    train(words, "train.steps=1", run_dir="run")
    state = checkpoints.find("run", "last") / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "tokenizer"}))
    with pytest.raises(UserError, match="with tokenizer=bytes"):
        performed("task=evaluate", "run=run", "tokenizer=tales_512")
    minllm.load("run")
    minllm.train(minllm.compose(["resume=run", "train.steps=2"]))
    assert checkpoints.read_progress(checkpoints.find("run", "last")).tokenizer == "bytes"


def test_a_tokenizer_that_was_exchanged_is_noticed(words):
    """A run of characters goes with its own, whatever the data are now, and not with another's."""
    chars = [word.replace("tokenizer=bytes", "tokenizer=chars") for word in words]
    train(chars, "train.steps=1", run_dir="run")
    Path("other.txt").write_text("Zebras and other letters.\n" * 40, encoding="utf-8")
    other = ["data=text", "data.path=other.txt", "data.seq_len=16"]
    performed("task=evaluate", "run=run", *other)
    unsaid = [word for word in words if word != "tokenizer=bytes"]
    train(unsaid, "init_from=run", "train.steps=1", *other, run_dir="tuned")
    assert minllm.load("tuned")[1].fingerprint == minllm.load("run")[1].fingerprint
    with pytest.raises(UserError, match="tokenizer=chars .* tokens of tokenizer=chars"):
        performed("task=evaluate", "run=run", "tokenizer=chars", *other)
    Path("run/tokenizer/characters.json").write_text('{"characters": "ab"}', encoding="utf-8")
    for typed in (["task=evaluate", "run=run"], ["resume=run", "train.steps=2"], ["init_from=run"]):
        with pytest.raises(UserError, match=r"run/tokenizer \(\w{8}\) isn't the one that step-000001 was"):
            performed(*typed)


def test_a_resumed_run_remembers_what_it_began_from(words):
    train(words, "train.steps=1", run_dir="first")
    train(words, "init_from=first", "train.steps=2", run_dir="second")
    shutil.rmtree("first")
    minllm.train(minllm.compose(["resume=second", "train.steps=4"]))
    assert minllm.load("second")[2].init_from == str(Path("first").resolve())


@pytest.mark.parametrize("change", ["more of them", "others of the same lengths"])
def test_resume_refuses_documents_that_have_changed(words, change):
    train(words, "train.steps=2", run_dir="run")
    before = figures("run")
    text = Path("squares.txt").read_text(encoding="utf-8")
    Path("squares.txt").write_text(
        text + "One more." if change == "more of them" else text.replace("times", "cubes"), encoding="utf-8"
    )
    with pytest.raises(UserError, match="documents have changed"):
        minllm.train(minllm.compose(["resume=run", "train.steps=4"]))
    assert figures("run") == before


def test_damaged_metrics_are_named_before_anything_is_written(words):
    train(words, "train.steps=2", run_dir="run")
    config = Path("run/config.yaml").read_text(encoding="utf-8")
    with Path("run/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("no event\n")
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: line \d"):
        minllm.train(minllm.compose(["resume=run", "train.steps=4"]))
    assert Path("run/config.yaml").read_text(encoding="utf-8") == config


def test_the_logger_is_ended_whatever_ends_the_run(words, monkeypatch):
    ended = []
    monkeypatch.setattr(loggers.Silent, "finish", lambda self, summary: ended.append(summary))
    monkeypatch.setattr(loop, "evaluate", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(words, "train.steps=3", run_dir="run")
    assert ended == [{}]


def test_a_second_run_does_not_write_over_the_first(words):
    train(words, "train.steps=1", run_dir="run")
    before = figures("run")
    with pytest.raises(UserError, match="resume=run"):
        train(words, "train.steps=2", run_dir="run")
    assert figures("run") == before


def test_what_cannot_be_trained_is_refused_before_anything_is_written(words):
    with pytest.raises(UserError, match="schedule.warmup_steps"):
        train(words, "train.steps=4", "schedule.warmup_steps=5", run_dir="run")
    assert not Path("run").exists()


@pytest.mark.parametrize("packing", ["concat", "pad", "pack"])
def test_micro_batches_change_nothing_but_memory(words, packing):
    for rows in (4, 3, 1):
        train(
            words,
            "train.steps=4",
            f"data.packing={packing}",
            f"train.micro_batch_size={rows}",
            run_dir=f"{rows}",
        )
    for parts in ("3", "1"):
        for one, other in zip(figures("4"), figures(parts)):
            assert other == pytest.approx(one, rel=1e-4)


def test_bf16_trains_as_fp32_does_but_for_rounding(words):
    fp32 = train(words, "train.steps=6", run_dir="fp32")
    bf16 = train(words, "train.steps=6", "train.precision=bf16", run_dir="bf16")
    assert fp32["val_loss"] != bf16["val_loss"]
    assert fp32["val_loss"] == pytest.approx(bf16["val_loss"], rel=0.01)
    assert all(p.dtype == torch.float32 for p in minllm.load("bf16")[0].parameters())


def test_the_precision_of_products_is_that_of_the_run_while_it_lasts(words, monkeypatch):
    used, fit = [], minllm.training.train.fit

    def noted(run):
        used.append(torch.get_float32_matmul_precision())
        return fit(run)

    monkeypatch.setattr(minllm.training.train, "fit", noted)
    before = torch.get_float32_matmul_precision()
    for wanted in ("high", "highest"):
        train(words, "train.steps=1", f"train.matmul_precision={wanted}", run_dir=wanted)
    assert used == ["high", "highest"] and torch.get_float32_matmul_precision() == before


def test_a_budget_of_flops_is_kept(words):
    per_token = train(words, "train.steps=1", run_dir="one")["flops_per_token"]
    summary = train(words, "train.steps=null", f"train.flops={per_token * 4 * 16 * 3}", run_dir="three")
    assert summary["steps"] == 3


def test_the_first_step_waits_for_no_library_it_does_not_need(words):
    """torch._dynamo alone takes as long as torch: a run would take twice as long to begin."""
    script = """
import sys, minllm
from minllm.training import loop
class Seen(Exception): pass
def stop(run, **figures): raise Seen
loop.record = stop
for optim in sys.argv[1].split():
    try:
        minllm.train(minllm.compose([*sys.argv[2:], optim]))
    except Seen:
        heavy = {"torch._dynamo", "sympy", "transformers", "datasets", "pandas", "wandb", "matplotlib"}
        print(optim, sorted(heavy & sys.modules.keys()))
"""
    optims = options("optim")
    done = subprocess.run(
        [sys.executable, "-c", script, " ".join(optims), *words, "train.log_every=1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(door.__file__).parent)},
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("optim=")]
    assert said == [f"{optim} []" for optim in optims], done.stderr


def test_recording_the_environment_writes_nothing_in_the_repository(tmp_path, monkeypatch):
    """A run that was killed while git held its lock would keep its user from committing."""
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@here", "-C", str(tmp_path)]
    (tmp_path / "idea.py").write_text("width = 1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "An idea"]):
        subprocess.run([*git, *command], check=True)
    os.utime(tmp_path / "idea.py", (1, 1))  # git would note that the file is still the same
    before = (tmp_path / ".git/index").read_bytes()
    monkeypatch.setattr(folder, "__file__", str(tmp_path / "idea.py"))
    monkeypatch.setattr(folder, "_git", folder._git.__wrapped__)
    found = folder.environment()["git"]
    assert len(found["commit"]) == 40 and not found["dirty"]
    assert (tmp_path / ".git/index").read_bytes() == before
