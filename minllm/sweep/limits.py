"""What a trial may use, and how that is held: by the kernel, which doesn't forget."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
from pathlib import Path

import torch


def free_bytes(device: torch.device, n_jobs: int = 1) -> int:
    """Return the memory that each of `n_jobs` trials could have now: of its GPU, or of the machine."""
    if device.type == "cuda":
        on_one_gpu = math.ceil(n_jobs / torch.cuda.device_count())
        return torch.cuda.mem_get_info()[0] // on_one_gpu
    return min([_available_bytes(), *_left_in_cgroups()]) // n_jobs


def at_most_hard_limit(limit_bytes: int) -> int:
    """Return `limit_bytes`, or this process's hard limit on its data (`ulimit -Hd`) where that is lower."""
    if sys.platform != "linux":
        return limit_bytes
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    return limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)


def hold_to(limit_bytes: int, threads: int, device: torch.device) -> None:
    """Let this process, and those it starts, have `limit_bytes` and no more: beyond it, allocating fails.

    Call it before anything large is allocated, in a process that is the trial's own.
    """
    torch.set_num_threads(threads)
    # threads start now: a limit that is hit while OpenMP starts its own ends the process, and can't be caught
    torch.ones(threads << 16).mul(2.0).sum()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))
        return
    if sys.platform == "linux":  # elsewhere it holds for the heap alone, where malloc takes little from
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (at_most_hard_limit(limit_bytes), hard))


def lift() -> None:
    """Let this process have what the machine has again."""
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def offer_to_the_kernel() -> None:
    """Have the kernel end this process first, should the machine's memory run out, and not the search."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has ended for their memory, as far as it tells: 0 where it doesn't."""
    counts = [_count(Path("/proc/vmstat"), "oom_kill")]
    for folder in _cgroups():
        counts += [_count(folder / name, "oom_kill") for name in ("memory.events", "memory.oom_control")]
    return sum(counts)


def threads_for(n_jobs: int) -> int:
    """Return a trial's share of the processors."""
    return max(1, torch.get_num_threads() // n_jobs)


def gpus() -> list[str]:
    """Return the names by which CUDA's programs choose a GPU; none where there is none."""
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
    """Return what this process's control groups, and those around them, leave it, where they say."""
    files = (  # of version 2, then 1; what was read from files and isn't in use is given back when it's needed
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
    """Return the folders of this process's control groups that may say something of memory."""
    file, top = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            folder = top / kinds / path.lstrip("/")
            # inside a container the path is often the host's, and its own group is the top
            found.append(folder if folder.is_dir() else top / kinds)
    return found


def _count(file: Path, name: str) -> int:
    """Return the number that a line of a file gives `name`; 0 where it doesn't."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))
