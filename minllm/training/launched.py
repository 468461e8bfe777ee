"""How this process was started: alone, or as one of several by torchrun, Slurm or submitit.

torch isn't imported here, so that commands which don't train respond at once.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from minllm.errors import UserError

FIRST_PORT, PORTS = 20_000, 20_000
"""The range of ports from which one is chosen for each Slurm job."""
SAY_SECONDS = 5.0
"""How long to wait for torchrun's store before printing an error that another process may print too."""


@dataclass(frozen=True)
class Place:
    """One of the processes that train a model.

    rank: its number among all, from 0
    size: the number of processes
    local_rank: its number among those of this machine
    local_size: the number of processes of this machine
    address, port: where the processes meet
    restarts: how often they were restarted after one had died
    is_elastic: whether torchrun keeps a store at that address, which outlives its processes
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "localhost"
    port: int = 0
    restarts: int = 0
    is_elastic: bool = False


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Return the place that the launcher's environment variables give this process.

    Raises:
        UserError: one of them isn't a number.
    """
    number = functools.partial(number_in, environment)
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return Place(
            rank=number("RANK"),
            size=number("WORLD_SIZE"),
            local_rank=number("LOCAL_RANK", "0"),
            local_size=number("LOCAL_WORLD_SIZE", "1"),
            address=environment["MASTER_ADDR"],
            port=number("MASTER_PORT"),
            restarts=number("TORCHELASTIC_RESTART_COUNT", "0"),
            is_elastic=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    # srun sets this one for the tasks that it starts; a batch script itself has SLURM_NTASKS too
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        job = f"{environment['SLURM_JOB_ID']}/{environment.get('SLURM_STEP_ID')}"
        return Place(
            rank=number("SLURM_PROCID"),
            size=number("SLURM_STEP_NUM_TASKS"),
            local_rank=number("SLURM_LOCALID"),
            local_size=int(environment["SLURM_STEP_TASKS_PER_NODE"].partition("(")[0].partition(",")[0]),
            address=first_host(environment["SLURM_STEP_NODELIST"]),
            port=port_of(job),
            restarts=number("SLURM_RESTART_COUNT", "0"),
        )
    if "SUBMITIT_LOCAL_NTASKS" in environment:
        size = number("SUBMITIT_LOCAL_NTASKS")
        return Place(
            rank=number("SUBMITIT_LOCAL_GLOBALID"),
            size=size,
            local_rank=number("SUBMITIT_LOCAL_LOCALID"),
            local_size=size,
            port=port_of(environment["SUBMITIT_LOCAL_JOB_ID"]),
        )
    return Place()


def number_in(environment: Mapping[str, str], name: str, default: str = "") -> int:
    """Return an environment variable that must be a whole number, as launchers set it."""
    value = environment.get(name, default)
    if not value.isdecimal():
        raise UserError(
            f"The environment variable {name} must be a whole number, as torchrun, srun and submitit set it, not"
            f" {value!r}. Set it, or unset the launcher's variables to train with one process."
        )
    return int(value)


def refuse_several_processes(what: str) -> None:
    """Raise UserError if this process is one of several, which would all do the same instead of training together."""
    if (size := place().size) > 1:
        raise UserError(
            f"{what} runs in a single process, but {size} were started: start it without torchrun or srun."
        )


def first_host(nodes: str) -> str:
    """Return the first host of Slurm's list: `node07` of `node[07-09,12],big1`."""
    prefix, numbers, suffix = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes).groups()
    return prefix + (numbers or "") + suffix


def port_of(job: str) -> int:
    """Return a port that all processes of a job derive alike, and other jobs hardly ever."""
    return FIRST_PORT + int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], "big") % PORTS


def is_first_to_print(text: str) -> bool:
    """Whether no other process has printed the same message since the last restart; True for a process alone.

    Only torchrun has a store that a process can ask before, and after, all of them have met. Elsewhere each process has
    a log of its own.
    """
    try:
        here = place()
    except UserError:  # this may be the message
        return True
    if here.size == 1 or not here.is_elastic:
        return True
    from datetime import timedelta

    from torch.distributed import TCPStore

    key = f"minllm/printed/{here.restarts}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        store = TCPStore(here.address, here.port, is_master=False, timeout=timedelta(seconds=SAY_SECONDS))
        return store.add(key, 1) == 1
    except RuntimeError:  # torchrun has ended
        return True
