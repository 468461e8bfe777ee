"""What a trace is made of: nodes, the steps inside them and the tensors that these make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minllm.errors import UserError, suggest

SUFFIX = re.compile(r"_([A-Z0-9]+)$")
# a generator's and a lambda's steps, those of an inherited `forward` and of our `linear` are those of the code around
UNSHOWN = ("<genexpr>", "<listcomp>", "<dictcomp>", "<lambda>", ".forward", "linear")


@dataclass(eq=False)
class Value:
    """A tensor: its sizes, and what the code calls it."""

    sizes: tuple[int, ...]
    name: str = ""
    is_parameter: bool = False
    step: int = -1
    """The number of the step that made it; -1 where no step did."""
    item: str = ""
    """Which of several things it is that the step made: split[0]."""
    letters: tuple[str, ...] = ()
    """What each size is in letters, such as "H·K"; "" where there's only the number."""

    @property
    def name_letters(self) -> str:
        """The letters at the name's end, if there's one for each size: BHTK of q_BHTK."""
        suffix = SUFFIX.search(self.name)
        return suffix[1] if suffix and len(suffix[1]) == len(self.sizes) else ""


@dataclass(frozen=True)
class Arg:
    """A tensor as a call is given it, and what the code that calls knows it as."""

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
    """Numbers in the parameters that this step is the first to read."""
    reads_again: bool = False
    """It reads parameters, and an earlier step has read them all: tied weights."""
    flops: int = 0

    def given(self) -> Iterator[Value]:
        """Yield the tensors among the arguments."""
        yield from args_in([self.args, list(self.kwargs.values())])


@dataclass(eq=False)
class Node:
    """A module or a function, and the steps and nodes inside it in the order in which they run."""

    path: str
    """A module's path in the model; of a function, its name."""
    kind: str = ""
    """A module's class; "" for a function and for a layer."""
    word: str = ""
    """The branch it belongs to, as the layout calls it: attn, mlp, …"""
    number: int = 0
    """The number of the first step inside."""
    shared: bool = False
    """Computed by the first layer that asks, and shared with all others (`Context.once`)."""
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
        for one in x:
            yield from args_in(one)


def skeleton(root: Node) -> list[tuple]:
    """Return what two traces have in common when they're the same computation at different sizes."""
    return [
        (part.path, [len(arg.value.sizes) for arg in part.args])
        if isinstance(part, Node)
        else (part.function, [len(value.sizes) for value in (*part.given(), *part.outputs)])
        for part in root.walk()
    ]


def tidy(node: Node) -> Node:
    """Leave out what does nothing itself, and gather the modules of each layer under one node."""
    parts: list[Node | Step] = []
    for part in node.inside:
        if isinstance(part, Step):
            parts.append(part)
            continue
        part = tidy(part)
        if not part.kind:
            part.params = sum(one.params for one in part.walk() if isinstance(one, Step))
        own_steps = any(isinstance(one, Step) for one in part.inside)
        modules = any(isinstance(one, Node) and one.kind for one in part.walk())
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
    """Return `parts` with those that follow each other in the same numbered layer as one node, such as layers.0."""

    def layer(part: Node | Step) -> str:
        if not isinstance(part, Node) or not part.kind:
            return ""
        inner = part.path[len(node.path) :].lstrip(".") if node.path else part.path
        found = re.match(r"\w+\.\d+(?=\.)", inner)
        return f"{node.path}.{found[0]}".lstrip(".") if found and node.kind else ""

    result: list[Node | Step] = []
    for path, group in itertools.groupby(parts, layer):
        members = list(group)
        if path:
            members = [Node(path, word=node.word, inside=members, params=sum(one.params for one in members))]
        result += members
    return result


def find(root: Node, name: str, option: str) -> list[Node]:
    """Return the modules and functions that go by a name; one whose path it is comes first.

    A name is a path or its end, or a class or function or its end: layers.0.attn, qkv, RMSNorm, norm, rotate.

    Raises:
        UserError: nothing goes by that name.
    """
    nodes = [one for one in root.walk() if isinstance(one, Node)]
    ends = name.lower()
    found = [one for one in nodes if one.path == name]
    found += [one for one in nodes if f".{one.path}".endswith(f".{name}") and one not in found]
    found += [one for one in nodes if one.kind.lower().endswith(ends) and one not in found]
    if not found:
        known = {name for one in nodes for name in (one.path, one.path.rpartition(".")[2], one.kind)}
        raise UserError(
            f"{option}={name}: nothing in this model goes by that name.{suggest(name, known - {''})}"
        )
    return found
