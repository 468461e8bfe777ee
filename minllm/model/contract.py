"""The interface that the parts of a model must implement, checked with helpful error messages.

    made("model.attn", factory, dim=…, layer=…)     build a part; its signatures are checked
    refuse_plain_parameters(model)                  check that every parameter has a role, and is registered
    with outputs_checked(model): model(tokens)      check what each part returns, and that it leaves its input alone

All of this is checked before training. The laws in `minllm.laws.laws` check what a module computes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minllm.errors import UserError
from minllm.model.context import State
from minllm.schema.kinds import WRITE_FORWARD

OF_TORCH = frozenset(vars(nn.Module()))
WRITE_INIT = "def __init__(self, {}, *, <its options>)"
WRITE_INIT_STATE = "def init_state(self, batch, max_len, *, device, dtype)"


class Mistake(UserError):
    """A part of the model doesn't implement its interface."""


def made(place: str, factory: Callable[..., Any], /, **given: Any) -> Any:
    """Build the part configured at `place` (such as model.attn) from the arguments that only its owner knows.

    Args:
        given: the constructor's positional arguments, by their usual names.

    Raises:
        Mistake: the constructor doesn't accept them, or doesn't return an nn.Module.
    """
    _check_constructor(place, factory, list(given))
    if missing := sorted(getattr(getattr(factory, "func", factory), "__abstractmethods__", ())):
        raise Mistake(
            f"{place}: {_name_of(factory)} must define {' and '.join(missing)}, abstract in its base class."
        )
    try:
        part = factory(*given.values())
    except AttributeError as error:
        if "Module.__init__() call" not in str(error):
            raise
        raise Mistake(
            f"{place}: {_name_of(factory)}.__init__ must begin with super().__init__(), because it is an nn.Module."
        ) from error
    if not isinstance(part, nn.Module):
        raise Mistake(f"{place}: {_name_of(factory)} must be a torch.nn.Module, not {_article(part)}.")
    part.stands_as = place
    return part


def made_branch(place: str, factory: Callable[..., Any], /, **given: Any) -> nn.Module:
    """Build a mixer or an MLP, and check its `forward` and its `init_state` too."""
    part = made(place, factory, **given)
    name, forward = type(part).__name__, inspect.signature(part.forward)
    if type(part).forward is nn.Module.forward or not _takes(part.forward, 2):
        raise Mistake(
            f"{place}: {name}.forward{forward} must take an input and the context: write {WRITE_FORWARD}."
        )
    if "state" in forward.parameters:
        if forward.parameters["state"].default is not None or not _takes(part.forward, 3):
            raise Mistake(
                f"{place}: {name}.forward{forward} must take state as its third argument, with default None:"
                " write def forward(self, x_BTD, ctx, state=None)."
            )
        if not hasattr(part, "init_state") and not getattr(part, "looks_ahead", None):
            raise Mistake(
                f"{place} can't generate: {name}.forward takes a state, but {name} has no init_state to create one."
                f" Write {WRITE_INIT_STATE}, which returns an object whose tensors() lists all tensors that it holds."
            )
        if hasattr(part, "init_state") and not _takes(part.init_state, 2, "device", "dtype"):
            raise Mistake(
                f"{place}: {name}.init_state{inspect.signature(part.init_state)} has the wrong signature: write"
                f" {WRITE_INIT_STATE}."
            )
    elif hasattr(part, "init_state"):
        raise Mistake(
            f"{place}: {name} has an init_state, but its forward{forward} takes no state: write"
            " def forward(self, x_BTD, ctx, state=None), and continue from the state if it is given."
        )
    part.keeps_shape = True
    return part


def like(first: nn.Module, part: nn.Module) -> nn.Module:
    """Mark `part` as checked, because it was built like `first`, and return it."""
    part.stands_as, part.keeps_shape = first.stands_as, True
    return part


def made_norm(norms: Any, dim: int) -> nn.Module:
    """Build one of the model's norms."""
    norm = made("norm", norms.make, dim=dim)
    norm.keeps_shape = True
    return norm


def refuse_plain_parameters(model: nn.Module) -> None:
    """Raise `Mistake` for parameters without a role, which says how to initialise and optimise them."""
    for part in model.modules():
        if "stands_as" in vars(part):
            _refuse_plain(part)
            for module in part.modules():
                _refuse_unregistered(part, module)


