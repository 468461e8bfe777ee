"""X-rays of a model: every module and every step of one forward pass, with shapes, parameters and FLOPs.

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
from minllm.tracing.letters import Setup, spell_out
from minllm.tracing.record import record
from minllm.tracing.show import show
from minllm.tracing.tree import Node, find


def trace(cfg: DictConfig, *, batch: int = 1, decode: bool = False, packed: bool = False) -> Trace:
    """Return the trace of one forward pass of the model that `cfg` describes. Nothing is computed or trained.

    Args:
        cfg: a configuration, as `minllm.compose` returns it; its `data.seq_len` is the number of tokens in a row.
        batch: rows.
        decode: trace the step that reads the last token of the row, with a state that holds those before it.
        packed: trace the way that several documents in a row, or padding, take.

    Raises:
        UserError: the configuration describes no model.
    """
    validate(cfg)
    setup = Setup(cfg, build(cfg.tokenizer).vocab_size, batch, decode)

    def trace_one(one: Setup) -> Node:
        model = build_shapes(one.cfg, one.vocab_size)
        return record(model, one.batch, one.cfg.data.seq_len, decode=one.decode, packed=packed)

    root = trace_one(setup)
    letters = spell_out(setup, root, trace_one)
    return Trace(root, letters, state_bytes(build_shapes(cfg, setup.vocab_size), batch, cfg.data.seq_len))


@dataclass(frozen=True)
class Trace:
    """One forward pass, as a tree of modules and steps."""

    root: Node
    letters: dict[str, dict[str, int]]
    """What each letter stands for in each branch; "" is the model itself."""
    state_bytes: int | None
    """What the rows' state takes when all their tokens have been read, in fp32; None if it can't generate."""

    @property
    def params(self) -> int:
        """The numbers that the model learns."""
        return self.root.params

    @property
    def flops(self) -> int:
        """The floating-point operations of the matrix products in this pass."""
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
            inside: show only what is inside this module or function: layers.0.attn, qkv, Attention, Rope.rotate.
            hide: modules or functions whose insides aren't shown, such as ["mlp", "norm"].
            depth: how many levels are shown; None is all of them.
            every_layer: show all layers, and not only once those that are alike.
            colour: colours, for a terminal.
            width: columns.

        Raises:
            UserError: there's no module of the name that `inside` or `hide` gives.
        """
        tree = find(self.root, inside, "inside")[0] if inside else self.root
        hidden = [node for name in hide for node in find(self.root, name, "hide")]
        return show(self, tree, hidden, depth=depth, every_layer=every_layer, colour=colour, width=width)
