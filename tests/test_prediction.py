"""What a run holds in memory: followed exactly on real tensors, and predicted within 15 % of what runs hold."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch._subclasses import FakeTensor, FakeTensorMode

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.sweep import prediction
from minllm.sweep.prediction import Imagined, LiveStorages, predicted_peak
from tests.tiny import VOCAB, completed, options, tiny_cfg

CPU = torch.device("cpu")
LETTERS = SimpleNamespace(vocab_size=VOCAB)
KIB = 1024


def kib(n: int) -> torch.Tensor:
    return torch.zeros(n * KIB, dtype=torch.uint8)


def test_what_lives_is_followed_from_when_it_is_made_to_when_it_dies():
    with LiveStorages(CPU) as storages:
        x = kib(4)
        y = kib(2)
        assert storages.bytes == 6 * KIB
        del x
        assert storages.bytes == 2 * KIB
        y = y + 1
        assert storages.bytes == 2 * KIB
    assert storages.peak_bytes == 6 * KIB


def test_views_share_a_storage_and_keep_it_alive():
    with LiveStorages(CPU) as storages:
        x = kib(4)
        half, reshaped = x[: 2 * KIB], x.view(4, KIB).T
        assert storages.bytes == 4 * KIB
        del x, reshaped
        assert storages.bytes == 4 * KIB
        del half
        assert storages.bytes == 0
    assert storages.peak_bytes == 4 * KIB


def test_what_is_changed_in_place_takes_nothing_and_what_is_resized_takes_its_new_size():
    with LiveStorages(CPU) as storages:
        x = kib(4)
        x.add_(1).mul_(2)
        assert storages.peak_bytes == 4 * KIB
        x.resize_(6 * KIB)
        assert storages.bytes == storages.peak_bytes == 6 * KIB


def test_temporaries_count_in_the_peak():
    with LiveStorages(CPU) as storages:
        x = kib(1)
        x = (x + 1) * (x + 2)  # both sums live while the product is made
        assert storages.bytes == KIB
    assert storages.peak_bytes == 4 * KIB


def test_several_results_count_each():
    with LiveStorages(CPU) as storages:
        values, indices = torch.zeros(KIB).sort()
        assert storages.bytes == (4 + 8) * KIB
        del values
        assert storages.bytes == 8 * KIB


def test_what_backward_needs_lives_until_it_has_been_there():
    with LiveStorages(CPU) as storages:
        x = torch.zeros(KIB, requires_grad=True)
        y = x.sin().exp().sum()  # keeps x, and what exp gave
        assert storages.bytes == (4 + 4) * KIB + 4
        y.backward()
        del y
        assert storages.bytes == (4 + 4) * KIB  # x and its gradient


def test_another_device_is_left_out():
    with LiveStorages(CPU) as storages:
        torch.zeros(KIB, device="meta")
    assert storages.peak_bytes == 0


def test_what_lived_before_counts_when_it_is_met():
    x = kib(4)
    with LiveStorages(CPU) as storages:
        x.add_(1)
        assert storages.bytes == 4 * KIB


def test_fake_tensors_are_followed_like_real_ones():
    def work() -> None:
        x = torch.zeros(64, 64, requires_grad=True)
        (x @ x).softmax(-1).sum().backward()

    with LiveStorages(CPU) as real:
        work()
    with FakeTensorMode(), LiveStorages(CPU) as fake:
        work()
    assert fake.peak_bytes == real.peak_bytes > 0


def test_inside_a_custom_operation_is_looked_at_once_a_shape():
    taken = []

    @torch.library.custom_op("test_prediction::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        taken.append(x.shape)
        return x.repeat(4)[: len(x)] * 2  # four times as much as comes out

    doubled.register_fake(torch.empty_like)
    with FakeTensorMode(), Imagined(CPU) as storages:
        x = kib(1)
        for _ in range(2):
            assert doubled(x).shape == x.shape
            assert storages.bytes == KIB
            assert storages.peak_bytes == 6 * KIB
    assert taken == [(KIB,)]


@pytest.mark.parametrize(
    "precision, words",
    [
        ("fp32", []),
        ("bf16", []),
        ("bf16", ["optim=muon"]),
        ("fp32", ["train.ema=0.9999"]),
        ("fp32", ["optim=sgd", "norm=post", "model.tie_embeddings=false"]),
        ("fp32", ["optim=lion", "model/attn=mla", "train.micro_batch_size=2"]),
        ("bf16", ["model/mlp=moe_expert_choice"]),
        ("fp32", ["objective.predict_ahead=2", "optim.cautious_decay=true"]),
        ("fp32", ["model/rec=gla", "model.layout=[rec mlp]", "data.packing=pack"]),
        ("bf16", ["model/residual=hyper", "model.dropout=0.1"]),
        ("fp32", ["train.recompute=layers", "model.dropout=0.1", "model.attn.value_residual=true"]),
        ("bf16", ["train.recompute=branches", "model/mlp=moe_expert_choice"]),
    ],
    ids=str,
)
def test_fake_steps_hold_what_real_ones_hold(precision, words):
    cfg = compose(["model.dim=64", "model.n_layers=2", "data.seq_len=48", "train.batch_size=4", *words])
    rows = cfg.train.micro_batch_size or 4
    with LiveStorages(CPU) as real:
        lasting = prediction.train(cfg, LETTERS, rows, CPU, precision, real)
    with FakeTensorMode(), Imagined(CPU) as fake:
        assert prediction.train(cfg, LETTERS, rows, CPU, precision, fake) == lasting
    # the inside of a scan is seen in one of the two only
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=0.02)


LAYERS = {"attn": "attn", "rec": "rec", "mlp": "mlp", "residual": "attn mlp"}
"""The layer that a group's options are predicted in."""

