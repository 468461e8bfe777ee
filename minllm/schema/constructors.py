"""The options of a class or function: keyword-only parameters, and its bases' where it takes `**options` for them."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from minllm.errors import UserError


def options_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a class or function by key, with their annotations evaluated.

    A constructor that ends with `**options`, and hands them to its base's, has the base's options too, but for those
    that it hands over itself. Where a key is a word of Python's own, such as from, the parameter's name has an
    underscore more: from_.
    """
    options: dict[str, inspect.Parameter] = {}
    settled: set[str] = set()
    for owner, function in constructors(target):
        own = keyword_only(owner, function)
        options = {name: one for name, one in own.items() if name not in settled} | options
        settled |= handed_over(function) if takes_more(function) else set()
    return options


def constructors(target: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Yield what makes a target: its constructor, and its bases' as long as each takes `**options` for the next."""
    if not inspect.isclass(target):
        yield target, target
        return
    for owner in target.__mro__:
        if "__init__" in vars(owner) and owner is not object:
            yield owner, vars(owner)["__init__"]
            if not takes_more(vars(owner)["__init__"]):
                return


def takes_more(function: Callable[..., Any]) -> bool:
    kinds = [one.kind for one in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def handed_over(function: Callable[..., Any]) -> set[str]:
    """Return the options that a constructor gives its base itself: {"rate"} for super().__init__(rate=1, **options)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # such as code that was typed, and stands in no file
        return set()
    calls = [one for one in ast.walk(tree) if isinstance(one, ast.Call)]
    onwards = [call for call in calls if any(word.arg is None for word in call.keywords)]
    return {word.arg for call in onwards for word in call.keywords if word.arg is not None}


def keyword_only(owner: Callable[..., Any], function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    options = {one.name: one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    written = types.SimpleNamespace(__annotations__={name: one.annotation for name, one in options.items()})
    # an annotation means what it means where it is written, which for an inherited field is elsewhere
    names: dict[str, Any] = {}
    for place in reversed(owner.__mro__) if inspect.isclass(owner) else [owner]:
        names |= vars(importlib.import_module(place.__module__))
    try:
        kinds = get_type_hints(written, globalns=names, include_extras=True)
    except NameError as error:
        raise UserError(
            f"{owner.__module__}.{owner.__qualname__} annotates an option with '{error.name}', which its module doesn't"
            " import, or only under TYPE_CHECKING: import it at the top."
        ) from error
    kinds = {name: Any if kind is inspect.Parameter.empty else kind for name, kind in kinds.items()}
    return {name.removesuffix("_"): one.replace(annotation=kinds[name]) for name, one in options.items()}
