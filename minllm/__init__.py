"""minllm: from an idea about a language model's architecture to a verdict on the machine at hand.

    import minllm

    cfg = minllm.compose(["model/attn=mqa", "norm=post", "train.steps=200"])
    model = minllm.build_model(cfg)                                           # model(tokens_BT) -> logits_BTV
    summary = minllm.train(cfg)
    model, tokenizer, cfg = minllm.load("latest")
    texts = minllm.generate(model, tokenizer, ["Once upon a time"])
    print(minllm.compare(["outputs/multirun/…"]).headline)                    # which arm is better, if any

What goes wrong by the caller's doing is raised as `minllm.UserError`, in a sentence.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
"""As typing has it: with `python -m minllm`, a typing.py in the working directory would still be imported here."""

if TYPE_CHECKING:
    from typing import Any

    from minllm.api import train as train
    from minllm.config import compose as compose
    from minllm.errors import UserError as UserError
    from minllm.generation.generate import generate as generate
    from minllm.model.build import build_model as build_model
    from minllm.study.comparison import compare as compare
    from minllm.tracing import trace as trace
    from minllm.training.checkpoints import load as load

# where each name lives; it's imported when it's first used, since torch takes seconds
HOMES = {
    "UserError": "minllm.errors",
    "build_model": "minllm.model.build",
    "compare": "minllm.study.comparison",
    "compose": "minllm.config",
    "generate": "minllm.generation.generate",
    "load": "minllm.training.checkpoints",
    "trace": "minllm.tracing",
    "train": "minllm.api",
}

__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'minllm' has no attribute '{name}'")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
