"""An encoder: a stack that reads a text in both directions, for a decoder whose cross-attention reads its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Context, Layer, Position
from minllm.model.stack import Parts, Stack, positions_in, written
from minllm.schema.options import Count, factory


class Encoder(Stack):
    """The encoder of an encoder-decoder (1706.03762).

        source ──► embedding ──► layers, in both directions ──► norm ──► memory ──► cross-attention of the decoder

    A branch that the encoder doesn't configure itself is built like the decoder's of the same name, with parameters of
    its own; the same holds for positions. The kind and placement of norms, residuals and dropout are those of the
    model.

    Args:
        parts: what the model's stacks are built from.
        branches: the encoder's own branches, such as `+model/attn@model.encoder.attn=mha`.
        n_layers: number of layers; the layout is repeated until there are that many.
        layout: the layers, such as ["attn mlp"].
        pos: the encoder's own position encoding; null means one like the decoder's.
        share_embeddings: read the decoder's embedding; otherwise the encoder has one of its own.

    Raises:
        UserError: the layout has a mixer that can't read in both directions.
    """

    def __init__(
        self,
        parts: Parts,
        branches: Mapping[str, Callable[[int, Layer], nn.Module]] = {},
        *,
        n_layers: Count,
        layout: list[str],
        pos: Callable[[int], Position] | None,
        share_embeddings: bool,
    ):
        own = [*branches, *(["pos"] if pos is not None else [])]
        parts = replace(
            parts, branches={**parts.branches, **branches}, pos=pos or parts.pos, own=frozenset(own)
        )
        layers = written([], layout, n_layers, "model.encoder")
        super().__init__(
            parts, layers, n_layers=n_layers, has_embedding=not share_embeddings, key="model.encoder"
        )
        for branch in self.branches():
            for word, module in branch.words.items():
                if hasattr(module, "init_state") and not getattr(module, "bidirectional", False):
                    raise UserError(
                        f"model.encoder.layout has '{word}' ({type(module).__name__}), which can't read a text in both"
                        " directions: choose attention for the encoder, such as"
                        f" +model/attn@model.encoder.{word}=mha."
                    )

    def forward(
        self,
        tokens_BS: Tensor,
        segments_BS: Tensor | None = None,
        *,
        embedding_VD: Tensor,
        losses: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the memory, (B, S, D); the arguments are those of `LM.encode`.

        Args:
            embedding_VD: the decoder's embedding, for an encoder without its own.
        """
        positions_BS = positions_in(tokens_BS.shape[1], segments_BS, tokens_BS.device)
        ctx = Context(
            positions_BT=positions_BS,
            positions_BS=positions_BS,
            segments_BT=segments_BS,
            segments_BS=segments_BS,
            causal=False,
            position=self.position,
            losses=[] if losses is None else losses,
        )
        embedding_VD = embedding_VD if self.embedding is None else self.embedding
        ctx.x0_BTD = self._embed(self.lookup(tokens_BS, embedding_VD), ctx)
        return self._finished(self._stream(ctx.x0_BTD, ctx))


@factory
def none(parts: Parts) -> Encoder | None:
    """No encoder (`model/encoder=none`)."""
