"""Reject overrides that have no effect: choices and options that no parameter or computation depends on.

Otherwise two arms of a comparison could be the same model. Only typed overrides are checked, because presets and
layouts may contain defaults for parts that a model doesn't have.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.context import Position
from minllm.model.encoder import Encoder
from minllm.model.lm import LM
from minllm.model.parameter import constant, initialise, normal, parameter
from minllm.runs.find import named_keys
from minllm.schema.building import build
from minllm.schema.checking import (
    allowed_packages,
    branches_of,
    fits,
    literal_words,
    locate,
    options_of,
    place_of,
    target_of,
)
from minllm.schema.foreign import leaves

VOCABULARY = 64
LENGTHS = (48, 256)
"""Numbers of tokens to compute with: an option that has no effect with few is tried with more."""
MOST_PARAMETERS = 10_000_000
"""A larger model takes too long to rebuild for each option."""
SECTIONS = ("model", "norm", "schedule", "optim", "sample")
OF_SIZE = ("by", "within")
ERRORS = (UserError, ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError)
"""What a value that an option can't have may raise."""
MATTER = (
    *("model.dim", "model.n_layers", "model.layout", "model.first", "model.loops", "model.predict_ahead"),
    "model.both_ways",  # checked together with the objective
    *("model.encoder.n_layers", "model.encoder.layout"),
    *("sample.max_new_tokens", "sample.seed"),
    *("model.transfer", "model.base.dim", "model.base.n_layers", "model.base.n_heads"),  # `refuse_base`
    "model.pos.truncate",  # has no effect if the bounds are integers already
)


def refuse_unsaid(cfg: DictConfig, model: LM) -> None:
    """Reject overrides for parts that this model doesn't have; attn and mlp are always in `cfg`.

    Args:
        model: what `cfg` configures, on the "meta" device.
    """
    said, of_encoder = words_said(cfg.model)
    chosen = branches_of(cfg.model, LM, options_of(LM))
    typed = typed_keys(cfg)
    for word in chosen:
        if word in said or is_referred_to(word, cfg.model):
            continue
        keys = sorted(key for key in typed if f"{key}.".startswith(f"model.{word}."))
        if keys or word not in ("attn", "mlp"):
            raise UserError(
                f"{as_typed(cfg, keys[0]) if keys else f'model.{word}'} would do nothing, because no layer of"
                f" model.layout has '{word}': choose a model/layout that has it, or write one such as"
                f" 'model.layout=[{word if word != 'mlp' else 'attn'} mlp]'."
            )
    for word in branches_of(cfg.model.encoder, Encoder, options_of(Encoder)) if model.encoder else ():
        if word not in of_encoder:
            raise UserError(
                f"model.encoder.{word} would do nothing, because no layer of model.encoder.layout has '{word}': write"
                f" one that has, such as 'model.encoder.layout=[{word} mlp]'."
            )
    of_position = sorted(key for key in typed if f"{key}.".startswith("model.pos."))
    if of_position and not tells_places_apart(model):
        raise UserError(
            f"{as_typed(cfg, of_position[0])} would do nothing, because this model has no attention that uses"
            " positions. Remove it, or choose a model/layout with attention."
        )
    of_samples = sorted(key for key in typed if key.startswith("sample."))
    if of_samples and model.cannot_generate:
        raise UserError(f"{of_samples[0]} would do nothing, because this model can't generate. Remove it.")
    refuse_base(cfg, typed)


def refuse_base(cfg: DictConfig, typed: Collection[str]) -> None:
    """Reject options of the base shape that `model.transfer` doesn't use."""
    needs = {"dim": ("mup", "completep"), "n_heads": ("mup", "completep"), "n_layers": ("completep",)}
    for name, rules in needs.items():
        if f"model.base.{name}" in typed and cfg.model.transfer not in rules:
            raise UserError(
                f"model.base.{name} would do nothing with model.transfer={cfg.model.transfer}: remove it, or type"
                f" model.transfer={' or '.join(rules)}."
            )


def refuse_unused(cfg: DictConfig, sections: Collection[str] = SECTIONS) -> None:
    """Reject a typed option whose value has no effect compared with any of several other values.

    The model, schedule or optimizer is built again with each other value, and the outputs are compared bit by bit. The
    model is first made as small as its layout allows.

    Args:
        sections: the sections whose options are checked.
    """
    typed = sorted(typed_keys(cfg))
    if not cfg.get("size") or all(
        cfg.size[name] is None for name in cfg.size if name not in ("_target_", *OF_SIZE)
    ):
        for name in OF_SIZE:
            if f"size.{name}" in typed:
                raise UserError(
                    f"size.{name} would do nothing without a target size: add one, such as size.params=1e6."
                )
    others = {key: list(other_values(cfg, key)) for key in typed if is_option(cfg, key, sections)}
    if not any(others.values()):
        return
    same, changed = small(cfg), small(cfg)
    before = functools.cache(lambda section, length: computed(section, same, length))
    for key, values in others.items():
        if values and not any(differs(before, changed, key, value) for value in values):
            raise UserError(
                f"{key}={OmegaConf.select(cfg, key)} would do nothing: the {NAMES[key.partition('.')[0]]} computes the"
                " same with other values. Remove it, or change the option that it depends on."
            )