def _refuse_plain(part: nn.Module) -> None:
    if any(isinstance(inner, _BatchNorm) for inner in part.modules()):
        raise Mistake(
            f"{part.stands_as}: {type(part).__name__} has a batch norm, which mixes the rows of a batch, and tokens"
            " with later ones. Use layer.norms.make(dim), a norm of the model's own kind."
        )
    for path, param in part.named_parameters():
        if hasattr(param, "role"):
            continue
        owner = part.get_submodule(path.rpartition(".")[0])
        what = f"{type(part).__name__}.{path} is a plain nn.Parameter"
        if owner is not part and type(owner).__module__.startswith("torch."):
            what = f"{type(part).__name__}.{path} belongs to a plain nn.{type(owner).__name__}"
        raise Mistake(
            f"{part.stands_as}: {what}, which doesn't say how it is initialised and optimised. {_cure(owner)}"
        )


def _refuse_unregistered(part: nn.Module, module: nn.Module) -> None:
    """Raise `Mistake` for tensors and modules that aren't registered, so PyTorch won't move, train or save them."""
    where = f"{part.stands_as}: {type(module).__name__}"
    for name, value in vars(module).items():
        if name in OF_TORCH:
            continue
        inside = list(value.values()) if isinstance(value, dict) else value
        inside = inside if isinstance(inside, (list, tuple)) else [inside]
        if any(isinstance(item, nn.Parameter) for item in inside):
            raise Mistake(
                f"{where}.{name} is a list of parameters: make it an nn.ParameterList or nn.ParameterDict."
            )
        if any(isinstance(item, Tensor) and item.dim() for item in inside):
            raise Mistake(
                f"{where}.{name} is a plain tensor, which doesn't move to the model's device: write"
                f" self.register_buffer('{name}', …) instead of self.{name} = …."
            )
        if any(isinstance(item, nn.Module) and item not in set(part.modules()) for item in inside):
            raise Mistake(
                f"{where}.{name} is a list of modules, whose parameters wouldn't be trained: make it an nn.ModuleList"
                " or nn.ModuleDict."
            )


def check_state(module: nn.Module, state: State) -> State:
    """Return a module's state. Raises `Mistake` if it doesn't list its tensors."""
    tensors = getattr(state, "tensors", None)
    if not callable(tensors):
        raise Mistake(
            f"{called(module)}: init_state() returns {_article(state)}, which has no tensors() method: return an object"
            " whose tensors() lists all tensors that it holds, so that its size can be measured."
        )
    held = tensors()
    if not isinstance(held, (list, tuple)) or not all(isinstance(item, Tensor) for item in held):
        raise Mistake(f"{called(module)}: {type(state).__name__}.tensors() must return a list of tensors.")
    return state


