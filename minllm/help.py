"""The text of --help: what there is to choose from, read from the files of conf/ themselves.

Nothing here imports Hydra, so that the answer comes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALLED = Path(__file__).resolve().parent / "home"
HOME = INSTALLED if INSTALLED.is_dir() else INSTALLED.parent.parent
"""Where conf/, tokenizers/, run.py and sweep.py are: in the clone, or in an installed package."""
CONF = HOME / "conf"

FLAGS = {  # flag: (its short form, what it does)
    "--help": ("-h", "this page"),
    "--multirun": ("-m", "run every combination of the values given, separated by commas"),
    "--cfg": ("-c", "show the configuration instead of running it: --cfg job"),
    "--resolve": ("", "with --cfg, show references resolved"),
    "--package": ("-p", "with --cfg, show one part of it"),
    "--info": ("-i", "show where the configuration comes from: --info defaults"),
    "--config-dir": ("-cd", "add a folder with options of your own"),
    "--config-path": ("-cp", "take another folder than conf/"),
    "--config-name": ("-cn", "start from another file than config.yaml"),
    "--shell-completion": ("-sc", 'let the Tab key complete: eval "$(python run.py -sc install=bash)"'),
    "--run": ("-r", "run once, which is the default"),
    "--hydra-help": ("", "what Hydra itself offers"),
    "--version": ("", "Hydra's version"),
}

OF_RUN = ("--multirun", "--run", "--config-name", "--shell-completion")
"""Flags that sweep.py has no use for."""

INTRODUCTION = """\
Train a small language model, one choice of its architecture at a time.

  python run.py                                      train the default model on the built-in corpus
  python run.py model/attn=mqa norm=post             the same, two choices changed
  python run.py -m model/attn=mha,gqa,mqa seed=0,1   a grid: every combination; the same command goes on after a stop
  python run.py -m seed=0,1,2 hydra.sweeper.n_jobs=2 a grid, two runs at a time
  python run.py task=compare 'runs=[latest]'         which arms of the last grid are better, and how sure that is
  python run.py resume=latest                        go on with the newest run
  python run.py task=generate run=latest 'prompts=[Once upon a time]'
  python run.py task=trace model/attn=mqa            shapes, parameters and FLOPs of every step
  python run.py --config-dir my_idea/conf 'extensions=[my_idea]' model/attn=mine
"""


@dataclass(frozen=True)
class Option:
    """One YAML file of a group."""

    comment: str  # its first line of comment that isn't a directive
    keys: frozenset[str]  # of the file's root, and those of its sections with a dot: tokenizer.show


SWEEP_INTRODUCTION = """\
Search the choices and settings of run.py with Optuna; what runs out of memory, diverges or falls behind is pruned.

  python sweep.py search=size                                        the same command goes on where it stopped
  python sweep.py search=size memory.limit=8GiB hydra.sweeper.n_trials=50 hydra.sweeper.n_jobs=2
  python sweep.py search=none 'optim.lr=tag(log,interval(1e-4,1e-2))' 'model/attn=choice(mha,gqa,mqa)'
  python sweep.py search=grid hydra/sweeper/sampler=grid sweep.dry_run=true
  python sweep.py search=verdict 'arms.a=[model/attn=gqa]' 'arms.b=[model/attn=differential]'   which is better

hydra.sweeper.n_trials is how many trials there are in the end, and hydra.sweeper.n_jobs how many run at once.
hydra/sweeper/sampler is tpe, random, grid, gp, cmaes, nsgaii, nsgaiii or qmc.
"""


def help_text(folders: Iterable[str] = ()) -> str:
    """Return the page of run.py: examples, groups with their options, settings with their defaults, flags."""
    groups = {group: options for group, options in find_groups(folders).items() if not of_search(group)}
    return page(INTRODUCTION, groups, ["config"], FLAGS)


def sweep_help_text(folders: Iterable[str] = ()) -> str:
    """Return the page of sweep.py: what it adds to run.py's comes first."""
    groups = sorted(find_groups(folders).items(), key=lambda one: not of_search(one[0]))
    flags = {flag: said for flag, said in FLAGS.items() if flag not in OF_RUN}
    return page(SWEEP_INTRODUCTION, dict(groups), ["sweep", "config"], flags)


def of_search(group: str) -> bool:
    """Whether a group is sweep.py's alone."""
    return group.split("/")[0] in ("search", "sweep")


def page(
    introduction: str,
    groups: Mapping[str, Mapping[str, Option]],
    primaries: Sequence[str],
    flags: Mapping[str, tuple[str, str]],
) -> str:
    parts = [introduction, "Choices (group=option; * is the default):\n"]
    defaults = {group: option for primary in primaries for group, option in default_choices(primary).items()}
    for group, options in groups.items():
        width = max(map(len, options))
        parts.append(f"  {group}=")
        parts += [
            f"    {'*' if defaults.get(group) == name else ' '} {name:{width}}  {option.comment}".rstrip()
            for name, option in options.items()
        ]
    parts += ["\nSettings (key=value, here with their defaults; --cfg job shows those of the choices too):\n"]
    parts += [line for primary in primaries for line in settings(primary)]
    parts += ["\nFlags:\n", *(f"  {short:3} {flag:20}  {text}" for flag, (short, text) in flags.items())]
    return "\n".join(parts)


def find_groups(folders: Iterable[str] = ()) -> dict[str, dict[str, Option]]:
    """Return every group, such as model/attn, with its options: the folders and files of conf/ and of `folders`."""
    groups: dict[str, dict[str, Option]] = {}
    for root in (CONF, *map(Path, folders)):
        for file in sorted(root.glob("*/**/*.yaml")):
            if not file.is_file():  # a pipe would never end
                continue
            group = file.parent.relative_to(root).as_posix()
            groups.setdefault(group, {}).setdefault(file.stem, read_option(file))
    return dict(sorted(groups.items(), key=lambda one: (one[0] != "task", one[0])))


def read_option(file: Path) -> Option:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    comment = next((text for text in comments if text and not text.startswith("@")), "")
    return Option(comment, frozenset(keys_of(lines)))


def keys_of(lines: Iterable[str]) -> Iterator[str]:
    section = ""
    for entry in filter(None, (re.match(r"(  )?(\w+):", line) for line in lines)):
        section = section if entry[1] else entry[2]
        yield f"{section}.{entry[2]}" if entry[1] else section


def default_choices(primary: str = "config") -> dict[str, str]:
    """Return the option of each group that config.yaml, or sweep.yaml, starts from."""
    text = (CONF / f"{primary}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^\s+- /?([\w/]+): (\w+)", text, re.M))


def settings(primary: str) -> list[str]:
    """Return the settings of config.yaml, or sweep.yaml, as key=value lines, with their comments."""
    found, section = [], ""
    for line in (CONF / f"{primary}.yaml").read_text(encoding="utf-8").splitlines():
        entry = re.match(r"( *)(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line)
        if not entry:
            continue
        indent, key, value, comment = entry.groups()
        if not indent:
            section = key
        if value and not key.startswith("_") and section not in ("defaults", "hydra"):
            name = f"{section}.{key}" if indent else key
            found.append(f"    {name}={value}".ljust(38) + f"  {comment or ''}")
    return [line.rstrip() for line in found]
