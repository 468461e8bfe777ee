"""Tiny models that learn by DiffuSeq, and their noise."""

from __future__ import annotations

from types import SimpleNamespace

import minllm
from minllm.model.build import build_model
from minllm.objective.diffuseq import DiffuSeq
from minllm.objective.noise import Noise

PAD, VOCAB, LENGTH = 0, 11, 8
OPTIONS = dict(width=6, steps=20, clamp="none", split=0.5, ancestral=True, draws=4, length=LENGTH)
TINY = [
    *("objective=diffuseq", "objective.width=16", "objective.steps=40", "tokenizer=bytes", "model.dim=32"),
    *("model.n_layers=2", "model.mlp.hidden=64", "model.attn.n_heads=2", "model.attn.n_kv_heads=2"),
    *("data=reverse", "data.packing=pad", "data.seq_len=8", "data.alphabet=abcd", "data.max_length=3"),
    *(
        "data.val_pairs=8",
        "data.train_pairs=400",
        "data.num_proc=1",
        "train.device=cpu",
        "train.precision=fp32",
    ),
    *("train.compile=false", "train.check=false", "train.batch_size=8", "train.log_every=1"),
    *("train.sample_every=0", "sample.steps=4"),
]


def objective(**changed) -> DiffuSeq:
    return DiffuSeq(**{**OPTIONS, **changed})


def model_for(learn: DiffuSeq, vocab: int = VOCAB, *more: str):
    """Return a tiny model with the objective's parameters."""
    sizes = [f"objective.{name}={getattr(learn, name)}" for name in ("width", "steps", "draws")]
    cfg = minllm.compose([*TINY, *sizes, *more])
    cfg.typed = []
    return build_model(cfg, SimpleNamespace(vocab_size=vocab))


def noise(rows: int, seed: int = 0, step: int | str = 0, of: int | None = None) -> Noise:
    return Noise(seed, step, range(rows), of or rows)