MIXERS = [one for group in LAYERS for one in options(f"model/{group}")]
READS_MEMORY = "model/attn=cross"  # which only an objective of the tests gives it


@pytest.mark.parametrize("choice", [one for one in MIXERS if one != READS_MEMORY])
def test_every_mixer_can_be_predicted(choice):
    group, _, name = choice.removeprefix("model/").partition("=")
    layer = "attn mlp" if name == "none" else LAYERS[group]  # a layer needs a branch
    cfg = OmegaConf.merge(tiny_cfg(*completed(choice)), {"model": {"n_layers": 1, "layout": [layer]}})
    weights = sum(4 * p.numel() for p in build_shapes(cfg, VOCAB).parameters())
    with FakeTensorMode(), Imagined(CPU) as fake:
        lasting, _ = prediction.train(cfg, LETTERS, cfg.train.batch_size, CPU, "fp32", fake)
    assert fake.peak_bytes > lasting > 2 * weights  # Adam's means of gradients, and of their squares


def test_more_rows_at_a_time_hold_more():
    cfg = compose(["data.seq_len=64", "model.n_layers=1", "train.precision=fp32"])
    few, many = (predicted_peak(cfg, rows) for rows in (1, 8))
    assert few + 10 * 2**20 < many


def test_what_is_recomputed_holds_less():
    words = ["data.seq_len=64", "model.dim=64", "model.n_layers=3", "model.attn.n_heads=4"]
    held = {}
    for recompute in ("none", "branches", "layers"):
        cfg = compose([*words, f"train.recompute={recompute}"])
        with FakeTensorMode(), Imagined(CPU) as fake:
            lasting, _ = prediction.train(cfg, LETTERS, 8, CPU, "fp32", fake)
        held[recompute] = fake.peak_bytes - lasting
    assert held["layers"] < held["none"] / 2 and held["branches"] < held["none"] / 2


def test_nothing_stays_behind():
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    words = ["model.dropout=0.1", "model.n_layers=2", "data.seq_len=32", "train.recompute=layers"]
    predicted_peak(compose(words), precision="bf16")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before[1:]
    assert not isinstance(torch.zeros(1), FakeTensor)
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_an_impossible_model_is_refused_and_leaves_no_mode():
    with pytest.raises(UserError, match="isn't divisible"):
        predicted_peak(compose(["model.attn.n_heads=4", "model.attn.n_kv_heads=3"]), precision="fp32")
    assert torch._C._len_torch_dispatch_stack() == 0


