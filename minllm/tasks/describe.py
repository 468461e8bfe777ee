"""`task=describe`: a table of a model's options, parameters and costs, to compare models without training them.

python run.py task=describe model/attn=mqa
python run.py task=describe model/attn=mqa 'against="model/attn=mla norm=post"'
"""

from __future__ import annotations

import itertools
import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from minllm.config.compose import compose
from minllm.errors import UserError, first_line, printable
from minllm.laws.laws import UNCHECKED, check_laws
from minllm.model.build import build_shapes
from minllm.model.cost import cost
from minllm.model.lm import LM
from minllm.model.unused import refuse_unused
from minllm.page.markdown import TERMINAL
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.options import Name, reads

Column = dict[str, str]  # a model's cell in each row, by the row's name


@reads("model", "norm", "objective", "tokenizer", "size", "data", "train.check")
def describe(cfg: DictConfig, run_dir: Path, *, against: Name | None) -> None:
    """Print the table of the model that `cfg` describes. Nothing is trained; only a few layers are evaluated, to
    check that the model obeys the laws (`minllm.laws.laws`).

    Args:
        cfg: the composed configuration.
        run_dir: unused, because no run is written.
        against: the overrides of another model, for a second column.

    Raises:
        UserError: a configuration is invalid, or its model violates a law.
    """
    cfgs = [cfg]
    if against is not None:
        cfgs.append(compose(parse_overrides(against)))
        validate(cfgs[1])
    columns = [column(model_cfg) for model_cfg in cfgs]
    notes = [check_laws(model_cfg) if build(model_cfg.train).check else UNCHECKED for model_cfg in cfgs]
    print(printable("\n".join([*table(columns), "", *notes])))


def parse_overrides(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UserError(f"Can't parse against={line}: {first_line(error)}.") from error


def column(cfg: DictConfig) -> Column:
    """Return the chosen options, the parameters by group, and the costs at the training length."""
    model = build_shapes(cfg, build(cfg.tokenizer).vocab_size)
    refuse_unused(cfg)
    costs, T = cost(model, cfg.data.seq_len), cfg.data.seq_len
    state = costs.state_bytes_per_sequence
    choices = {name: option for name, option in cfg.choices.items() if option not in (None, "none")}
    return {
        **{name: option for name, option in choices.items() if name not in ("task", "logger")},
        "width, layers": f"{model.dim} × {len(model.layers)}" + f" × {model.loops}" * (model.loops > 1),
        "layout": ", ".join([*cfg.model.first, *cfg.model.layout]),
        **encoder_row(model, cfg),
        "": "",
        "parameters": f"{costs.params:,}",
        **{f"  {name}": f"{params:,}" for name, params in parameters_by_group(model).items() if params},
        "  active per token": f"{costs.params_active:,}",
        " ": "",
        "FLOPs per token, training": f"{costs.flops_per_token:,.0f}",
        f"state after {T:,} tokens": "can't generate" if state is None else f"{state:,} bytes",
    }


def encoder_row(model: LM, cfg: DictConfig) -> Column:
    if model.encoder is None:
        return {}
    return {"encoder's layers": f"{len(model.encoder.layers)} × {', '.join(cfg.model.encoder.layout)}"}


def parameters_by_group(model: LM) -> dict[str, int]:
    """Return the parameter counts of the embedding, each branch summed over all layers, the norms, and so on."""
    branches = model.branches()
    names = dict.fromkeys(name for branch in branches for name in branch.words)
    return {
        "embedding": model.embedding.numel() + size([model.position, model.embedding_norm]),
        **{name: size(branch.words[name] for branch in branches if name in branch.words) for name in names},
        "norms": size(
            [
                model.norm,
                *(norm for branch in branches for norm in (branch.before, branch.after, branch.norm)),
            ]
        ),
        "residual": size(branch.residual for branch in branches),
        "encoder": 0 if model.encoder is None else size([model.encoder]),
        "predicting ahead": size(model.ahead),
        "head": 0 if model.head is None else size([model.head]),
        "head's bias": 0 if model.head_bias_V is None else model.head_bias_V.numel(),
        "objective": size([model.parts]),
    }


def size(modules: Iterable[nn.Module | None]) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def table(columns: list[Column]) -> list[str]:
    """Return the lines of a table that fits a terminal; rows in which the models differ are marked with a dot."""
    names = in_order([list(column) for column in columns])
    rows = [(name, [column.get(name, "–" if name.strip() else "") for column in columns]) for name in names]
    width = max(len(name) for name in names)
    room = (TERMINAL - width - 2) // len(columns) - 2
    widths = [min(room, max(len(cells[i]) for _, cells in rows)) for i in range(len(columns))]
    lines = []
    for name, cells in rows:
        mark = "·" if len(set(cells)) > 1 else " "
        parts = itertools.zip_longest(
            *(textwrap.wrap(cell, w) or [""] for cell, w in zip(cells, widths)), fillvalue=""
        )
        for number, part in enumerate(parts):
            begin = f"{mark} {name.rstrip():{width}}" if number == 0 else " " * (width + 2)
            lines.append(f"{begin}  {'  '.join(f'{c:>{w}}' for c, w in zip(part, widths))}".rstrip())
    return lines


def in_order(lists: list[list[str]]) -> list[str]:
    """Merge lists of names without duplicates, keeping the order of each list."""
    names: list[str] = []
    for names_of_list in lists:
        after = 0
        for name in names_of_list:
            if name in names:
                after = names.index(name) + 1
            else:
                names.insert(after, name)
                after += 1
    return names
