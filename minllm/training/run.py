"""Everything a training run consists of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from minllm.data.batches import Rows, TrainBatches, Validation
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.runs.folder import RunDir
from minllm.training import machine
from minllm.training.answers import Answers
from minllm.training.averaging import Average
from minllm.training.budget import Budget
from minllm.training.checkpoints import Progress
from minllm.training.graphs import GradientGraph
from minllm.training.loggers import Logger
from minllm.training.parallel import ALONE, Processes
from minllm.training.pending import PendingMetrics
from minllm.training.prefetch import Prefetcher
from minllm.training.schedules import Schedule
from minllm.training.settings import Settings

if TYPE_CHECKING:
    from minllm.training.branching import Branch


@dataclass
class Run:
    """Everything a training run consists of."""

    seed: int
    settings: Settings
    folder: RunDir
    logger: Logger
    model: LM
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    budget: Budget
    progress: Progress
    train_batches: TrainBatches
    validation: Validation
    floor_bpb: float | None
    """The validation set's true entropy in bits per byte, where it is known."""
    sample: Callable[[], list[tuple[str, str]]]
    """Returns (prompt, continuation) pairs from the current model; an empty list if it can't generate."""
    device: torch.device
    precision: machine.Precision
    tokens_per_step: int
    flops_per_token: float = math.nan
    """Of training, forward and backward; NaN until it has been counted."""
    pending: PendingMetrics = field(default_factory=PendingMetrics)
    """The figures of steps that haven't been read from the device."""
    prefetcher: Prefetcher[tuple[Rows, int]] | None = None
    """Prepares the inputs of the next step during a step; None prepares them when they are needed."""
    graph: GradientGraph | None = None
    """Replays the gradients of micro-batches as CUDA graphs; None computes them as usual."""
    average: Average | None = None
    """The average of the parameters, which is evaluated, sampled from and saved in their place."""
    latest_samples: list[tuple[str, str]] = field(default_factory=list)
    validation_text: str | None = None
    """A hash of the validation text, independent of the tokenizer: runs with the same hash are comparable."""
    answers: Answers | None = None
    """Counts which tokens of the validation answers are predicted right; None if there is nothing to count."""
    document_bytes: np.ndarray | None = None
    """The size of each validation document, to record each one's loss at the end; None doesn't record them."""
    recorded: frozenset[str] = frozenset()
    """The metrics that metrics.jsonl already has for the step from which a resumed run continues."""
    is_sampled: bool = False
    """Whether samples.txt already has a text for that step."""
    branch_steps: tuple[int, ...] = ()
    """The steps whose checkpoints are kept for shorter runs (`train.branches`)."""
    branch: Branch | None = None
    """Where this run leaves another one, unless it goes on from a checkpoint of its own."""
    processes: Processes = ALONE
    """The processes that train the model together."""
    gathered: Callable[[Callable[[], Any]], Any] | None = None
    """Calls a function while all parameters are gathered; None if they aren't sharded."""
    began: float = 0.0
    """The `time.perf_counter` time at which the run would have started, had it never been interrupted."""
