"""The kind of code that each section of a configuration requires.

A configuration names code by `_target_`, and it may come from an untrusted source. It isn't enough that the name
belongs to minllm: a function that removes a folder must not be called as a tokenizer. So each section requires a kind.
Those at the root are listed here. For a nested section the annotation in the constructor defines the kind:
`mask: Callable[[], Full]` takes `Full` and its subclasses, and `branches: Mapping[str, Callable[[int, Layer],
nn.Module]]` takes modules whose constructor takes a width and a layer.

A class belongs to a kind if it is a subclass or, for a protocol, has its methods. A function belongs to a kind if it
is decorated with `@factory` and annotated with a return type of that kind.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from minllm.schema.options import Kind, is_factory

# the positional arguments of each constructor are in parentheses
SECTION_KINDS = {
    "task": Kind("a task, which is a function (cfg, run_dir, *, <its options>)", ()),
    "model": Kind("a model", ("minllm.model.lm.LM",), 3),  # (vocab_size, norms, branches)
    "norm": Kind("the norms of a model", ("minllm.model.norm.Norms",)),
    "objective": Kind("an objective", ("minllm.objective.Objective",)),
    "data": Kind("a source of documents", ("minllm.data.source.Source",)),
    "tokenizer": Kind("a tokenizer", ("minllm.tokenizer.Tokenizer",), 1),  # (folder it was saved in)
    "optim": Kind("an optimizer", ("torch.optim.Optimizer",), 1),  # (model)
    "schedule": Kind("a schedule", ("minllm.training.schedules.Schedule",)),
    "logger": Kind("a logger", ("minllm.training.loggers.Logger",)),
    "train": Kind("the settings of training", ("minllm.training.settings.Settings",)),
    "sample": Kind("the settings of sampling", ("minllm.generation.sampler.Sampling",)),
    "grader": Kind("a grader", ("minllm.grading.grader.Grader",)),
    "judge": Kind("a judge", ("minllm.grading.judge.Judge",)),
    "size": Kind("the settings of a size", ("minllm.model.size.Size",)),
    "search": Kind("a search", ("minllm.sweep.space.Plan", "minllm.verdict.protocol.OfArms")),
    "ladder": Kind("the rungs of a ladder", ("minllm.verdict.ladder_protocol.Rungs",)),
    "finding": Kind("a finding", ("minllm.verdict.finding_protocol.Finding",)),
    "sweep": Kind("the settings of a search", ("minllm.sweep.settings.SweepSettings",)),
    "sweep.pruner": Kind("a pruner", ("optuna.pruners.BasePruner",)),
    "memory": Kind("the settings of memory", ("minllm.sweep.settings.Memory",)),
}


@functools.cache  # called for every section whenever a configuration is validated or built
def why_not(code: Callable[..., Any], kind: Kind, packages: frozenset[str]) -> str | None:
    """Return why a class or function doesn't belong to a kind, "" if there is no specific reason, or None if it does.

    Args:
        packages: the packages besides minllm that code may come from.
    """
    if kind is SECTION_KINDS["task"]:
        return task_error(code, packages)
    bases = [base if isinstance(base, type) else named(base) for base in kind.bases]
    if not inspect.isclass(code):
        return factory_error(code, bases)
    if not any(belongs(code, base) for base in bases):
        return ": it must be a torch.nn.Module" if kind == BRANCH else inherit_from(bases)
    if kind == BRANCH and (why := branch_error(code)):
        return why
    return call_error(code, kind.calls)


def inherit_from(bases: Iterable[type]) -> str:
    """Return the base class to inherit from, or "" if the kind is a protocol."""
    classes = [base for base in bases if not getattr(base, "_is_protocol", False)]
    return f": inherit from {classes[0].__module__}.{classes[0].__qualname__}" if classes else ""


def kind_in(annotation: Any) -> Kind | None:
    """Return the kind of section that an option's annotation requires, such as `Callable[[int], Position] | None`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marks = [mark for mark in args[1:] if isinstance(mark, Kind)]
        return marks[0] if marks else kind_in(args[0])
    if origin in (Union, types.UnionType, list, tuple, Sequence):
        return next(filter(None, map(kind_in, args)), None)
    if origin is dict:
        return kind_in(args[1])
    if origin is Callable and isinstance(args[1], type) and args[1] is not object:
        return of_factory(args[0], args[1])
    return None


