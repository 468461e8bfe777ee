"""The files of conf/ and the groups and options that they define.

This module doesn't import Hydra, so that --help is fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

INSTALLED = Path(__file__).resolve().parents[1] / "home"
HOME = INSTALLED if INSTALLED.is_dir() else INSTALLED.parents[1]
"""Where conf/, tokenizers/, run.py and sweep.py are: in the clone, or in an installed package."""
CONF = HOME / "conf"
FOLDERS = ("data/probe",)
"""Folders whose files are options of the group above, typed with the folder's name: data=probe/mqar."""
MAPPING = "must be a mapping of keys, such as 'dim: 64'."
"""The end of the error message for a configuration file that isn't a mapping."""


@dataclass(frozen=True)
class Option:
    """One YAML file of a group."""

    comment: str  # the first comment line that isn't a directive
    keys: frozenset[str]  # of the file's root, and of its sections with a dot: tokenizer.show
    groups: frozenset[str] = frozenset()  # of which its defaults list chooses an option: grader


def find_groups(folders: Iterable[str] = ()) -> dict[str, dict[str, Option]]:
    """Return every group, such as model/attn, with its options: the folders and files of conf/ and of `folders`."""
    groups: dict[str, dict[str, Option]] = {}
    for root in (CONF, *map(Path, folders)):
        for file in sorted(root.glob("*/**/*.yaml")):
            if not file.is_file():  # reading a pipe would block
                continue
            group, name = file.parent.relative_to(root).as_posix(), file.stem
            if group in FOLDERS:
                group, _, folder = group.rpartition("/")
                name = f"{folder}/{name}"
            groups.setdefault(group, {}).setdefault(name, read_option(file))
    return dict(sorted(groups.items(), key=lambda group: (group[0] != "task", group[0])))


def read_option(file: Path) -> Option:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    comment = next((text for text in comments if text and not text.startswith("@")), "")
    chosen = (re.match(r"\s+- /([\w/]+):", line) for line in lines)
    return Option(comment, frozenset(keys_of(lines)), frozenset(entry[1] for entry in chosen if entry))


def keys_of(lines: Iterable[str]) -> Iterator[str]:
    section = ""
    for entry in filter(None, (re.match(r"(  )?(\w+):", line) for line in lines)):
        section = section if entry[1] else entry[2]
        yield f"{section}.{entry[2]}" if entry[1] else section


def default_choices(primary: str = "config") -> dict[str, str]:
    """Return the default option of each group in config.yaml, or sweep.yaml."""
    text = (CONF / f"{primary}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^\s+- /?([\w/]+): (\w+)", text, re.M))
