"""`python run.py task=generate run=latest 'prompts=[Once upon a time]'`: continue prompts with a trained model."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from minllm.data.source import PairSource
from minllm.errors import UserError, printable
from minllm.generation.sampler import Sampling
from minllm.model.lm import LM
from minllm.model.unused import refuse_unused
from minllm.objective import HOLE, Objective, around_hole
from minllm.runs.find import read_run
from minllm.schema.building import build
from minllm.schema.options import Natural, RunPlace, reads
from minllm.tokenizer import Tokenizer
from minllm.training import checkpoints, machine, memory


@reads("model", "norm", "objective", "tokenizer", "data", "sample", "train.device")
def generate(
    cfg: DictConfig, run_dir: Path, *, run: RunPlace, prompts: list[str], pairs: Natural = 0
) -> list[str]:
    """Continue each prompt with a run's best checkpoint; print the texts and return the continuations.

    Args:
        run: the run's folder, or `latest`.
        prompts: texts to continue; "" starts a new text. The output for a single prompt is streamed. Where the
            objective can fill holes, a prompt may have one: Once ___ a time.
        pairs: instead of prompts, use the given parts of this many validation documents of `cfg.data`, which are pairs.

    Raises:
        UserError: there is no such run, its checkpoint is damaged, its model can't generate, a prompt has a hole that
            its objective can't fill, or an override would do nothing.
    """
    if pairs:
        if prompts != [""]:
            raise UserError(
                f"pairs={pairs} takes the prompts from data, so prompts would do nothing: leave one of them out."
            )
        prompts = given_parts(cfg, pairs)
    if not prompts:
        raise UserError(
            "prompts is empty. Type 'prompts=[Once upon a time]', or leave it out to start a new text."
        )
    with memory.running_out("the model wrote"):
        return written(cfg, run, prompts)


def given_parts(cfg: DictConfig, number: int) -> list[str]:
    """Return the given parts of the first validation documents."""
    source = build(cfg.data)
    if not isinstance(source, PairSource):
        raise UserError(
            f"pairs={number} needs documents with a given part, which data={cfg.choices.data} doesn't have: type"
            " prompts instead, or data=pairs data.path=<file>."
        )
    return [pair.given for pair in itertools.islice(source.pairs("val"), number)]


def written(cfg: DictConfig, run: str, prompts: list[str]) -> list[str]:
    device = machine.choose_device(build(cfg.train).device)
    model, tokenizer = checkpoints.load_as(cfg, run, device=device)
    if model.cannot_generate:
        raise UserError(model.cannot_generate)
    refuse_unused(with_changed_typed(cfg, run), ["sample"])
    objective, sampling = build(cfg.objective), build(cfg.sample)
    holes = [prompt for prompt in prompts if HOLE in prompt]
    if holes and not objective.fills_holes:
        raise UserError(
            f"The run's objective, {cfg.choices.objective}, can't fill the hole in '{holes[0]}': remove {HOLE}, or"
            " train with objective=fim, masked or span."
        )
    for prompt in holes:
        if prompt.count(HOLE) > 1:
            raise UserError(
                f"A prompt may have one hole, {HOLE}, but '{prompt}' has several: remove the others."
            )
    if sampling.trace or (len(prompts) == 1 and not holes):
        return [streamed(objective, model, tokenizer, prompt, sampling) for prompt in prompts]
    texts = objective.generate(model, tokenizer, prompts, sampling)
    print(printable("\n\n".join(map(filled, prompts, texts))))
    return texts


def streamed(objective: Objective, model: LM, tokenizer: Tokenizer, prompt: str, sampling: Sampling) -> str:
    """Return what is generated for a prompt, and show it meanwhile; states of a text have the prompt in them."""
    waiting = [] if sampling.trace else [prompt]

    def after_prompt(piece: str) -> None:
        show("".join(waiting) + piece)
        waiting.clear()

    (text,) = objective.generate(model, tokenizer, [prompt], sampling, after_prompt)
    after_prompt("\n")
    return text


def with_changed_typed(cfg: DictConfig, run: str) -> DictConfig:
    """Return a configuration whose overrides are the options of sampling that differ from the run's own."""
    saved = read_run(Path(run), cfg.extensions).sample
    changed = [
        f"sample.{name}={value}" for name, value in cfg.sample.items() if saved.get(name, value) != value
    ]
    return OmegaConf.merge(cfg, {"typed": changed})


def filled(prompt: str, text: str) -> str:
    """Return a prompt with the generated text in its hole or at its end."""
    before, after = around_hole(prompt)
    return before + text + after


def show(piece: str) -> None:
    sys.stdout.write(printable(piece))
    sys.stdout.flush()
