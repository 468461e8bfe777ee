"""minllm: test ideas about the architecture of language models on the machine at hand.

    import minllm

    cfg = minllm.compose(["model/attn=mqa", "norm=post", "train.steps=200"])
    model = minllm.build_model(cfg)                                           # model(tokens_BT) -> logits_BTV
    summary = minllm.train(cfg)
    model, tokenizer, cfg = minllm.load("latest")
    texts = minllm.generate(model, tokenizer, ["Once upon a time"])
    print(minllm.compare(["outputs/multirun/…"]).headline)                    # which arm is better, if any

Mistakes of the caller raise `minllm.UserError`, whose message says what to change.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
"""Not imported from typing: with `python -m minllm`, a typing.py in the working directory would be imported here."""

if TYPE_CHECKING:
    from typing import Any

    from minllm.cli.api import train as train
    from minllm.config.compose import compose as compose
    from minllm.errors import UserError as UserError
    from minllm.generation.generate import generate as generate
    from minllm.model.build import build_model as build_model
    from minllm.objective import build_objective as build_objective
    from minllm.study.comparison import compare as compare
    from minllm.tracing import trace as trace
    from minllm.training.checkpoints import load as load

# the module of each name; imported on first use because torch takes seconds
HOMES = {
    "UserError": "minllm.errors",
    "build_model": "minllm.model.build",
    "build_objective": "minllm.objective",
    "compare": "minllm.study.comparison",
    "compose": "minllm.config.compose",
    "generate": "minllm.generation.generate",
    "load": "minllm.training.checkpoints",
    "load_tokenizer": "minllm.config.tokenizers",
    "trace": "minllm.tracing",
    "train": "minllm.cli.api",
}

__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'minllm' has no attribute '{name}'")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
