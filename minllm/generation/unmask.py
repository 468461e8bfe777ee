"""Generation by unmasking: a row of masks becomes a text, block by block, with several tokens revealed in each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minllm.errors import UserError
from minllm.generation.sampler import Sampling
from minllm.model.context import Sight
from minllm.model.lm import LM
from minllm.model.steps import evaluating

if TYPE_CHECKING:
    from minllm.tokenizer import Tokenizer

HOLE = "___"
"""What marks the place to be filled in a prompt."""
HIDDEN = "░"
"""How a masked token is shown."""


@torch.inference_mode()
def unmasked(
    model: LM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    stream: Callable[[str], None] | None = None,
    *,
    mask: int,
    block: int,
    length: int,
) -> list[str]:
    """Return what a model that has learnt to unmask tokens generates after each prompt.

    A prompt's continuation doesn't depend on the other prompts.

    Args:
        stream: called with the states of the text if `sampling.trace` asks for them, and with the text at the end.
        mask: the id of the token that stands for unknown ones.
        block: tokens that are unmasked together; each block sees itself and those before it.
        length: the most tokens of a text. If a block is as long, a prompt may have a hole of `max_new_tokens` tokens,
            and what fills it is returned.

    Raises:
        UserError: a prompt leaves no room.
    """
    with evaluating(model):
        return [
            _generated(
                model,
                tokenizer,
                prompt,
                sampling,
                stream,
                mask,
                block,
                length,
                sampling.generator(place, prompt),
            )
            for place, prompt in enumerate(prompts)
        ]


def _generated(
    model: LM,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    stream: Callable[[str], None] | None,
    mask: int,
    block: int,
    length: int,
    random: torch.Generator,
) -> str:
    before, after = around_hole(prompt) if block == length else (prompt, "")
    given, following = tokenizer.encode(before), tokenizer.encode(after)
    if len(given) + len(following) >= length:
        raise UserError(
            f"The prompt has {len(given) + len(following)} tokens, and the model generates texts of at most {length}:"
            " shorten it."
        )
    end = min(len(given) + sampling.max_new_tokens, length - len(following))
    text_T = torch.full((length,), mask)
    text_T[: len(given)] = torch.tensor(given, dtype=torch.int64)
    text_T[end : end + len(following)] = torch.tensor(following, dtype=torch.int64)
    for start in range(len(given) // block * block, end, block):
        stop = min(start + block, length)
        for step in unmask(model, text_T[:stop], mask, start, block, sampling, random, tokenizer.vocab_size):
            if stream and sampling.trace and step % sampling.trace == 0:
                stream(_shown(tokenizer, text_T[:stop].tolist(), mask) + "\n")
        if tokenizer.eos_id in text_T[start:stop].tolist():
            break
    new = text_T[len(given) : end].tolist()
    ends = [new.index(token) for token in (tokenizer.eos_id, mask) if token in new]
    text = tokenizer.decode(new[: min(ends, default=len(new))])
    if stream:
        stream(before + text + after if sampling.trace else text)
    return text


def around_hole(prompt: str) -> tuple[str, str]:
    """Return what is before the hole of a prompt, and what is after it; a prompt without a hole is all before it.

    A space before the hole belongs to what fills it: tokenizers join spaces to the words after them, so in texts hardly
    any token is a space alone, and a model can't continue it well.
    """
    before, hole, after = prompt.partition(HOLE)
    return (before.removesuffix(" ") if hole else before), after


def unmask(
    model: LM,
    text_T: Tensor,
    mask: int,
    start: int,
    block: int,
    sampling: Sampling,
    random: torch.Generator,
    vocab_size: int,
) -> Iterator[int]:
    """Replace the masks from `start` on, in place; yield the number of each pass.

    In each pass every masked token is drawn, and a share of them stays: the most probable ones, or some at random.
    """
    device, T = model.embedding.device, len(text_T)
    order_1T = (torch.arange(T, device=device) // block * 2)[None]
    sight = Sight(sees_all=True) if start == 0 else Sight(order_BS=order_1T)
    passes = min(sampling.steps or T, int((text_T[start:] == mask).sum()))
    for step in range(passes):
        places_M = (text_T == mask).nonzero()[:, 0]
        x_1TD = model.hidden(text_T[None].to(device), sight=sight)
        logits_MV = model.logits(x_1TD[0, places_M.to(device)])[:, :vocab_size]
        # float64, because fewer digits make rare tokens rarer (2409.02908)
        uniforms_M = torch.rand(len(places_M), generator=random, dtype=torch.float64)
        drawn_M = sampling.draw(logits_MV, uniforms_M.to(device)).cpu()
        if sampling.unmask == "confident":
            p_MV = logits_MV.float().softmax(-1).cpu()
            worth_M = p_MV.gather(1, drawn_M[:, None])[:, 0]
        else:
            worth_M = torch.rand(len(places_M), generator=random)
        kept_N = worth_M.argsort(descending=True)[: -(-len(places_M) // (passes - step))]
        text_T[places_M[kept_N]] = drawn_M[kept_N]
        yield step


def _shown(tokenizer: Tokenizer, tokens: list[int], mask: int) -> str:
    """Return the text of tokens up to the end, with a sign in place of each mask."""
    if tokenizer.eos_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_id)]
    pieces, known = [], []
    for token in [*tokens, mask]:
        if token == mask:
            pieces += [tokenizer.decode(known), HIDDEN]
            known = []
        else:
            known.append(token)
    return "".join(pieces[:-1])
