"""What minllm uses of torch beyond its documented interface, in each version that pyproject.toml allows."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from minllm.training import machine

ROOT = Path(__file__).parent.parent

PRIVATE = {
    "torch._dynamo": [],
    "torch._functorch.config": [
        "ban_recompute_materialized_backward",
        "ban_recompute_used_far_apart",
        "ban_recompute_long_fusible_chains",
    ],
    "torch._inductor.config": ["fallback_random"],
    "torch._library.custom_ops": ["OPDEFS"],
    "torch._ops": ["OpOverload"],
    "torch._subclasses": ["FakeTensor", "FakeTensorMode"],
    "torch._subclasses.fake_tensor": ["FakeTensor"],
    "torch.compiler": ["assume_constant_result", "nested_compile_region"],
    "torch.optim._muon": ["muon"],
    "torch.utils._python_dispatch": ["TorchDispatchMode"],
    "torch.utils._pytree": ["tree_leaves"],
    "torch": ["_softmax_backward_data", "get_device_module"],
}


@pytest.mark.parametrize("module, names", PRIVATE.items(), ids=PRIVATE)
def test_this_torch_has_the_private_names_that_minllm_uses(module, names):
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


def test_every_private_module_that_minllm_uses_is_listed_above():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "minllm").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (torch(?:\.\w+)*\._[\w.]+)", text, re.MULTILINE))
    assert imported and imported <= PRIVATE.keys()


def test_torchs_muon_takes_what_the_optimizer_gives_it():
    from torch.optim._muon import muon

    options = ["lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps"]
    given = [*options, "eps", "adjust_lr_fn", "has_complex"]
    parameters = inspect.signature(muon).parameters
    assert set(given) <= set(parameters)
    needed = {name for name, p in parameters.items() if p.default is p.empty}
    assert needed <= {"params", "grads", "muon_momentum_bufs", *given}


def test_the_torch_that_is_installed_is_one_that_pyproject_allows():
    allowed = re.search(r'"torch(>=[^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    assert Version(torch.__version__) in SpecifierSet(allowed)


def test_a_build_of_torch_without_the_bf16_query_trains_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert machine.choose_precision("auto", torch.device("cpu"))[0] == "fp32"
