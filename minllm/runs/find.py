"""Finding runs on disk, reading their configuration, and combining it with overrides to continue them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minllm.errors import UserError
from minllm.schema.checking import fits, options_of, root_options
from minllm.schema.foreign import check_interpolations, leaves
from minllm.schema.foreign import leaves as nodes
from minllm.schema.foreign_runs import FOREIGN, is_own, without_foreign_paths
from minllm.schema.moved import current_name

OUTPUTS = Path("outputs")
# the sections of a configuration that define a trained model
MODEL_KEYS = ("model", "norm", "tokenizer")
# how a run was requested and where it is displayed, which doesn't affect the computation
WATCHING = ("choices", "typed", "size", "logger", "tags")
# what may change when a run is resumed: how long it trains and how it's displayed, not what it learns
RESUME_MAY_CHANGE = ("train", "logger", "sample", "tags")
# where the data is and how it is read; training then checks that the documents are the same
DATA_LOCATION = ("data.path", "data.cache", "data.num_proc", "data.streaming")
# sections that never change in a run; the tokenizer and the documents have their own fingerprints
FIXED_SECTIONS = ("model", "norm", "objective", "optim", "schedule", "data", "seed")

LARGEST = 1 << 20
"""Maximum size of a config.yaml in bytes; minllm writes a few thousand."""


def new_run_dir(overrides: Iterable[str] = ()) -> Path:
    """Return a name for a new run folder: outputs/<date>/<time>-<choices>-<microseconds>."""
    now = datetime.now()
    return OUTPUTS / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}-{short_folder_name(overrides)}-{now:%f}"


def short_folder_name(overrides: Iterable[str]) -> str:
    """Shorten overrides for a folder name: `["model/attn=mqa", "norm=post", "seed=1"]` gives mqa-post-seed1."""
    parts = []
    for key, _, value in (override.partition("=") for override in overrides):
        if key.startswith(
            (
                "hydra",
                "resume",
                "init_from",
                "branch_from",
                "run",
                "prompts",
                "extensions",
                "tags",
                "data.path",
                "from",
            )
        ):
            continue
        name = re.split(r"[./@+~]", key)[-1]
        is_choice = "/" in key or re.fullmatch(r"[A-Za-z]\w*", value)
        if value.lower() in ("true", "false", "null"):
            parts.append(f"{name}-{value.lower()}")
        else:
            parts.append(name if "," in value else value if is_choice else name + value)
    text = re.sub(r"[^\w.]+", "-", "-".join(parts)).strip("-.")
    return text[:48].strip("-.") or "train"


def remove_if_empty(run_dir: Path) -> None:
    """Remove a run folder if nothing was written to it, and then its empty parent folders."""
    top, run_dir = OUTPUTS.resolve(), run_dir.resolve()
    above = [folder for folder in run_dir.parents if folder == top or top in folder.parents]
    here = Path.cwd()
    for folder in (run_dir, *above):
        if folder == here or folder in here.parents:
            return  # hydra.run.dir=. is the working directory
        try:
            folder.rmdir()
        except OSError:
            return


def find_run(name: str | Path) -> Path:
    """Return the folder of a run. `latest` is the run under outputs/ that saved a checkpoint most recently.

    Raises:
        UserError: there is no such folder, it isn't a run, or there are no runs yet.
    """
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise UserError(f"A run is given as its folder or as latest, not as {name!r}.")
    if str(name) == "latest":
        return latest_run()
    try:
        run = Path(str(name)).expanduser()  # Hydra parses a folder name of digits as a number
        is_folder = run.is_dir()
    except (OSError, RuntimeError):  # the name is too long, or ~user doesn't exist
        is_folder = False
    if not is_folder:
        raise UserError(
            f"There is no folder '{name}'. Give a run folder, such as outputs/<date>/<time>-…, or latest."
        )
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"'{name}' is not a run: it has no config.yaml. A run folder looks like outputs/<date>/<time>-…"
        )
    return run.resolve()


def latest_run() -> Path:
    newest_first = sorted(saved_runs(str(OUTPUTS)), reverse=True)
    for _, folder in newest_first:
        if any(name.startswith("step-") for name in os.listdir(os.path.join(folder, "checkpoints"))):
            return Path(folder).resolve()
    raise UserError(
        f"There is no run with a checkpoint under {OUTPUTS.resolve()} yet. Train one: python run.py"
    )


def saved_runs(folder: str) -> Iterator[tuple[float, str]]:
    """Yield (time of the last checkpoint, folder) of each run below a folder that may have checkpoints.

    Run folders aren't descended into: W&B alone can have put thousands of files there.
    """
    try:
        inside = {entry.name: entry for entry in os.scandir(folder)}
    except OSError:  # not readable, or removed in the meantime
        return
    if "config.yaml" in inside:
        if "checkpoints" in inside and inside["checkpoints"].is_dir():
            yield inside["checkpoints"].stat().st_mtime, folder
        return
    for entry in inside.values():
        if entry.is_dir(follow_symlinks=False):
            yield from saved_runs(entry.path)


def resume_command(run: Path, extensions: Iterable[str]) -> str:
    """Return the command that resumes a run which stopped early."""
    trusted = ",".join(extensions)
    overrides = [f"extensions=[{trusted}]"] if trusted else []
    return shlex.join(["python", "run.py", *overrides, f"resume={run}"])


def read_run(run: str | Path, extensions: Iterable[str] = ()) -> DictConfig:
    """Return the configuration that a run was made with.

    A run may come from an untrusted source, so packages that its configuration loads code from are accepted only if
    `extensions` names them too, and it can't refer to environment variables. If the run wasn't made on this machine,
    files and folders outside the working directory are used only if the command line names them.

    Raises:
        UserError: there is no such run, its configuration is damaged, or it needs code that isn't trusted.
    """
    run = find_run(run)
    refuse_special_files(run)
    file = run / "config.yaml"
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file} is damaged: it has more than {LARGEST:,} bytes.")
        text = file.read_text(encoding="utf-8")
        cfg = OmegaConf.create(text)
    except (OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} is damaged: it can't be read as YAML.") from error
    lacking = [
        name for name in (*MODEL_KEYS, "choices") if not isinstance(cfg, DictConfig) or name not in cfg
    ]
    if lacking:
        raise UserError(f"{file} is damaged or wasn't written by minllm: it has no '{lacking[0]}'.")
    if "${" in text:
        resolve(cfg, file)
    for key, value in leaves(cfg):
        if key.endswith("_target_") and isinstance(value, str):
            OmegaConf.update(cfg, key, current_name(value))
    shapes = {
        "choices": dict[str, str | list[str] | None],
        "extensions": list[str] | None,
        "typed": list[str] | None,
    }
    for name, shape in shapes.items():
        if not fits(cfg.get(name), shape):
            raise UserError(f"{file} is damaged: its '{name}' is {cfg.get(name)!r}.")
    unknown = [name for name in cfg.get("extensions") or [] if name not in set(extensions)]
    if unknown:
        named = ",".join([*extensions, *unknown])
        raise UserError(
            f"{run} uses code from {', '.join(unknown)}. If you trust it, add 'extensions=[{named}]'."
        )
    cfg.extensions = list(extensions)
    return cfg if is_own(run) else without_foreign_paths(cfg)


def resolve(cfg: DictConfig, file: Path) -> None:
    """Resolve a configuration's interpolations, so that no value depends on another key."""
    check_interpolations(cfg, str(file))
    try:
        OmegaConf.resolve(cfg)
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{file} is damaged: it refers to keys that it doesn't have.") from error
    if any(isinstance(value, str) and "${" in value for _, value in nodes(cfg)):
        raise UserError(
            f"{file} is damaged: it has nested interpolations (${{…}}), which minllm never writes."
        )


