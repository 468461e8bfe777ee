"""`task=trace`: an X-ray of a model. Every step of one forward pass, its shapes and its costs; nothing is trained.

python run.py task=trace model/attn=mqa
python run.py task=trace inside=attn                    # one module: a path or its end, a class, a function
python run.py task=trace 'hide=[mlp,norm]' layers=all
python run.py task=trace decode=true batch=8            # one token that follows others, with a state
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from minllm.options import Count, Name, reads


@reads("model", "norm", "objective", "tokenizer", "size", "data")
def trace(
    cfg: DictConfig,
    run_dir: Path,
    *,
    inside: Name | None,
    hide: list[Name],
    depth: Count | None,
    layers: Literal["folded", "all"],
    batch: Count,
    decode: bool,
    packed: bool,
) -> None:
    """Print the trace of the model that `cfg` describes.

    Args:
        cfg: the composed configuration.
        run_dir: unused: a trace isn't a run.
        inside: show only what is inside this module or function.
        hide: modules or functions whose insides aren't shown.
        depth: how many levels are shown.
        layers: show layers that are alike once, or all of them.
        batch: rows.
        decode: trace the reading of one token that follows others.
        packed: trace the way that several documents in a row, or padding, take.

    Raises:
        UserError: the configuration describes no model, or there's no module of that name.
    """
    from minllm import tracing

    on_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    traced = tracing.trace(cfg, batch=batch, decode=decode, packed=packed)
    print(traced.show(inside=inside, hide=hide, depth=depth, every_layer=layers == "all", colour=on_terminal))
