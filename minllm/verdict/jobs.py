"""How many runs of a verdict share the machine."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from minllm.model.build import build_shapes
from minllm.schema.building import build
from minllm.sweep.plugin import LauncherOptions
from minllm.training import machine

SMALL = 10_000_000
"""Up to this many parameters, runs with one thread each train more tokens together than one run with all threads."""


def jobs_for(config: DictConfig, arm: DictConfig) -> int:
    """Return one process for each of this machine's threads if the model of an arm is small and trains here; else 1."""
    runs_here = config.hydra.launcher._target_ == LauncherOptions._target_
    if not runs_here or machine.choose_device(arm.train.device).type != "cpu":
        return 1
    model = build_shapes(arm, build(arm.tokenizer).vocab_size)
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    return max(1, torch.get_num_threads() // config.sweep.processes_per_trial) if small else 1
