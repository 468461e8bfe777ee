"""A stack of layers, from tokens to the normed output. The language model is one, and its encoder another."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError, suggest
from minllm.model.branch import Branch, nothing
from minllm.model.context import Context, Layer, Position, State
from minllm.model.contract import made, made_branch, made_norm
from minllm.model.norm import Norms
from minllm.model.parameter import normal, parameter, scale_values, writers
from minllm.model.recompute import Recompute, recomputed
from minllm.model.residual import Plain

LOGIT_SCALE = 0.5
"""Standard deviation of the first logits."""


@dataclass(frozen=True)
class Parts:
    """What the stacks of a model are built from; the arguments are described at `minllm.model.lm.LM`.

    `own` has the names of the branches, and "pos", that only an encoder has, and that are therefore configured under
    model.encoder.
    """

    vocab_size: int
    dim: int
    norms: Norms
    branches: Mapping[str, Callable[[int, Layer], nn.Module]]
    pos: Callable[[int], Position]
    residual: Callable[[int, Layer], Plain]
    scale_embedding: bool | float
    dropout: float
    own: frozenset[str] = frozenset()

    def key(self, name: str) -> str:
        """Return the configuration key of a branch or of the position encoding."""
        return f"model.encoder.{name}" if name in self.own else f"model.{name}"


class Stack(nn.Module):
    """The embedding, the layers and the final norm.

    Args:
        parts: the modules to build from.
        layers: the branches of each layer, such as ["attn mlp", "attn mlp"]. Those after the first `n_layers` are
            alternative last layers: each reads the output of the stack.
        n_layers: the number of layers.
        loops: how often the layers are applied to their own output.
        has_embedding: whether it has an embedding of its own; otherwise it is given one in each pass.
        key: the key of the stack in the configuration.

    Raises:
        UserError: the layout names a branch that doesn't exist.
    """

    recompute: Recompute = "none"
    """What the backward pass computes again; it changes memory and time, but no result."""

    def __init__(
        self,
        parts: Parts,
        layers: Sequence[str],
        *,
        n_layers: int,
        loops: int = 1,
        has_embedding: bool = True,
        key: str = "model",
    ):
        super().__init__()
        dim, norms = parts.dim, parts.norms
        self.vocab_size, self.dim, self.dropout, self.loops = parts.vocab_size, dim, parts.dropout, loops
        # checked by type, because 1 == True
        is_word = isinstance(parts.scale_embedding, bool)
        self.embedding_scale = (
            (dim**0.5 if parts.scale_embedding else 1.0) if is_word else parts.scale_embedding
        )
        # logits of a tied head begin with this scale at every width; at GPT-2's, 768, this is about its 0.02
        std = LOGIT_SCALE * dim**-0.5
        self.embedding = (
            parameter(parts.vocab_size, dim, kind="embedding", draw=normal(std), stream="writes")
            if has_embedding
            else None
        )
        self.embedding_norm = made_norm(norms, dim) if norms.embedding else None
        self.position = made(parts.key("pos"), parts.pos, dim=dim)
        self.token_scale = self.embedding_scale * std
        scale_values(writers(self.position), self.token_scale)

        sentences = [_parse(sentence, parts.branches, key) for sentence in layers]
        if len(layers) > n_layers and not sentences[-1]:
            raise UserError(
                "The last layer has no branch, so the model can't predict further ahead: change model.layout."
            )
        total = loops * sum(len(sentence) for sentence in sentences[:n_layers])

        self.layers, self.ahead = nn.ModuleList(), nn.ModuleList()
        for i, sentence in enumerate(sentences):
            in_layer = nn.ModuleDict()
            for place, (name, words) in enumerate(sentence.items()):
                layer = Layer(i, n_layers, total, norms, place=place)
                modules = {
                    word: made_branch(parts.key(word), parts.branches[word], dim=dim, layer=layer)
                    for word in words
                }
                in_layer[name] = Branch(modules, dim, layer, norms, parts.residual, parts.dropout)
            (self.layers if i < n_layers else self.ahead).append(in_layer)
        # what reads the stream through a norm doesn't shrink with it, and would drown small embedded tokens
        shrinks = norms.before and not norms.embedding and not norms.residual
        self.branch_scale = self.embedding_scale * dim**-0.5 if shrinks else 1.0
        for layer in (*self.layers, *self.ahead):
            scale_values(writers(layer), self.branch_scale)
        if not self.branches():
            raise UserError(f"{key}.layout has no branches: choose a model/mlp other than none.")
        for module in self.modules():
            if isinstance(module, Position):
                module.check(self)
        self.norm = made_norm(norms, dim) if norms.final else None

    def branches(self) -> list[Branch]:
        """Return all branches in the order in which they write the stream; each is run `loops` times."""
        return [branch for layer in self.layers for branch in layer.values()]

    def mixers(self) -> list[nn.Module]:
        """Return the modules of all branches."""
        return [module for branch in self.branches() for module in branch.words.values()]

    def lookup(self, tokens: Tensor, embedding_VD: Tensor) -> Tensor:
        """Return the embeddings of tokens (…), (…, D), without positions."""
        x = F.embedding(tokens, embedding_VD)
        return x if self.embedding_scale == 1.0 else x * self.embedding_scale

    def _embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        x_BTD = self.position.embed(x_BTD, ctx)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return F.dropout(x_BTD, self.dropout, self.training) if self.dropout else x_BTD

    def _stream(
        self, x_BTD: Tensor, ctx: Context, states: Sequence[Mapping[str, State]] | None = None
    ) -> Tensor:
        """Return the residual stream after the last layer, for the embedded tokens."""
        branches = self.branches()
        stream = branches[0].residual.start(x_BTD)  # all residuals begin and end the stream in the same way
        if states is None and self._recomputes():
            for layer in [*self.layers] * self.loops:
                stream = self._through(layer, stream, ctx)
            return stream
        for branch, state in zip(branches * self.loops, states or itertools.repeat({})):
            stream = branch(stream, ctx, state)
        return stream

    def _through(self, layer: nn.ModuleDict, stream: Tensor, ctx: Context) -> Tensor:
        """Return the stream after a layer without decoding states."""
        branches = list(layer.values())
        if not self._recomputes():
            return functools.reduce(lambda x, branch: branch(x, ctx), branches, stream)
        at_once = len(branches) if self.recompute == "layers" else 1
        for first in range(0, len(branches), at_once):
            stream = recomputed(branches[first : first + at_once], stream, ctx)
        return stream

    def _recomputes(self) -> bool:
        return self.recompute != "none" and self.training and torch.is_grad_enabled()

    def _finished(self, stream: Tensor) -> Tensor:
        x_BTD = self.branches()[0].residual.finish(stream)
        return x_BTD if self.norm is None else self.norm(x_BTD)


def set_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Set what the stacks of a model, an encoder's included, compute again in a backward pass."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = recompute


def positions_in(length: int, segments_BS: Tensor | None, device: torch.device) -> Tensor:
    """Return each token's position in its segment, from 0; (1, S) if all rows agree."""
    place_S = torch.arange(length, device=device)
    if segments_BS is None:
        return place_S[None]
    begins_BS = segments_BS != segments_BS.roll(1, dims=1)
    begins_BS[:, 0] = True
    return place_S - torch.where(begins_BS, place_S, 0).cummax(dim=1).values


