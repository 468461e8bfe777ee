"""Texts to tokens, by as many processes as there are CPUs: in order, and never much of a corpus at a time."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import operator
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from minllm.errors import UserError
from minllm.tokenizer import Tokenizer

AT_ONCE = 1 << 18  # characters: enough that handing them over costs nothing beside encoding them
ALONE = 32  # batches that are encoded before other processes are worth starting: a second's work
AHEAD = 3  # batches for each process, in its hands or waiting
COULD_NOT_ENCODE = (
    "A process that encodes couldn't start, or was killed, perhaps because memory ran out. Do without:"
    " data.num_proc=1"
)


@dataclass(frozen=True)
class Encoded:
    """Some documents' tokens, one document after the other.

    tokens: uint32; each document begins with bos, and ends with eos where that's another token
    lengths: how many tokens each has, those included
    bytes: how many bytes of UTF-8 each has
    """

    tokens: np.ndarray
    lengths: np.ndarray
    bytes: np.ndarray

    def within(self, room: int) -> Encoded:
        """Return the first documents, as many as have `room` tokens at most."""
        fit = int(np.searchsorted(np.cumsum(self.lengths), room, side="right"))
        return Encoded(self.tokens[: self.lengths[:fit].sum()], self.lengths[:fit], self.bytes[:fit])


def encoded(texts: Iterable[str], tokenizer: Tokenizer, processes: int | None = None) -> Iterator[Encoded]:
    """Yield all texts' tokens, a batch at a time and in order; the same however many processes there are.

    Args:
        processes: how many encode; None: one for each CPU. A small corpus is encoded by this one alone.

    Raises:
        UserError: the tokenizer loses something of a text, or a process was killed.
    """
    batches = batches_of(texts)
    processes = processes or usable_cpus()
    yield from (encode(tokenizer, batch) for batch in (islice(batches, ALONE) if processes > 1 else batches))
    if (first := next(batches, None)) is not None:
        yield from encoded_by(processes, chain([first], batches), tokenizer)


def encoded_by(processes: int, batches: Iterable[list[str]], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Encode in other processes, each of which has a thread here that hands it batches."""
    with tempfile.TemporaryDirectory(prefix="minllm-tokenizer-") as folder:
        if is_made_again(tokenizer, Path(folder)):
            yield from encoded_with(type(tokenizer), folder, processes, batches)
        else:
            yield from (encode(tokenizer, batch) for batch in batches)


def encoded_with(
    kind: type[Tokenizer], folder: str, processes: int, batches: Iterable[list[str]]
) -> Iterator[Encoded]:
    """Encode in other processes, with the tokenizer of a kind that is in a folder."""
    helpers: list[Helper] = []
    idle: SimpleQueue[Helper] = SimpleQueue()
    waiting: deque[Future[Encoded]] = deque()
    pool = ThreadPoolExecutor(processes)

    def encode_there(batch: list[str]) -> Encoded:
        helper = idle.get()
        try:
            return helper.encode(batch)
        finally:
            idle.put(helper)

    try:
        for _ in range(processes):
            helpers.append(Helper(kind, folder))
            idle.put(helpers[-1])
        for batch in batches:
            waiting.append(pool.submit(encode_there, batch))
            if len(waiting) >= AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for helper in helpers:
            helper.process.kill()  # first, so that no thread waits for an answer any longer
        pool.shutdown(cancel_futures=True)
        for helper in helpers:
            helper.close()


def is_made_again(tokenizer: Tokenizer, folder: Path) -> bool:
    """Save a tokenizer, and return whether another process can make it again from the folder and its class.

    It can't if only this program's main module has the class, or if an option matters that `save` doesn't keep.
    """
    kind = type(tokenizer)
    if kind.__module__ == "__main__":
        return False
    try:
        tokenizer.save(folder)
        same_class = class_of(kind.__module__, kind.__qualname__) is kind
        return same_class and made_again(kind, folder).fingerprint == tokenizer.fingerprint
    # a class from outside minllm may say in many ways that it can't
    except (
        UserError,
        OSError,
        ImportError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        NotImplementedError,
    ):
        return False


def class_of(module: str, name: str) -> type[Tokenizer]:
    return operator.attrgetter(name)(importlib.import_module(module))


