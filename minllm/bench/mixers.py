"""The mixers that are compared with attention: their names, overrides and contestants."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minllm.bench.contestants import Setting, Shape
from minllm.bench.references import ATTENTION, CLASSES
from minllm.bench.worker import Job
from minllm.errors import UserError, suggest
from minllm.schema.groups import find_groups

DELTA_HEADS = [
    "model.rec.n_heads=6",
    "model.rec.n_value_heads=6",
    "model.rec.head_dim=64",
    "model.rec.value_dim=64",
]
WORDS: dict[str, list[str]] = {
    "deltanet": DELTA_HEADS,
    "gated_deltanet": DELTA_HEADS,
    "gla": ["model.rec.n_heads=6"],
    "mamba2": ["model.rec.head_dim=64", "model.rec.n_state=64"],
}
"""Overrides for S3's width, for mixers that aren't measured with the defaults in conf/."""

AS_THEIRS: dict[str, list[str]] = {
    "gated_deltanet": [],
    "mamba": ["model.layout=[rec]"],
    "mamba2": ["model.layout=[rec]"],
    "rglru": [
        "model.mlp.activation=gelu_tanh",
        "model.mlp.bias=true",
        "model.scale_embedding=true",
        "model.softcap=30.0",
    ],
}
"""Further overrides that make minllm's model match transformers' model with this mixer."""

GROWTH = (2, 4, 8)
"""Multiples of the sequence length at which the cost per token is compared."""
OURS_AS_THEIRS, THEIRS = "minllm, as in transformers", "transformers"


def chosen_mixers(names: Sequence[str] | None) -> list[str]:
    """Return the named options of model/rec, or all of them for None.

    Raises:
        UserError: there is no such option.
    """
    known = list(find_groups()["model/rec"])
    for name in names or []:
        if name not in known:
            raise UserError(f"mixers=[{name}]: there is no model/rec={name}.{suggest(name, known)}")
    return known if names is None else list(dict.fromkeys(names))


def check_lengths(lengths: Sequence[int], shape: Shape) -> None:
    """Raise UserError for lengths that don't divide the number of tokens in a step."""
    for seq_len in lengths:
        if shape.tokens_per_step % seq_len:
            raise UserError(
                f"lengths=[{seq_len}] doesn't divide the {shape.tokens_per_step:,} tokens of a step. Use powers of"
                " two, such as 'lengths=[256,1024]'."
            )


def mixer_jobs(
    mixer: str, lengths: Sequence[int], shape: Shape, setting: Setting, device: torch.device
) -> dict[str, Job]:
    """Return the contestants for a mixer: itself at each length, attention, and transformers' class with this mixer.

    transformers' class isn't compiled, because its Python loop in place of a kernel takes minutes to compile.
    """
    on_cpu, words = device.type == "cpu", WORDS.get(mixer, [])

    def ours(seq_len: int, mixer: str, words: Sequence[str]) -> Job:
        return Job("minllm", on_cpu, shape.at_length(seq_len), setting, str(device), mixer, words)

    own = [shape.seq_len, *lengths, *grown_lengths(shape)]
    jobs = {at(mixer, seq_len): ours(seq_len, mixer, words) for seq_len in own}
    if mixer == ATTENTION:
        return jobs
    jobs |= {at(ATTENTION, seq_len): ours(seq_len, ATTENTION, ()) for seq_len in lengths}
    if mixer in CLASSES:
        words = [*words, *AS_THEIRS[mixer]]
        eager = Setting(setting.precision, compiled=False)
        jobs[OURS_AS_THEIRS] = ours(shape.seq_len, mixer, words)
        jobs[THEIRS] = Job("transformers", False, shape, eager, str(device), mixer, words)
    return jobs


def at(mixer: str, seq_len: int) -> str:
    """Return the name of minllm's contestant for a mixer and a length."""
    return f"{mixer}, T {seq_len}"


def grown_lengths(shape: Shape) -> list[int]:
    return [times * shape.seq_len for times in GROWTH]