def of_factory(takes: Any, made: type) -> Kind:
    """Return the kind of an option annotated `Callable[takes, made]`."""
    calls = len(takes) if isinstance(takes, list) else None
    if f"{made.__module__}.{made.__qualname__}" == "torch.nn.modules.module.Module":
        return BRANCH if returns_branch(takes) else Kind("a module (torch.nn.Module)", (made,), calls)
    return Kind(f"a {made.__name__} ({made.__module__})", (made,), calls)


def returns_branch(takes: Any) -> bool:
    """Whether `takes` is [int, Layer], the arguments of a mixer or an MLP."""
    if not isinstance(takes, list) or len(takes) != 2:
        return False
    width, layer = (
        get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation for annotation in takes
    )
    return width is int and layer is named("minllm.model.context.Layer")


# ---- tasks and factories: functions --------------------------------------------------------------


def task_error(function: Callable[..., Any], packages: Iterable[str]) -> str | None:
    """A task is a function (cfg, run_dir, *, <options>) in minllm.tasks or in a package of `extensions`."""
    if not inspect.isfunction(function):
        return ""
    at_home = (
        function.__module__.startswith("minllm.tasks.") or function.__module__.partition(".")[0] in packages
    )
    return (
        None
        if at_home and [parameter.name for parameter in positional_parameters(function)] == ["cfg", "run_dir"]
        else ""
    )


def factory_error(function: Callable[..., Any], bases: Iterable[type]) -> str | None:
    if not is_factory(function):
        return (
            ""
            if function.__module__.partition(".")[0] == "minllm"
            else " (decorate it with minllm.schema.options.factory)"
        )
    returned = hints(function).get("return")
    returned = [type_ for type_ in get_args(returned) or [returned] if type_ not in (None, type(None))]
    if returned and all(
        isinstance(type_, type) and any(belongs(type_, base) for base in bases) for type_ in returned
    ):
        return None
    return "" if returned else ": annotate its return type"


# ---- classes -------------------------------------------------------------------------------------


def belongs(cls: type, base: type) -> bool:
    """Whether a class is a subclass, or has all the methods of a protocol."""
    if getattr(base, "_is_protocol", False):
        methods = [
            name for name, member in vars(base).items() if inspect.isfunction(member) and name[0] != "_"
        ]
        return cls is not base and all(callable(getattr(cls, name, None)) for name in methods)
    return issubclass(cls, base)


def call_error(cls: type, calls: int | None) -> str | None:
    """Return why a class can't be called with `calls` positional arguments and its options by keyword."""
    parameters = positional_parameters(cls)
    if calls is None or any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    needed = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    if len(needed) > calls:
        return f": its option {needed[calls]} isn't keyword-only; write a * before it in the constructor"
    return None


def branch_error(cls: type) -> str | None:
    """Return why a module isn't a branch: `Branch(dim, layer, *, <options>)` with `forward(x_BTD, ctx, …)`."""
    parameters = positional_parameters(cls)
    open_ended = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    if not open_ended and len(parameters) < 2:
        return ": write def __init__(self, dim, layer, *, <its options>)"
    kinds = hints(cls.__init__)
    for parameter, given in zip([] if open_ended else parameters, (int, named("minllm.model.context.Layer"))):
        annotation = kinds.get(parameter.name, given)
        annotation = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if isinstance(annotation, type) and not issubclass(given, annotation):
            return f": its {parameter.name} is {annotation.__name__}, but a branch takes (dim: int, layer: Layer)"
    if cls.forward is named("torch.nn.Module").forward:
        return f": it has no forward; write {WRITE_FORWARD}"
    inputs = list(inspect.signature(cls.forward).parameters.values())[1:]
    if len([parameter for parameter in inputs if parameter.kind in POSITIONAL]) < 2:
        return f": write {WRITE_FORWARD}"
    return None


WRITE_FORWARD = (
    "def forward(self, x_BTD, ctx) for an MLP, def forward(self, x_BTD, ctx, state=None) for a mixer"
)
POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)
BRANCH = Kind("a mixer or an MLP", ("torch.nn.Module",), 2)  # (dim, layer)


def positional_parameters(code: Callable[..., Any]) -> list[inspect.Parameter]:
    return [
        parameter for parameter in inspect.signature(code).parameters.values() if parameter.kind in POSITIONAL
    ]


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's annotations, or none if they can't be evaluated, as with imports under TYPE_CHECKING."""
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def named(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
