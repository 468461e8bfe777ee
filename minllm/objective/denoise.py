"""Generation by denoising: pure noise after the prompt becomes the embeddings of a text, all tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minllm.errors import UserError
from minllm.generation.candidates import most_similar
from minllm.generation.sampler import Sampling
from minllm.model.lm import LM
from minllm.model.steps import evaluating
from minllm.objective.embedded import embedded, for_head

if TYPE_CHECKING:
    from minllm.objective.diffuseq import DiffuSeq
    from minllm.tokenizer import Tokenizer


@torch.inference_mode()
def denoised(
    objective: DiffuSeq,
    model: LM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """Return what a model generates after each prompt, which doesn't depend on the other prompts.

    Args:
        stream: called with the states of the first candidate if `sampling.trace` asks for them, and with the text at
            the end.

    Raises:
        UserError: a prompt leaves no room.
    """
    with evaluating(model):
        return [
            _generated(objective, model, tokenizer, prompt, place, sampling, stream)
            for place, prompt in enumerate(prompts)
        ]


def _generated(
    objective: DiffuSeq,
    model: LM,
    tokenizer: Tokenizer,
    prompt: str,
    place: int,
    sampling: Sampling,
    stream: Callable[[str], None] | None,
) -> str:
    given, length = tokenizer.encode(prompt), objective.length
    if len(given) >= length:
        raise UserError(
            f"The prompt has {len(given)} tokens, and the model generates texts of at most {length}: shorten it."
        )
    end = min(len(given) + sampling.max_new_tokens, length)
    generators = [sampling.generator(place, f"{prompt}/{i}") for i in range(sampling.candidates)]
    texts: list[str] = []
    for step, tokens_BT in enumerate(
        denoise(objective, model, given, generators, sampling, tokenizer.vocab_size)
    ):
        texts = [_decoded(tokenizer, row[len(given) : end]) for row in tokens_BT.tolist()]
        if stream and sampling.trace and step % sampling.trace == 0:
            stream(f"{prompt}{texts[0]}\n")
    text = texts[most_similar(texts)]
    if stream:
        stream(prompt + text if sampling.trace else text)
    return text


def denoise(
    objective: DiffuSeq,
    model: LM,
    given: list[int],
    generators: list[torch.Generator],
    sampling: Sampling,
    vocab_size: int,
) -> Iterator[Tensor]:
    """Yield the most likely tokens of each candidate after each pass, (B, T); the given part is always itself."""
    B, T, device = len(generators), objective.length, model.embedding.device
    text_T = torch.tensor(given + [0] * (T - len(given)), device=device)
    open_T = torch.arange(T, device=device) >= len(given)
    given_TW = embedded(model, text_T)

    def noise_BTW() -> Tensor:
        drawn = [torch.randn(T, objective.width, generator=g) for g in generators]
        return torch.stack(drawn).to(device)

    passes = min(sampling.steps or T, objective.steps)
    times = [round(objective.steps * (1 - i / passes)) for i in range(passes + 1)]
    x_BTW = noise_BTW()
    for t, s in zip(times, times[1:]):
        x_BTW = torch.where(open_T[:, None], x_BTW, given_TW)
        guess_BTW = objective.guess(model, x_BTW, torch.full((B,), t, device=device))
        logits_BTV = model.logits(for_head(model, guess_BTW))[:, :, :vocab_size]
        yield torch.where(open_T, logits_BTV.argmax(-1), text_T)
        if s > 0:  # the last prediction is the text
            fresh_BTW = noise_BTW() if objective.ancestral else None
            x_BTW = objective.chain.back(x_BTW, guess_BTW, fresh_BTW, t, s)


def _decoded(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Return the text of tokens up to the end-of-text token."""
    if tokenizer.eos_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_id)]
    return tokenizer.decode(tokens)