def made_again(kind: type[Tokenizer], folder: Path) -> Tokenizer:
    """Return the tokenizer that was saved in a folder; what its options name isn't looked at then."""
    options = inspect.signature(kind).parameters.values()
    needed = [one.name for one in options if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    return kind(folder, **dict.fromkeys(needed))


class Helper:
    """Another process that encodes, seen from this one.

    It runs `serve` below. `multiprocessing` would run this program's main module again in each process, and with it
    whatever a script does without `if __name__ == "__main__"`; a fork would copy torch's threads half.
    """

    def __init__(self, kind: type[Tokenizer], folder: str) -> None:
        paths = [os.path.abspath(path) for path in sys.path]
        known = {"paths": paths, "module": kind.__module__, "name": kind.__qualname__, "folder": folder}
        try:
            self.process = subprocess.Popen(
                # isolated: nothing is imported but from where we import
                [sys.executable, "-I", "-c", START, json.dumps(known)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C on the terminal is for the process that started this one
                env={
                    **os.environ,
                    "TOKENIZERS_PARALLELISM": "false",
                },  # there's a process for each CPU already
            )
        except OSError as error:
            raise UserError(COULD_NOT_ENCODE) from error

    def encode(self, texts: list[str]) -> Encoded:
        """Return the tokens of texts.

        Raises:
            UserError: the tokenizer loses something of a text, or the process was killed.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(texts).encode() + b"\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
            if "refused" in answer:
                raise UserError(answer["refused"])
            return Encoded(*(self.array(answer[name], dtype) for name, dtype in ANSWER.items()))
        except (OSError, ValueError) as error:
            raise UserError(COULD_NOT_ENCODE) from error

    def array(self, length: int, dtype: str) -> np.ndarray:
        """Read an array of the answer. ValueError if the process was killed before it had written all of it."""
        return np.frombuffer(self.process.stdout.read(length * np.dtype(dtype).itemsize), dtype, length)

    def close(self) -> None:
        """Leave nothing of a process that has been killed."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # there may be something left to write to it
                if pipe is not None:
                    pipe.close()


def encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    shared = tokenizer.bos_id == tokenizer.eos_id
    documents = tokenizer.encode_batch(texts, bos=True, eos=not shared)
    lengths = np.array([len(ids) for ids in documents], np.int64)
    tokens = np.fromiter(chain.from_iterable(documents), np.uint32, lengths.sum())
    sizes = np.array([len(text.encode()) for text in texts], np.int64)
    spelled = np.add.reduceat(tokenizer.byte_lengths[tokens], np.cumsum(lengths) - lengths)
    if len(lost := np.flatnonzero(spelled != sizes)):
        raise UserError(
            f"The tokenizer loses something of {texts[lost[0]][:60]!r}…, so that bits a byte couldn't be told. Choose"
            " another: tokenizer=<option>"
        )
    return Encoded(tokens, lengths, sizes)


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def usable_cpus() -> int:
    """Return how many CPUs this process may use, which a container or `taskset` may have limited."""
    with contextlib.suppress(AttributeError):  # only Linux can tell
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- in the other processes ------------------------------------------------------------------------

START = """
import json, sys
known = json.loads(sys.argv[1])
sys.path[:] = known["paths"]
from minllm.data.encoding import serve
serve(known["module"], known["name"], known["folder"])
"""
ANSWER = {"tokens": "<u4", "lengths": "<i8", "bytes": "<i8"}
"""An answer: the length of each array as a line of JSON, then the arrays; or a line that says why there is none."""


def serve(module: str, name: str, folder: str) -> None:
    """Answer each line of texts on standard input with their tokens, until the process that asks is gone."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    tokenizer = made_again(class_of(module, name), Path(folder))
    with contextlib.suppress(BrokenPipeError):
        while line := sys.stdin.buffer.readline():
            try:
                found = encode(tokenizer, json.loads(line))
            except UserError as error:
                answers.write(json.dumps({"refused": str(error)}).encode() + b"\n")
            else:
                arrays = {one: getattr(found, one).astype(dtype) for one, dtype in ANSWER.items()}
                answers.write(json.dumps({one: len(array) for one, array in arrays.items()}).encode() + b"\n")
                for array in arrays.values():
                    answers.write(array.tobytes())
            answers.flush()
