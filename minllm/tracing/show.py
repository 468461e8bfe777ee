"""Format a trace: a line for each module and step, with its outputs in letters and numbers, and its costs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minllm.tracing.letters import MEANING
from minllm.tracing.tree import Arg, Node, Step, Value

if TYPE_CHECKING:
    from minllm.tracing import Trace

BOLD, DIM, CYAN, GREEN, PLAIN = "\033[1m", "\033[2m", "\033[36m", "\033[32m", "\033[0m"
INDENT = "  "


@dataclass
class Line:
    """The cells of one line."""

    text: str
    name: str = ""
    shape: str = ""
    params: str = ""
    flops: str = ""
    style: str = ""


def show(
    trace: Trace,
    tree: Node,
    hidden: Collection[Node],
    *,
    depth: int | None,
    every_layer: bool,
    colour: bool,
    width: int,
) -> str:
    """Return a trace as text; see `Trace.show`."""
    body = Printer(hidden, depth, every_layer).lines_of(tree, 0)
    head = Line("step", "output", "shape", "params", "FLOPs", DIM)
    table = columns([head, *body], width, colour)
    return "\n".join([*legend(trace.letters), "", *table, "", *totals(trace)])


class Printer:
    """Turns nodes and steps into lines."""

    def __init__(self, hidden: Collection[Node], depth: int | None, every_layer: bool):
        self.hidden, self.depth, self.every_layer = hidden, depth, every_layer

    def lines_of(self, node: Node, level: int, within: str = "") -> list[Line]:
        """Return the lines of a node and its contents; `within` is the path of the enclosing module."""
        closed = node in self.hidden or level == self.depth
        lines = [self.title(node, level, within, closed)]
        if node.note and not closed:
            lines.append(Line(f"{INDENT * (level + 1)}this call computes: {node.note}", style=GREEN))
        return lines if closed else lines + self.contents(node, level + 1, around(node, within))

    def title(self, node: Node, level: int, within: str, closed: bool) -> Line:
        path = node.path.removeprefix(f"{within}.") if within else node.path
        args = f"({', '.join(reference(arg, node.number) for arg in node.args)})"
        if is_layer(node):
            text = path
        else:
            text = f"{path}: {node.kind}{args}" if node.kind and path else f"{node.kind or path}{args}"
        if node.shared:
            text += ", once for all layers"
        shape = shape_of(node.outputs[0]) if closed and len(node.outputs) == 1 else ""
        params = f"{node.params:,}" if node.params else ""
        return Line(
            INDENT * level + text,
            "",
            shape,
            params,
            count(node.flops),
            BOLD if node.kind or is_layer(node) else CYAN,
        )

    def contents(self, node: Node, level: int, within: str) -> list[Line]:
        """Return the lines of a node's contents. A numbered node that equals an earlier one is folded into one line."""
        lines: list[Line] = []
        shown: list[Node] = []
        folded: dict[Node, list[Node]] = {}
        for part in node.inside:
            first = (
                None
                if self.every_layer
                else next((earlier for earlier in shown if is_like(part, earlier)), None)
            )
            if first and isinstance(part, Node):
                folded.setdefault(first, []).append(part)
                continue
            lines += self.folds(folded, level, within)
            folded = {}
            if isinstance(part, Node):
                shown += [part] if number_of(part) else []
                lines += self.lines_of(part, level, within)
            else:
                lines += self.step(part, level)
        return lines + self.folds(folded, level, within)

    def folds(self, folded: dict[Node, list[Node]], level: int, within: str) -> list[Line]:
        """Return a line for each group of nodes that equal an earlier one."""
        lines = []
        for first, alike in folded.items():
            name = first.path.removeprefix(f"{within}.")
            stem, each = name.removesuffix(number_of(first)), "each " if len(alike) > 1 else ""
            params, flops = sum(node.params for node in alike), sum(node.flops for node in alike)
            text = (
                f"{INDENT * level}{stem}{listed([int(number_of(node)) for node in alike])}: {each}as {name}"
            )
            lines.append(Line(text, "", "", f"{params:,}" if params else "", count(flops), BOLD))
        return lines

    def step(self, step: Step, level: int) -> list[Line]:
        outputs = step.outputs
        params = f"{step.params:,}" if step.params else "tied" if step.reads_again else ""
        line = Line(
            INDENT * level + call(step), name_of(outputs[0]), shape_of(outputs[0]), params, count(step.flops)
        )
        return [line, *(Line("", name_of(output), shape_of(output)) for output in outputs[1:])]


def number_of(node: Node) -> str:
    """Return the number at the end of a node's path: 0 of layers.0; "" if there is none."""
    end = node.path.rpartition(".")[2]
    return end if end.isdigit() else ""


def is_layer(node: Node) -> bool:
    """Whether a node is a numbered group, such as layers.0, instead of a module or function."""
    return not node.kind and number_of(node) != ""


def around(node: Node, within: str) -> str:
    """Return the path that is omitted inside a node."""
    return node.path or within if node.kind or is_layer(node) else within


def is_like(part: Node | Step, first: Node) -> bool:
    """Whether a part equals a numbered node, ignoring what is computed once for all layers."""
    if not isinstance(part, Node) or not number_of(part):
        return False
    return part.path.rpartition(".")[0] == first.path.rpartition(".")[0] and signature(part) == signature(
        first
    )


def listed(numbers: list[int]) -> str:
    """Return [1, 2, 3] as 1 to 3, and [1, 3, 5] as 1, 3, 5."""
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    shown = numbers if len(numbers) < 7 else [*numbers[:4], "…", numbers[-1]]
    return ", ".join(map(str, shown))


