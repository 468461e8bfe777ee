"""Memory: peak usage, handling of out-of-memory errors, and settings of glibc's malloc."""

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
    # torch's CPU allocator and oneDNN raise plain RuntimeErrors
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
    # when a library is loaded late
    ImportError: ("Cannot allocate memory", "failed to map segment"),
    # Python may fail to create the MemoryError itself
    SystemError: ("without setting an exception", "without exception set"),
}


class OutOfMemory(UserError):
    """Memory ran out, and there is nothing left to reduce automatically."""


def keep_pages() -> bool:
    """Make glibc's malloc keep freed pages. Return False if the C library isn't glibc.

    By default, the memory of each large tensor is mapped from the kernel and returned when it's freed, so every step
    faults in and clears its pages again, which makes training 1.2 to 1.6 times slower. Call this before creating the
    first large tensor.
    """
    if not _is_glibc():
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(M_MMAP_MAX, 0), libc.mallopt(M_TRIM_THRESHOLD, GIGABYTE)])


def trim() -> None:
    """Return unused pages to the system: compiling leaves many, which glibc keeps after `keep_pages`."""
    gc.collect()
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Reset the measured peak (on a CPU: of the whole process, if the system allows it)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        # some containers forbid it; the peak then covers the lifetime of the process
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(
                "5", encoding="utf-8"
            )  # 5 resets only the peak, see proc(5)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        return _status("VmHWM")
    import resource  # not available on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Return this process's resident memory in bytes; its peak where the system doesn't report the current value."""
    return _status("VmRSS") if sys.platform == "linux" else peak_bytes(torch.device("cpu"))


def ran_out(error: BaseException | None) -> bool:
    """Whether `error`, or an error that caused it, means that memory ran out on any device."""
    if error is None:
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemory)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    for kind, phrases in OUT_OF_MEMORY.items():
        if isinstance(error, kind) and any(phrase in str(error) for phrase in phrases):
            return True
    return ran_out(error.__cause__ or (None if error.__suppress_context__ else error.__context__))


@contextlib.contextmanager
def running_out(doing: str) -> Iterator[None]:
    """Raise OutOfMemory, with what was being done, if memory runs out in the body."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(
            f"Memory ran out while {doing}. Make model.dim, model.n_layers, data.seq_len or train.batch_size smaller,"
            " or close other programs that use memory."
        ) from error


def halve(micro_batch_size: int) -> int:
    """Return half the micro-batch size. OutOfMemory if it's 1 already."""
    if micro_batch_size == 1:
        raise OutOfMemory(
            "Memory ran out with a single row at a time (train.micro_batch_size=1). Make data.seq_len, model.dim or"
            " model.n_layers smaller, or close other programs that use memory."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return micro_batch_size // 2


def _status(name: str) -> int:
    """Return an entry of /proc/self/status in bytes, see proc(5)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def _is_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
