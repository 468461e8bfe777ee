"""`python run.py task=generate run=latest 'prompts=[Once upon a time]'`: continue prompts with a trained model."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from minllm.errors import UserError, printable
from minllm.schema.building import build
from minllm.schema.options import RunPlace, reads
from minllm.training import checkpoints, machine, memory


@reads("model", "norm", "objective", "tokenizer", "sample", "train.device")
def generate(cfg: DictConfig, run_dir: Path, *, run: RunPlace, prompts: list[str]) -> list[str]:
    """Continue each prompt with a run's best checkpoint; print the texts and return the continuations.

    Args:
        run: the run's folder, or `latest`.
        prompts: texts to continue; "" starts a new text. The output for a single prompt is streamed.

    Raises:
        UserError: there is no such run, its checkpoint is damaged, or its model can't generate.
    """
    if not prompts:
        raise UserError(
            "prompts is empty. Type 'prompts=[Once upon a time]', or leave it out to start a new text."
        )
    with memory.running_out("the model wrote"):
        return written(cfg, run, prompts)


def written(cfg: DictConfig, run: str, prompts: list[str]) -> list[str]:
    device = machine.choose_device(build(cfg.train).device)
    model, tokenizer = checkpoints.load_as(cfg, run, device=device)
    if model.cannot_generate:
        raise UserError(model.cannot_generate)
    objective, sampling = build(cfg.objective), build(cfg.sample)
    if len(prompts) == 1:
        show(prompts[0])
        texts = objective.generate(model, tokenizer, prompts, sampling, show)
        show("\n")
        return texts
    texts = objective.generate(model, tokenizer, prompts, sampling)
    print(printable("\n\n".join(prompt + text for prompt, text in zip(prompts, texts))))
    return texts


def show(piece: str) -> None:
    sys.stdout.write(printable(piece))
    sys.stdout.flush()