def is_option(cfg: DictConfig, key: str, sections: Collection[str]) -> bool:
    """Whether a typed key is an option of these sections whose effect can be computed; a choice, for one, isn't."""
    return (
        key.partition(".")[0] in sections and key not in MATTER and as_typed(cfg, key) == key and "." in key
    )


def is_referred_to(branch: str, node: DictConfig) -> bool:
    """Whether another option of the model is an interpolation of an option of this branch."""
    reference = re.compile(rf"\$\{{(model|\.+)\.?{re.escape(branch)}\.")
    return any(isinstance(value, str) and reference.search(value) for _, value in leaves(node))


def words_said(node: DictConfig) -> tuple[set[str], set[str]]:
    """Return the branches that the layers of a model name, those of its encoder included, and the encoder's."""
    encoder = node.get("encoder") or {}
    of_encoder = set(" ".join(encoder.get("layout") or []).replace("+", " ").split())
    own = set(encoder) & of_encoder
    said = set(" ".join([*node.first, *node.layout]).replace("+", " ").split())
    return said | (of_encoder - own), of_encoder


# ---- what was typed ------------------------------------------------------------------------------


def typed_keys(cfg: DictConfig) -> set[str]:
    return named_keys(word for word in cfg.get("typed") or [] if not word.startswith("-"))


def as_typed(cfg: DictConfig, key: str) -> str:
    """Return a key as it is typed: model/attn for a choice, model.attn.n_heads for an option."""
    groups = [group for group in cfg.choices if (group.partition("@")[2] or group.replace("/", ".")) == key]
    return groups[0] if groups else key


