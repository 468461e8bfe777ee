"""Generation: a batch of prompts in, their continuations out."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from omegaconf import OmegaConf
from torch import Tensor

from minllm.errors import UserError
from minllm.generation.decoding import Passes, Steps
from minllm.generation.sampler import Sampling
from minllm.model.context import PAD, PAST, Sight
from minllm.model.lm import LM
from minllm.model.steps import evaluating
from minllm.schema.checking import check_options, options_of

if TYPE_CHECKING:
    from minllm.objective import Objective
    from minllm.tokenizer import Tokenizer


def generate(
    model: LM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    objective: Objective | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    steps: int | None = None,
    unmask: Literal["random", "confident"] = "random",
    trace: int = 0,
    candidates: int = 1,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """Continue each prompt until its text ends or `max_new_tokens` have been added.

    A prompt's continuation doesn't depend on the other prompts: its random numbers depend on the seed and its text.

    Args:
        model: the model; it is in evaluation mode during generation.
        tokenizer: the tokenizer that the model was trained with.
        prompts: texts of any length; "" begins a new text.
        objective: what the model has learnt (`minllm.build_objective`), which decides how it generates; None
            continues prompts from left to right, which is how `causal` generates.
        max_new_tokens, temperature, top_k, top_p, min_p, seed, steps, unmask, trace, candidates: see
            `minllm.generation.sampler.Sampling`.
        stream: called with each piece of text as it is generated; for a single prompt only.

    Returns:
        The continuations, without their prompts and the end-of-text token.

    Raises:
        ValueError: `stream` is given with more than one prompt.
        UserError: the model can't generate, an option has an invalid value, or a prompt is longer than the number of
            learned positions.
    """
    if isinstance(prompts, str):
        raise UserError("prompts must be a list of texts, such as ['Once upon a time'].")
    if stream and len(prompts) != 1:
        raise ValueError("stream needs exactly one prompt")
    if not prompts:
        return []
    options = dict(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        steps=steps,
        unmask=unmask,
        trace=trace,
        candidates=candidates,
    )
    check_options(OmegaConf.create(options), "sample", options_of(Sampling), allowed={"minllm"})
    sampling = Sampling(**options)
    write = continued if objective is None else objective.generate
    return write(model, tokenizer, prompts, sampling, stream)


def continued(
    model: LM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    stream: Callable[[str], None] | None = None,
    *,
    sight: Sight = PAST,
) -> list[str]:
    """Continue each prompt from left to right; see `generate` and `next_tokens`."""
    rows = tokenizer.encode_batch(prompts, bos=True)
    return continued_rows(model, tokenizer, rows, prompts, sampling, stream, sight=sight)


def continued_rows(
    model: LM,
    tokenizer: Tokenizer,
    rows: list[list[int]],
    names: Sequence[str],
    sampling: Sampling,
    stream: Callable[[str], None] | None = None,
    *,
    sources: list[list[int]] | None = None,
    sight: Sight = PAST,
) -> list[str]:
    """Continue rows of tokens from left to right; the random numbers of each depend on the seed and its name.

    Args:
        sources: the tokens that the model's encoder reads for each row.
    """
    generators = [sampling.generator(place, name) for place, name in enumerate(names)]
    written: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    show = _decoded(stream) if stream else None
    vocab_size = tokenizer.vocab_size
    for tokens in next_tokens(
        model, rows, generators, sampling, vocab_size=vocab_size, sources=sources, sight=sight
    ):
        for i, token in enumerate(tokens):
            ended[i] |= token is None or token == tokenizer.eos_id
            if not ended[i]:
                written[i].append(token)
        if all(ended):
            break
        if show:
            show(tokenizer.token_bytes(written[0][-1]))
    if show:
        show(b"", final=True)
    return [tokenizer.decode(ids) for ids in written]


@torch.inference_mode()
def next_tokens(
    model: LM,
    rows: list[list[int]],
    generators: list[torch.Generator],
    sampling: Sampling,
    *,
    vocab_size: int | None = None,
    sources: list[list[int]] | None = None,
    sight: Sight = PAST,
) -> Iterator[list[int | None]]:
    """Yield the next token of each row, up to `max_new_tokens` times.

    Rows that have used up all learned positions get None.

    Args:
        vocab_size: only tokens below this are written; None means all.
        sources: the tokens that the model's encoder reads for each row; None if it has no encoder.
        sight: what the tokens of a prompt may see; without an order, because those that follow see it all.

    Rows of different lengths are padded on the left, so that their next tokens are in one column:

        tokens     · · a b | c          segments    -1 -1  0  0 | 0
                   d e f g | h                       0  0  0  0 | 0
    """
    device, longest = model.embedding.device, max(map(len, rows))
    rooms = [sampling.max_new_tokens] * len(rows)
    if model.position.max_positions is not None:
        # + 1 because the last token is never read; a prompt that is too long raises an error when it is read
        rooms = [min(room, model.position.max_positions + 1 - len(row)) for room, row in zip(rooms, rows)]
    new_tokens = max(1, *rooms)
    tokens_BT = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    segments_BT = torch.tensor([[PAD] * (longest - len(row)) + [0] * len(row) for row in rows], device=device)
    state = model.init_state(len(rows), longest + new_tokens)
    segments = segments_BT if (segments_BT == PAD).any() else None

    def uniforms() -> Tensor:
        return torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])

    with evaluating(model):
        memory_BSD, memory_segments_BS = (None, None) if sources is None else encoded(model, sources)
        passes = Passes(model, state, sampling, vocab_size=vocab_size, sight=sight)
        tokens_B = passes.first(tokens_BT, segments, uniforms(), memory_BSD, memory_segments_BS)
        yield tokens_B.tolist()
        decoder = Steps(passes, tokens_B) if Steps.pay(passes, new_tokens) else passes
        for written in range(1, new_tokens):
            # a row without another position is padding from here on
            is_over = [written >= room for room in rooms]
            tokens_B = decoder.next(tokens_B, uniforms(), is_over)
            yield [None if over else token for token, over in zip(tokens_B.tolist(), is_over)]


def encoded(model: LM, sources: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the memory of sources, which are padded on the right, and its segments."""
    device, longest = model.embedding.device, max(map(len, sources))
    source_BS = torch.tensor([row + [0] * (longest - len(row)) for row in sources], device=device)
    segments_BS = torch.tensor(
        [[0] * len(row) + [PAD] * (longest - len(row)) for row in sources], device=device
    )
    return model.encode(source_BS, segments_BS), segments_BS


def _decoded(stream: Callable[[str], None]) -> Callable[..., None]:
    """Return a function that streams bytes as soon as they form whole characters, and the rest at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show(new: bytes, final: bool = False) -> None:
        if text := decoder.decode(new, final):
            stream(text)

    return show
