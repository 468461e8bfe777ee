"""Loads a tokenizer by name, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minllm.config.compose import compose
from minllm.errors import UserError, suggest
from minllm.runs.find import find_run, read_run
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.groups import find_groups
from minllm.tokenizer import Tokenizer, of_run
from minllm.tokenizer.huggingface import HuggingFace
from minllm.tokenizer.sentencepiece import SentencePiece, is_trained


def load_tokenizer(name: str | Path, *, extensions: Sequence[str] = ()) -> Tokenizer:
    """Return a tokenizer.

    Args:
        name: an option of conf/tokenizer (bytes, tales_4096), a folder that `task=tokenizer` or transformers wrote, the
            folder of a run or `latest`, or a name on the Hugging Face Hub (gpt2).
        extensions: packages besides minllm that a run's configuration may use code from; name only what you trust.

    Raises:
        UserError: the tokenizer doesn't exist or can't be read.
    """
    options = find_groups()["tokenizer"]
    if name in options:
        cfg = compose([f"tokenizer={name}"])
        validate(cfg)
        return build(cfg.tokenizer)
    if str(name) == "latest" or Path(name, "config.yaml").expanduser().is_file():
        run = find_run(name)
        return of_run(run, read_run(run, extensions))
    if is_trained(str(name)):
        return SentencePiece(folder=str(name))
    near = suggest(str(name), options)
    if near.startswith(" Did") and not Path(name).expanduser().exists():
        raise UserError(f"There is no tokenizer '{name}'.{near}")
    return HuggingFace(name=str(name))
