"""Compare two forward passes: record the output of each part of a model, and find the first part that differs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minllm.model.branch import Branch
from minllm.model.context import PAD
from minllm.model.contract import called
from minllm.model.lm import LM, ModelState

GROWTH = 30
"""A part may amplify rounding differences in its input by this factor."""
FAINT = 0.01
"""Outputs below this fraction of a part's largest are compared relative to that fraction, because near zero any
rounding error is relatively large."""
LARGEST = 1e6
"""Differences between outputs larger than this are meaningless."""

Spared = Callable[["nn.Module | None"], bool]


@dataclass(frozen=True)
class Event:
    """The output of one part of a model in a pass, (B, T, …); the part is None for the model itself."""

    part: nn.Module | None
    y_BT: Tensor


@dataclass(frozen=True)
class Pass:
    """The outputs of all parts, in the order in which they were computed."""

    events: Sequence[Event]

    def at(self, start: int, stop: int) -> Pass:
        """Return the outputs at tokens `start` to `stop`."""
        return Pass([replace(event, y_BT=event.y_BT[:, start:stop]) for event in self.events])

    @property
    def is_sound(self) -> bool:
        return all(float(event.y_BT.abs().max()) < LARGEST for event in self.events)


@dataclass(frozen=True)
class Difference:
    """The first part whose outputs differ."""

    part: nn.Module | None

    def __str__(self) -> str:
        return "The model" if self.part is None else called(self.part) + _from_outside(self.part)


def recorded(
    model: LM,
    tokens_BT: Tensor,
    segments_BT: Tensor | None,
    state: ModelState | None,
    memory_BSD: Tensor | None,
) -> Pass:
    """Run a model on some tokens, and return the outputs of its parts."""
    below: list[Event] = []
    above: list[Event] = []
    hooks = []
    for layers, events in ((model.layers, below), (model.ahead, above)):
        for branch in (branch for layer in layers for branch in layer.values()):
            hooks.append(branch.register_forward_pre_hook(functools.partial(_record_branch, events)))
            for part in _parts(branch):
                hooks.append(part.register_forward_hook(functools.partial(_record_output, events)))
    ahead: list[Tensor] | None = (
        [] if state is None else None
    )  # states don't include the layers above the stack
    try:
        # objectives pass the counted targets, but decoding doesn't
        counted_BT = (
            torch.ones_like(tokens_BT, dtype=torch.bool) if segments_BT is None else segments_BT != PAD
        )
        x_BTD = model.hidden(
            tokens_BT,
            segments_BT,
            state,
            memory_BSD=memory_BSD,
            counted_BT=None if state else counted_BT,
            ahead=ahead,
        )
    finally:
        for hook in hooks:
            hook.remove()
    given = [Event(None, output.detach()) for output in (x_BTD, model.logits(x_BTD), *(ahead or []))]
    return Pass([*below, *given[:2], *above, *given[2:]])


def joined(passes: Sequence[Pass]) -> Pass:
    """Concatenate passes over consecutive tokens."""
    together = zip(*(each.events for each in passes))
    return Pass([Event(events[0].part, torch.cat([e.y_BT for e in events], dim=1)) for events in together])


def first_difference(
    first: Pass,
    second: Pass,
    same_BT: Tensor | None,
    tolerance: float,
    *,
    rows: slice = slice(None),
    spared: Spared = lambda part: False,
) -> Difference | None:
    """Return the first part whose outputs differ where they should be equal; None if there is none.

    Args:
        same_BT: where they should be equal; None means everywhere.
        tolerance: the relative difference allowed for rounding.
        rows: the rows to compare.
        spared: parts that may differ. Differences in later parts may follow from theirs.
    """
    so_far = 0.0
    for before, after in zip(first.events, second.events):
        apart = _apart(before.y_BT[rows], after.y_BT[rows], same_BT)
        if apart > max(tolerance, GROWTH * so_far) and not spared(before.part):
            return Difference(before.part)
        so_far = max(so_far, apart)
    return None


def first_not_finite(outputs: Pass) -> Difference | None:
    """Return the first part with NaN or infinite outputs; None if there is none."""
    wrong = (event.part for event in outputs.events if not event.y_BT.isfinite().all())
    return next(map(Difference, wrong), None)


def _apart(first_BT: Tensor, second_BT: Tensor, same_BT: Tensor | None) -> float:
    first_BTN, second_BTN = (y.flatten(2) if y.ndim > 2 else y[..., None] for y in (first_BT, second_BT))
    sizes_BT = first_BTN.abs().amax(-1)
    sizes_BT = sizes_BT.clamp(min=max(FAINT * float(sizes_BT.max()), 1e-30))
    apart_BT = (first_BTN - second_BTN).abs().amax(-1) / sizes_BT
    apart = float((apart_BT if same_BT is None else apart_BT[same_BT]).max())
    return apart if math.isfinite(apart) else math.inf


def _parts(branch: Branch) -> list[nn.Module]:
    """Return the modules of a branch that are recorded separately: its mixers, MLPs and norms."""
    before = branch.before.values() if isinstance(branch.before, nn.ModuleDict) else [branch.before]
    return [part for part in (*before, *branch.words.values(), branch.after, branch.norm) if part is not None]


def _record_branch(events: list[Event], branch: Branch, args: tuple[Any, ...]) -> None:
    stream, ctx = args[:2]
    if not events:
        events.append(Event(ctx.position, ctx.x0_BTD.detach()))
    events.append(Event(branch.residual, branch.residual.read(stream, ctx).detach()))


def _record_output(events: list[Event], part: nn.Module, args: tuple[Any, ...], y_BT: Tensor) -> None:
    events.append(Event(part, y_BT.detach()))


def _from_outside(part: nn.Module) -> str:
    """Name the external classes inside one of minllm's own parts."""
    if not type(part).__module__.startswith("minllm."):
        return ""
    classes = {
        type(module)
        for module in part.modules()
        if not type(module).__module__.startswith(("minllm.", "torch."))
    }
    names = " and ".join(sorted(cls.__name__ for cls in classes))
    return f" with {names}" if names else ""
