"""Record every module and step of one forward pass, without changes to the model.

Modules are recorded with torch's global forward hooks, steps with a TorchFunctionMode, and the names of tensors by
inspecting the variables of running functions. Tensors are on the "meta" device, which has shapes but no values, so even
a large model takes no memory and little time.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.flop_counter import FlopCounterMode

from minllm.model.context import Context
from minllm.model.lm import LM
from minllm.tracing.definitions import DEFINITIONS
from minllm.tracing.tree import Arg, Node, Step, Value, tidy


def record(
    model: LM,
    batch: int,
    time: int,
    *,
    decode: bool = False,
    packed: bool = False,
    only_sizes: bool = False,
) -> Node:
    """Return the trace of one forward pass of a model on the "meta" device.

    Args:
        batch: number of rows, B.
        time: number of tokens in a row, T; when decoding, the number of tokens seen after the step, S.
        decode: read one token with a state, instead of all at once.
        packed: pass segments, as when several documents share a row.
        only_sizes: leave out the names of tensors and the FLOPs, which take most of the time.
    """
    recorder = Recorder(model, sys._getframe(), only_sizes)
    with torch.device("meta"):
        tokens_BT = torch.zeros(batch, 1 if decode else time, dtype=torch.int64)
        segments_BT = torch.zeros_like(tokens_BT) if packed else None
        source_BS = torch.zeros(batch, time, dtype=torch.int64)
        with torch.no_grad():
            memory_BSD = model.example_memory(source_BS) if model.encoder is None or decode else None
        state = model.init_state(batch, time) if decode else None
        if state is not None:
            state.past = time - 1
            state.segments_BS = torch.zeros(batch, time - 1, dtype=torch.int64) if packed else None
        counter = contextlib.nullcontext() if only_sizes else recorder.counter
        with counter, torch.no_grad(), recorder.modules(), recorder:
            if model.encoder is None or decode:  # the source is encoded before decoding
                model(tokens_BT, segments_BT, state, memory_BSD)
            else:
                segments_BS = torch.zeros_like(source_BS) if packed else None
                model(tokens_BT, segments_BT, source_BS=source_BS, source_segments_BS=segments_BS)
    return next(tidy(node) for node in recorder.root.inside if isinstance(node, Node))


class Recorder(TorchFunctionMode):
    """While active, records the model's modules and steps as nodes and steps under `root`."""

    def __init__(self, model: nn.Module, caller: FrameType, only_sizes: bool):
        super().__init__()
        self.caller, self.only_sizes = caller, only_sizes
        self.counter = FlopCounterMode(display=False)
        self.paths = {module: path for path, module in model.named_modules()}
        self.weights = {id(weight): path.rpartition(".")[2] for path, weight in model.named_parameters()}
        self.root = Node("root")
        # the running nodes, each with its function's frame (None for modules) and the depth of its code
        self.running: list[tuple[Node, FrameType | None, int]] = [(self.root, None, 0)]
        # every tensor so far, kept alive so that its id stays unique, with the frames that were running at that time
        self.known: dict[int, tuple[Tensor, Value, list[FrameType]]] = {}
        self.read: set[int] = set()
        self.steps = 0

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """Record which modules run."""
        hooks = register_module_forward_pre_hook(self.enter), register_module_forward_hook(self.leave)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module not in self.paths:
            return
        frames = self.frames()
        parent, path = self.node(frames), self.paths[module]
        branches = re.findall(r"\.words\.(\w+)", path)
        node = Node(
            path, type(module).__name__, branch=branches[-1] if branches else parent.branch, number=self.steps
        )
        node.args = [self.argument(x, [self.caller, *frames]) for x in args if isinstance(x, Tensor)]
        node.params = sum(p.numel() for p in module.parameters())
        parent.inside.append(node)
        self.running.append((node, None, len(frames) + 1))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module not in self.paths:
            return
        while self.running[-1][0].path != self.paths[module]:
            self.running.pop()
        node, _, _ = self.running.pop()
        node.outputs = [self.value(x) for x in tensors(output)]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DEFINITIONS:
            return self.follow(func, args, kwargs)
        flops = self.counter.get_total_flops()
        result = func(*args, **kwargs)
        name = name_of(func)
        made = [args[0]] if name == "__setitem__" else list(tensors(result))
        given = list(tensors([args, kwargs]))
        if not made or any(output is x for output in made for x in given) and not name.endswith("_"):
            return result  # a query, or a conversion without effect
        frames = self.frames()
        given_by_name = {
            key: x for key, x in kwargs.items() if x is not None and not is_default(func, key, x)
        }
        step = Step(self.steps, name, self.argument(args, frames), self.argument(given_by_name, frames))
        self.node(frames).inside.append(step)
        step.outputs = [self.value(x, frames, step.number) for x in made]
        for i, value in enumerate(step.outputs if len(made) > 1 else ()):
            value.item = f"{name}[{i}]"
        step.flops = self.counter.get_total_flops() - flops
        read = {id(x): x.numel() for x in given if id(x) in self.weights}
        step.params = sum(size for tensor_id, size in read.items() if tensor_id not in self.read)
        step.reads_again = bool(read) and not step.params
        self.read.update(read)
        self.steps += 1
        return result

    def follow(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        definition, note = DEFINITIONS[func]
        parent = self.node(self.frames())
        with self:
            result = definition(*args, **kwargs)
        made = parent.inside[-1]
        if isinstance(made, Node):
            made.note = note(*args, **kwargs)
        return result

    def frames(self) -> list[FrameType]:
        """Return the running frames of the model's own code, outermost first."""
        frames: list[FrameType] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.caller:
            if not frame.f_code.co_filename.startswith(OTHERS):
                frames.append(frame)
            frame = frame.f_back
        if not self.only_sizes:
            self.learn_names(frames)
        return frames[::-1]

    def learn_names(self, frames: list[FrameType]) -> None:
        """Name tensors after the variables that now hold them, in the code that made them.

        A name with a shape, such as q_BHTK, is preferred to one without.
        """
        for frame in frames:
            for name, tensor in frame.f_locals.items():
                _, value, makers = self.known.get(id(tensor), (None, None, ()))
                if value and any(frame is maker for maker in makers) and not value.name_letters:
                    value.name = better(value, name)

    def node(self, frames: list[FrameType]) -> Node:
        """Return the node of the innermost frame, creating nodes for functions as needed."""
        while (frame := self.running[-1][1]) and not any(frame is running for running in frames):
            self.running.pop()
        parent, _, depth = self.running[-1]
        for i in range(depth, len(frames)):
            code, local = frames[i].f_code, frames[i].f_locals
            owner = f"{type(local['self']).__name__}." if "self" in local else ""
            shared = code is Context.once.__code__
            node = Node(owner + code.co_name, branch=parent.branch, number=self.steps, shared=shared)
            inputs = [
                local.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            ]
            node.args = [self.argument(x, frames[:i]) for x in inputs if isinstance(x, Tensor)]
            parent.inside.append(node)
            self.running.append((node, frames[i], i + 1))
            parent = node
        return parent

    def value(self, x: Tensor, makers: list[FrameType] | None = None, step: int = -1) -> Value:
        if id(x) not in self.known:
            name = self.weights.get(id(x), "")
            self.known[id(x)] = x, Value(tuple(x.shape), name, id(x) in self.weights, step), makers or []
        return self.known[id(x)][1]

    def argument(self, x: Any, frames: list[FrameType]) -> Any:
        """Return an argument with each tensor in it replaced by an `Arg`."""
        if isinstance(x, Tensor):
            value, name = self.value(x), "" if self.only_sizes else name_in(frames, x)
            if not value.name and Value(value.sizes, name).name_letters:
                value.name = name
            return Arg(value, name)
        if isinstance(x, dict):
            return {name: self.argument(inner, frames) for name, inner in x.items()}
        if isinstance(x, list):
            return [self.argument(inner, frames) for inner in x]
        return tuple(self.argument(inner, frames) for inner in x) if isinstance(x, tuple) else x


# the files of torch and this file aren't the model's own code
OTHERS = (str(Path(torch.__file__).parent), __file__)


def tensors(x: Any) -> Iterator[Tensor]:
    """Yield the tensors in tuples, lists and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list, dict)):
        for inner in x.values() if isinstance(x, dict) else x:
            yield from tensors(inner)


@functools.lru_cache(4096)
def name_of(func: Callable) -> str:
    """Return the common name of a torch function: matmul, split, mT, __getitem__."""
    path = (resolve_name(func) or func.__name__).removesuffix(".__get__")
    return path.rpartition(".")[2]


def is_default(func: Callable, name: str, x: Any) -> bool:
    """Whether a keyword argument equals the function's default, as torch passes on in its own calls."""
    if not inspect.isfunction(func) or isinstance(x, Tensor):
        return False
    option = signature(func).parameters.get(name)
    return option is not None and option.default is not option.empty and option.default == x


signature = functools.lru_cache(4096)(inspect.signature)


def better(value: Value, name: str) -> str:
    """Return the better of the value's name and this one, for a value whose name has no shape."""
    return name if not value.name or Value(value.sizes, name).name_letters else value.name


def name_in(frames: Iterable[FrameType], x: Tensor) -> str:
    """Return a tensor's name in the innermost frame that has it: a variable, an item of one, or an attribute."""
    for frame in reversed(list(frames)):
        for name, value in frame.f_locals.items():
            if value is x:
                return name
        for name, value in frame.f_locals.items():
            if isinstance(value, (tuple, list)):
                for i, item in enumerate(value):
                    if item is x:
                        return f"{name}[{i}]"
            for attribute, item in getattr(value, "__dict__", {}).items():
                if item is x:
                    return attribute
    return ""
