"""Drawing token after token: in usual passes, or in static steps, which a GPU replays.

On a GPU the launches of a pass take the host much longer than the device needs to compute it. A replayed step is one
launch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from minllm.generation.sampler import Sampling
from minllm.model.context import PAD, Sight
from minllm.model.lm import LM, ModelState
from minllm.model.static import StaticState, has_static_steps

FEWEST, WARM_UP = 32, 3
"""The number of new tokens from which on capturing a step pays, and of the steps before it, which load kernels."""


class Passes:
    """Draws the next tokens, each after a pass over the one before it.

    Args:
        state: the decoding state, which each pass advances.
        vocab_size: only tokens below this are drawn; None means all.
        sight: what the tokens may see.
    """

    def __init__(
        self, model: LM, state: ModelState, sampling: Sampling, *, vocab_size: int | None, sight: Sight
    ):
        self.model, self.state, self.sampling = model, state, sampling
        self.vocab_size, self.sight = vocab_size, sight

    def first(
        self,
        tokens_BT: Tensor,
        segments: Tensor | None,
        uniforms_B: Tensor,
        memory_BSD: Tensor | None = None,
        memory_segments_BS: Tensor | None = None,
    ) -> Tensor:
        """Return the token after each row, drawn with these numbers in [0, 1)."""
        x_BTD = self.model.hidden(
            tokens_BT,
            segments,
            self.state,
            memory_BSD=memory_BSD,
            memory_segments_BS=memory_segments_BS,
            sight=self.sight,
        )
        logits_BV = self.model.logits(x_BTD[:, -1])
        return self.sampling.draw(logits_BV[:, : self.vocab_size], uniforms_B.to(tokens_BT.device))

    def next(self, tokens_B: Tensor, uniforms_B: Tensor, is_over: Sequence[bool]) -> Tensor:
        """Read the latest tokens, which are padding in rows that are over, and return the next ones."""
        segments = None  # they continue the rows' segments
        if any(is_over):
            segments = torch.tensor([[PAD if over else 0] for over in is_over], device=tokens_B.device)
        return self.first(tokens_B[:, None], segments, uniforms_B)


class Steps:
    """Draws the next tokens as `Passes` does, in static steps that follow its first pass.

    On a GPU, after a few steps one is captured as a CUDA graph, which is replayed from then on.
    """

    def __init__(self, passes: Passes, tokens_B: Tensor):
        rows, device = len(tokens_B), tokens_B.device
        self.model, self.sampling, self.vocab_size = passes.model, passes.sampling, passes.vocab_size
        self.state = StaticState(passes.state, rows, device, causal=not passes.sight.sees_all)
        # a step's input and output, always at the same addresses
        self.tokens_B = torch.empty_like(tokens_B)
        self.uniforms_B = torch.empty(rows, dtype=torch.float64, device=device)
        self.is_over, self.taken = [False] * rows, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    @staticmethod
    def pay(passes: Passes, new_tokens: int) -> bool:
        """Whether static steps are possible, and faster than passes."""
        return passes.model.embedding.is_cuda and new_tokens >= FEWEST and has_static_steps(passes.model)

    def next(self, tokens_B: Tensor, uniforms_B: Tensor, is_over: Sequence[bool]) -> Tensor:
        """Read the latest tokens, which are padding in rows that are over, and return the next ones.

        They are valid until the next call, to which they are passed.
        """
        if tokens_B is not self.tokens_B:
            self.tokens_B.copy_(tokens_B)
        self.uniforms_B.copy_(uniforms_B, non_blocking=True)
        if is_over != self.is_over:
            self.state.end(is_over)
            self.is_over = is_over
        if self.tokens_B.is_cuda and self.taken == WARM_UP:
            self.graph = self._captured()
        if self.graph is not None:
            self.graph.replay()
        elif self.tokens_B.is_cuda:
            self._warm_up()
        else:
            self._step()
        self.taken += 1
        return self.tokens_B

    def _step(self) -> None:
        x_B1D = self.model.step(self.tokens_B[:, None], self.state)
        logits_BV = self.model.logits(x_B1D[:, -1])[:, : self.vocab_size]
        self.tokens_B.copy_(self.sampling.draw(logits_BV, self.uniforms_B))

    def _warm_up(self) -> None:
        """Take a step on the stream of the capture, so that libraries have their workspaces there."""
        usual, aside = torch.cuda.current_stream(self.tokens_B.device), _stream(self.tokens_B.device)
        aside.wait_stream(usual)
        with torch.cuda.stream(aside):
            self._step()
        usual.wait_stream(aside)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Record a step without computing it."""
        graph, stream = torch.cuda.CUDAGraph(), _stream(self.tokens_B.device)
        with (
            torch.cuda.device(self.tokens_B.device),
            # autocast's copies of weights may be gone before the graph is
            torch.autocast("cuda", enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False),
            # "thread_local", because other threads, such as the one that prepares batches, may allocate meanwhile
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self._step()
        return graph


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all captures on a device: on another one, libraries would have further workspaces."""
    return torch.cuda.Stream(device)
