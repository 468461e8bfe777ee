"""One run of each arm continues the same prompts, and predicts the same held-out texts token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from omegaconf import DictConfig

from minllm.data.batches import Batch, Validation, open_data, stride_of
from minllm.data.probe import Probe
from minllm.data.source import Pair, Source
from minllm.data.store import Documents
from minllm.errors import UserError, first_line
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.study.arms import Arm, measured
from minllm.study.comparison import Comparison
from minllm.study.selection import TrainedRun
from minllm.tokenizer import Tokenizer, of_run
from minllm.tokenizer.show import visible
from minllm.training import checkpoints, machine
from minllm.training.evaluation import LOOKAHEAD_WARNING

NEEDS_MEMORY = "It reads a memory besides the tokens, and none is available here."
OTHER_TEXT = "The data has changed since these runs were made, so its texts aren't shown."


@dataclass(frozen=True)
class Guess:
    """A model's prediction of a token of a held-out text.

    text: the token's characters; <E2> for each byte of an incomplete character
    nats: its loss
    rank: 1 if it was the model's first guess, 2 if its second, …
    bytes: its length in UTF-8
    """

    text: str
    nats: float
    rank: int
    bytes: int


@dataclass(frozen=True)
class Reading:
    """The samples and held-out texts of one run of an arm.

    arm: the arm's name
    seed: the run's seed: the same for all arms that have it, and never chosen by its result
    samples: each prompt with its continuation
    stories: the held-out texts
    why_not: why something isn't shown; None if everything is
    givens: of pairs, the given part of each held-out text
    """

    arm: str
    seed: int
    samples: list[tuple[str, str]]
    stories: list[list[Guess]]
    why_not: str | None
    givens: list[str] = field(default_factory=list)


def read_arms(comparison: Comparison, cfg: DictConfig, prompts: Sequence[str], stories: int) -> list[Reading]:
    """Have one completed run of each arm that has any continue the same prompts and predict the same validation texts.

    Args:
        cfg: how to sample (`sample:`), where to compute (`train.device`), and which packages code may come from.
        stories: the number of texts. Those that fit in the baseline's window come first, so that they are complete.

    Raises:
        UserError: `cfg` has a device that doesn't exist, or invalid sampling options.
    """
    arms = measured(comparison.arms)
    seeds = [next(s for s in (comparison.shared_seed, *arm.runs) if s in arm.runs) for arm in arms]
    try:
        texts, no_texts = held_out(arms[0].runs[seeds[0]], stories), None
    except (
        Exception
    ) as error:  # including errors of the data's files: the comparison is valid without its texts
        texts, no_texts = [], reason(error)
    return [read_arm(arm, seed, cfg, prompts, texts, no_texts) for arm, seed in zip(arms, seeds)]


def accuracy(reading: Reading, k: int) -> float:
    """Return the fraction of tokens that were among the model's first k guesses; NaN if no text was read."""
    ranks = [guess.rank for story in reading.stories for guess in story]
    return sum(rank <= k for rank in ranks) / len(ranks) if ranks else math.nan


def bits_per_byte(reading: Reading) -> float:
    """Return the loss over all texts shown, in bits per byte; NaN if no text was read."""
    guesses = [guess for story in reading.stories for guess in story]
    n_bytes = sum(guess.bytes for guess in guesses)
    return sum(guess.nats for guess in guesses) / math.log(2) / n_bytes if n_bytes else math.nan


# ---- the texts, and one run ----------------------------------------------------------------------


def held_out(run: TrainedRun, count: int) -> list[str] | list[Pair]:
    """Return the first validation texts of a run's data, truncated to its window.

    Pairs whose target begins after the window are left out.

    Raises:
        UserError: the data can't be read, or isn't the data that the run was validated on.
    """
    validate(run.config)
    source, tokenizer = build(run.config.data), of_run(run.folder, run.config)
    store = open_data(source, tokenizer).store
    if store.metadata["validation_text"] != run.summary["validation_text"]:
        raise UserError(OTHER_TEXT)
    if isinstance(source, Probe):  # every document fits
        return list(islice(source.pairs("val"), count))
    documents = store.split("val")
    by_fit = np.argsort(documents.lengths > source.seq_len, kind="stable")
    given = documents.given
    chosen = (by_fit if given is None else by_fit[given[by_fit] < source.seq_len])[:count]
    starts = documents.starts[chosen] + 1  # after the bos
    sizes = np.minimum(documents.lengths[chosen] - 1, source.seq_len)  # without the end
    for start, size in zip(starts, sizes):
        documents.check(start, start + size)
    pieces = [documents.tokens[start : start + size].tolist() for start, size in zip(starts, sizes)]
    if given is None:
        return [decoded(tokenizer, ids) for ids in pieces]
    cuts = given[chosen].tolist()
    return [
        Pair(decoded(tokenizer, ids[:cut]), decoded(tokenizer, ids[cut:])) for ids, cut in zip(pieces, cuts)
    ]


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of tokens, without a character at its end that truncation has split."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode(errors="ignore")


