"""Tiny models of every option, for tests: small enough that a whole grid of them is built in seconds."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from omegaconf import DictConfig, OmegaConf

from minllm.config.compose import compose
from minllm.model.build import build_shapes, with_first_values, with_parts
from minllm.model.lm import LM
from minllm.model.parameter import initialise
from minllm.objective.causal import Causal
from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, locate, place_of, validate
from minllm.schema.groups import CONF, default_choices

VOCAB = 61
T = 24

SIZES = ["model.dim=32", f"data.seq_len={T}", "model.dropout=0"]
SIZES_OF = {
    "n_heads": 4,
    "head_dim": 8,
    "latent_dim": 12,
    "query_latent_dim": 10,
    "rope_dim": 4,
    "value_dim": 6,
    "hidden": 40,
    "n_state": 3,
    "n_value_heads": 4,
    "n_blocks": 4,
    "chunk": 5,
    "gate_rank": 3,
    "n_experts": 4,
    "top_k": 2,
    "n_groups": 2,
    "top_groups": 1,
    "window": 5,
    "stride": 4,
    "size": 4,
    "n_global": 1,
    "lanes": 3,
    "n_buckets": 8,
    "max_distance": 16,
    "original_len": 8,
    "dropout": 0.0,
}
"""What an option of the model is in tests, by its name, wherever it stands."""


def options(group: str) -> list[str]:
    """Return every option of a group as it is typed: ["model/attn=gqa", …]."""
    return sorted(f"{group}={path.stem}" for path in Path(CONF, group).glob("*.yaml"))


def groups_of_model() -> list[str]:
    """Return the groups whose options make a model: those under model/, and norm."""
    folders = {path.parent for path in Path(CONF, "model").rglob("*.yaml")}
    return [*sorted(folder.relative_to(CONF).as_posix() for folder in folders), "norm"]


def refused() -> set[frozenset[str]]:
    """Return the pairs of choices that docs/options.md says are refused; a test of its own holds it to that."""
    page = (Path(CONF).parent / "docs/options.md").read_text()
    rows = re.findall(r"^\| `(\S+=\S+)` \| (`.+`) \| .+ \|$", page, re.MULTILINE)
    return {frozenset([choice, other]) for choice, others in rows for other in re.findall(r"`(\S+)`", others)}


def go_together(choices: Sequence[str]) -> bool:
    return not any(itertools.starmap(is_no_pair, itertools.combinations(choices, 2)))


@functools.cache
def is_no_pair(one: str, other: str) -> bool:
    return {one, other} in refused_pairs or has_no_word(one, other) or has_no_mask(one, other)


def has_no_mask(one: str, other: str) -> bool:
    """Whether one of two choices is an attention, and the other is a mask, which that attention has none of."""
    attention, choice = (one, other) if one.startswith("model/attn=") else (other, one)
    is_pair = attention.startswith("model/attn=") and choice.startswith("model/attn/mask=")
    return is_pair and not has_masks(attention)


@functools.cache
def has_masks(attention: str) -> bool:
    return "mask" in compose([attention]).model.attn


@functools.cache
def is_listed(choice: str) -> bool:
    """Whether the table of docs/options.md names an option; one that was just put into conf/ isn't there yet."""
    group, _, name = choice.partition("=")
    page = (Path(CONF).parent / "docs/options.md").read_text()
    row = re.search(rf"^\| `{re.escape(group)}` \| (.+) \|$", page, re.MULTILINE)
    return row is not None and f"`{name}`" in row[1]


def has_no_word(one: str, other: str) -> bool:
    """Whether one of two choices is for what the other doesn't have: a word of a layout, or attention that asks it."""
    if "model/attn=cross" in (one, other) and (is_for_attention(one) or is_for_attention(other)):
        return True
    layout, choice = (one, other) if one.startswith("model/layout=") else (other, one)
    if not layout.startswith("model/layout=") or not choice.startswith("model/"):
        return False
    if is_for_attention(choice):
        return not {"attn", "local"} & words_of(layout)
    part = re.split("[/=]", choice)[1]
    return part in ("attn", "mlp", "rec") and part not in words_of(layout)


def is_for_attention(choice: str) -> bool:
    """Whether these positions do nothing but where attention asks for them; those of T5 are in docs/options.md."""
    group, _, name = choice.partition("=")
    return group == "model/pos" and name not in ("none", "learned", "sinusoidal", "t5")


@functools.cache
def words_of(layout: str) -> set[str]:
    cfg = compose([layout])
    return set(" ".join([*cfg.model.first, *cfg.model.layout]).replace("+", " ").split())


refused_pairs = refused()
OBJECTIVE = f"objective={default_choices()['objective']}"


def completed(choice: str) -> tuple[str, ...]:
    """Return a choice with what it needs: other options where it doesn't go with a group's default."""
    needed = []
    for group, default in default_choices().items():
        if {choice, f"{group}={default}"} in refused_pairs and group in groups_of_model():
            needed.append(next(one for one in options(group) if {choice, one} not in refused_pairs))
    return (choice, *needed)


