"""The options of a class or function: its keyword-only parameters, and those of bases that it passes `**options` to."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from minllm.errors import UserError


def options_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a class or function by key, with their annotations evaluated.

    A constructor that takes `**options` and passes them to its base also has the options of the base, except those that
    it passes explicitly. For a key that is a Python keyword, such as from, the parameter's name ends with an
    underscore: from_.
    """
    return dict(_options_of(target))


@functools.cache  # called for every section whenever a configuration is validated or built
def _options_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    options: dict[str, inspect.Parameter] = {}
    fixed: set[str] = set()
    for owner, function in constructors(target):
        own = keyword_only(owner, function)
        options = {name: option for name, option in own.items() if name not in fixed} | options
        fixed |= explicit_options(function) if takes_options(function) else set()
    return options


def constructors(target: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Yield the constructor of a target, and those of its bases for as long as each takes `**options`."""
    if not inspect.isclass(target):
        yield target, target
        return
    for owner in target.__mro__:
        if "__init__" in vars(owner) and owner is not object:
            yield owner, vars(owner)["__init__"]
            if not takes_options(vars(owner)["__init__"]):
                return


def takes_options(function: Callable[..., Any]) -> bool:
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


@functools.cache  # called as often
def takes_branches(target: Callable[..., Any]) -> bool:
    """Whether a class or function takes the nodes inside its own that aren't options."""
    return "branches" in inspect.signature(target).parameters


def explicit_options(function: Callable[..., Any]) -> set[str]:
    """Return the options that a constructor passes explicitly: {"rate"} for super().__init__(rate=1, **options)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # such as code typed in an interpreter
        return set()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    onwards = [call for call in calls if any(keyword.arg is None for keyword in call.keywords)]
    return {keyword.arg for call in onwards for keyword in call.keywords if keyword.arg is not None}


def keyword_only(owner: Callable[..., Any], function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    options = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    annotated = types.SimpleNamespace(
        __annotations__={name: parameter.annotation for name, parameter in options.items()}
    )
    # annotations are resolved in the module that wrote them, which for an inherited field is that of a base
    names: dict[str, Any] = {}
    for source in reversed(owner.__mro__) if inspect.isclass(owner) else [owner]:
        names |= vars(importlib.import_module(source.__module__))
    try:
        kinds = get_type_hints(annotated, globalns=names, include_extras=True)
    except NameError as error:
        raise UserError(
            f"{owner.__module__}.{owner.__qualname__} annotates an option with '{error.name}', which its module doesn't"
            " import, or only under TYPE_CHECKING. Import it at the top of the module."
        ) from error
    kinds = {name: Any if kind is inspect.Parameter.empty else kind for name, kind in kinds.items()}
    return {
        name.removesuffix("_"): parameter.replace(annotation=kinds[name])
        for name, parameter in options.items()
    }