def signature(node: Node) -> tuple:
    """Return a key that is the same for nodes that look the same."""
    inside = [
        signature(part)
        if isinstance(part, Node)
        else (
            part.function,
            part.params,
            part.reads_again,
            part.flops,
            [value.sizes for value in (*part.given(), *part.outputs)],
        )
        for part in node.inside
        if not (isinstance(part, Node) and part.shared)
    ]
    return node.kind, node.params, node.note, tuple(map(str, inside))


def legend(letters: dict[str, dict[str, int]]) -> list[str]:
    """Return lines with the meaning of each letter, separately for branches in which its size differs."""
    branches_of: dict[str, dict[int, list[str]]] = {}
    for branch, own in letters.items():
        for letter, size in own.items():
            if branch == "" or letters[""].get(letter) != size:
                branches_of.setdefault(letter, {}).setdefault(size, []).append(branch)
    entries = []
    for letter, meaning in MEANING.items():
        for size, branches in branches_of.get(letter, {}).items():
            where = f" ({', '.join(branches)})" if len(branches_of[letter]) > 1 and "" not in branches else ""
            entries.append(f"{letter} {size:<6,} {meaning}{where}")
    wide = max(map(len, entries)) + 3
    return [
        "".join(f"{entry:{wide}}" for entry in entries[i : i + 3]).rstrip() for i in range(0, len(entries), 3)
    ]


def totals(trace: Trace) -> list[str]:
    """Return lines with the total costs."""
    tokens = trace.letters[""]["B"] * trace.letters[""]["T"]
    a_token = trace.flops / tokens
    return [
        f"The model has {trace.params:,} parameters, which take {trace.params * 4:,} bytes in fp32.",
        f"This forward pass takes {trace.flops:,} FLOPs in matrix products, {count(a_token)} per token; training takes"
        " 3 times as many,",
        "because the backward pass has two products for each of these.",
        "The model can't generate, because it looks ahead."
        if trace.state_bytes is None
        else f"The decoding state takes {trace.state_bytes:,} bytes in fp32 after all tokens.",
    ]


def columns(lines: list[Line], width: int, colour: bool) -> list[str]:
    """Align the columns. A step's text may extend over empty columns, and is truncated if it is too long."""
    cells = [(line.name, line.shape, line.params, line.flops) for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells)]
    longest = max(len(line.text) for line in lines if line.name or line.shape)
    text = max(24, min(longest, width - sum(widths) - 2 * len(widths)))
    printed = []
    for line, own in zip(lines, cells):
        empty = next((i for i, cell in enumerate(own) if cell), len(own))
        room = text + sum(wide + 2 for wide in widths[:empty])
        shown = line.text if len(line.text) <= room else f"{line.text[: room - 1]}…"
        gap = " " * (room - len(shown))
        rest = [f"  {cell:{'<<>>'[i]}{widths[i]}}" for i, cell in enumerate(own) if i >= empty]
        printed.append((paint(shown, line.style if colour else "") + gap + "".join(rest)).rstrip())
    return printed


def paint(text: str, style: str) -> str:
    return f"{style}{text}{PLAIN}" if style else text


def name_of(value: Value) -> str:
    return value.name or value.item


def shape_of(value: Value) -> str:
    """Return B=1 T=256 H·K=128; a size without letters is just a number."""
    letters = value.letters or [""] * len(value.sizes)
    dimensions = [f"{letter}={size}" if letter else str(size) for letter, size in zip(letters, value.sizes)]
    return " ".join(dimensions) or "scalar"


def call(step: Step) -> str:
    """Return a step as a call, such as linear(x_BTD, weight[F D])."""
    if step.function in ("__getitem__", "__setitem__"):
        item = argument(step.args[1], step)
        item = f"{argument(step.args[0], step)}[{item.removeprefix('(').removesuffix(')')}]"
        return item if step.function == "__getitem__" else f"{item} = {argument(step.args[2], step)}"
    given = [argument(arg, step) for arg in step.args if arg is not None]
    for name, arg in step.kwargs.items():
        if isinstance(arg, Arg):
            given.append(argument(arg, step))
        elif name not in ("device", "dtype"):
            given.append(f"{name}={argument(arg, step)}")
    return f"{step.function.strip('_')}({', '.join(given)})"


def argument(x: Any, step: Step) -> str:
    if isinstance(x, Arg):
        return reference(x, step.number)
    if isinstance(x, slice):
        return f"{'' if x.start is None else x.start}:{'' if x.stop is None else x.stop}"
    if isinstance(x, (tuple, list)):
        parts = ", ".join(argument(item, step) for item in x)
        return f"({parts})" if isinstance(x, tuple) else f"[{parts}]"
    return "…" if x is ... else f"{x:g}" if isinstance(x, float) else str(x).removeprefix("torch.")


def reference(arg: Arg, number: int) -> str:
    """Return how step `number` refers to a tensor: by name, or as ↑2, the output of two steps before."""
    value = arg.value
    if value.is_parameter:
        letters = value.letters or [""] * len(value.sizes)
        return f"{value.name}[{' '.join(letter or str(size) for letter, size in zip(letters, value.sizes))}]"
    if name_of(value):
        return name_of(value)
    back = number - value.step if value.step >= 0 else 0
    if not 0 < back < 10:
        return arg.name or "·"
    return "↑" if back == 1 else f"↑{back}"


def count(number: float) -> str:
    """Format 1234567 as 1.23 M, and 0 as ""."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}" if number else ""
