"""The text of --help: what there is to choose from, read from the files of conf/ themselves.

Nothing here imports Hydra, so that the answer comes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from minllm.config.flags import FLAGS
from minllm.schema.groups import CONF, Option, default_choices, find_groups

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
