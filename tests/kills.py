"""What a kill leaves: a copy of a folder before each action that changes it, as if the process had died right there."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from minllm.model import cost
from minllm.model.lm import LM
from minllm.runs import folder as rundir
from tests.processes import together

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
FLOPS: dict[tuple[str, int, int], int] = {}
"""The FLOPs of a forward pass of a model, by its modules, its number of parameters and the number of tokens."""


def quick_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare many runs of the same model what takes longer than they do: asking git, and counting FLOPs again."""
    count = cost.forward_flops

    def counted_once(model: LM, seq_len: int) -> int:
        key = str(model), cost.params(model), seq_len
        if key not in FLOPS:
            FLOPS[key] = count(model, seq_len)
        return FLOPS[key]

    monkeypatch.setattr(cost, "forward_flops", counted_once)
    monkeypatch.setattr(rundir, "environment", lambda: {"versions": {}})


class Moments:
    """Copies `folder` into `into`, once for each state of it that another kill would leave.

    A text that is being appended may be half written, so there's a copy with the first half of each.
    """

    def __init__(self, folder: Path, into: Path):
        self.folder, self.into = folder, into
        self.copies: dict[Path, str] = {}
        """Each copy, and before which action it was made."""
        self.states: set[Any] = set()
        self.appended: tuple[Path, int] | None = None

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        path = str(args[0])
        relative = (
            event in ("os.remove", "os.rmdir") and args[1] != -1
        )  # inside a folder that is being removed
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (
            self.folder.exists()
            and (path.startswith(str(self.folder)) or relative)
            and (writes or event in CHANGES)
        ):
            self.copy(f"{event} {path}")
            if writes and args[2] & os.O_APPEND:
                self.appended = Path(path), os.path.getsize(path) if os.path.isfile(path) else 0

    def copy(self, action: str) -> None:
        if self.appended and (half := self.half(*self.appended)):
            self.keep(f"the end of writing {self.appended[0]}", half)
            self.appended = None
        self.keep(action)

    def half(self, path: Path, size_before: int) -> tuple[Path, bytes] | None:
        text = path.read_bytes() if path.is_file() else b""
        written = len(text) - size_before
        return (path.relative_to(self.folder), text[: size_before + written // 2]) if written > 0 else None

    def keep(self, action: str, changed: tuple[Path, bytes] | None = None) -> None:
        files = {path.relative_to(self.folder): path for path in sorted(self.folder.rglob("*"))}
        state = {name: path.read_bytes() if path.is_file() else None for name, path in files.items()}
        state |= dict([changed]) if changed else {}
        state = {name: content for name, content in state.items() if name.name != "log.txt"}
        if frozenset(state.items()) not in self.states:
            self.states.add(frozenset(state.items()))
            copy = self.into / str(len(self.copies))
            shutil.copytree(self.folder, copy)
            if changed:
                (copy / changed[0]).write_bytes(changed[1])
            self.copies[copy] = action


def every_moment(folder: Path, into: Path, act: Callable[[], Any]) -> dict[Path, str]:
    """Return a copy of `folder` at every moment of what `act` does, each with the action before which it was made.

    It acts in a forked process: an audit hook sees each call of id(), and can't be removed.
    """
    noted, output = Path(f"{into}.json"), Path(f"{into}.txt")

    def record(rank: int) -> None:
        torch.set_num_threads(1)  # OpenMP's threads aren't forked
        noted.write_text(json.dumps(copies_of(Moments(folder, into), act)), encoding="utf-8")

    assert together(1, record, output) == [0], output.read_text(encoding="utf-8")
    return {Path(copy): action for copy, action in json.loads(noted.read_text(encoding="utf-8")).items()}


def copies_of(moments: Moments, act: Callable[[], Any]) -> dict[str, str]:
    is_watching, failures = True, []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal is_watching
        if is_watching and (event == "open" or event in CHANGES):
            is_watching = False  # what is done here isn't looked at
            try:
                moments.see(event, args)
            except Exception as error:  # which what acts might handle
                failures.append(error)
            is_watching = True

    sys.addaudithook(hook)
    act()
    is_watching = False
    assert not failures, failures
    return {str(copy): action for copy, action in moments.copies.items()}


@contextmanager
def failing_disk(below: str, name: str, number: int) -> Iterator[None]:
    """Have each file below a folder whose path has `name` fail to be written with an error, such as a full disk."""

    def refuse(path: Any) -> None:
        if str(path).startswith(below) and name in str(path):
            raise OSError(number, os.strerror(number), str(path))

    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:
        if set(mode) & set("wax+"):
            refuse(path)
        return open_file(path, mode, *args, **options)

    open_file = builtins.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)  # that of pathlib
        yield
