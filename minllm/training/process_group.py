"""How the processes of a run find each other, form a process group, and leave it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.training import launched, machine
from minllm.training.parallel import ALONE, Processes

EXCHANGE_TIMEOUT = timedelta(days=1)
"""How long a process waits for another, which may encode a corpus meanwhile; that it has died is noticed at once."""
JOIN_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others to start."""
LEAVE_TIMEOUT = timedelta(seconds=20)

group_numbers = itertools.count()


@contextlib.contextmanager
def process_group(train: DictConfig) -> Iterator[Processes]:
    """Form a group with the other processes of this run, if there are any, and leave it at the end.

    Args:
        train: the `train:` section of the run's configuration.

    Raises:
        UserError: there are more processes than GPUs on this machine.
    """
    here = launched.place()
    if here.size == 1:
        yield ALONE
        return
    device = machine.choose_device(train.device)
    if device.type == "mps":
        raise UserError("Several processes can't share an MPS device: add train.device=cpu.")
    if device.type == "cuda":
        if here.local_size > torch.cuda.device_count():
            raise UserError(
                f"This machine has {torch.cuda.device_count()} GPUs for {here.local_size} processes, and each needs its"
                f" own: type --nproc-per-node={torch.cuda.device_count()}, or train.device=cpu."
            )
        torch.cuda.set_device(here.local_rank)
    # torchrun has a store at this address already
    is_master = here.rank == 0 and not here.is_elastic
    store = dist.TCPStore(
        here.address, here.port, is_master=is_master, timeout=JOIN_TIMEOUT, wait_for_workers=False
    )
    # one process may train several models in turn
    store = dist.PrefixStore(f"minllm/{here.restarts}/{next(group_numbers)}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=here.rank, world_size=here.size, timeout=EXCHANGE_TIMEOUT
    )
    try:
        # older runs don't have this option
        yield Processes(here, share_parameters=train.get("parallel") == "fsdp")
        wait_for_others(store, here.size)
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:  # all were stopped by a signal
            wait_for_others(store, here.size)
        raise
    finally:
        dist.destroy_process_group()


def wait_for_others(store: dist.Store, size: int) -> None:
    """Wait until every process has received all messages: closing a connection may lose those under way."""
    with contextlib.suppress(RuntimeError):  # the store is closed: the last process has left
        if store.add("left", 1) == size:
            store.set("all have left", "")
        store.wait(["all have left"], LEAVE_TIMEOUT)


def shared_folder(processes: Processes, run_dir: Path, resume: str | None) -> tuple[Path, str | None]:
    """Return the folder of the first process, which all train in, and the run to resume.

    After a restart, that is the folder of the run that the processes trained before.
    """
    if not processes.are_several:
        return run_dir, resume
    here = processes.place
    if processes.is_first and resume is None:
        store = dist.TCPStore(here.address, here.port, is_master=False) if here.is_elastic else None
        if here.restarts and store is not None and store.check(["minllm/run_dir"]):
            run_dir = Path(store.get("minllm/run_dir").decode())
        if here.restarts and (run_dir / "config.yaml").exists():
            resume = str(run_dir)
        elif store is not None:
            store.set("minllm/run_dir", str(run_dir.resolve()))
    folder, resume = processes.agreed([str(run_dir), resume])
    return Path(folder), resume
