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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import PAD, PAST, Context, Layer, Position, Sight, State
from minllm.model.encoder import Encoder
from minllm.model.kernels.linear import linear
from minllm.model.norm import Norms
from minllm.model.parameter import Linear, constant, parameter
from minllm.model.residual import Plain
from minllm.model.stack import LOGIT_SCALE, Parts, Stack, positions_in, written
from minllm.model.static import StaticState
from minllm.model.transfer import Base, Transfer
from minllm.schema.options import BelowOne, Count, Natural, Positive


class LM(Stack):
    """A language model over `vocab_size` tokens.

    Args:
        vocab_size: the tokenizer's number of tokens, V.
        norms: the kind of norm and where norms are applied (`norm=`).
        branches: maps each branch name to a factory of its module: `branches["attn"](dim, layer)`.
        dim: width of the residual stream, D.
        n_layers: number of layers; the layout is repeated until there are that many.
        layout: the layers, such as ["rec mlp", "attn mlp"].
        first: the first layers, before the layout begins.
        both_ways: recurrent mixers read texts in both directions, with the same weights (2403.03234), for objectives
            whose tokens see the whole text.
        loops: how often the whole stack is applied to its own output, with shared weights (1807.03819).
        pos: how positions are encoded (`model/pos=`).
        residual: the kind of residual connection (`model/residual=`).
        tie_embeddings: the head uses the embedding's matrix.
        head_bias: the head has a bias for each token, as in GPT-J.
        scale_embedding: multiply embeddings by √dim, as the original transformer and Gemma do, or by this number.
        scale_logits: multiply the logits by this number, with which they learn faster (2203.03466).
        softcap: limit the logits to c·tanh(logits / c); null means no limit.
        transfer: what makes hyper-parameters transfer from the base shape: nothing, µP or CompleteP.
        base: the base shape; null is possible without transfer.
        predict_ahead: how many tokens after the next one can be predicted. Each has its own layer on top of the
            stack, with the same branches as the last layer; they share the head (2404.19737).
        dropout: dropout probability of the embedding and of each branch's output.
        encoder: a stack that reads another text in both directions; cross-attention reads its output
            (`model/encoder=`).

    Raises:
        UserError: the layout names a branch that doesn't exist, or has none that reads the encoder's output.
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
        scale_logits: Positive = 1.0,
        softcap: Positive | None,
        predict_ahead: Natural,
        dropout: BelowOne,
        encoder: Callable[[Parts], Encoder] | None = None,
        both_ways: bool = False,
        transfer: Transfer = "none",
        base: Callable[[], Base] | None = None,
    ):
        parts = Parts(vocab_size, dim, norms, branches, pos, residual, scale_embedding, dropout)
        layers = written(first, layout, n_layers)
        super().__init__(parts, layers + predict_ahead * layers[-1:], n_layers=n_layers, loops=loops)
        self.softcap, self.both_ways = softcap, both_ways
        self.transfer, self.base = transfer, base and base()
        self.head_factor = scale_logits  # which `build_model` divides for the growth of the width
        self.head = None if tie_embeddings else Linear(dim, vocab_size, stream="reads", gain=LOGIT_SCALE)
        self.head_bias_V = parameter(vocab_size, kind="vector", draw=constant(0)) if head_bias else None
        self.sees_padding = self.cannot_generate is not None
        # the last part, because what is asked of a model's modules above doesn't concern those of the encoder
        self.encoder = None if encoder is None else encoder(parts)
        if self.encoder is not None and not self.reads_memory:
            raise UserError(
                "model/encoder would do nothing, because no layer of model.layout has cross-attention, which reads the"
                " encoder's output: choose model/layout=decoder, or remove model/encoder."
            )
        self.parts: nn.Module | None = None  # an objective's parameters, which `build_model` adds

    def forward(
        self,
        tokens_BT: Tensor,
        segments: Tensor | None = None,
        state: ModelState | None = None,
        memory_BSD: Tensor | None = None,
        *,
        source_BS: Tensor | None = None,
        source_segments_BS: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of the next token at each position, (B, T, V).

        Args:
            tokens_BT: token ids, int64.
            segments: the document each token belongs to, int64 (B, T), with -1 for padding; tokens see only their own
                segment. None means one document per row, and is faster.
            state: the decoding state (`init_state`), which is advanced by these T tokens.
            memory_BSD: the input of cross-attention. With a state, only the first pass needs it.
            source_BS: token ids for the encoder, whose output is the memory.
            source_segments_BS: the document each token of the source belongs to.
        """
        if source_BS is not None:
            memory_BSD = self.encode(source_BS, source_segments_BS)
        x_BTD = self.hidden(
            tokens_BT, segments, state, memory_BSD=memory_BSD, memory_segments_BS=source_segments_BS
        )
        return self.logits(x_BTD)

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
            sight: what tokens may see; with a state, an order only in its first pass.
            embedded_BTD: what the tokens are embedded as, if not by the embedding's matrix; then only the shape of
                `tokens_BT` matters.
        """
        if self.sees_padding and segments is None and counted_BT is not None:
            segments = _without_padding(counted_BT)
        past = state.past if state else 0
        segments_BS = state.advance(tokens_BT, segments) if state else segments
        if state:
            memory_segments_BS = state.remember(memory_segments_BS)
        positions_BS = sight.positions_BS
        if positions_BS is None:
            positions_BS = positions_in(past + tokens_BT.shape[1], segments_BS, tokens_BT.device)
        ctx = Context(
            positions_BT=positions_BS[:, past:],
            positions_BS=positions_BS,
            segments_BT=None if segments_BS is None else segments_BS[:, past:],
            segments_BS=segments_BS,
            past=past,
            causal=not sight.sees_all and sight.order_BS is None,
            order_BS=sight.order_BS,
            position=self.position,
            memory_BSD=memory_BSD,
            memory_segments_BS=memory_segments_BS,
            counted_BT=counted_BT,
            losses=[] if losses is None else losses,
        )
        x_BTD = self.lookup(tokens_BT, self.embedding) if embedded_BTD is None else embedded_BTD
        ctx.x0_BTD = x_BTD = self._embed(x_BTD, ctx)
        stream = self._stream(x_BTD, ctx, state.branches if state else None)
        if ahead is not None:
            for layer in self.ahead:
                ahead.append(self._finished(self._through(layer, stream, ctx)))
        return self._finished(stream)

    def step(self, tokens_B1: Tensor, state: StaticState) -> Tensor:
        """Return `hidden` of the next token of each row, (B, 1, D); the state is advanced by it."""
        kept, ctx = state.tensors(), state.advance(self.position)
        ctx.x0_BTD = self._embed(self.lookup(tokens_B1, self.embedding), ctx)
        stream = self._stream(ctx.x0_BTD, ctx, state.branches)
        if any(new is not old for new, old in zip(state.tensors(), kept)):
            raise UserError(
                "A module with static_steps = True assigns new tensors to its state, but must update those that it has:"
                " write state.x.copy_(y) instead of state.x = y."
            )
        return self._finished(stream)

    def encode(
        self,
        source_BS: Tensor,
        segments_BS: Tensor | None = None,
        *,
        losses: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the encoder's output for `source_BS`, the memory of cross-attention, (B, S, D).

        Args:
            source_BS: token ids, int64.
            segments_BS: the document each token belongs to, with -1 for padding; None means one document per row.
            losses: the encoder's branches append their auxiliary losses to this list, in nats per token of the source.
        """
        if self.encoder is None:
            raise ValueError("this model has no encoder")
        return self.encoder(source_BS, segments_BS, embedding_VD=self.embedding, losses=losses)

    def _finished(self, stream: Tensor) -> Tensor:
        x_BTD = super()._finished(stream)
        return x_BTD if self.head_factor == 1 else self.head_factor * x_BTD

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (…, V) for the output of `hidden` (…, D)."""
        logits = linear(x, self.head_weight_VD, self.head_bias_V)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def head_weight_VD(self) -> Tensor:
        return self.embedding if self.head is None else self.head.weight

    @property
    def reads_memory(self) -> bool:
        """Whether some branch has cross-attention."""
        return any(getattr(module, "reads_memory", False) for module in self.mixers())

    def example_memory(
        self,
        source_BS: Tensor,
        segments_BS: Tensor | None = None,
        losses: list[Tensor] | None = None,
    ) -> Tensor | None:
        """Return a memory to try the model with, (B, S, D); None if it has no cross-attention.

        It is the encoder's output for `source_BS`, or zeros if the model has no encoder.
        """
        if self.encoder is not None:
            return self.encode(source_BS, segments_BS, losses=losses)
        shape = (*source_BS.shape, self.dim)
        return torch.zeros(shape, device=source_BS.device) if self.reads_memory else None

    @property
    def cannot_generate(self) -> str | None:
        """Why this model can't generate: the message of a module with `looks_ahead`. None if it can."""
        own = (
            module for name, part in self.named_children() if name != "encoder" for module in part.modules()
        )
        reasons = (getattr(module, "looks_ahead", None) for module in own)
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
    memory_segments_BS: Tensor | None = None

    def remember(self, memory_segments_BS: Tensor | None) -> Tensor | None:
        """Record the memory's segments; return those of an earlier pass if they aren't given again."""
        if memory_segments_BS is not None:
            self.memory_segments_BS = memory_segments_BS
        return self.memory_segments_BS

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
