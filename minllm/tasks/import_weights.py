"""`python run.py task=import from=<folder>`: a run from a model of transformers, as if it had been trained here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.config import build
from minllm.convert.folder import Pretrained
from minllm.convert.table import fill
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.model.cost import cost
from minllm.options import Place
from minllm.training import checkpoints
from minllm.training.rundir import RunDir


def import_weights(cfg: DictConfig, run_dir: Path, *, from_: Place) -> dict[str, Any]:
    """Write a run with the weights and the tokenizer of a model of transformers; return what summary.json says.

    `task=generate run=latest`, `task=evaluate run=latest` and `init_from=latest` go on from there.

    Args:
        from_: the folder that `save_pretrained` wrote. `cfg` is what is typed for it (`minllm.config.with_imported`).

    Raises:
        UserError: the folder lacks something, or holds what minllm has no counterpart for.
    """
    run, pretrained = RunDir(run_dir), Pretrained(from_)
    run.refuse_another_run()
    weights, tokenizer = pretrained.weights, build(cfg.tokenizer)
    if tokenizer.vocab_size != pretrained.vocab_size:
        raise UserError(
            f"The model has {pretrained.vocab_size} tokens, and this tokenizer {tokenizer.vocab_size}: choose the"
            " tokenizer that the weights were trained with, tokenizer=<option>."
        )
    model = build_model(cfg, tokenizer)
    family = pretrained.family
    fill(model, family.TABLE, weights, prefix=family.PREFIX, renamed=getattr(family, "RENAMED", {}))

    with run.alone():  # which refuses links, too
        run.begin(cfg, tokenizer)
        progress = checkpoints.Progress(tokenizer=tokenizer.fingerprint)
        checkpoints.save(run.checkpoints, model, build(cfg.optim, model), progress, keep=1)
    summary = {
        **asdict(cost(model, cfg.data.seq_len)),
        "steps": 0,
        "tokens": 0,
        "seed": cfg.seed,
        "imported_from": str(pretrained.folder.resolve()),
        "choices": OmegaConf.to_container(cfg.choices),
    }
    run.summary(summary)
    run.say(f"{summary['params']:,} parameters, as experiment={cfg.choices['experiment']} has them.")
    run.say(f"The run is in {run_dir}")
    return summary
