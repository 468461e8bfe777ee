"""The contestants: minllm as it trains, and transformers' model of the same shape with the same mixer.

Both use minllm's training loop. They differ only in what is compared: the model, its loss and its generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Literal

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from minllm.bench.references import ATTENTION, their_model
from minllm.config.compose import compose
from minllm.data.batches import Batch
from minllm.generation.generate import next_tokens
from minllm.generation.sampler import Sampling
from minllm.model.build import build_model
from minllm.objective.noise import Noise
from minllm.schema.building import build
from minllm.training.checkpoints import Progress
from minllm.training.machine import Precision
from minllm.training.pending import LAG, PendingMetrics
from minllm.training.run import Run

Name = Literal["minllm", "transformers"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model with a gated MLP and a tied head, and of its batches."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    seq_len: int
    batch_size: int
    vocab_size: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    def at_length(self, seq_len: int) -> Shape:
        """Return the shape with rows of another length and the same number of tokens per step."""
        return replace(self, seq_len=seq_len, batch_size=self.tokens_per_step // seq_len)


SHAPES = {
    # narrow, with many layers and a large vocabulary: little of the time is spent in matrix products
    "S1": Shape(64, 12, 2, 1, head_dim=16, hidden=64, seq_len=256, batch_size=32, vocab_size=4099),
    # most of the time is spent in matrix products
    "S3": Shape(384, 6, 6, 6, head_dim=64, hidden=1024, seq_len=256, batch_size=16, vocab_size=4096),
    # GPT-2's 124 million parameters: a gated MLP of width 2,048 has as many as its plain one of 3,072. For GPUs
    "GPT2": Shape(768, 12, 12, 12, head_dim=64, hidden=2048, seq_len=1024, batch_size=32, vocab_size=50304),
}


@dataclass(frozen=True)
class Setting:
    """The precision and compilation of the models."""

    precision: Precision
    compiled: bool

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'} {self.precision}"


SETTINGS = {
    "eager_fp32": Setting("fp32", compiled=False),
    "compiled_fp32": Setting("fp32", compiled=True),
    "eager_bf16": Setting("bf16", compiled=False),
    "compiled_bf16": Setting("bf16", compiled=True),
}


def config(shape: Shape, setting: Setting, mixer: str = ATTENTION, words: Sequence[str] = ()) -> DictConfig:
    """Return minllm's configuration for a shape, as composed from a command line.

    Args:
        shape: the sizes.
        setting: precision and compilation.
        mixer: attention, or the option of model/rec that replaces it in each layer.
        words: further overrides.
    """
    attention = [
        "model/attn=gqa",
        f"model.attn.n_heads={shape.n_heads}",
        f"model.attn.n_kv_heads={shape.n_kv_heads}",
        f"model.attn.head_dim={shape.head_dim}",
        "model/pos=rope",
    ]
    recurrent = [f"model/rec={mixer}", "model.layout=[rec mlp]"]
    without_mlp = any(word.startswith("model.layout=") and "mlp" not in word for word in words)
    mlp = ["model/mlp=swiglu", f"model.mlp.hidden={shape.hidden}"]
    return compose(
        [
            f"model.dim={shape.dim}",
            f"model.n_layers={shape.n_layers}",
            *(attention if mixer == ATTENTION else recurrent),
            *([] if without_mlp else mlp),
            "norm=pre",
            "model.tie_embeddings=true",
            "model.scale_embedding=false",
            f"data.seq_len={shape.seq_len}",
            f"train.batch_size={shape.batch_size}",
            f"train.precision={setting.precision}",
            f"train.compile={setting.compiled}",
            *words,
        ]
    )


@dataclass
class Contestant:
    """A model with everything that is timed."""

    model: nn.Module
    objective: object
    optimizer: torch.optim.Optimizer
    generate: Callable[[list[list[int]], int], None]
    """Continues rows of tokens by the given number of tokens each, sampled from the full distribution."""


def minllm(shape: Shape, cfg: DictConfig, device: torch.device) -> Contestant:
    """Return minllm's model, built as `run.py` builds it."""
    model = build_model(cfg, SimpleNamespace(vocab_size=shape.vocab_size)).to(device)
    objective = build(cfg.objective)

    def generate(rows: list[list[int]], new_tokens: int) -> None:
        generators = [torch.Generator().manual_seed(i) for i in range(len(rows))]
        sampling = Sampling(
            temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, max_new_tokens=new_tokens, seed=0
        )
        for _ in next_tokens(model, rows, generators, sampling):
            pass

    return Contestant(model, objective, build(cfg.optim, model), generate)


def transformers(shape: Shape, cfg: DictConfig, device: torch.device) -> Contestant:
    """Return transformers' model with the same options of AdamW, fused as in its trainer."""
    from transformers import GenerationConfig

    model = their_model(shape.vocab_size, cfg).to(device)
    betas = (cfg.optim.beta1, cfg.optim.beta2)
    decay = cfg.optim.weight_decay
    optimizer = torch.optim.AdamW(
        model.parameters(), cfg.optim.lr, betas, cfg.optim.eps, weight_decay=decay, fused=True
    )

    def generate(rows: list[list[int]], new_tokens: int) -> None:
        sampling = GenerationConfig(max_new_tokens=new_tokens, do_sample=True, top_k=0, use_cache=True)
        tokens_BT = torch.tensor(rows, device=device)
        model.eval()
        model.generate(
            tokens_BT, attention_mask=torch.ones_like(tokens_BT), generation_config=sampling
        ).tolist()
        model.train()

    return Contestant(model, TheirObjective(), optimizer, generate)


class TheirObjective:
    """The loss that transformers' model computes itself, summed like minllm's."""

    def inputs(self, batch: Batch, noise: Noise, model: nn.Module) -> Batch:
        return batch

    def counted(self, batch: Batch, inputs: Batch) -> int:
        return batch.targets_BT.numel()

    def loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        # the targets are already shifted
        shifted = {"shift_labels": inputs.targets_BT, "num_items_in_batch": 1}
        return model(input_ids=inputs.tokens_BT, labels=inputs.targets_BT, use_cache=False, **shifted).loss


MAKERS: dict[Name, Callable[[Shape, DictConfig, torch.device], Contestant]] = {
    "minllm": minllm,
    "transformers": transformers,
}


def step_run(
    contestant: Contestant, shape: Shape, setting: Setting, cfg: DictConfig, device: torch.device
) -> Run:
    """Return a run for its training steps only: it has no logging, evaluation or checkpoints."""
    return Run(
        seed=0,
        settings=build(cfg.train),
        folder=None,
        logger=None,
        model=contestant.model,
        objective=contestant.objective,
        optimizer=contestant.optimizer,
        schedule=None,
        budget=None,
        progress=Progress(decisions={"micro_batch_size": shape.batch_size}),
        train_batches=SameBatch(shape),
        validation=None,
        floor_bpb=None,
        sample=None,
        device=device,
        precision=setting.precision,
        tokens_per_step=shape.tokens_per_step,
        # a GPU's figures aren't read in a step, as in training
        pending=PendingMetrics(LAG if device.type == "cuda" else 0),
    )


class SameBatch:
    """Random tokens, the same in each step."""

    def __init__(self, shape: Shape):
        generator = torch.Generator().manual_seed(0)
        size = (shape.batch_size, shape.seq_len + 1)
        tokens = torch.randint(shape.vocab_size, size, generator=generator)
        self.same = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)

    def batch(self, step: int) -> Batch:
        return self.same
