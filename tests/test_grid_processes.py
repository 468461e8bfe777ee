"""The processes of a grid: how long the rest takes, their output, what interrupts them, and how they end."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Callable

import pytest

from minllm.errors import UserError
from minllm.grid.children import Children
from minllm.grid.multirun import Progress


def test_progress_says_how_long_the_rest_takes():
    progress = Progress(12, 2, 2)
    assert str(progress) == "2/12"
    for seconds in (30.0, None, 90.0):
        progress.count_run(seconds)
    assert str(progress) == "5/12, 4 min left"  # four rounds of a minute
    assert str(Progress(12, 12, 1, [3.0])) == "12/12"


def test_output_of_parallel_runs_is_not_interleaved(capfd):
    def work(number: int) -> Callable[[], int]:
        def print_and_end() -> int:
            os.write(1, b"out %d\n" % number)
            os.write(2, b"err %d\n" % number)
            return number

        return print_and_end

    ends = {}
    with Children[int](2) as children:
        for number in (0, 2):
            children.start(number, work(number), "cpu")
        assert children.is_full
        while children.running:
            ends |= dict(children.ended())
    assert {number: (end.code, end.out, end.err) for number, end in ends.items()} == {
        0: (0, "out 0\n", "err 0\n"),
        2: (2, "out 2\n", "err 2\n"),
    }
    assert capfd.readouterr() == ("", "")


def blocked(ready: int, end: int) -> Callable[[], int]:
    """Return work that says that it has begun, and then waits for ever."""

    def work() -> int:
        os.write(ready, b"x")
        # a signal that arrives just before a call that blocks would be handled only after it
        while not select.select([end], [], [], 0.05)[0]:
            pass
        return len(os.read(end, 1))

    return work


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_ctrl_c_reaches_every_process_once(number: int, code: int):
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    begun, ready = os.pipe()
    never, held = os.pipe()
    with Children[int](2) as children:
        for which in range(2):
            children.start(which, blocked(ready, never), None)
            assert os.read(begun, 1) == b"x"
        os.kill(os.getpid(), number)
        ends = []
        while children.running:
            ends += children.ended()
    assert children.stopped_by == number and [end.code for _, end in ends] == [code, code]
    assert signal.getsignal(signal.SIGINT) is before
    for pipe in (begun, ready, never, held):
        os.close(pipe)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_no_process_outlives_the_grid():
    begun, ready = os.pipe()
    never, held = os.pipe()
    grid = os.fork()
    if grid == 0:
        os.close(begun)
        with Children[int](1) as children:
            children.start(0, blocked(ready, never), None)
            os.close(ready)
            list(children.ended())
        os._exit(0)
    os.close(ready)
    assert os.read(begun, 1) == b"x"
    os.kill(grid, signal.SIGKILL)
    os.waitpid(grid, 0)
    assert os.read(begun, 1) == b"", "its run holds the pipe as long as it lives"
    for pipe in (begun, never, held):
        os.close(pipe)


def test_a_run_that_is_killed_does_not_cost_the_others():
    with Children[int](1) as children:
        children.start(0, lambda: os.kill(os.getpid(), signal.SIGKILL), None)
        ((_, killed),) = children.ended()
        children.start(1, lambda: 1 // 0, None)
        ((_, failed),) = children.ended()
        children.start(2, lambda: sys.exit(3), None)
        ((_, left),) = children.ended()
    assert (killed.code, killed.signal) == (1, "SIGKILL") and (failed.code, left.code) == (1, 3)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (lambda: sys.exit("It's \x1b[31menough"), 1, "It's \\x1b[31menough\n"),
        (lambda: sys.exit(None), 0, ""),
        (lambda: fail(UserError("a \x1b[31mname")), 2, "a \\x1b[31mname\n"),
        (lambda: fail(OSError(errno.ENOSPC, "No space left", "there")), 2, "The disk is full at there."),
        (lambda: fail(MemoryError()), 2, "Out of memory."),
    ],
    ids=["text", "none", "mistake", "full disk", "memory"],
)
def test_end_of_a_run_is_reported(end: Callable, code: int, said: str, capfd):
    with capfd.disabled(), Children[int](2) as children:  # what pytest captures isn't printed
        children.start(0, end, None)
        ((_, ended),) = children.ended()
    assert ended.code == code and ended.err.startswith(said) and "Traceback" not in ended.err
    assert bool(ended.err) == bool(said)


def fail(error: BaseException) -> None:
    raise error
