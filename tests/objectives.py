"""Objectives for tests: models that learn them, documents and noise, and a tokenizer for what they write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from minllm.data.batches import IGNORED, Batch
from minllm.generation.sampler import Sampling
from minllm.model.build import with_parts
from minllm.model.lm import LM
from minllm.objective import Objective
from minllm.objective.mixture import Mixture
from minllm.objective.noise import Noise
from minllm.schema.building import build
from tests.tiny import VOCAB, T, random_model, tiny_cfg, tiny_model

PADDING, EOS = 3, 5


def batch(rows: int = 4, *, given: bool = False, seed: int = 0, length: int = T) -> Batch:
    """Return documents of different lengths in rows of their own, half of each given if asked for."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(6, VOCAB, (rows, length), generator=generator)
    lengths = torch.linspace(length, length // 2, rows).long()[:, None]
    place = torch.arange(length)
    text = torch.where(place == lengths - 1, EOS, torch.where(place < lengths, text, PADDING))
    tokens_BT = torch.cat([torch.full((rows, 1), EOS), text[:, :-1]], 1)
    targets_BT = torch.where(place < lengths, text, IGNORED)
    given_BT = (place < lengths // 2) if given else None
    if given:
        targets_BT = targets_BT.masked_fill(given_BT, IGNORED)
    return Batch(tokens_BT, targets_BT, None, given_BT, PADDING, EOS, EOS)


def noise(rows: int = 4, seed: int = 0, step: int | str = 7) -> Noise:
    return Noise(seed, step, range(rows), rows)


def made(objective: str, *more: str, model_of: Callable[..., LM] = random_model):
    """Return a model with random weights, which tests share unless `model_of` says otherwise, and its objective."""
    choices = (objective, *NEEDS.get(objective, []), *more)
    return model_of(*choices), build(tiny_cfg(*choices).objective)


made_anew = partial(made, model_of=partial(tiny_model, randomised=True))
"""The same for tests that change the model."""


ENCODER = ["model/encoder=same", "model/layout=decoder"]
NEEDS = {"objective=mixture": ENCODER, "objective=seq2seq": ENCODER, "objective=span": ENCODER}


class Letters:
    """A tokenizer of letters."""

    vocab_size, eos_id, bos_id, pad_id = VOCAB, EOS, EOS, PADDING

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [EOS] * bos + [ord(letter) - 59 for letter in text] + [EOS] * eos

    def encode_batch(self, texts, *, bos: bool = False):
        return [self.encode(text, bos=bos) for text in texts]

    def decode(self, ids) -> str:
        return "".join(chr(id + 59) for id in ids)

    def token_bytes(self, id: int) -> bytes:
        return chr(id + 59).encode()


def sampling(**changed) -> Sampling:
    options = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0, "max_new_tokens": 9, "seed": 0}
    return Sampling(**{**options, **changed})


def part(name: str, *words: str) -> Objective:
    return build(tiny_cfg(f"objective={name}", *words).objective)


def mixture(*names: str, weights=None, evaluate=None, mode_tokens=False) -> Mixture:
    of = {name: lambda name=name: part(name) for name in names}
    return Mixture(of=of, weights=weights or {}, evaluate=evaluate, mode_tokens=mode_tokens)


def model_for(learn: Objective, *words: str):
    """Return a model with random weights that has the special tokens of an objective."""
    model = with_parts(tiny_cfg(*words), learn, VOCAB).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.2 + (param.ndim == 1) * 0.5)
    return model