def read_arm(
    arm: Arm,
    seed: int,
    cfg: DictConfig,
    prompts: Sequence[str],
    texts: Sequence[str | Pair],
    no_texts: str | None,
) -> Reading:
    """Return the reading of the run with this seed; `no_texts` says why there are no texts."""
    run = arm.runs[seed]
    device, sampling = machine.choose_device(build(cfg.train).device), build(cfg.sample)
    try:
        model, tokenizer, _ = checkpoints.load(
            run.folder, which="last", device=device, extensions=cfg.extensions
        )
        source, objective = build(run.config.data), build(run.config.objective)
        if model.reads_memory and not objective.gives_memory:
            raise UserError(NEEDS_MEMORY)
        predicts_in_order = objective.predicts_in_order
        stories = (
            [read_text(model, objective, tokenizer, source, text) for text in texts]
            if predicts_in_order
            else []
        )
    except Exception as error:  # including errors of outside code: the comparison is valid without its texts
        return Reading(arm.name, seed, [], [], reason(error))
    reasons = [LOOKAHEAD_WARNING if stories and model.cannot_generate else None, no_texts]
    if not predicts_in_order:
        reasons.append("Its objective doesn't predict one token after the other, so no text is marked.")
    try:
        samples = list(zip(prompts, objective.generate(model, tokenizer, prompts, sampling)))
    except Exception as error:
        samples, reasons = [], [reason(error), *reasons]
    givens = [text.given for text in texts if isinstance(text, Pair)]
    return Reading(arm.name, seed, samples, stories, " ".join(filter(None, reasons)) or None, givens)


def reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}."


@torch.inference_mode()
def read_text(
    model: LM, objective: Objective, tokenizer: Tokenizer, source: Source, text: str | Pair
) -> list[Guess]:
    """Return a model's prediction of each token of a text, or of a target, in windows of `seq_len` as in evaluation.

    A text may be longer than a window if another arm's tokens are longer.
    """
    guesses = []
    for batch in windows_of(tokenizer, source, text):
        batch = batch.to(model.embedding.device)
        x_ND, targets_N = objective.predictions(model, batch)
        logits_NV = model.logits(x_ND)[:, : tokenizer.vocab_size].float()
        targets_N1 = targets_N[:, None]
        right_N1 = logits_NV.gather(1, targets_N1)
        nats_N = -logits_NV.log_softmax(-1).gather(1, targets_N1)[:, 0]
        ranks_N = 1 + (logits_NV > right_N1).sum(-1)
        for token, nats, rank in zip(targets_N1[:, 0].tolist(), nats_N.tolist(), ranks_N.tolist()):
            piece = tokenizer.token_bytes(token)
            guesses.append(Guess(characters(piece), nats, rank, len(piece)))
    return guesses


def windows_of(tokenizer: Tokenizer, source: Source, text: str | Pair) -> Iterator[Batch]:
    """Yield a text's windows in order; their targets contain each of its tokens, of a pair the target's, once."""
    given, target = text if isinstance(text, Pair) else ("", text)
    known = tokenizer.encode(given, bos=True)
    ids = np.array(known + tokenizer.encode(target))
    length = len(ids) - 1
    document = Documents(
        tokens=ids,
        starts=np.array([0, length]),
        lengths=np.array([length]),
        bytes=len(target.encode()),
        given=np.array([len(known) - 1]) if isinstance(text, Pair) else None,
    )
    yield from Validation(document, source.seq_len, stride_of(source), tokenizer.pad_id, batch_size=1)


def characters(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return visible(piece)
