"""Traces of a model: every module and step of one forward pass, with shapes, parameters and FLOPs.

from minllm.tracing import trace

print(trace(minllm.compose(["model/attn=mqa"])))
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from minllm.model.build import build_shapes
from minllm.model.cost import state_bytes
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.tracing.letters import Setup, assign_letters
from minllm.tracing.record import record
from minllm.tracing.show import show
from minllm.tracing.tree import Node, find


def trace(cfg: DictConfig, *, batch: int = 1, decode: bool = False, packed: bool = False) -> Trace:
    """Return the trace of one forward pass of a model, without computing or training anything.

    Args:
        cfg: a configuration, as `minllm.compose` returns it; its `data.seq_len` is the number of tokens in a row.
        batch: number of rows.
        decode: trace the decoding of the last token in a row, with a state that holds those before it.
        packed: trace rows with several documents, or padding.

    Raises:
        UserError: the configuration isn't a valid model.
    """
    validate(cfg)
    setup = Setup(cfg, build(cfg.tokenizer).vocab_size, batch, decode)

    def trace_one(variant: Setup, only_sizes: bool = True) -> Node:
        model = build_shapes(variant.cfg, variant.vocab_size)
        time = variant.cfg.data.seq_len
        return record(model, variant.batch, time, decode=variant.decode, packed=packed, only_sizes=only_sizes)

    root = trace_one(setup, only_sizes=False)
    letters = assign_letters(setup, root, trace_one)
    return Trace(root, letters, state_bytes(build_shapes(cfg, setup.vocab_size), batch, cfg.data.seq_len))


@dataclass(frozen=True)
class Trace:
    """One forward pass, as a tree of modules and steps."""

    root: Node
    letters: dict[str, dict[str, int]]
    """The size of each letter in each branch; "" is the model itself."""
    state_bytes: int | None
    """The size of the state in fp32 after all tokens; None if the model can't generate."""

    @property
    def params(self) -> int:
        """The number of parameters."""
        return self.root.params

    @property
    def flops(self) -> int:
        """The FLOPs of the matrix products in this pass."""
        return self.root.flops

    def __str__(self) -> str:
        return self.show()

    def show(
        self,
        *,
        inside: str | None = None,
        hide: list[str] | tuple[str, ...] = (),
        depth: int | None = None,
        every_layer: bool = False,
        colour: bool = False,
        width: int = 110,
    ) -> str:
        """Return the trace as text.

        Args:
            inside: show only the contents of this module or function: layers.0.attn, qkv, Attention, Rope.rotate.
            hide: modules or functions whose contents aren't shown, such as ["mlp", "norm"].
            depth: the number of levels to show; None is all of them.
            every_layer: show all layers, instead of showing identical layers once.
            colour: use a terminal's colours.
            width: the width in characters.

        Raises:
            UserError: there is no module named by `inside` or `hide`.
        """
        tree = find(self.root, inside, "inside")[0] if inside else self.root
        hidden = [node for name in hide for node in find(self.root, name, "hide")]
        return show(self, tree, hidden, depth=depth, every_layer=every_layer, colour=colour, width=width)