def refuse_special_files(run: Path) -> None:
    """Raise UserError if a run has a pipe or a device in place of a file, because reading it could block forever."""
    for pattern in ("*", "tokenizer/*", "checkpoints/step-*", "checkpoints/step-*/*"):
        for path in run.glob(pattern):
            try:
                mode = path.stat().st_mode
            except OSError:  # a link to nothing
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UserError(f"{path} is not a regular file, so this run can't be read. Remove it.")


# ---- configurations of tasks on existing runs: the saved one, with the overrides applied -----------


def config_for_task(cfg: DictConfig, saved: DictConfig, named: set[str]) -> DictConfig:
    """`run=`: run another task with the run's own configuration."""
    if "experiment" in named:
        raise UserError(
            "experiment= can't be combined with run=, which already provides the settings. Leave one out."
        )
    names = [name for name in options_of(root_options) if name not in ("task", "choices", "extensions")]
    return with_sections_from(cfg, saved, names, named)


def config_to_resume(cfg: DictConfig, saved: DictConfig, named: set[str]) -> DictConfig:
    """`resume=`: continue training the same run. Only its length, logging and sampling may change."""
    for key in sorted(named - {"resume", "task", "extensions"}):
        may_change = key.partition(".")[0] in RESUME_MAY_CHANGE and key != "train.batch_size"
        may_change |= key in DATA_LOCATION
        may_change |= key == "branch_from" and select(saved, key) == f"{FOREIGN}{select(cfg, key)}"
        group = key.replace(".", "/")
        if group in cfg.choices:
            before, now = saved.choices.get(group), cfg.choices[group]
        else:
            before, now = select(saved, key), select(cfg, key)
        if before != now and not may_change:
            raise UserError(
                f"resume= continues the same run, so {group if group in cfg.choices else key} can't change from"
                f" {before} to {now}. To start a new run from its weights, type init_from={cfg.resume} instead."
            )
    result = config_for_task(cfg, saved, named - {"experiment"})
    result.init_from = saved.get("init_from")
    if "branch_from" in cfg and "branch_from" not in named:
        result.branch_from = saved.get("branch_from")
    overrides = [override for override in cfg.typed if not override.startswith(("resume=", "task="))]
    overrides = [
        override.removeprefix("++") if override.startswith("++data.") else override for override in overrides
    ]
    by_key = {override.partition("=")[0]: override for override in [*(saved.get("typed") or []), *overrides]}
    result.typed = list(by_key.values())
    return result