# it predicts and then trains, as each trial of a sweep does, in a process forked from one that has imported everything
WARM = """
import contextlib, gc, json, os, sys, tempfile, time
from pathlib import Path
from minllm.bench.contestants import SETTINGS, SHAPES, config
from minllm.config.compose import compose
from minllm.sweep.prediction import predicted_peak, warm_up
from minllm.training.train import train
from minllm.training import memory, optimizers

# one iteration of Muon holds what five do, and processors without bf16 take a minute for five
muon = optimizers.muon
optimizers.muon = lambda *args, **options: muon(*args, **{**options, "ns_steps": 1})

def threads():
    return int(Path("/proc/self/status").read_text().split("Threads:")[1].split()[0])

def trial(shape, precision, words):
    words = [
        "data=tales", "data.packing=concat", "data.train_stories=200", "data.val_stories=8", "data.num_proc=1",
        f"data.cache={stores}", "train.steps=2", "train.eval_every=0", "train.checkpoint_every=0",
        "train.sample_every=0", "train.device=cpu", "train.compile=false",
        f"train.precision={precision}",
        f"train.check={str(bool(shape)).lower()}",  # what it holds is released before the first step
        # refused for expert choice, with which a model can't generate
        *([] if "model/mlp=moe_expert_choice" in words else ["sample.max_new_tokens=1"]),
        *words,
    ]
    cfg = config(SHAPES[shape], SETTINGS[f"eager_{precision}"], words=words) if shape else compose(words)
    figures = {"threads": threads()}
    held, began = memory.resident_bytes(), time.process_time()
    figures["predicted"] = predicted_peak(cfg)
    figures["seconds"] = time.process_time() - began
    figures["grown"], figures["threads_after"] = memory.resident_bytes() - held, threads()
    with contextlib.redirect_stdout(sys.stderr):
        figures["measured"] = train(cfg, Path(tempfile.mkdtemp(dir=stores), "run"))["peak_memory_bytes"]
    return figures

warm_up()
gc.freeze()  # as the server of trials does: otherwise each would look through what was imported
stores = sys.argv[1]
for line in sys.stdin:
    if not os.fork():
        with contextlib.suppress(BaseException):
            print(json.dumps(trial(*json.loads(line))), flush=True)
            os._exit(0)
        os._exit(1)
    if os.wait()[1]:
        print("null", flush=True)
"""

# mamba is that of small_jamba, and gla that of small_gla
OTHER_SCANS = [("mamba2", "deltanet"), ("mega", "rglru")]
SMALL = ["model.dim=192", "model.n_layers=2", "train.batch_size=8", "data.seq_len=192"]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict]]:
    """Return what a process predicts that it will hold, what it then holds when it trains, and what it says besides.

    A trial that is asked for again isn't repeated.
    """
    root = Path(__file__).parents[1]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        warm = subprocess.Popen(
            [sys.executable, "-c", WARM, str(tmp_path_factory.mktemp("trials"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            text=True,
        )

        @functools.cache
        def ask(shape: str, precision: str, *words: str) -> dict:
            warm.stdin.write(json.dumps([shape, precision, words]) + "\n")
            warm.stdin.flush()
            answer = json.loads(warm.stdout.readline() or "null")
            if answer is None:
                errors.seek(0)
                pytest.fail(errors.read()[-4000:])
            return answer

        yield ask
        warm.stdin.close()
        warm.wait()


# each trains for two steps in a process of its own
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux")
@pytest.mark.parametrize(
    "shape, precision, words",
    [
        ("", "fp32", SMALL),
        ("S3", "bf16", ["model.n_layers=4"]),
        ("", "fp32", [*SMALL, "model/mlp=moe"]),
        ("", "fp32", [*SMALL, "model/mlp=moe_expert_choice"]),
        # until oneDNN has met as many shapes of products as it keeps
        ("", "bf16", [*SMALL, "model/mlp=moe", "train.steps=12"]),
        *[
            (
                "",
                "fp32",
                [*SMALL, f"model/rec={a}", f"+model/rec@model.b={b}", "model.layout=[rec mlp,b mlp]"],
            )
            for a, b in OTHER_SCANS
        ],
        ("", "bf16", [*SMALL, "model/rec=mamba", "model.layout=[rec mlp]"]),
        ("", "fp32", ["experiment=small_jamba"]),
        ("", "fp32", ["experiment=small_gla", "data.packing=pack"]),
        (
            "",
            "fp32",
            [
                "optim=muon",
                "model.dim=512",
                "model.n_layers=3",
                "train.batch_size=1",
                "tokenizer=bytes",
                "train.steps=1",
                "data.val_stories=2",  # it evaluates one row at a time
            ],
        ),
        ("", "fp32", [*SMALL, "train.malloc=default", "train.micro_batch_size=4"]),
        ("", "fp32", [*SMALL, "train.recompute=layers"]),
    ],
    ids=str,
)
def test_the_peak_is_predicted_within_15_percent(trial, shape, precision, words):
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bf16")
    figures = trial(shape, precision, *words)
    assert figures["predicted"] == pytest.approx(figures["measured"], rel=0.15)


# trains in a process of its own
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_predicting_takes_little_time_no_thread_and_hardly_any_memory(trial):
    figures = trial("", "fp32", *SMALL)
    assert figures["seconds"] < 10  # of computing; 0.6 were measured
    assert figures["threads_after"] == figures["threads"]
    assert figures["grown"] < figures["predicted"] / 4
