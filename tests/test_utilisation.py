"""Model FLOPs utilisation, and the precision of fp32 matrix products."""

import json
import math

import pytest
import torch

from minllm import compose
from minllm.errors import UserError
from minllm.training import loop, machine, preparation, train, utilisation
from minllm.training.utilisation import Peak, device_peak, published
from tests.test_loop import make_run


@pytest.mark.parametrize(
    "name, precision, matmul_precision, teraflops",
    [
        ("NVIDIA H100 80GB HBM3", "bf16", "highest", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp32", "highest", 66.9),
        ("NVIDIA H100 80GB HBM3", "fp32", "high", 494.7),
        ("NVIDIA H100 PCIe", "bf16", "highest", 756.5),
        ("NVIDIA A100-SXM4-80GB", "bf16", "highest", 312),
        ("NVIDIA A100 80GB PCIe", "fp32", "medium", 156),
        ("Tesla V100-SXM2-16GB", "fp32", "high", 15.7),
        ("NVIDIA GeForce RTX 4090", "bf16", "highest", 165.2),
    ],
)
def test_a_known_gpu_has_the_peak_of_its_datasheet(name, precision, matmul_precision, teraflops):
    assert published(name, precision, matmul_precision) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G", "a card"],
)
def test_a_variant_that_no_datasheet_here_describes_is_measured(name):
    assert published(name, "bf16", "highest") is None


def test_a_gpu_without_bf16_units_has_no_published_peak_for_it():
    assert (
        published("Tesla T4", "bf16", "highest") is None and published("Tesla T4", "fp32", "high") == 8.1e12
    )


def test_no_datasheet_is_faster_in_a_wider_format():
    for sheet in utilisation.DATASHEETS.values():
        assert (sheet.bf16 or math.inf) >= (sheet.tf32 or 0) and (sheet.tf32 or math.inf) >= sheet.fp32


def test_a_cpu_is_measured_once_for_each_precision(monkeypatch):
    device_peak.cache_clear()
    sizes = []
    monkeypatch.setattr(utilisation, "product_flops", lambda n, device, dtype: sizes.append(n) or n * 1e9)
    peaks = [device_peak(torch.device("cpu"), "fp32", "highest") for _ in range(2)]
    assert peaks == [Peak(1024e9, "measured")] * 2 and sizes == [256, 512, 1024]
    device_peak.cache_clear()
    sizes.clear()
    # emulated bf16, a hundred times slower: a large product would take a minute
    monkeypatch.setattr(utilisation, "product_flops", lambda n, device, dtype: sizes.append(n) or 1e8)
    assert device_peak(torch.device("cpu"), "bf16", "highest").flops == 1e8 and sizes == [256]
    device_peak.cache_clear()


def test_a_measured_peak_is_that_of_a_product():
    assert 1e7 < utilisation.product_flops(64, torch.device("cpu"), torch.float32) < 1e14


def test_lines_of_metrics_have_mfu_once_the_flops_are_known_or_after_a_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(utilisation, "device_peak", lambda *_: Peak(1e9, "measured"))
    monkeypatch.setattr(utilisation, "flops_per_token", lambda model, seq_len: 1000.0 * seq_len)
    run = make_run(tmp_path)
    assert utilisation.utilisation(run, 1e4) == {}
    run.progress.seconds = 61.0
    assert utilisation.utilisation(run, 1e4) == {"mfu": pytest.approx(1e4 * 5000 / 1e9)}

    known = make_run(tmp_path / "known")
    known.flops_per_token = 2000.0
    loop.fit(known)
    lines = [json.loads(line) for line in (tmp_path / "known" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "train_loss" in line]
    assert trained and all(
        line["mfu"] == pytest.approx(line["tokens_per_second"] * 2000 / 1e9) for line in trained
    )


@pytest.mark.parametrize("error", [None, UserError("no"), KeyboardInterrupt()])
def test_the_precision_of_products_is_set_for_the_run_only(error):
    before = torch.get_float32_matmul_precision()
    try:
        with machine.matmul_precision("medium"):
            assert torch.get_float32_matmul_precision() == "medium"
            if error:
                raise error
    except (UserError, KeyboardInterrupt) as raised:
        assert raised is error
    assert torch.get_float32_matmul_precision() == before


def test_a_run_trains_with_the_precision_of_products_that_it_names(tmp_path, monkeypatch):
    during, before = [], torch.get_float32_matmul_precision()
    tiny = ["data=tales", "data.train_stories=50", "data.val_stories=2", "data.seq_len=32", "tokenizer=bytes"]
    tiny += ["model.dim=16", "model.n_layers=1", "train.steps=1", "train.device=cpu", "train.check=false"]
    cfg = compose([*tiny, f"data.cache={tmp_path}", "train.compile=false", "train.matmul_precision=medium"])
    # searches train what `prepare` returns by `carry_out`, too
    monkeypatch.setattr(train, "fit", lambda run: during.append(torch.get_float32_matmul_precision()) or 1)
    with pytest.raises(SystemExit):
        train.carry_out(*preparation.prepare(cfg, tmp_path / "run", None, None), cfg)
    assert during == ["medium"] and torch.get_float32_matmul_precision() == before
