"""The parts of a trace: nodes, the steps inside them, and the tensors that the steps make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minllm.errors import UserError, suggest

SUFFIX = re.compile(r"_([A-Z0-9]+)$")
# steps inside these functions are shown as part of the code around them
UNSHOWN = ("<genexpr>", "<listcomp>", "<dictcomp>", "<lambda>", ".forward", "linear")


@dataclass(eq=False)
class Value:
    """A tensor: its sizes, and its name in the code."""

    sizes: tuple[int, ...]
    name: str = ""
    is_parameter: bool = False
    step: int = -1
    """The number of the step that made it; -1 if none did."""
    item: str = ""
    """Which of a step's several outputs it is: split[0]."""
    letters: tuple[str, ...] = ()
    """Each size in letters, such as "H·K"; "" if no letters match."""

    @property
    def name_letters(self) -> str:
        """The letters at the end of the name, if there is one for each size: BHTK of q_BHTK."""
        suffix = SUFFIX.search(self.name)
        return suffix[1] if suffix and len(suffix[1]) == len(self.sizes) else ""


@dataclass(frozen=True)
class Arg:
    """A tensor argument of a call, and its name in the calling code."""

    value: Value
    name: str


@dataclass(eq=False)
class Step:
    """One call of a torch function."""

    number: int
    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value] = field(default_factory=list)
    params: int = 0
    """The number of parameters that this step is the first to read."""
    reads_again: bool = False
    """Whether earlier steps have already read all its parameters, as with tied weights."""
    flops: int = 0

    def given(self) -> Iterator[Value]:
        """Yield the tensors among the arguments."""
        yield from args_in([self.args, list(self.kwargs.values())])


@dataclass(eq=False)
class Node:
    """A module or a function, with the steps and nodes inside it in the order in which they run."""

    path: str
    """A module's path in the model, or a function's name."""
    kind: str = ""
    """A module's class; "" for a function and for a layer."""
    branch: str = ""
    """The branch it belongs to, named as in the layout: attn, mlp, …"""
    number: int = 0
    """The number of the first step inside."""
    shared: bool = False
    """Computed once by the first layer, and shared with all others (`Context.once`)."""
    args: list[Arg] = field(default_factory=list)
    inside: list[Node | Step] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    params: int = 0
    note: str = ""

    @property
    def flops(self) -> int:
        return sum(part.flops for part in self.inside)

    def walk(self) -> Iterator[Node | Step]:
        """Yield this node, and all nodes and steps inside it."""
        yield self
        for part in self.inside:
            if isinstance(part, Node):
                yield from part.walk()
            else:
                yield part


def args_in(x: Any) -> Iterator[Value]:
    """Yield the tensors among a call's arguments."""
    if isinstance(x, Arg):
        yield x.value
    elif isinstance(x, (tuple, list)):
        for item in x:
            yield from args_in(item)


def structure(root: Node) -> list[tuple]:
    """Return a structure that is the same for traces of the same computation at different sizes."""
    return [
        (part.path, [len(arg.value.sizes) for arg in part.args])
        if isinstance(part, Node)
        else (part.function, [len(value.sizes) for value in (*part.given(), *part.outputs)])
        for part in root.walk()
    ]


def tidy(node: Node) -> Node:
    """Remove nodes without steps or modules of their own, and group the modules of each layer under one node."""
    parts: list[Node | Step] = []
    for part in node.inside:
        if isinstance(part, Step):
            parts.append(part)
            continue
        part = tidy(part)
        if not part.kind:
            part.params = sum(inner_part.params for inner_part in part.walk() if isinstance(inner_part, Step))
        own_steps = any(isinstance(inner_part, Step) for inner_part in part.inside)
        modules = any(isinstance(inner_part, Node) and inner_part.kind for inner_part in part.walk())
        if not part.inside and not part.params:
            continue
        if part.kind or (own_steps and not modules and not part.path.endswith(UNSHOWN)):
            parts.append(part)
        else:
            for inner in part.inside:
                if isinstance(inner, Node):
                    inner.shared = inner.shared or part.shared
            parts += part.inside
    node.inside = gathered(node, parts)
    return node


def gathered(node: Node, parts: list[Node | Step]) -> list[Node | Step]:
    """Return `parts` with adjacent parts of the same numbered layer grouped into one node, such as layers.0."""

    def layer(part: Node | Step) -> str:
        if not isinstance(part, Node) or not part.kind:
            return ""
        inner = part.path[len(node.path) :].lstrip(".") if node.path else part.path
        match = re.match(r"\w+\.\d+(?=\.)", inner)
        return f"{node.path}.{match[0]}".lstrip(".") if match and node.kind else ""

    result: list[Node | Step] = []
    for path, group in itertools.groupby(parts, layer):
        members = list(group)
        if path:
            members = [
                Node(
                    path, branch=node.branch, inside=members, params=sum(member.params for member in members)
                )
            ]
        result += members
    return result


def find(root: Node, name: str, option: str) -> list[Node]:
    """Return the modules and functions that match a name, with an exact path first.

    A name is a path or its end, or a class or function or its end: layers.0.attn, qkv, RMSNorm, norm, rotate.

    Raises:
        UserError: nothing matches.
    """
    nodes = [node for node in root.walk() if isinstance(node, Node)]
    ends = name.lower()
    matches = [node for node in nodes if node.path == name]
    matches += [node for node in nodes if f".{node.path}".endswith(f".{name}") and node not in matches]
    matches += [node for node in nodes if node.kind.lower().endswith(ends) and node not in matches]
    if not matches:
        known = {name for node in nodes for name in (node.path, node.path.rpartition(".")[2], node.kind)}
        raise UserError(
            f"{option}={name} doesn't match any module or function of this model.{suggest(name, known - {''})}"
        )
    return matches