@contextlib.contextmanager
def outputs_checked(model: nn.Module) -> Iterator[None]:
    """Check the outputs of all parts of a model inside this context. An invalid output raises `Mistake`."""
    hooks = []
    for part in model.modules():
        if getattr(part, "keeps_shape", False) or hasattr(part, "residual"):
            versions: list[int] = []
            before, after = (
                (_before_branch, _after_branch) if hasattr(part, "residual") else (_before, _after)
            )
            hooks.append(part.register_forward_pre_hook(functools.partial(before, versions)))
            hooks.append(part.register_forward_hook(functools.partial(after, versions)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def called(part: nn.Module) -> str:
    """Return a part's config key and class, such as model.attn (Attention)."""
    return f"{part.stands_as} ({type(part).__name__})"


def _before(versions: list[int], part: nn.Module, args: tuple[Any, ...]) -> None:
    versions.append(args[0]._version)


def _after(versions: list[int], part: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    _check_output(part, args[0], out)
    if args[0]._version != versions.pop():
        raise Mistake(
            f"{called(part)} changes its input in place, which other modules read too: write x = x + y instead of"
            " x += y, and x.masked_fill(…) instead of x.masked_fill_(…)."
        )


def _before_branch(versions: list[int], branch: nn.Module, args: tuple[Any, ...]) -> None:
    (stream, ctx), residual = args[:2], branch.residual
    versions.append(stream._version)
    read = residual.read(stream, ctx)
    if not isinstance(read, Tensor) or read.shape != ctx.x0_BTD.shape:
        raise Mistake(
            f"{called(residual)}: read() returns {_shape(read)}, but must return"
            f" {_shape(ctx.x0_BTD)}, (batch, tokens, model.dim)."
        )


def _after_branch(versions: list[int], branch: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    stream, residual = args[0], branch.residual
    if not isinstance(out, Tensor) or out.shape != stream.shape:
        raise Mistake(
            f"{called(residual)}: write() returns {_shape(out)}, but must return the shape of the stream it was given,"
            f" {_shape(stream)}."
        )
    if stream._version != versions.pop():
        raise Mistake(
            f"{called(residual)}: write() changes the stream in place, which other modules read too: write"
            " return stream + y_BTD instead of stream += y_BTD."
        )


def _check_output(part: nn.Module, x: Tensor, out: Any) -> None:
    if isinstance(out, (tuple, list)):
        raise Mistake(
            f"{called(part)} returns {_article(out)} of {len(out)}: return only the output, and store what it remembers"
            " in the state."
        )
    if not isinstance(out, Tensor):
        raise Mistake(
            f"{called(part)} returns {_article(out)}: its forward must return a tensor of its input's shape,"
            f" {tuple(x.shape)}."
        )
    if out.shape != x.shape:
        raise Mistake(
            f"{called(part)} returns shape {tuple(out.shape)} for an input of {tuple(x.shape)}: it must return the"
            " shape of its input, (batch, tokens, model.dim)."
        )
    if out.dtype != x.dtype:
        raise Mistake(
            f"{called(part)} returns {out.dtype} for an input of {x.dtype}: end its forward with .to(x_BTD.dtype)."
        )
    if not out.is_meta and not torch.isfinite(out).all() and torch.isfinite(x).all():
        raise Mistake(
            f"{called(part)} returns NaN or infinity for finite input, at its initial weights: look for a division by"
            " zero, a logarithm or root of a number that isn't positive, or a softmax over an empty set."
        )


def _check_constructor(place: str, factory: Callable[..., Any], names: list[str]) -> None:
    """Raise `Mistake` if a constructor doesn't take the owner's arguments, or takes them in another order."""
    listed = ", ".join(names)
    if isinstance(factory, functools.partial) and not factory.args:
        in_order = _in_order_with(factory.func, tuple(factory.keywords), tuple(names))
    else:
        in_order = _in_order(factory, names)
    if not in_order:
        raise Mistake(
            f"{place}: {_name_of(factory)} can't be called with ({listed}): write {WRITE_INIT.format(listed)}, with its"
            " options after the *."
        )


@functools.lru_cache(1024)  # it is asked for every layer of every model
def _in_order_with(function: Callable[..., Any], options: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return _in_order(functools.partial(function, **dict.fromkeys(options)), names)


def _in_order(factory: Callable[..., Any], names: Sequence[str]) -> bool:
    signature = inspect.signature(factory)
    takes = [
        param.name
        for param in signature.parameters.values()
        if param.kind in (param.POSITIONAL_ONLY, param.POSITIONAL_OR_KEYWORD)
    ]
    try:
        signature.bind(*names)
    except TypeError:
        return False
    return [name for name in takes if name in names] in ([], [name for name in names if name in takes])


def _takes(function: Callable[..., Any], positional: int, *keywords: str) -> bool:
    try:
        inspect.signature(function).bind(*range(positional), **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def _cure(owner: nn.Module) -> str:
    if isinstance(owner, nn.Linear):
        return (
            "Use minllm.model.parameter.Linear(n_in, n_out, stream=…) instead of nn.Linear; stream is 'reads' if it"
            " reads the residual stream, 'writes' if its output is added to it, and otherwise 'within'."
        )
    if "Norm" in type(owner).__name__ and type(owner).__module__.startswith("torch."):
        return "Use layer.norms.make(dim), a norm of the model's own kind, instead of torch's."
    return (
        "Use minllm.model.parameter.parameter(*shape, kind=…, draw=…) instead of nn.Parameter: kind is 'matrix',"
        " 'vector' or 'embedding', and draw sets the initial values, such as normal(0.02) or constant(0)."
    )


def _name_of(factory: Callable[..., Any]) -> str:
    made_by = getattr(factory, "func", factory)
    return getattr(made_by, "__name__", type(made_by).__name__)


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else _article(value)


def _article(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
