"""The language model: an embedding, a stack of layers and a head.

Read this file first. A layer is a sequence of branches, and the layout is the list of layers that is repeated up the
stack:

    [attn mlp]                            a transformer
    [attn+mlp]                            attention and MLP in parallel on the same input
    [rec mlp, rec mlp, attn mlp]          Griffin
    [local mlp] ×5, [attn mlp]            Gemma 3

A space means "then", a plus means "in parallel". Each name is a branch, configured under that name (`model.attn`,
`model.mlp`, …); nothing else here knows what a transformer is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minllm.errors import UserError, suggest
from minllm.model.branch import Branch, nothing
from minllm.model.context import PAD, PAST, Context, Layer, Position, Sight, State
from minllm.model.contract import made, made_branch, made_norm
from minllm.model.kernels.linear import linear
from minllm.model.norm import Norms
from minllm.model.parameter import Linear, constant, normal, parameter
from minllm.model.residual import Plain
from minllm.schema.options import BelowOne, Count, Natural, Positive


class LM(nn.Module):
    """A language model over `vocab_size` tokens.

    Args:
        vocab_size: the tokenizer's number of tokens, V.
        norms: the kind of norm and where norms are applied (`norm=`).
        branches: maps each branch name to a factory of its module: `branches["attn"](dim, layer)`.
        dim: width of the residual stream, D.
        n_layers: number of layers; the layout is repeated until there are that many.
        layout: the layers, such as ["rec mlp", "attn mlp"].
        first: the first layers, before the layout begins.
        loops: how often the whole stack is applied to its own output, with shared weights (1807.03819).
        pos: how positions are encoded (`model/pos=`).
        residual: the kind of residual connection (`model/residual=`).
        tie_embeddings: the head uses the embedding's matrix.
        head_bias: the head has a bias for each token, as in GPT-J.
        scale_embedding: multiply embeddings by √dim, as the original transformer and Gemma do, or by this number.
        softcap: limit the logits to c·tanh(logits / c); null means no limit.
        predict_ahead: how many tokens after the next one can be predicted. Each has its own layer on top of the
            stack, with the same branches as the last layer; they share the head (2404.19737).
        dropout: dropout probability of the embedding and of each branch's output.

    Raises:
        UserError: the layout names a branch that doesn't exist.
    """

    def __init__(
        self,
        vocab_size: int,
        norms: Norms,
        branches: Mapping[str, Callable[[int, Layer], nn.Module]],
        *,
        dim: Count,
        n_layers: Count,
        layout: list[str],
        first: list[str],
        loops: Count,
        pos: Callable[[int], Position],
        residual: Callable[[int, Layer], Plain],
        tie_embeddings: bool,
        head_bias: bool,
        scale_embedding: bool | Positive,
        softcap: Positive | None,
        predict_ahead: Natural,
        dropout: BelowOne,
    ):
        super().__init__()
        self.vocab_size, self.dim, self.dropout, self.softcap = vocab_size, dim, dropout, softcap
        self.loops = loops
        # checked by type, because 1 == True
        is_word = isinstance(scale_embedding, bool)
        self.embedding_scale = (dim**0.5 if scale_embedding else 1.0) if is_word else scale_embedding
        # embedded tokens have the same initial scale whether or not they are multiplied
        draw = normal(0.02 / self.embedding_scale)
        self.embedding = parameter(vocab_size, dim, kind="embedding", draw=draw, stream="writes")
        self.embedding_norm = made_norm(norms, dim) if norms.embedding else None
        self.position = made("model.pos", pos, dim=dim)

        written = _written(first, layout, n_layers)
        sentences = [_parse(sentence, branches) for sentence in written + predict_ahead * written[-1:]]
        if predict_ahead and not sentences[-1]:
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
                    word: made_branch(f"model.{word}", branches[word], dim=dim, layer=layer) for word in words
                }
                in_layer[name] = Branch(modules, dim, layer, norms, residual, dropout)
            (self.layers if i < n_layers else self.ahead).append(in_layer)
        if not self.branches():
            raise UserError("model.layout has no branches: choose a model/mlp other than none.")
        for module in self.modules():
            if isinstance(module, Position):
                module.check(self)

        self.norm = made_norm(norms, dim) if norms.final else None
        self.head = None if tie_embeddings else Linear(dim, vocab_size, stream="reads", gain=0.02 * dim**0.5)
        self.head_bias_V = parameter(vocab_size, kind="vector", draw=constant(0)) if head_bias else None
        self.sees_padding = self.cannot_generate is not None
        self.parts: nn.Module | None = None  # an objective's parameters, which `build_model` adds

    def forward(
        self,
        tokens_BT: Tensor,
        segments: Tensor | None = None,
        state: ModelState | None = None,
        memory_BSD: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of the next token at each position, (B, T, V).

        Args:
            tokens_BT: token ids, int64.
            segments: the document each token belongs to, int64 (B, T), with -1 for padding; tokens see only their own
                segment. None means one document per row, and is faster.
            state: the decoding state (`init_state`), which is advanced by these T tokens.
            memory_BSD: the input of cross-attention.
        """
        return self.logits(self.hidden(tokens_BT, segments, state, memory_BSD=memory_BSD))

    def hidden(
        self,
        tokens_BT: Tensor,
        segments: Tensor | None = None,
        state: ModelState | None = None,
        *,
        memory_BSD: Tensor | None = None,
        memory_segments_BS: Tensor | None = None,
        counted_BT: Tensor | None = None,
        losses: list[Tensor] | None = None,
        ahead: list[Tensor] | None = None,
        sight: Sight = PAST,
        embedded_BTD: Tensor | None = None,
    ) -> Tensor:
        """Return the head's input, (B, T, D). Takes the arguments of `forward`, and those that objectives need:

        Args:
            memory_segments_BS: the segment that each position of the memory belongs to.
            counted_BT: the tokens that count in the loss, bool.
            losses: branches append their auxiliary losses to this list, in nats per counted token.
            ahead: the head's inputs for the tokens after the next one are appended to this list, (B, T, D) each.
            sight: what tokens may see; with a state, in its first pass only.
            embedded_BTD: what the tokens are embedded as, if not by the embedding's matrix; then only the shape of
                `tokens_BT` matters.
        """
        if self.sees_padding and segments is None and counted_BT is not None:
            segments = _without_padding(counted_BT)
        past = state.past if state else 0
        segments_BS = state.advance(tokens_BT, segments) if state else segments
        positions_BS = sight.positions_BS
        if positions_BS is None:
            positions_BS = _positions(past + tokens_BT.shape[1], segments_BS, tokens_BT.device)
        ctx = Context(
            positions_BT=positions_BS[:, past:],
            positions_BS=positions_BS,
            segments_BT=None if segments_BS is None else segments_BS[:, past:],
            segments_BS=segments_BS,
            past=past,
            causal=not sight.sees_all,
            order_BS=sight.order_BS,
            position=self.position,
            memory_BSD=memory_BSD,
            memory_segments_BS=memory_segments_BS,
            counted_BT=counted_BT,
            losses=[] if losses is None else losses,
        )
        ctx.x0_BTD = x_BTD = self._embed(tokens_BT, ctx, embedded_BTD)

        branches = self.branches()
        ends = branches[0].residual  # all residuals begin and end the stream in the same way
        stream = ends.start(x_BTD)
        for branch, states in zip(branches * self.loops, state.branches if state else itertools.repeat({})):
            stream = branch(stream, ctx, states)
        if ahead is not None:
            for layer in self.ahead:
                further = functools.reduce(lambda x, branch: branch(x, ctx), layer.values(), stream)
                ahead.append(self._normed(ends.finish(further)))
        return self._normed(ends.finish(stream))

    def _normed(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (…, V) for the output of `hidden` (…, D)."""
        logits = linear(x, self.head_weight_VD, self.head_bias_V)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def _embed(self, tokens_BT: Tensor, ctx: Context, embedded_BTD: Tensor | None = None) -> Tensor:
        x_BTD = self.lookup(tokens_BT) if embedded_BTD is None else embedded_BTD
        x_BTD = self.position.embed(x_BTD, ctx)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return F.dropout(x_BTD, self.dropout, self.training) if self.dropout else x_BTD

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokens (…), (…, D), without positions."""
        x = F.embedding(tokens, self.embedding)
        return x if self.embedding_scale == 1.0 else x * self.embedding_scale

    @property
    def head_weight_VD(self) -> Tensor:
        return self.embedding if self.head is None else self.head.weight

    @property
    def reads_memory(self) -> bool:
        """Whether some branch has cross-attention."""
        modules = (module for branch in self.branches() for module in branch.words.values())
        return any(getattr(module, "reads_memory", False) for module in modules)

    def blank_memory(
        self, batch: int, length: int, device: str | torch.device | None = None
    ) -> Tensor | None:
        """Return a memory of zeros, (B, S, D), to try the model with; None if it has no cross-attention."""
        return torch.zeros(batch, length, self.dim, device=device) if self.reads_memory else None

    def branches(self) -> list[Branch]:
        """Return all branches in the order in which they write the stream; each is run `loops` times."""
        return [branch for layer in self.layers for branch in layer.values()]

    @property
    def cannot_generate(self) -> str | None:
        """Why this model can't generate: the message of a module with `looks_ahead`. None if it can."""
        reasons = (getattr(module, "looks_ahead", None) for module in self.modules())
        return next(filter(None, reasons), None)

    def init_state(self, batch: int, max_len: int, *, device: str | torch.device | None = None) -> ModelState:
        """Return an empty decoding state for `batch` sequences of up to `max_len` tokens.

        Raises:
            UserError: the model can't generate.
        """
        if self.cannot_generate:
            raise UserError(self.cannot_generate)
        device, dtype = device or self.embedding.device, self.embedding.dtype
        branches = self.branches() * self.loops
        return ModelState(max_len, [b.init_states(batch, max_len, device, dtype) for b in branches])


@dataclass
class ModelState:
    """A model's decoding state: the states of its mixers, and the segments so far."""

    max_len: int
    branches: list[dict[str, State]]
    past: int = 0
    segments_BS: Tensor | None = None

    def advance(self, tokens_BT: Tensor, segments: Tensor | None) -> Tensor | None:
        """Record the next tokens; return the segments of all tokens so far, including these."""
        (B, T), past = tokens_BT.shape, self.past
        if past + T > self.max_len:
            raise ValueError(f"this state holds {self.max_len} tokens: {past} + {T} don't fit")
        if segments is not None or self.segments_BS is not None:
            earlier = tokens_BT.new_zeros(B, past) if self.segments_BS is None else self.segments_BS
            # tokens without segments continue the last segment
            new = earlier[:, -1:].expand(B, T) if segments is None else segments
            self.segments_BS = torch.cat([earlier, new], dim=1)
        self.past += T
        return self.segments_BS

    @property
    def nbytes(self) -> int:
        """Size of the mixers' states in bytes."""
        tensors = [t for states in self.branches for state in states.values() for t in state.tensors()]
        return sum(t.numel() * t.element_size() for t in tensors)


def _without_padding(counted_BT: Tensor) -> Tensor:
    """Return segments for rows of one document each; what follows the last counted token is padding.

    A causal model doesn't need them, because it doesn't see what follows.
    """
    to_come_BT = counted_BT.flip(1).long().cumsum(dim=1).flip(1)
    return torch.where(to_come_BT > 0, 0, PAD)


def _positions(length: int, segments_BS: Tensor | None, device: torch.device) -> Tensor:
    """Return each token's position in its segment, from 0; (1, S) if all rows agree."""
    place_S = torch.arange(length, device=device)
    if segments_BS is None:
        return place_S[None]
    begins_BS = segments_BS != segments_BS.roll(1, dims=1)
    begins_BS[:, 0] = True
    return place_S - torch.where(begins_BS, place_S, 0).cummax(dim=1).values


def _written(first: list[str], layout: list[str], n_layers: int) -> list[str]:
    """Return the layout's entry for each layer."""
    if not layout:
        raise UserError("model.layout is empty: write for example 'model.layout=[attn mlp]'.")
    needed = len(first) + len(layout)
    if n_layers < needed:
        raise UserError(
            f"model.n_layers={n_layers} is too small for the layout, whose last layer is '{layout[-1]}':"
            f" set it to {needed} or more, or write a shorter model.layout."
        )
    return [*first, *(layout[i % len(layout)] for i in range(n_layers - len(first)))]


def _parse(sentence: str, known: Mapping[str, Callable]) -> dict[str, list[str]]:
    """Return the branches of a layer by name: "attn+mlp mlp mlp" has attn+mlp, mlp and mlp_2."""
    phrases = sentence.split()
    if not phrases:
        raise UserError("model.layout has an empty layer: write for example 'model.layout=[attn mlp]'.")
    parsed: dict[str, list[str]] = {}
    for i, phrase in enumerate(phrases):
        again = phrases[:i].count(phrase)
        words = [word for word in _words(phrase, known) if getattr(known[word], "func", None) is not nothing]
        if words:
            parsed[f"{phrase}_{again + 1}" if again else phrase] = words
    return parsed


def _words(phrase: str, known: Mapping[str, Callable]) -> list[str]:
    """Return the names of the parallel branches in a phrase."""
    words = phrase.split("+")
    for word in words:
        if not word.isidentifier():
            raise UserError(
                f"model.layout has '{phrase}': write branch names, with a plus between parallel branches,"
                " such as attn+mlp."
            )
        if word not in known:
            raise UserError(
                f"model.layout names '{word}', but the model has no such branch.{suggest(word, known)}"
                f" To define it, add model/{word}=<option> or +model/attn@model.{word}=<option>."
            )
    if len(set(words)) < len(words):
        raise UserError(
            f"model.layout has '{phrase}', but a branch can't be parallel to itself: define a second branch, such as"
            " +model/mlp@model.mlp2=swiglu."
        )
    return words
