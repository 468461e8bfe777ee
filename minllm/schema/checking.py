"""Validates a composed configuration against the code it configures.

The constructor is the schema. A node such as `{_target_: minllm.model.mlps.Gated, hidden: 512}` is checked against
the signature of `Gated.__init__`: its keyword-only parameters are the options that a YAML file or the command line
may set, and their annotations define the valid values. Positional parameters (a layer's width, its number) are
supplied by the code. A new option is one typed parameter; there is no second list to keep in sync.
"""

from __future__ import annotations

import inspect
import shlex
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from minllm.errors import UserError, first_line, suggest
from minllm.schema.constructors import options_of, takes_branches
from minllm.schema.kinds import BRANCH, SECTION_KINDS, kind_in, positional_parameters, why_not
from minllm.schema.options import In, Kind, Matching, Name, Natural, Range
from minllm.schema.outside import check_path, named
from minllm.schema.overrides import UNSET

SMALLEST, LARGEST = 1.2e-38, 3.4e38  # normal numbers of single precision, in which models compute
LARGEST_INT = 2**63 - 1

Node = Mapping[str, Any]  # a section with its own `_target_`


def root_options(
    *,
    seed: Natural,
    extensions: list[str],
    choices: dict[str, str | None],
    typed: list[str] | None = None,
    model: Node,
    norm: Node,
    objective: Node,
    data: Node,
    tokenizer: Node,
    optim: Node,
    schedule: Node,
    logger: Node,
    train: Node,
    sample: Node,
    tags: Sequence[Name] = (),  # missing in the configurations of old runs
    size: Node | None = None,
) -> None:
    """The keys at the root of every configuration. The task's keyword-only parameters are added to them.

    Parameters marked with `In` belong to one of the sections above, in addition to the options of its class.
    """


def validate(cfg: DictConfig) -> None:
    """Raise `UserError` unless every key and value of `cfg` is accepted by the code it configures.

    Nothing is instantiated or written. Conditions that only a constructor can check, such as whether `n_heads` is
    divisible by `n_kv_heads`, are checked when it is called.
    """
    if not isinstance(cfg, DictConfig):
        raise UserError(
            f"A configuration must come from minllm.compose, such as minllm.compose(['model/attn=mqa']), not {cfg!r}."
        )
    allowed = allowed_packages(cfg)
    check_groups(cfg)
    task = locate(target_of(section_in(cfg, "task"), "task"), allowed, "task", SECTION_KINDS["task"])
    check_options(cfg.task, "task", {}, allowed, also={"_target_"})
    # a task's options are keys at the root, not of its node, or of the section that they are marked with
    options: dict[str, dict[str, inspect.Parameter]] = {"": options_of(root_options)}
    for name, option in options_of(task).items():
        options.setdefault(section_of(option), {})[name] = option
    at_root, *sections = options
    own = {name: option for name, option in options[at_root].items() if name not in sections}
    check_options(cfg, "", own, allowed, also={"task", *sections})
    for section in sections:
        if not has_target(section_in(cfg, section)):
            raise UserError(f"{section} is missing. Choose one: {section}=<option>; --help lists them.")
        check_node(cfg[section], section, allowed, options[section])


def section_of(option: inspect.Parameter) -> str:
    """Return the section that a task's option belongs to; "" is the root."""
    marks = get_args(option.annotation)[1:] if get_origin(option.annotation) is Annotated else ()
    return next((mark.section for mark in marks if isinstance(mark, In)), "")


def check_node(
    node: Mapping[str, Any],
    path: str,
    allowed: set[str],
    of_task: Mapping[str, inspect.Parameter] = types.MappingProxyType({}),
    kind: Kind | None = None,
) -> None:
    """Check a node's `_target_` against the kind required at its key, and its options against the constructor.

    Args:
        of_task: options of the task that belong to this section.
        kind: the required kind; by default that of the root section `path`.
    """
    target = locate(target_of(node, path), allowed, path, kind or SECTION_KINDS[path])
    options = {**options_of(target), **of_task}
    branches = branches_of(node, target, options)
    for name in branches:
        check_node(read(node, name, f"{path}.{name}"), f"{path}.{name}", allowed, kind=BRANCH)
    check_options(node, path, options, allowed, {"_target_", *branches}, target)


