"""`python run.py task=import from=<folder>`: converts a model of transformers to a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.convert.folder import Pretrained
from minllm.convert.table import fill
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.model.cost import cost
from minllm.runs.folder import RunDir
from minllm.schema.building import build
from minllm.schema.options import Place
from minllm.training import checkpoints


def import_weights(cfg: DictConfig, run_dir: Path, *, from_: Place) -> dict[str, Any]:
    """Write a run with the weights and the tokenizer of a transformers model, and return its summary.

    The run can be used with `task=generate run=latest`, `task=evaluate run=latest` and `init_from=latest`.

    Args:
        from_: the folder that `save_pretrained` wrote. `config.compose.with_imported` adds its overrides to `cfg`.

    Raises:
        UserError: the folder is incomplete, or minllm doesn't support the model.
    """
    run, pretrained = RunDir(run_dir), Pretrained(from_)
    run.refuse_another_run()
    weights, tokenizer = pretrained.weights, build(cfg.tokenizer)
    if tokenizer.vocab_size != pretrained.vocab_size:
        raise UserError(
            f"The model has {pretrained.vocab_size} tokens, but this tokenizer has {tokenizer.vocab_size}. Choose the"
            " tokenizer that the model was trained with: tokenizer=<option>."
        )
    model = build_model(cfg, tokenizer)
    family = pretrained.family
    fill(model, family.TABLE, weights, prefix=family.PREFIX, renamed=getattr(family, "RENAMED", {}))

    with run.alone():  # also rejects symbolic links
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
    run.say(f"Imported {summary['params']:,} parameters into experiment={cfg.choices['experiment']}.")
    run.say(f"The run is in {run_dir}")
    return summary
