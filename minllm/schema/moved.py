"""Classes that were moved, because configurations of older runs have their old names."""

from __future__ import annotations

ATTENTION = ("attention", "cross", "differential", "latent")
RECURRENT = ("conv", "deltanet", "gla", "mamba", "mamba2", "mega", "min_gru", "rglru")
MOVED = {
    **{f"minllm.model.mixers.{name}": f"minllm.model.attention.{name}" for name in ATTENTION},
    **{f"minllm.model.mixers.{name}": f"minllm.model.recurrent.{name}" for name in RECURRENT},
    "minllm.model.mask": "minllm.model.attention.mask",
    "minllm.model.mlps": "minllm.model.mlp",
    "minllm.model.position.Position": "minllm.model.context.Position",
    "minllm.model.position.Learned": "minllm.model.position.embedded.Learned",
    "minllm.model.position.Sinusoidal": "minllm.model.position.embedded.Sinusoidal",
    "minllm.model.position.Alibi": "minllm.model.position.bias.Alibi",
    "minllm.model.position.T5": "minllm.model.position.bias.T5",
    "minllm.model.rope": "minllm.model.position.rope",
    "minllm.options": "minllm.schema.options",
    "minllm.study.size": "minllm.model.size",
    "minllm.training.schedules.Trapezoid": "minllm.training.schedules.WSD",
}


def current_name(name: str) -> str:
    """Return the current dotted name of a class or module."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        if (before := ".".join(parts[:end])) in MOVED:
            return ".".join([MOVED[before], *parts[end:]])
    return name
