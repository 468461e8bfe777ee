"""Services that mirror a run folder. The folder is the source of truth; loggers never change it.

A logger has four methods: `start(cfg, run_dir)`, `log(event)`, `samples(step, rows)` and `finish(summary)`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import netrc
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from minllm.errors import UserError, first_line, printable
from minllm.files.names import short
from minllm.schema.groups import CONF, default_choices
from minllm.schema.options import Name
from minllm.schema.overrides import key_of

# maximum characters that W&B's server accepts; for offline runs, it rejects longer names only on sync
GROUP_LIMIT = 128
WORD_LIMIT = 64  # for tags and job types


class Logger(Protocol):
    def start(self, cfg: DictConfig, run_dir: Path) -> str | None:
        """Start or resume the run in `run_dir`. Return a line for the log."""

    def log(self, event: dict[str, Any]) -> None:
        """Mirror a line of metrics.jsonl."""

    def samples(self, step: int, rows: list[tuple[str, str]]) -> None:
        """Mirror samples: (prompt, continuation) pairs."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Mirror summary.json, and close. The summary is empty if the run stopped early."""


class Silent:
    """Log to nothing but the run folder."""

    def start(self, cfg: DictConfig, run_dir: Path) -> str | None:
        return None

    def log(self, event: dict[str, Any]) -> None:
        pass

    def samples(self, step: int, rows: list[tuple[str, str]]) -> None:
        pass

    def finish(self, summary: dict[str, Any]) -> None:
        pass


class WandB:
    """Weights & Biases. Its files are in the run folder; `wandb sync` uploads those of an offline run.

    Errors at the start raise a UserError. A later failure is reported once, and training continues without the logger.

    Each choice is a config key (`choices.attn`), by which dashboards can group; choices that were typed or aren't the
    default are also tags (`attn=mqa`).

    Args:
        project: the project's name.
        mode: auto is online if an API key is found, and offline otherwise.
        group: a name for runs that belong together, such as those of one comparison; run.py uses a grid's folder, and
            sweep.py the study's name. null: named after the choices.
        job_type: the arm of the comparison, for grouping within a group; run.py uses the options that a grid varies,
            except the seed. null: named after the choices.
    """

    def __init__(
        self,
        *,
        project: Name,
        mode: Literal["auto", "online", "offline"],
        group: Name | None,
        job_type: Name | None = None,
    ):
        self.project, self.mode, self.group, self.job_type = project, mode, group, job_type
        self.works = True

    def start(self, cfg: DictConfig, run_dir: Path) -> str | None:
        with left_as_it_was(run_dir / "wandb"):
            try:
                return self._start(cfg, run_dir)
            # wandb, pydantic and the network raise many exceptions, none of which is a bug in minllm
            except Exception as error:
                raise UserError(
                    f"Weights & Biases can't be used: {reason(error)}. Check logger.project, logger.group, tags and the"
                    " API key, or use logger.mode=offline or logger=none."
                ) from error

    def _start(self, cfg: DictConfig, run_dir: Path) -> str:
        import wandb  # importing it takes a second, and most runs don't use it

        mode = self.mode
        if mode == "auto":
            mode = "online" if has_api_key() else "offline"
        choices = {
            group.split("/")[-1]: choice for group, choice in cfg.choices.items() if choice is not None
        }
        chosen = [f"{group.split('/')[-1]}={cfg.choices[group]}" for group in told(cfg)]
        logging.getLogger("wandb").setLevel(logging.ERROR)
        self.run = wandb.init(
            project=self.project,
            group=short(self.group or " ".join(chosen) or "default", GROUP_LIMIT),
            job_type=short(self.job_type or " ".join(chosen) or "default", WORD_LIMIT),
            name=run_dir.name,
            # the id depends on the folder, so a resumed run continues its curves
            id=hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            dir=run_dir,
            mode=mode,
            tags=[short(tag, WORD_LIMIT) for tag in [*chosen, *cfg.get("tags", [])]],
            config={**OmegaConf.to_container(cfg, resolve=True), "choices": choices},
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
        )
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens", step_sync=True)
        self.table = wandb.Table(columns=["step", "prompt", "text"], log_mode="INCREMENTAL")
        where = (
            f"offline, in {run_dir / 'wandb'}; `wandb sync` uploads it" if mode == "offline" else self.run.url
        )
        why = "; no API key was found" if self.mode == "auto" and mode == "offline" else ""
        return f"Weights & Biases: {where}{why}."

    def log(self, event: dict[str, Any]) -> None:
        metrics = {name: value for name, value in event.items() if name != "step"}
        self._send(lambda: self.run.log(metrics, step=event["step"]))

    def samples(self, step: int, rows: list[tuple[str, str]]) -> None:
        def send() -> None:
            for prompt, text in rows:
                self.table.add_data(step, prompt, text)
            self.run.log({"samples": self.table}, step=step)

        self._send(send)

    def finish(self, summary: dict[str, Any]) -> None:
        self._send(lambda: self.run.summary.update(summary))
        self._send(lambda: self.run.finish(exit_code=0 if summary else 1))

    def _send(self, send: Callable[[], None]) -> None:
        if not self.works:
            return
        try:
            send()
        # no failure of a service should stop training: the run folder has everything
        except Exception as error:
            self.works = False
            tqdm.write(printable(f"Weights & Biases failed: {reason(error)}. The run continues without it."))


@contextlib.contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """If the body fails, restore a folder: remove new files and reset changed links."""
    before = {path: link_of(path) for path in folder.glob("*")} if folder.is_dir() else None
    try:
        yield
    except BaseException:
        if before is None:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for path in folder.glob("*"):
            if path in before and before[path] == link_of(path):
                continue
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)
        for path, link in before.items():
            if link is not None and not path.is_symlink():
                path.symlink_to(link)
        raise


def link_of(path: Path) -> str | None:
    return os.readlink(path) if path.is_symlink() else None


def reason(error: Exception) -> str:
    """Return an error's message in one line, extracted from pydantic's text if it's one of its errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("Value error, ")), None)
    return (
        told.removeprefix("Value error, ").partition(" [type=")[0].rstrip(".") if told else first_line(error)
    )


def told(cfg: DictConfig) -> list[str]:
    """Return the groups whose choices were typed or aren't the default."""
    usual = {**default_choices(), "experiment": "none"}
    typed = {key_of(word) for word in cfg.get("typed") or []} - {"experiment"}
    chosen = {group: choice for group, choice in cfg.choices.items() if choice is not None}
    return [
        group
        for group, choice in chosen.items()
        if group not in ("task", "logger")
        and (group in typed or choice != (usual.get(group) or default_of_option(group, chosen)))
    ]


def default_of_option(group: str, chosen: Mapping[str, str]) -> str | None:
    """Return a subgroup's default in its parent option's file, such as the mask of an attention."""
    parent, _, name = group.rpartition("/")
    file = CONF / parent / f"{chosen.get(parent)}.yaml"
    found = re.search(rf"^\s+- {name}: (\w+)", file.read_text("utf-8"), re.M) if file.is_file() else None
    return found[1] if found else chosen[group]


def has_api_key() -> bool:
    """Look for an API key where wandb does, without reading it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
