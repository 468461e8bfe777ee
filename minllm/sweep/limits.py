"""Memory and thread limits of a trial, enforced by the kernel."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
from pathlib import Path

import torch

from minllm.errors import UserError


def free_bytes(device: torch.device, n_jobs: int = 1) -> int:
    """Return the bytes free for each of `n_jobs` concurrent processes, on its GPU or on the machine."""
    if device.type == "cuda":
        on_one_gpu = math.ceil(n_jobs / torch.cuda.device_count())
        return torch.cuda.mem_get_info()[0] // on_one_gpu
    return min([_available_bytes(), *_left_in_cgroups()]) // n_jobs


def refuse_too_few_gpus(device: torch.device, processes: int) -> None:
    """Raise UserError if the processes of a trial wouldn't have a GPU each."""
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"sweep.processes_per_trial={processes} needs as many GPUs, but this machine has"
            f" {torch.cuda.device_count()}: make it smaller, or add train.device=cpu."
        )


def at_most_hard_limit(limit_bytes: int) -> int:
    """Return `limit_bytes`, or this process's hard data limit (`ulimit -Hd`) if that is lower."""
    if sys.platform != "linux":
        return limit_bytes
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    return limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)


def hold_to(limit_bytes: int, threads: int, device: torch.device) -> None:
    """Limit this process, and each process it starts, to `limit_bytes`: allocations beyond that fail.

    Call it before anything large is allocated, in the trial's own process.
    """
    torch.set_num_threads(threads)
    # start the threads now: hitting the limit while OpenMP starts them would abort the process
    torch.ones(threads << 16).mul(2.0).sum()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))
        return
    if sys.platform == "linux":  # elsewhere it only covers the brk heap, which malloc rarely uses
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (at_most_hard_limit(limit_bytes), hard))


def lift() -> None:
    """Raise this process's limit back to its hard limit."""
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def offer_to_the_kernel() -> None:
    """Make this process, rather than the search, the kernel's first choice if the machine runs out of memory."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")


def out_of_memory_kills() -> int:
    """Return how many processes the kernel's out-of-memory killer has killed; 0 where that is unknown."""
    counts = [_count(Path("/proc/vmstat"), "oom_kill")]
    for folder in _cgroups():
        counts += [_count(folder / name, "oom_kill") for name in ("memory.events", "memory.oom_control")]
    return sum(counts)


def threads_for(n_jobs: int) -> int:
    """Return the number of threads for each of `n_jobs` concurrent processes."""
    return max(1, torch.get_num_threads() // n_jobs)


def gpus() -> list[str]:
    """Return the GPUs as named in CUDA_VISIBLE_DEVICES; empty without GPUs."""
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _available_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(
            line
            for line in meminfo.read_text(encoding="utf-8").splitlines()
            if line.startswith("MemAvailable")
        )
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_in_cgroups() -> list[int]:
    """Return the bytes left by this process's control groups and their parents, where they have a limit."""
    files = (  # cgroup v2, then v1; inactive file cache is reclaimed on demand, so it counts as free
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    left = []
    for folder in {group for leaf in _cgroups() for group in (leaf, *leaf.parents)}:
        for limit, used, given_back in files:
            with contextlib.suppress(OSError, ValueError):
                free = int((folder / limit).read_text("utf-8")) - int((folder / used).read_text("utf-8"))
                left.append(max(0, free + _count(folder / "memory.stat", given_back)))
    return left


def _cgroups() -> list[Path]:
    """Return the folders of this process's control groups that may limit memory."""
    file, top = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            folder = top / kinds / path.lstrip("/")
            # inside a container the path is often the host's, and the container's group is mounted at the top
            found.append(folder if folder.is_dir() else top / kinds)
    return found


def _count(file: Path, name: str) -> int:
    """Return the number on the line of a file that starts with `name`; 0 without such a line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))
