"""Fills a model with another's weights, by a table of names.

    "layers.{i}.attn.words.attn.qkv.*": "layers.{i}.self_attn.[q k v]_proj.*"

Left is ours, right is theirs: `{i}` is a layer's number, `{attn}` the word that the layer has for its attention (attn
or local), `{e}` an expert's number, `*` is weight or bias, and `[q k v]` stands for several of theirs, one on top of
the other, `(a|b)` for whichever of two there is. An expert without a number in their name is one of a stack. Where a
weight is laid out otherwise, a function around their name says how.
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

COMPUTED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias))")
"""What older files keep beside the weights: it follows from the configuration."""


@dataclass(frozen=True)
class Row:
    """Where a weight comes from: their names for its parts, and what is made of them.

    `make` is given the parts and the module that holds ours (an attention, an MLP).
    """

    theirs: str
    make: Callable[[list[Tensor], nn.Module], Tensor]


def transposed(theirs: str) -> Row:
    """x W instead of x Wᵀ; a bias is what it is."""
    return Row(theirs, lambda parts, owner: parts[0].t())


def per_head(theirs: str) -> Row:
    """Rows by head and then by q, k, v, as in NeoX; ours by q, k, v and then by head."""
    return Row(theirs, lambda parts, owner: _regrouped(parts[0], owner.head_dim))


def interleaved(theirs: str) -> Row:
    """x W instead of x Wᵀ, and the outputs for gate and up by turns; ours are one on top of the other."""
    return Row(theirs, lambda parts, owner: parts[0].t().unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1))


def side_by_side(theirs: str) -> Row:
    """Several of theirs, one beside the other."""
    return Row(theirs, lambda parts, owner: torch.cat(parts, dim=-1))


def convolution(theirs: str) -> Row:
    """A channel's weights from the earliest token to the token itself; ours begin with the token itself."""
    return Row(theirs, lambda parts, owner: parts[0][:, 0].flip(-1).t())


def fill(
    model: LM,
    table: Mapping[str, str | Row],
    weights: Mapping[str, Tensor],
    *,
    prefix: str = "",
    renamed: Mapping[str, str] = {},
) -> None:
    """Give every parameter of `model` the value that `table` finds in `weights`.

    Args:
        weights: theirs by name; read one by one, so that they may be on a disk.
        prefix: what their names may begin with and the table leaves out.
        renamed: beginnings of names that older files have, and what the table calls them.

    Raises:
        UserError: a weight is missing, is of another shape, or would be left over.
    """
    names = {_plain(name, prefix, renamed): name for name in weights if not COMPUTED.fullmatch(name)}
    rows = [
        (_pattern(ours), row if isinstance(row, Row) else Row(row, _on_top)) for ours, row in table.items()
    ]
    used: set[str] = set()
    with torch.no_grad():
        for ours, param in model.state_dict(keep_vars=True).items():  # a balancing bias is no parameter
            theirs, make, expert = _source(ours, rows)
            theirs = [_whichever(name, names) for name in theirs]
            if absent := [name for name in theirs if name not in names]:
                raise UserError(
                    f"The weights lack {', '.join(absent)}, which the model needs for its {ours}. Is a file missing,"
                    " or does the configuration belong to another model?"
                )
            parts = [weights[names[name]] for name in theirs]
            parts = parts if expert is None else [part[expert] for part in parts]
            value = make(parts, _owner(model, ours))
            if value.shape != param.shape:
                raise UserError(
                    f"{theirs[0]} makes a {ours} of shape {tuple(value.shape)}, and the model's has shape"
                    f" {tuple(param.shape)}. Leave out what you changed of the model's sizes."
                )
            param.copy_(value)
            used.update(theirs)
    left = [name for name in names if name not in used and not _is_tied_head(name, names, weights, model)]
    if left:
        raise UserError(
            f"{len(left)} weights would be left over, such as {', '.join(sorted(left)[:3])}: this isn't the model that"
            " the configuration describes."
        )


def _source(ours: str, rows: list[tuple[re.Pattern, Row]]) -> tuple[list[str], Callable, int | None]:
    """Return their names for what a parameter is made of, how it is made, and the expert to take out of a stack."""
    for pattern, row in rows:
        if found := pattern.fullmatch(ours):
            groups = found.groupdict()
            name = row.theirs.replace("{i}", groups.get("i") or "").replace("*", groups.get("kind") or "")
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
        f"The model has a {ours}, and nothing in the weights stands for it: leave out what adds it."
    )


def _whichever(name: str, names: Mapping[str, str]) -> str:
    """Return a name without its alternatives: the first that there is, or else the first."""
    before, *between = re.split(r"[()]", name)
    if not between:
        return name
    choices = [f"{before}{choice}{between[1]}" for choice in between[0].split("|")]
    return next((choice for choice in choices if choice in names), choices[0])


def _pattern(ours: str) -> re.Pattern:
    """Return the expression that finds the parameters a row is for."""
    text = re.escape(ours).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", "(?P<kind>weight|bias)")
    text = text.replace(r"\{e\}", r"(?P<e>\d+)")
    # the first names the word, those that follow repeat it
    return re.compile(text.replace(r"\{attn\}", "(?P<attn>attn|local)", 1).replace(r"\{attn\}", "(?P=attn)"))


def _plain(name: str, prefix: str, renamed: Mapping[str, str]) -> str:
    name = name.removeprefix(prefix)
    return next((new + name.removeprefix(old) for old, new in renamed.items() if name.startswith(old)), name)


def _owner(model: LM, ours: str) -> nn.Module:
    return model.get_submodule(".".join(ours.split(".")[:-2]))


def _is_tied_head(name: str, names: Mapping[str, str], weights: Mapping[str, Tensor], model: LM) -> bool:
    """Whether a weight is the embedding once more, which some files have although the head is tied to it."""
    if model.head is not None or name != "lm_head.weight":
        return False
    head = weights[names[name]]
    return head.shape == model.embedding.shape and torch.equal(
        head.to(model.embedding.dtype), model.embedding
    )


def _on_top(parts: list[Tensor], owner: nn.Module) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _regrouped(qkv: Tensor, head_dim: int) -> Tensor:
    return qkv.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2)
