"""Copies weights of another model into a model, by a table of names.

    "layers.{i}.attn.words.attn.qkv.*": "layers.{i}.self_attn.[q k v]_proj.*"

On the left is minllm's name, on the right that of transformers. `{i}` is a layer's number, `{attn}` the layer's
attention branch (attn or local), `{e}` an expert's number, and `*` weight or bias. `[q k v]` stands for several weights
concatenated along the first dimension, and `(a|b)` for the one of two that exists. An expert whose number isn't in the
source name is an element of a stacked weight. A function around the source name converts a different memory layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from minllm.errors import UserError
from minllm.model.lm import LM

COMPUTED = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias))"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
"""Weights in older files that nothing reads: buffers that follow from the configuration, and a part of T5."""

COPIES = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Names under which files may contain another copy of the embedding."""


@dataclass(frozen=True)
class Row:
    """The source of a weight: the names of its parts, and how they are combined.

    `make` takes the parts and the module that owns the weight in minllm (an attention, an MLP).
    """

    source: str
    make: Callable[[list[Tensor], nn.Module], Tensor]


def transposed(source: str) -> Row:
    """x W instead of x Wᵀ; a bias is unchanged."""
    return Row(source, lambda parts, owner: parts[0].t())


def per_head(source: str) -> Row:
    """Rows ordered by head and then by q, k, v, as in NeoX; minllm orders them by q, k, v and then by head."""
    return Row(source, lambda parts, owner: _regrouped(parts[0], owner.head_dim))


def interleaved(source: str) -> Row:
    """x W instead of x Wᵀ, with gate and up interleaved; minllm concatenates them."""
    return Row(source, lambda parts, owner: parts[0].t().unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1))


def concatenated(source: str) -> Row:
    """Several weights concatenated along the last dimension."""
    return Row(source, lambda parts, owner: torch.cat(parts, dim=-1))


def convolution(source: str) -> Row:
    """A channel's weights from the earliest to the current token; minllm's begin with the current token."""
    return Row(source, lambda parts, owner: parts[0][:, 0].flip(-1).t())


def fill(
    model: LM,
    table: Mapping[str, str | Row],
    weights: Mapping[str, Tensor],
    *,
    prefix: str = "",
    renamed: Mapping[str, str] = {},
) -> None:
    """Set every parameter of `model` from `weights`, by `table`.

    Args:
        weights: the source weights by name; read one at a time, so that they can be loaded lazily.
        prefix: an optional prefix of the source names that the table leaves out.
        renamed: prefixes of names in older files, and the prefixes in the table.

    Raises:
        UserError: a weight is missing, has the wrong shape, or would be left over.
    """
    names = {_plain(name, prefix, renamed): name for name in weights if not COMPUTED.fullmatch(name)}
    rows = [
        (_pattern(param_name), row if isinstance(row, Row) else Row(row, _concatenated))
        for param_name, row in table.items()
    ]
    used: set[str] = set()
    with torch.no_grad():
        for param_name, param in model.state_dict(
            keep_vars=True
        ).items():  # includes buffers, such as a balancing bias
            sources, make, expert = _source(param_name, rows)
            sources = [_existing(name, names) for name in sources]
            if absent := [name for name in sources if name not in names]:
                raise UserError(
                    f"The weights lack {', '.join(absent)}, required for {param_name}. Check that all files are there"
                    " and that config.json belongs to these weights."
                )
            parts = [weights[names[name]] for name in sources]
            parts = parts if expert is None else [part[expert] for part in parts]
            value = make(parts, _owner(model, param_name))
            if value.shape != param.shape:
                raise UserError(
                    f"{sources[0]} gives {param_name} the shape {tuple(value.shape)}, but the model needs"
                    f" {tuple(param.shape)}. Leave out overrides of the model's sizes."
                )
            param.copy_(value)
            used.update(sources)
    embedding = weights[names[_existing(_source("embedding", rows)[0][0], names)]]
    left = [
        name for name in names if name not in used and not _is_implied(name, weights[names[name]], embedding)
    ]
    if left:
        raise UserError(
            f"{len(left)} weights would be left over, such as {', '.join(sorted(left)[:3])}: the configuration doesn't"
            " match the weights."
        )


def _source(param_name: str, rows: list[tuple[re.Pattern, Row]]) -> tuple[list[str], Callable, int | None]:
    """Return the names of a parameter's parts, how they are combined, and the expert's index in a stacked weight."""
    for pattern, row in rows:
        if match := pattern.fullmatch(param_name):
            groups = match.groupdict()
            name = row.source.replace("{i}", groups.get("i") or "").replace("*", groups.get("kind") or "")
            expert = groups.get("e")
            is_stacked = expert is not None and "{e}" not in name
            name = name.replace("{e}", expert or "")
            choices = [
                part.split() if place % 2 else [part] for place, part in enumerate(re.split(r"[\[\]]", name))
            ]
            return (
                ["".join(parts) for parts in product(*choices)],
                row.make,
                int(expert) if is_stacked else None,
            )
    raise UserError(
        f"The model has {param_name}, which the weights don't have. Leave out the override that adds it."
    )


def _existing(name: str, names: Mapping[str, str]) -> str:
    """Return a name with its alternatives resolved to the first that exists, or else to the first."""
    before, *between = re.split(r"[()]", name)
    if not between:
        return name
    choices = [f"{before}{choice}{between[1]}" for choice in between[0].split("|")]
    return next((choice for choice in choices if choice in names), choices[0])


def _pattern(name: str) -> re.Pattern:
    """Return the regular expression that matches the parameters of a row."""
    text = re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", "(?P<kind>weight|bias)")
    text = text.replace(r"\{e\}", r"(?P<e>\d+)")
    # the first {attn} is a named group, later ones refer back to it
    return re.compile(text.replace(r"\{attn\}", "(?P<attn>attn|local)", 1).replace(r"\{attn\}", "(?P=attn)"))


def _plain(name: str, prefix: str, renamed: Mapping[str, str]) -> str:
    name = name.removeprefix(prefix)
    return next((new + name.removeprefix(old) for old, new in renamed.items() if name.startswith(old)), name)


def _owner(model: LM, name: str) -> nn.Module:
    return model.get_submodule(".".join(name.split(".")[:-2]))


def _is_implied(name: str, weight: Tensor, embedding: Tensor) -> bool:
    """Whether the model has a weight without reading it: a copy of the embedding, or a bias of zeros."""
    if name == "final_logits_bias":
        return not weight.any()
    return (
        name in COPIES
        and weight.shape == embedding.shape
        and torch.equal(weight.to(embedding.dtype), embedding)
    )


def _concatenated(parts: list[Tensor], owner: nn.Module) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _regrouped(qkv: Tensor, head_dim: int) -> Tensor:
    return qkv.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2)
