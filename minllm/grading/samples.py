"""What a run writes: from nothing, and after given beginnings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from minllm.data.source import PairSource, Source
from minllm.errors import UserError
from minllm.generation.sampler import SeedOfEach
from minllm.grading.beginnings import held_out
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.schema.building import build
from minllm.tokenizer import Tokenizer
from minllm.training import checkpoints, memory

if TYPE_CHECKING:
    from minllm.grading.grader import Grader

ROWS = 50
"""Samples that are generated at a time, unless memory runs out."""
MEASURED = 1000
"""Validation texts whose longest limits how long samples may become."""
ROOM = 1.25
"""How much longer than that a sample may become, so that a model which writes too much is seen doing so."""
MOST_SAMPLES = 2**32
"""Of a run: what lies between the random numbers of neighbouring seeds, so that they share no sample."""

Origin = Literal["nothing", "beginning"]


@dataclass(frozen=True)
class Sample:
    """A text that a model has written.

    beginning: the text that it was given; empty if it began from nothing
    text: what it wrote after that
    group: samples with the same number are resampled together: those of one beginning; each text from nothing is
        a group of its own
    """

    beginning: str
    text: str
    group: int

    @property
    def whole(self) -> str:
        return self.beginning + self.text

    @property
    def origin(self) -> Origin:
        return "beginning" if self.beginning else "nothing"


@dataclass(frozen=True)
class Written:
    """What one run has written.

    name: of the run, or of its arm and seed, in tables
    samples: grouped by beginning; runs that are compared have the same beginnings in the same order
    source: the corpus that the run was trained on
    tokenizer: of the run
    """

    name: str
    samples: Sequence[Sample]
    source: Source
    tokenizer: Tokenizer


def write(cfg: DictConfig, run: Path, name: str, grader: Grader, device: torch.device) -> Written:
    """Return what the best checkpoint of a run writes: texts from nothing, and continuations of each beginning.

    Each sample depends on the grader's seed, its number and its beginning alone, so that runs which are compared use
    the same random numbers. Models that have learnt pairs write nothing without a given part.

    Args:
        cfg: the configuration of the run, whose data may have moved.
        name: of the run in tables.

    Raises:
        UserError: there is no such run, the grader can't grade its corpus, or its model can't generate.
        OutOfMemory: memory ran out with a single sample at a time.
    """
    source, objective = build(cfg.data), build(cfg.objective)
    grader.check(source)
    model, tokenizer = checkpoints.load_as(cfg, run, device=device)
    if model.cannot_generate:
        raise UserError(model.cannot_generate)
    if model.reads_memory and not objective.gives_memory:
        raise UserError("The model reads a memory besides the tokens, and none is available here.")
    prompts, groups, seeds = _planned(grader, source)
    limit = grader.max_new_tokens or round(ROOM * longest(source, tokenizer))
    texts = generated(objective, model, tokenizer, prompts, _sampling(grader, limit, seeds), name)
    return Written(name, [Sample(*each) for each in zip(prompts, texts, groups)], source, tokenizer)


def longest(source: Source, tokenizer: Tokenizer) -> int:
    """Return the number of tokens of the longest of the first validation texts, of pairs the longest target."""
    is_paired = isinstance(source, PairSource)
    texts = (pair.target for pair in source.pairs("val")) if is_paired else source.documents("val")
    return max(map(len, tokenizer.encode_batch(list(itertools.islice(texts, MEASURED)))), default=1)


def generated(
    objective: Objective,
    model: LM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SeedOfEach,
    name: str,
) -> list[str]:
    """Return a continuation of each prompt, as many at a time as memory allows, with a progress bar on a terminal."""
    texts: list[str] = []
    rows = ROWS
    bar = tqdm(desc=f"{name} writes", total=len(prompts), leave=False, disable=None)
    with bar, memory.running_out(f"{name} wrote a single text at a time"):
        while len(texts) < len(prompts):
            chosen = slice(len(texts), len(texts) + rows)
            try:
                more = objective.generate(
                    model, tokenizer, prompts[chosen], replace(sampling, seeds=sampling.seeds[chosen])
                )
            except Exception as error:
                if rows == 1 or not memory.ran_out(error):
                    raise
                rows = memory.halve(rows)
                continue
            texts += more
            bar.update(len(more))
    return texts


def _planned(grader: Grader, source: Source) -> tuple[list[str], list[int], list[int]]:
    """Return the prompt of each sample, its group and its seed."""
    stories = 0 if isinstance(source, PairSource) else grader.stories
    beginnings = [beginning for beginning, _ in held_out(source, grader.beginnings)]
    if not stories and not beginnings:
        raise UserError(
            "There is nothing to grade: set grader.stories or grader.beginnings to 1 or more"
            f"{', the latter because the documents are pairs' * isinstance(source, PairSource)}."
        )
    numbers = range(grader.samples)
    prompts = [""] * stories + [beginning for beginning in beginnings for _ in numbers]
    groups = [*range(stories), *(stories + place for place in range(len(beginnings)) for _ in numbers)]
    own = [*range(stories), *(number for _ in beginnings for number in numbers)]
    return prompts, groups, [grader.seed * MOST_SAMPLES + number for number in own]


def _sampling(grader: Grader, limit: int, seeds: Sequence[int]) -> SeedOfEach:
    return SeedOfEach(
        temperature=grader.temperature,
        top_k=None,
        top_p=1.0,
        min_p=0.0,
        max_new_tokens=limit,
        seed=grader.seed,
        seeds=seeds,
    )