def other_values(cfg: DictConfig, key: str) -> Iterator[Any]:
    """Yield other values that an option could have, the most informative first."""
    parent_key, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key, throw_on_missing=False, throw_on_resolution_failure=False)
    if not isinstance(parent, DictConfig) or "_target_" not in parent or name not in parent:
        return
    target = locate(target_of(parent, parent_key), allowed_packages(cfg), *place_of(parent))
    if target.__module__.partition(".")[0] != "minllm":
        return  # the effect of an external option may show only after more steps than are compared
    option = options_of(target).get(name)
    if option is None or isinstance(parent[name], Mapping):
        return
    value = parent[name]
    found: list[Any] = [not value] if isinstance(value, bool) else []
    found += [word for word in literal_words(option.annotation) if word != value]
    if isinstance(value, int) and not isinstance(value, bool):
        found += [2 * value, value + 1, value // 2, 1, 2, 3]
    elif isinstance(value, float):
        found += [2 * value, value / 2, 0.5, 0.1, 1.0, 4.0, 0.0]
    elif value is None:
        found += [1, 2, 0.5, 4.0, True]
    for other in dict.fromkeys([*found, None]):
        if other != value and option.annotation is not Any and fits(other, option.annotation):
            yield other


# ---- what is computed ----------------------------------------------------------------------------


def differs(before: Callable[[str, int], list[Any] | None], cfg: DictConfig, key: str, value: Any) -> bool:
    """Whether another value of an option makes a difference; a value that raises an error counts as different.

    Args:
        before: what `computed` returns for `cfg` as it is, given the section and the length.
        cfg: changed, and then changed back.
    """
    section, (parent, _, name) = key.partition(".")[0], key.rpartition(".")
    own = OmegaConf.to_container(OmegaConf.select(cfg, parent), resolve=False)[name]
    OmegaConf.update(cfg, key, value, force_add=True)
    try:
        return not all(gives(before(section, length), section, cfg, length) for length in LENGTHS)
    finally:
        OmegaConf.update(cfg, key, own, merge=False)


def computes_the_same(one: DictConfig, other: DictConfig) -> bool:
    """Whether two models compute bitwise the same; False if they are too large to find out.

    With different transfer they don't, because that also scales learning rates.
    """
    if any(one.model[key] != other.model[key] for key in ("n_layers", "transfer", "base")):
        return False
    cfgs = small(one), small(other)
    n_layers = max(cfg.model.n_layers for cfg in cfgs)
    for cfg in cfgs:
        cfg.model.n_layers, cfg.seed = n_layers, 0
    return all(gives(computed("model", cfgs[0], length), "model", cfgs[1], length) for length in LENGTHS)


def gives(expected: list[Any] | None, section: str, cfg: DictConfig, length: int) -> bool:
    """Whether a section computes what is expected; False if either raises an error.

    It computes only up to the first difference, which for most options is the shapes or the initial values.
    """
    if expected is None:
        return False
    with random_state_kept(), contextlib.suppress(*ERRORS):
        found = itertools.zip_longest(expected, COMPUTES[section](cfg, length))
        return all(is_same(one, other) for one, other in found)
    return False


def computed(section: str, cfg: DictConfig, length: int) -> list[Any] | None:
    """Return what a section computes; None if it raises an error."""
    with random_state_kept(), contextlib.suppress(*ERRORS):
        return list(COMPUTES[section](cfg, length))
    return None


def is_same(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return torch.equal(one, other) if both else one == other


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):  # restores only the CPU's generator
        torch.default_generator.manual_seed(0)
        yield


def small(cfg: DictConfig) -> DictConfig:
    """Return a configuration with just enough layers to include each layer of the layout twice."""
    result = cfg.copy()
    OmegaConf.set_readonly(result, False)
    needed = len(cfg.model.first) + 2 * len(cfg.model.layout)
    if layout := OmegaConf.select(cfg, "model.encoder.layout"):
        n_layers = min(cfg.model.encoder.n_layers, 2 * len(layout))
        OmegaConf.update(result, "model.encoder.n_layers", n_layers)
    OmegaConf.update(result, "model.n_layers", min(cfg.model.n_layers, needed))
    return result


def computed_by_model(cfg: DictConfig, length: int) -> Iterator[Any]:
    """Yield a model's shapes, initial values and outputs, these with random values: initially many parts do nothing."""
    with torch.device("meta"):
        shapes = build(cfg.model, VOCABULARY, build(cfg.norm))
    if sum(p.numel() for p in shapes.parameters()) > MOST_PARAMETERS:
        raise RuntimeError("too large to be built for each option")
    yield [p.shape for p in shapes.parameters()]
    model = build(cfg.model, VOCABULARY, build(cfg.norm))
    initialise(model, cfg.seed)
    yield from (p.detach().clone() for p in model.parameters())
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, VOCABULARY, (1, length), generator=generator)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + 0.5 * (p.ndim == 1))
    for training, segments_BT in (
        (True, None),
        (False, (torch.arange(length) >= length // 3).long()[None]),
    ):
        torch.default_generator.manual_seed(0)
        losses: list[Tensor] = []
        with torch.no_grad():
            model.train(training)
            memory_BSD = model.example_memory(tokens_BT, segments_BT, losses)
            hidden = model.hidden(tokens_BT, segments_BT, memory_BSD=memory_BSD, losses=losses)
            logits = model.logits(hidden)
        yield from (logits, *losses)
    if not model.cannot_generate:
        state = model.init_state(1, length)
        for piece_BT in tokens_BT.split(length // 2, dim=1):
            with torch.no_grad():
                logits = model(piece_BT, state=state, memory_BSD=memory_BSD)
            yield logits


def computed_by_schedule(cfg: DictConfig, length: int) -> list[Tensor]:
    schedule, steps = build(cfg.schedule), cfg.train.steps or 1000
    return [
        torch.tensor([schedule.lr(step * steps / 500, steps) for step in range(501)], dtype=torch.float64)
    ]


def computed_by_sampling(cfg: DictConfig, length: int) -> list[Any]:
    logits_BV = 3 * torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    sampling, objective = build(cfg.sample), build(cfg.objective)
    of_objective = [getattr(sampling, name) for name in objective.sampling_options]
    return [sampling.probabilities(logits_BV) if objective.draws_tokens else None, *of_objective]


def computed_by_optimizer(cfg: DictConfig, length: int) -> list[Tensor]:
    """Return parameters of each role after three steps with gradients of changing sign."""
    model = EachRole()
    initialise(model, cfg.seed)
    optimizer = build(cfg.optim, model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p in model.parameters():
            p.grad = 0.01 * torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


class EachRole(nn.Module):
    """One parameter of each kind that optimizers distinguish, in place of a whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.head_weight_VD = parameter(9, 6, kind="embedding", draw=normal(1.0))
        self.matrix = parameter(8, 6, kind="matrix", draw=normal(0.4), parts=(5, 3))
        self.stack = parameter(2, 4, 6, kind="matrix", draw=normal(0.4))
        self.vector = parameter(6, kind="vector", draw=constant(1.0))


def tells_places_apart(model: LM) -> bool:
    """Whether the model's position encoding is used in a forward pass; `none` is always valid."""
    kind = type(model.position)
    if kind is Position or kind.embed is not Position.embed:
        return True
    positions = [stack.position for stack in (model, model.encoder) if stack is not None]
    positions = [position for position in positions if type(position) is kind]
    asked: list[str] = []
    own = [name for name in ("rotate", "bias") if getattr(kind, name) is not getattr(Position, name)]
    for position, name in itertools.product(positions, own):
        position.__dict__[name] = noting(asked, getattr(position, name))
    with torch.device("meta"), torch.no_grad():
        tokens_BT = torch.zeros(1, 4, dtype=torch.int64)
        model(tokens_BT, memory_BSD=model.example_memory(tokens_BT))
    for position, name in itertools.product(positions, own):
        del position.__dict__[name]
    return bool(asked)


def noting(asked: list[str], method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **options: Any) -> Any:
        asked.append(method.__name__)
        return method(*args, **options)

    return noted


COMPUTES = {
    "model": computed_by_model,
    "norm": computed_by_model,
    "schedule": computed_by_schedule,
    "optim": computed_by_optimizer,
    "sample": computed_by_sampling,
}
NAMES = {"model": "model", "norm": "model", "schedule": "schedule", "optim": "optimizer", "sample": "sampler"}