def tiny_cfg(*choices: str) -> DictConfig:
    """Return the configuration of some choices at a tiny size; nobody changes it."""
    return composed(*(choice for choice in choices if choice != OBJECTIVE))


@functools.cache
def valid_cfg(*choices: str) -> DictConfig:
    """Return the same once it has been validated, built and tried out, which models of it then needn't be."""
    cfg = tiny_cfg(*choices)
    validate(cfg)
    build_shapes(cfg, VOCAB)
    with_first_values(cfg, SimpleNamespace(vocab_size=VOCAB))
    return cfg


@functools.cache
def composed(*choices: str) -> DictConfig:
    cfg = unjudged(*SIZES, *choices)
    shrink(cfg.model)
    chosen = {choice.split("=")[0] for choice in choices}
    if "model/rec" in chosen and "model/layout" not in chosen:
        attends = any(re.match("model/(attn|pos)", choice) for choice in choices)
        cfg.model.layout = ["rec mlp", "attn mlp"] if attends else ["rec mlp"]
    if any(reads_memory(node) for node in cfg.model.values() if OmegaConf.is_dict(node)):
        cfg = told(cfg)
    cfg.model.n_layers = max(2, len(cfg.model.first) + len(cfg.model.layout))
    OmegaConf.set_readonly(cfg, True)
    return cfg


def unjudged(*overrides: str) -> DictConfig:
    """Compose a configuration whose overrides aren't checked for an effect; tests/test_unused.py has that check."""
    cfg = compose(overrides)
    cfg.typed = []
    return cfg


def told(cfg: DictConfig) -> DictConfig:
    """Return a configuration in which `causal` is given a memory; other objectives stay as they are."""
    if not cfg.objective._target_.endswith(".Causal"):
        return cfg
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    cfg.objective._target_, cfg.extensions = "tests.tiny.Told", ["tests"]
    return cfg


def reads_memory(node: DictConfig) -> bool:
    target = locate(node._target_, allowed_packages(node._get_root()), *place_of(node))
    return getattr(target, "reads_memory", False)


class Told(Causal):
    """Next-token prediction beside a memory, as a task of translation would have it; `tiny_model` supplies it."""

    gives_memory = True


def shrink(node: DictConfig) -> None:
    """Give every option inside a model the size that `SIZES_OF` has for its name."""
    for name in node:
        if OmegaConf.is_dict(node[name]):
            shrink(node[name])
        elif name in SIZES_OF and not OmegaConf.is_interpolation(node, name):
            node[name] = SIZES_OF[name]
        elif name == "n_kv_heads" and node[name] not in (None, 1):
            node[name] = 2


def tiny_model(*choices: str, randomised: bool = False, **of_model: float) -> LM:
    """Return the tiny model of some choices, with further options of the model.

    `randomised` draws every parameter anew at σ = 0.2, gains and biases included: at their first values (ones, zeros,
    small weights) almost any bug passes. A model that reads a memory is given one, always the same.
    """
    cfg = valid_cfg(*choices)
    if of_model:
        cfg = OmegaConf.merge(cfg, {"model": of_model})
    model = with_parts(cfg, build(cfg.objective), VOCAB)
    initialise(model, cfg.seed)
    if randomised:
        generator = torch.Generator().manual_seed(1)
        # without norms activations grow from layer to layer, and rounding would be all that is compared
        sigma = 0.1 if "norm=none" in choices else 0.2
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) * sigma + (param.ndim == 1) * 0.5)
    return (remembering(model) if model.reads_memory else model).eval()


@functools.lru_cache(2)
def random_model(*choices: str) -> LM:
    """Return the tiny model of some choices with random weights, which tests share: nobody changes it."""
    return tiny_model(*choices, randomised=True)


def remembering(model: LM) -> LM:
    """Give a model a memory in each of its passes, always the same; an encoder makes it of tokens."""
    source_1S = tokens(1, seed=3)
    memory_1SD = torch.randn(1, T, model.dim, generator=torch.Generator().manual_seed(3))
    hidden = model.hidden

    def told(tokens_BT, *args, memory_BSD=None, **options):
        if memory_BSD is None:
            memory = memory_1SD if model.encoder is None else model.encode(source_1S.to(tokens_BT.device))
            memory_BSD = memory.to(tokens_BT.device).expand(len(tokens_BT), -1, -1)
        return hidden(tokens_BT, *args, memory_BSD=memory_BSD, **options)

    model.hidden = told
    return model


def tokens(rows: int = 2, length: int = T, seed: int = 0) -> torch.Tensor:
    """Return random tokens, (rows, length), none of which follows itself.

    Where a document begins with a token twice, both positions have the same state, and rounding, which depends on the
    processor and on the batch, would decide which of the two an expert chooses.
    """
    steps = torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    return steps.cumsum(1) % VOCAB
