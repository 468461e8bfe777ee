"""The options of the `train:` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minllm.errors import UserError
from minllm.model.recompute import Recompute
from minllm.schema.options import Count, Fraction, Natural, Positive, Share
from minllm.training.machine import MatmulPrecision

BUDGETS = ("steps", "tokens", "minutes", "flops")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long a run trains, its batch size, precision and device, and when it logs, evaluates and saves.

    steps, tokens, minutes, flops: budgets; the run ends when the first of those given is used up
    batch_size: rows of tokens in each step, however little memory there is
    micro_batch_size: rows at a time in each process; null starts with all; it is halved when memory runs out
    log_every: steps between lines of metrics
    eval_every: steps between evaluations; 0 evaluates at the end only
    evals: also evaluate this many times, evenly spaced over the run, whatever its budget
    checkpoint_every: steps between checkpoints; 0 saves only after the best evaluations and at the end
    keep_checkpoints: how many of the newest to keep, besides the best
    branches: the tokens of shorter runs that will start from this one; checkpoints where they branch off are kept, too
    sample_every: steps between samples in samples.txt; 0 samples at the end only
    precision: bf16 is autocast with fp32 weights; auto uses it if it is faster
    compile: auto compiles if the run is long enough for that to save time
    graphs: start a GPU's work for a micro-batch as a CUDA graph; auto does so in compiled runs whose host is too slow
    stop_at_accuracy: end the run at an evaluation whose val_accuracy is at least this; null uses up the budget
    clip: maximum norm of the gradient; null doesn't clip
    ema: decay of an exponential moving average of the parameters, which is then what is evaluated, sampled from and
        loaded from checkpoints; null doesn't average
    malloc: keep makes glibc keep freed pages, on CPU; default leaves it unchanged
    parallel: how several processes share a model: ddp copies it to each; fsdp gives each a part of its parameters,
        gradients and optimizer state
    matmul_precision: of fp32 matrix products: highest is fp32; high and medium may round their inputs, to TF32 on GPUs
    recompute: what the backward pass computes again to save memory: each of the branches, or whole layers
    check: check before training that the model satisfies the laws of `minllm.laws.laws`
    """

    steps: Count | None
    tokens: Count | None
    minutes: Positive | None
    flops: Positive | None
    batch_size: Count
    micro_batch_size: Count | None
    log_every: Count
    eval_every: Natural
    evals: Count | None
    checkpoint_every: Natural
    keep_checkpoints: Count
    sample_every: Natural
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto"] | bool
    device: Literal["auto", "cpu", "cuda", "mps"]
    clip: Positive | None
    malloc: Literal["keep", "default"]
    # older runs don't have these options
    stop_at_accuracy: Fraction | None = None
    ema: Share | None = None
    check: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    matmul_precision: MatmulPrecision = "highest"
    recompute: Recompute = "none"
    graphs: Literal["auto"] | bool = "auto"
    branches: list[Positive] | None = None

    def __post_init__(self):
        if all(getattr(self, budget) is None for budget in BUDGETS):
            raise UserError(
                "This run has no budget and would never end. Set train.steps=1000, for example (or train.tokens,"
                " train.minutes, train.flops)."
            )
        if self.graphs is True and self.compile is not True:
            raise UserError("train.graphs=true needs compiled steps: add train.compile=true.")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise UserError(
                f"train.micro_batch_size={self.micro_batch_size} is larger than train.batch_size={self.batch_size}."
                " Make it smaller, or null."
            )
