"""Memory: what a run has used at most, what to do when it runs out, and how glibc is told to keep it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from minllm.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h
GIGABYTE = 1 << 30
OUT_OF_MEMORY = {
    # torch's CPU allocator and oneDNN have no exception of their own
    RuntimeError: (
        "can't allocate memory",
        "Cannot allocate memory",
        "not enough memory",
        "out of memory",
        "could not create a memory object",
        "std::bad_alloc",
        "STATUS_ALLOC_FAILED",
        "can't start new thread",
    ),
    # of a library that is loaded late
    ImportError: ("Cannot allocate memory", "failed to map segment"),
    # Python loses a MemoryError that there's no memory for
    SystemError: ("without setting an exception", "without exception set"),
}


class OutOfMemory(UserError):
    """Memory ran out where there was nothing left to make smaller."""


def keep_pages() -> bool:
    """Tell glibc's malloc to keep the pages it has. Return whether there was a glibc to tell.

    By default each large tensor is mapped from the kernel and given back when it dies, so that every step faults in
    and clears its pages again: 1.2 to 1.6 times the time of training. Call it before the first large tensor.
    """
    if not _is_glibc():
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(M_MMAP_MAX, 0), libc.mallopt(M_TRIM_THRESHOLD, GIGABYTE)])


def trim() -> None:
    """Give pages that nobody uses back to the system: compiling leaves many, and glibc keeps them if told to."""
    gc.collect()
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Begin anew to measure the peak (on a CPU: of the whole process, and where the system lets us)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        # some containers forbid it; the peak is then that of the process's whole life
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(
                "5", encoding="utf-8"
            )  # 5 resets the peak alone, see proc(5)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory held at once: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        return _status("VmHWM")
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Return what this process holds now; where the system doesn't tell, the most that it has held."""
    return _status("VmRSS") if sys.platform == "linux" else peak_bytes(torch.device("cpu"))


def ran_out(error: BaseException | None) -> bool:
    """Say whether `error`, or one that it came from, means that memory ran out, on whichever device."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemory)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    for kind, phrases in OUT_OF_MEMORY.items():
        if isinstance(error, kind) and any(words in str(error) for words in phrases):
            return True
    return ran_out(error.__cause__ or (None if error.__suppress_context__ else error.__context__))


@contextlib.contextmanager
def running_out(doing: str) -> Iterator[None]:
    """Raise OutOfMemory, which says what was being done, when memory runs out inside."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(
            f"Memory ran out while {doing}. Make model.dim, model.n_layers, data.seq_len or train.batch_size smaller,"
            " or end other programs that hold memory."
        ) from error


def halve(micro_batch_size: int) -> int:
    """Return the next smaller micro-batch, or raise OutOfMemory if there is none."""
    if micro_batch_size == 1:
        raise OutOfMemory(
            "Memory ran out with a single row at a time (train.micro_batch_size=1): make data.seq_len, model.dim or"
            " model.n_layers smaller, or end other programs that hold memory."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return micro_batch_size // 2


def _status(name: str) -> int:
    """Return a number of bytes that Linux tells of this process, see proc(5)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def _is_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