def check_options(
    node: Mapping[str, Any],
    path: str,
    options: dict[str, inspect.Parameter],
    allowed: set[str],
    also: Iterable[str] = (),
    target: Callable[..., Any] | None = None,
) -> None:
    """Check that a node's keys are in `options` or `also`, and that the values of its options are valid."""
    for name in node:
        if name not in options and name not in also:
            if target and name in [parameter.name for parameter in positional_parameters(target)]:
                raise UserError(
                    f"{path}.{name} can't be set: {name} is a positional parameter of {target.__qualname__}. To make it"
                    f" an option, write a * before it: def __init__(self, dim, layer, *, {name})."
                )
            where = f"{path} has no option" if path else "There is no option"
            raise UserError(f"{where} '{name}'.{suggest(str(name), options)}")
    for name, option in options.items():
        key = f"{path}.{name}" if path else name
        if name in list(node):  # `name in node` is False for ???
            check_value(read(node, name, key), option.annotation, key, allowed)
        elif option.default is inspect.Parameter.empty:
            is_choice = option.annotation == Node
            cure = (
                f"Choose one: {key}=<option>; --help lists them." if is_choice else f"Add it: +{key}=<value>"
            )
            raise UserError(f"{key} is missing. {cure}")


def check_value(value: Any, kind: Any, key: str, allowed: set[str]) -> None:
    """Check one value: a node against its target, anything else against the annotation `kind`."""
    if has_target(value):
        check_node(value, key, allowed, kind=kind_for(kind, key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(map(has_target, value)):
        for i, item in enumerate(value):
            check_value(item, kind, f"{key}[{i}]", allowed)
    elif isinstance(value, Mapping) and any(has_target(value[name]) for name in value):
        for name in value:
            check_value(value[name], kind, f"{key}.{name}", allowed)
    elif not fits(value, kind):
        shown = repr(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
        shown = shown if len(shown) < 200 else f"{shown[:100]}… ({len(shown):,} characters)"
        raise UserError(f"{key} must be {describe(kind)}, not {shown}.{hint(value, kind, key)}")


def check_groups(cfg: DictConfig) -> None:
    """Reject `model.attn=mqa` where `model/attn=mqa` was meant: the key of a group must hold a section."""
    for group in cfg.get("choices") or {}:
        key = group.partition("@")[2] or group.replace("/", ".")
        value = OmegaConf.select(cfg, key, throw_on_missing=False, throw_on_resolution_failure=False)
        if isinstance(value, (str, int, float, bool)):
            raise UserError(
                f"{group} is a group of options, not a value. Type {group}={value} instead of {key}={value}."
            )


def read(node: Any, name: Any, key: str) -> Any:
    """Return `node[name]` with interpolations resolved. UserError if it has no value or can't be resolved."""
    if OmegaConf.is_missing(node, name):
        cure = "Replace the ??? with one." if isinstance(name, int) else f"Set one: {key}=<value>"
        raise UserError(f"{key} has no value yet. {cure}")
    try:
        value = node[name]
        for i in range(len(value)) if isinstance(value, ListConfig) else ():
            read(value, i, f"{key}[{i}]")
        return value
    except InterpolationResolutionError as error:
        raw = node._get_node(name)._value()
        raise UserError(f"{key}={raw} can't be resolved: {first_line(error)}") from error


def section_in(cfg: Mapping[str, Any], name: str) -> Any:
    """Return a section of the root, or an empty one if it is missing."""
    return read(cfg, name, name) if name in list(cfg) else {}


def has_target(value: Any) -> bool:
    # `in value` is False for an interpolation that can't be resolved
    return isinstance(value, Mapping) and "_target_" in list(value)


def target_of(node: Any, key: str) -> str:
    """Return the `_target_` of a node: the dotted path of a class or function."""
    target = read(node, "_target_", f"{key}._target_") if has_target(node) else None
    if target is None and isinstance(node, Mapping):
        raise UserError(
            f"{key} has no _target_, the path of its class. Add a line to its file, such as"
            " _target_: my_idea.decay.Decay"
        )
    if not isinstance(target, str):
        raise UserError(f"{key} must be a section with a _target_, the path of its class, not {node!r}.")
    return target


# ---- importing code: only from minllm and from packages in extensions ----------------------------


def allowed_packages(cfg: Any) -> set[str]:
    """Return the top-level packages that a configuration may use code from."""
    extensions = section_in(cfg, "extensions") if isinstance(cfg, Mapping) else []
    if not fits(extensions or [], list[str]):
        raise UserError(
            f"extensions must be a list of packages, such as 'extensions=[my_idea]', not {extensions!r}."
        )
    return {"minllm", *(name.partition(".")[0] for name in extensions or [])}


def locate(target: str, allowed: Iterable[str], key: str, kind: Kind) -> Callable[..., Any]:
    """Return the class or function that `target` names, if it is of the kind required at `key`.

    It must be defined in one of the `allowed` packages. This is the security check for untrusted configuration files:
    `os.system` is rejected for its package, `minllm.config.os.system` because `os` isn't defined in minllm, and
    `minllm.tasks.prepare.remove_store` because it isn't a tokenizer, a mixer or whatever `key` requires.
    """
    module_name, _, name = target.rpartition(".")
    package = module_name.partition(".")[0]
    check_path(target, f"{key}._target_={target}")
    if package not in allowed:
        raise UserError(
            f"{key}._target_={target} is refused: only code from {' and '.join(sorted(allowed))} may run. If you"
            f" trust '{package}', add 'extensions=[{package}]'."
        )
    refusal = f"{key} takes {kind.description}, not {target}"
    if any(part.startswith("_") for part in target.split(".")):
        raise UserError(f"{refusal}: names that begin with an underscore are private.")
    code = named(target, f"{key}._target_={target}")
    defined_in = str(getattr(code, "__module__", "")).partition(".")[0]
    if not (inspect.isclass(code) or inspect.isfunction(code)) or defined_in not in allowed:
        raise UserError(
            f"{key}._target_={target} is refused: it isn't a class or function defined in {package}."
        )
    if (why := why_not(code, kind, frozenset(allowed) - {"minllm"})) is not None:
        raise UserError(f"{refusal}{why}.")
    return code


def place_of(node: DictConfig) -> tuple[str, Kind]:
    """Return the key of a node in its configuration, and the kind of code required there."""
    key = node._get_full_key(None)
    if key in SECTION_KINDS:
        return key, SECTION_KINDS[key]
    parent = node._get_parent()
    if key == "" or parent is None or not has_target(parent):
        raise ValueError(f"the kind of code required at '{key}' is unknown")
    owner = locate(target_of(parent, key), allowed_packages(node._get_root()), *place_of(parent))
    options, name = options_of(owner), node._key()
    return key, BRANCH if name not in options else kind_for(options[name].annotation, key)


def kind_for(annotation: Any, key: str) -> Kind:
    """Return the kind of node that an option takes: that of its key in `SECTION_KINDS`, or that of its annotation."""
    kind = SECTION_KINDS.get(key) or kind_in(annotation)
    if kind is None:
        cure = " To allow it, annotate the parameter with a kind, such as Callable[[int, Layer], nn.Module]."
        raise UserError(f"{key} can't be a section with a _target_.{cure if annotation is Any else ''}")
    return kind


def branches_of(node: Mapping[str, Any], target: Callable[..., Any], options: Iterable[str]) -> list[str]:
    """Return the names of the nodes inside `node` that are branches and not options.

    Branches can have any name (attn, mlp, rec, local, …), which the layout refers to. A target with a positional
    parameter `branches` is given, by name, all nested nodes that aren't its options.
    """
    if not takes_branches(target):
        return []
    return [name for name in node if name not in options and isinstance(branch_in(node, name), Mapping)]


def branch_in(node: Mapping[str, Any], name: str) -> Any:
    return None if OmegaConf.is_missing(node, name) else read(node, name, name)


# ---- values and annotations ----------------------------------------------------------------------


def fits(value: Any, kind: Any) -> bool:
    """Whether the annotation `kind` allows `value`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return fits(value, args[0]) and all(
            value in mark for mark in args[1:] if isinstance(mark, (Range, Matching))
        )
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if kind in (None, type(None)):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and is_single(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
    if kind in (str, bool):
        return isinstance(value, kind)
    if is_list(kind):
        inner = args[0] if args else Any
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(fits(item, inner) for item in value)
        )
    if origin is dict or kind is dict:
        inner = args[1] if args else Any
        return isinstance(value, Mapping) and all(fits(value[name], inner) for name in value)
    return has_target(value)


def is_single(number: float) -> bool:
    """Whether single precision can represent a number: not infinite, NaN, or so small that it becomes 0."""
    return number == 0 or SMALLEST <= abs(number) <= LARGEST


def means_float(kind: Any) -> bool:
    """Whether an annotation allows floats, and integers only as floats."""
    if get_origin(kind) is Annotated:
        return means_float(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        others = [arg for arg in get_args(kind) if not means_float(arg)]
        return len(others) < len(get_args(kind)) and not any(fits(1, arg) for arg in others)
    return kind is float


def describe(kind: Any) -> str:
    """Return a description of the values that an annotation allows."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next(
            (mark.description for mark in args[1:] if isinstance(mark, (Range, Matching))), describe(args[0])
        )
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(arg) for arg in args)
    if is_list(kind):
        return "a list" + (f", each item {describe(args[0])}" if args and args[0] is not Any else "")
    if origin is dict or kind is dict:
        return "a mapping of names" + (f", each {describe(args[1])}" if args and args[1] is not Any else "")
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", None: "null"}
    return {**plain, type(None): "null"}.get(kind, "a section with a _target_")


def hint(value: Any, kind: Any, key: str) -> str:
    """Return advice for a common mistake, or an empty string."""
    if type(value) is int and abs(value) > LARGEST_INT:
        return " It doesn't fit in 64 bits."
    if type(value) is float and not is_single(value) and fits(1.0, kind):
        return f" Single precision has numbers from {SMALLEST} to {LARGEST}."
    if is_blank(value):
        return UNSET
    if isinstance(value, float) and value.is_integer() and fits(int(value), kind):
        return f" Write {key}={int(value)}."
    if isinstance(value, (int, float, bool)) and fits(str(value), kind):
        return f" Quote it: {key}='\"{value}\"'"
    if fits([value], kind):
        return f" Put it in brackets: {shlex.quote(f'{key}=[{value}]')}"
    if describe(kind).startswith("a section"):
        return f" Set one of its options instead: {key}.<option>=<value>"
    if isinstance(value, str):
        literals = [literal for literal in literal_words(kind) if isinstance(literal, str)]
        return suggest(value, literals) if literals and suggest(value, literals).startswith(" Did") else ""
    return ""


def is_blank(value: Any) -> bool:
    """Whether a value, or an item of a list, is blank."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(map(is_blank, value))
    return isinstance(value, str) and not value.strip()


def literal_words(kind: Any) -> list[Any]:
    """Return the values of every `Literal` inside an annotation."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) is Annotated:
        return literal_words(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [value for arg in get_args(kind) for value in literal_words(arg)]
    return []


def is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (list, tuple, Sequence)
