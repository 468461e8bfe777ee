"""Reads a folder that transformers' `save_pretrained` wrote: config.json, safetensors and optionally a tokenizer."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from minllm.convert import families
from minllm.convert.settings import ConfigJson, override
from minllm.errors import UserError
from minllm.tokenizer.huggingface import read_json


class Pretrained:
    """A saved transformers model.

    Raises:
        UserError: the folder doesn't exist, has no config.json, or has a model type that minllm doesn't support.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(str(folder)).expanduser()
        if not self.folder.is_dir():
            raise UserError(
                f"There is no folder '{folder}'. Type from=<folder>, with a folder that save_pretrained wrote."
            )
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"'{folder}' has no config.json. Type from=<folder>, with a folder that save_pretrained wrote."
            )
        self.config = read_json(self.folder / "config.json")
        self.family = family_of(self.config.get("model_type"))

    def overrides(self, named: Iterable[str]) -> list[str]:
        """Return the overrides for this model: the preset, and the options that differ from it.

        Args:
            named: the keys that are given already; a chosen tokenizer is kept.
        """
        settings = self.settings
        overrides = self.family.to_overrides(settings)
        settings.finish()
        return [*overrides, *([] if "tokenizer" in named else self.tokenizer())]

    def tokenizer(self) -> list[str]:
        """Return the overrides for the tokenizer in the folder."""
        if not (self.folder / "tokenizer.json").is_file():
            raise UserError(
                f"'{self.folder}' has no tokenizer.json. Choose the tokenizer that the model was trained with, of"
                f" {self.vocab_size} tokens: tokenizer=<option>."
            )
        overrides = [
            "tokenizer=hf",
            override("tokenizer.name", json.dumps(str(self.folder.resolve()))),
            override("tokenizer.vocab_size", self.vocab_size),
        ]
        ends = {name: self.settings.take(f"{name}_token_id") for name in ("bos", "eos")}
        # the texts that an encoder-decoder generates begin with another token
        start = self.settings.take("decoder_start_token_id", default=None)
        ends["bos"] = ends["bos"] if start is None else start
        numbers = {name: end[0] if isinstance(end, list) and end else end for name, end in ends.items()}
        return overrides + [
            override(f"tokenizer.{name}", number) for name, number in numbers.items() if number is not None
        ]

    @property
    def settings(self) -> ConfigJson:
        return ConfigJson(self.config, f"{self.folder / 'config.json'}").declare(self.family.Config)

    @property
    def vocab_size(self) -> int:
        return self.settings.take("vocab_size")

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.folder)


class Weights(Mapping):
    """The tensors in a folder's safetensors files by name, read lazily.

    Raises:
        UserError: there are none, or a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.files: dict[str, Any] = {}
        for path in files_of(folder):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is damaged: it isn't a valid safetensors file. Download it again."
                ) from error
            self.files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Any:
        return self.files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def files_of(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        names = set(read_json(index).get("weight_map", {}).values())
        paths = [folder / Path(name).name for name in sorted(names)]
        if absent := [path.name for path in paths if not path.is_file()]:
            raise UserError(f"'{folder}' is incomplete: {', '.join(absent)} is missing.")
        return paths
    if single.is_file():
        return [single]
    if sorted(folder.glob("*.bin")):
        raise UserError(
            f"'{folder}' has weights only in .bin files, which can run code when loaded. Convert them to safetensors"
            " with transformers: model.save_pretrained(<folder>)."
        )
    raise UserError(f"'{folder}' has no weights: model.safetensors is missing.")


def family_of(model_type: str | None) -> ModuleType:
    """Return the module for a `model_type`. UserError if there is none."""
    known = sorted(module.name for module in pkgutil.iter_modules(families.__path__))
    if model_type not in known:
        raise UserError(
            f"config.json has model_type={model_type}, which minllm doesn't support. It supports"
            f" {', '.join(known)}."
        )
    return importlib.import_module(f"{families.__name__}.{model_type}")