def written(first: list[str], layout: list[str], n_layers: int, key: str = "model") -> list[str]:
    """Return the layout's entry for each layer."""
    if not layout:
        raise UserError(f"{key}.layout is empty: write for example '{key}.layout=[attn mlp]'.")
    needed = len(first) + len(layout)
    if n_layers < needed:
        raise UserError(
            f"{key}.n_layers={n_layers} is too small for the layout, whose last layer is '{layout[-1]}':"
            f" set it to {needed} or more, or write a shorter {key}.layout."
        )
    return [*first, *(layout[i % len(layout)] for i in range(n_layers - len(first)))]


def _parse(sentence: str, known: Mapping[str, Callable], key: str) -> dict[str, list[str]]:
    """Return the branches of a layer by name: "attn+mlp mlp mlp" has attn+mlp, mlp and mlp_2."""
    phrases = sentence.split()
    if not phrases:
        raise UserError(f"{key}.layout has an empty layer: write for example '{key}.layout=[attn mlp]'.")
    parsed: dict[str, list[str]] = {}
    for i, phrase in enumerate(phrases):
        again = phrases[:i].count(phrase)
        words = [
            word for word in _words(phrase, known, key) if getattr(known[word], "func", None) is not nothing
        ]
        if words:
            parsed[f"{phrase}_{again + 1}" if again else phrase] = words
    return parsed


def _words(phrase: str, known: Mapping[str, Callable], key: str) -> list[str]:
    """Return the names of the parallel branches in a phrase."""
    words = phrase.split("+")
    for word in words:
        if not word.isidentifier():
            raise UserError(
                f"{key}.layout has '{phrase}': write branch names, with a plus between parallel branches,"
                " such as attn+mlp."
            )
        if word not in known:
            raise UserError(
                f"{key}.layout names '{word}', but the model has no such branch.{suggest(word, known)}"
                f" To define it, add model/{word}=<option> or +model/attn@{key}.{word}=<option>."
            )
    if len(set(words)) < len(words):
        raise UserError(
            f"{key}.layout has '{phrase}', but a branch can't be parallel to itself: define a second branch, such as"
            f" +model/mlp@{key}.mlp2=swiglu."
        )
    return words
