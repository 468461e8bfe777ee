"""What the `train:` node of a configuration may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minllm.errors import UserError
from minllm.schema.options import Count, Natural, Positive

BUDGETS = ("steps", "tokens", "minutes", "flops")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long a run trains, how much at a time, how exactly, and on what.

    steps, tokens, minutes, flops: budgets; the run ends with whichever of those given is used up first
    batch_size: rows of tokens in each step, whatever memory says
    micro_batch_size: rows at a time; null begins with the whole batch, and halves when memory runs out
    log_every: steps between lines of metrics
    eval_every: steps between evaluations; 0 evaluates at the end only
    evals: or this many evaluations, evenly over the run, whatever its budget
    checkpoint_every: steps between checkpoints; 0 leaves those at the best evaluations and at the end
    keep_checkpoints: how many of the newest are kept; the best is kept besides
    sample_every: steps between samples in samples.txt; 0 samples at the end only
    precision: bf16 is autocast over fp32 weights; auto takes it where it is faster
    compile: auto compiles when the run is long enough to win the time back
    clip: largest norm of the gradient, or null
    malloc: keep tells glibc to keep the pages it has, on CPU; default leaves it alone
    check: check before training that the model obeys the laws of `minllm.laws.laws`
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
    check: bool = True  # which runs from before there was a check don't have

    def __post_init__(self):
        if all(getattr(self, budget) is None for budget in BUDGETS):
            raise UserError(
                "This run would never end: give it a budget, such as train.steps=1000 (or train.tokens,"
                " train.minutes, train.flops)."
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise UserError(
                f"train.micro_batch_size={self.micro_batch_size} is more than train.batch_size={self.batch_size},"
                " and a micro-batch is a part of a batch: make it smaller, or null."
            )
