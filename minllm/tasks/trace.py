"""`task=trace`: every step of a model's forward pass, with its shapes and costs. Nothing is trained.

python run.py task=trace model/attn=mqa
python run.py task=trace inside=attn                    # one module: a path or its end, a class or a function
python run.py task=trace 'hide=[mlp,norm]' layers=all
python run.py task=trace decode=true batch=8            # one decoding step, with a state
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from minllm.schema.options import Count, Name, reads


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
        inside: show only the contents of this module or function.
        hide: modules or functions whose contents aren't shown.
        depth: the number of levels to show.
        layers: show identical layers once, or all of them.
        batch: number of rows.
        decode: trace the decoding of one token.
        packed: trace rows with several documents, or padding.

    Raises:
        UserError: the configuration isn't a valid model, or there is no module of that name.
    """
    from minllm import tracing

    on_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    traced = tracing.trace(cfg, batch=batch, decode=decode, packed=packed)
    print(traced.show(inside=inside, hide=hide, depth=depth, every_layer=layers == "all", colour=on_terminal))
