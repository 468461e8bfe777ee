"""Tiny models of every option, for tests: small enough that a whole grid of them is built in seconds."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import torch
from omegaconf import DictConfig, OmegaConf

from minllm.config import CONF, compose
from minllm.model.build import build_model
from minllm.model.lm import LM

VOCAB = 61
T = 24

SIZES = ["model.dim=32", f"data.seq_len={T}", "model.dropout=0"]
SIZES_OF = {
    "attn": {"n_heads": 4, "head_dim": 8, "dropout": 0.0},
    "mlp": {"hidden": 40, "n_experts": 4},
}


def options(group: str) -> list[str]:
    """Return every option of a group as it is typed: ["model/attn=gqa", …]."""
    return sorted(f"{group}={path.stem}" for path in Path(CONF, group).glob("*.yaml"))


def groups_of_model() -> list[str]:
    """Return the groups whose options make a model: those under model/, and norm."""
    return [*sorted(f"model/{path.name}" for path in Path(CONF, "model").iterdir()), "norm"]


@functools.cache
def tiny_cfg(*choices: str) -> DictConfig:
    """Return the configuration of some choices at a tiny size; nobody changes it."""
    cfg = compose([*choices, *SIZES])
    for word, sizes in SIZES_OF.items():
        for name, size in sizes.items():
            if name in cfg.model.get(word, {}):
                heads = cfg.model[word].get("n_kv_heads")
                cfg.model[word][name] = size
                if name == "n_heads" and heads not in (None, 1):
                    cfg.model[word].n_kv_heads = 2
    cfg.model.n_layers = max(2, len(cfg.model.layout))
    OmegaConf.set_readonly(cfg, True)
    return cfg


def tiny_model(*choices: str, randomised: bool = False, n_layers: int | None = None) -> LM:
    """Return the tiny model of some choices.

    `randomised` draws every parameter anew at σ = 0.2, gains and biases included: at their first values (ones, zeros,
    small weights) almost any bug passes.
    """
    cfg = tiny_cfg(*choices)
    if n_layers is not None:
        cfg = OmegaConf.merge(cfg, {"model": {"n_layers": n_layers}})
    model = build_model(cfg, SimpleNamespace(vocab_size=VOCAB))
    if randomised:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) * 0.2 + (param.ndim == 1) * 0.5)
    return model.eval()


def tokens(rows: int = 2, length: int = T, seed: int = 0) -> torch.Tensor:
    """Return random tokens, (rows, length)."""
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
