"""The text of --help: groups, options and defaults, read from the files of conf/.

This module doesn't import Hydra, so that --help is fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from minllm.config.flags import FLAGS
from minllm.schema.groups import CONF, Option, default_choices, find_groups

RUN_ONLY_FLAGS = ("--multirun", "--run", "--config-name", "--shell-completion")
"""Flags that sweep.py doesn't have."""

INTRODUCTION = """\
Train a small language model, one choice of its architecture at a time.

  python run.py                                      train the default model on the built-in corpus
  python run.py model/attn=mqa norm=post             the same with two options changed
  python run.py -m model/attn=mha,gqa,mqa seed=0,1   a grid: every combination; repeat the command to continue
  python run.py -m seed=0,1,2 hydra.sweeper.n_jobs=2 a grid, two runs at a time
  python run.py task=compare 'runs=[latest]'         which arms of the last grid are better, and how certain that is
  python run.py task=ledger                          every verdict that was reached here
  python run.py resume=latest                        continue the newest run
  python run.py task=generate run=latest 'prompts=[Once upon a time]'
  python run.py task=grade run=latest                have the newest run write texts, and grade them
  python run.py task=trace model/attn=mqa            shapes, parameters and FLOPs of every operation
  python run.py --config-dir my_idea/conf 'extensions=[my_idea]' model/attn=mine

Exit codes: 0, 2 if the command is refused, 3 if a comparison isn't settled, 1 after a bug.
"""


SWEEP_INTRODUCTION = """\
Search options and values of run.py with Optuna. Trials that run out of memory, diverge or fall behind are pruned.

  python sweep.py search=size                                        repeat the command to continue a search
  python sweep.py search=size memory.limit=8GiB hydra.sweeper.n_trials=50 hydra.sweeper.n_jobs=2
  python sweep.py search=none 'optim.lr=tag(log,interval(1e-4,1e-2))' 'model/attn=choice(mha,gqa,mqa)'
  python sweep.py search=grid hydra/sweeper/sampler=grid sweep.dry_run=true
  python sweep.py search=verdict 'arms.a=[model/attn=gqa]' 'arms.b=[model/attn=differential]'   which arm is better
  python sweep.py search=ladder 'arms.b=[norm=sandwich]' 'ladder.params=[2e5,4e5,8e5,1.6e6]'   and at other sizes
  python sweep.py search=profile 'mixers=[attn=mha,rec=mamba2]'      what each mixer can and can't do
  python sweep.py search=rates 'arms.b=[model.attn.qk_norm=head]'    how much the learning rate matters to each arm
  python sweep.py search=ranking 'datasets=[tales,tinystories]'      whether two datasets rank models alike
  python sweep.py search=finding 'finding=glob(*)' sweep.minutes=120  published findings, put to the test

hydra.sweeper.n_trials is the total number of trials, and hydra.sweeper.n_jobs how many run at once.
hydra/sweeper/sampler is tpe, random, grid, gp, cmaes, nsgaii, nsgaiii or qmc.

Exit codes: 0, 2 if the command is refused, 3 if what was asked isn't settled or a profile isn't complete, 1 after a bug
or repeated crashes.
"""


def help_text(folders: Iterable[str] = ()) -> str:
    """Return the help of run.py: examples, groups with their options, keys with their defaults, flags."""
    groups = {group: options for group, options in find_groups(folders).items() if not is_search_group(group)}
    return page(INTRODUCTION, groups, ["config"], FLAGS)


def sweep_help_text(folders: Iterable[str] = ()) -> str:
    """Return the help of sweep.py: its own groups and keys first, then those of run.py."""
    groups = sorted(find_groups(folders).items(), key=lambda group: not is_search_group(group[0]))
    flags = {flag: texts for flag, texts in FLAGS.items() if flag not in RUN_ONLY_FLAGS}
    return page(SWEEP_INTRODUCTION, dict(groups), ["sweep", "config"], flags)


def is_search_group(group: str) -> bool:
    """Whether only sweep.py has this group."""
    return group.split("/")[0] in ("search", "finding", "sweep")


def page(
    introduction: str,
    groups: Mapping[str, Mapping[str, Option]],
    primaries: Sequence[str],
    flags: Mapping[str, tuple[str, str]],
) -> str:
    parts = [introduction, "Groups (group=option; * is the default):\n"]
    defaults = {group: option for primary in primaries for group, option in default_choices(primary).items()}
    for group, options in groups.items():
        width = max(map(len, options))
        parts.append(f"  {group}=")
        parts += [
            f"    {'*' if defaults.get(group) == name else ' '} {name:{width}}  {option.comment}".rstrip()
            for name, option in options.items()
        ]
    parts += ["\nKeys (key=value, with their defaults; --cfg job also shows those of the chosen options):\n"]
    parts += [line for primary in primaries for line in settings(primary)]
    parts += ["\nFlags:\n", *(f"  {short:3} {flag:20}  {text}" for flag, (short, text) in flags.items())]
    return "\n".join(parts)


def settings(primary: str) -> list[str]:
    """Return the keys of config.yaml, or sweep.yaml, as key=value lines with their comments."""
    lines, section = [], ""
    for line in (CONF / f"{primary}.yaml").read_text(encoding="utf-8").splitlines():
        entry = re.match(r"( *)(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line)
        if not entry:
            continue
        indent, key, value, comment = entry.groups()
        if not indent:
            section = key
        if value and not key.startswith("_") and section not in ("defaults", "hydra"):
            name = f"{section}.{key}" if indent else key
            lines.append(f"    {name}={value}".ljust(38) + f"  {comment or ''}")
    return [line.rstrip() for line in lines]