def unchangeable(cfg: DictConfig) -> dict[str, str]:
    """Return a hash of each section that can't change during a run, by section name."""
    sections = {name: select(cfg, name) for name in (*FIXED_SECTIONS, "train.batch_size")}
    plain = {
        name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for name, value in sections.items()
    }
    for key in DATA_LOCATION:
        section, _, name = key.partition(".")
        if isinstance(plain[section], dict):
            plain[section].pop(name, None)
    return {
        name: hashlib.sha256(
            json.dumps(without_modules(value), sort_keys=True, default=str).encode()
        ).hexdigest()[:16]
        for name, value in plain.items()
    }


def without_modules(value: Any) -> Any:
    """Return a section with classes named without their modules, which may move between versions."""
    if isinstance(value, dict):
        return {
            name: inner.rpartition(".")[2]
            if name == "_target_" and isinstance(inner, str)
            else without_modules(inner)
            for name, inner in value.items()
        }
    return [without_modules(inner) for inner in value] if isinstance(value, list) else value


def config_to_initialise(cfg: DictConfig, saved: DictConfig, named: set[str]) -> DictConfig:
    """`init_from=`: a new run that starts from another run's weights, and takes its model and tokenizer."""
    # a preset already defines the model, whose parameters must then match
    return with_sections_from(cfg, saved, ["tokenizer"] if "experiment" in named else MODEL_KEYS, named)


def with_sections_from(
    cfg: DictConfig, saved: DictConfig, names: Iterable[str], named: set[str]
) -> DictConfig:
    """Return `cfg` with the sections `names` taken from `saved`, except for the keys in `named`."""
    result = cfg.copy()
    for name in names:
        if name in saved:
            result[name] = saved._get_node(name)
            groups = {group for group in saved.choices if group.partition("/")[0] == name}
            result.choices.update({group: saved.choices[group] for group in groups})
    for key in sorted(named):
        if key.partition(".")[0] in names:
            OmegaConf.update(result, key, select(cfg, key), merge=False, force_add=True)
            group = key.replace(".", "/")
            if group in cfg.choices:
                result.choices[group] = cfg.choices[group]
    return result


def named_keys(overrides: Iterable[str]) -> set[str]:
    """Return the keys that overrides set: `["model/attn=mqa", "train={steps: 5}"]` gives model.attn, train.steps."""
    return {key for override in overrides for key in _keys_set_by(override)}


@functools.lru_cache(4096)  # parsing is slow, and a search asks again for each trial
def _keys_set_by(override: str) -> tuple[str, ...]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(override)
    key = (parsed.package or parsed.key_or_group).replace("/", ".")
    if key.partition(".")[0] == "hydra":
        return ()
    return tuple(name for name, _ in leaves(parsed.value(), key))


def select(cfg: DictConfig, key: str) -> object:
    return OmegaConf.select(cfg, key, throw_on_missing=False)
