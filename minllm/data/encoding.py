"""Encoding of texts to tokens in several processes: in order, and with little of the corpus in memory."""

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
from typing import TYPE_CHECKING

import numpy as np

from minllm.data.source import Pair, Parts
from minllm.errors import UserError
from minllm.runs.interpreter import command

if TYPE_CHECKING:
    from minllm.tokenizer import Tokenizer

AT_ONCE = 1 << 18  # characters per batch: large enough to make the cost of sending it negligible
ALONE = 32  # batches encoded before other processes are worth starting: about a second's work
AHEAD = 3  # batches per process, in progress or queued
COULD_NOT_ENCODE = (
    "An encoding process couldn't be started or was killed, perhaps because memory ran out. To encode in a single"
    " process: data.num_proc=1"
)


Texts = list[str] | list[Pair] | list[Parts]
"""A batch; from another process, pairs and parts arrive as lists."""


@dataclass(frozen=True)
class Encoded:
    """The concatenated tokens of some documents.

    tokens: uint32; each document begins with bos, and ends with eos if that's a different token
    lengths: number of tokens of each document, including bos and eos
    bytes: size of each document in bytes of UTF-8; of a pair, that of its target, and of parts, that of all answers
    given: number of tokens of the first given part of each document, without bos; 0 if it has none
    is_answer: bool, whether each token is of a target or an answer; empty if documents have no parts
    """

    tokens: np.ndarray
    lengths: np.ndarray
    bytes: np.ndarray
    given: np.ndarray
    is_answer: np.ndarray

    def within(self, room: int) -> Encoded:
        """Return the first documents, as many as fit into `room` tokens."""
        fit = int(np.searchsorted(np.cumsum(self.lengths), room, side="right"))
        tokens = self.tokens[: self.lengths[:fit].sum()]
        is_answer = self.is_answer[: len(tokens)]
        return Encoded(tokens, self.lengths[:fit], self.bytes[:fit], self.given[:fit], is_answer)


def encoded(
    texts: Iterable[str] | Iterable[Parts], tokenizer: Tokenizer, processes: int | None = None
) -> Iterator[Encoded]:
    """Yield the tokens of all texts in order, a batch at a time; the result doesn't depend on the number of processes.

    The parts of a document are encoded separately, so that a token belongs to one of them.

    Args:
        processes: how many processes encode; None: one per CPU. A small corpus is encoded in this process alone.

    Raises:
        UserError: the tokenizer is lossy on one of the texts, or a process was killed.
    """
    batches = batches_of(texts)
    processes = processes or usable_cpus()
    yield from (encode(tokenizer, batch) for batch in (islice(batches, ALONE) if processes > 1 else batches))
    if (first := next(batches, None)) is not None:
        yield from encoded_by(processes, chain([first], batches), tokenizer)


def encoded_by(processes: int, batches: Iterable[Texts], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Encode in other processes if the tokenizer can be recreated there, else in this one."""
    with tempfile.TemporaryDirectory(prefix="minllm-tokenizer-") as folder:
        if can_be_recreated(tokenizer, Path(folder)):
            yield from encoded_with(type(tokenizer), folder, processes, batches)
        else:
            yield from (encode(tokenizer, batch) for batch in batches)


def encoded_with(
    kind: type[Tokenizer], folder: str, processes: int, batches: Iterable[Texts]
) -> Iterator[Encoded]:
    """Encode in other processes, with the tokenizer of class `kind` saved in `folder`."""
    helpers: list[Helper] = []
    idle: SimpleQueue[Helper] = SimpleQueue()
    waiting: deque[Future[Encoded]] = deque()
    pool = ThreadPoolExecutor(processes)

    def encode_there(batch: Texts) -> Encoded:
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
            helper.process.kill()  # first, so that no thread keeps waiting for an answer
        pool.shutdown(cancel_futures=True)
        for helper in helpers:
            helper.close()


def can_be_recreated(tokenizer: Tokenizer, folder: Path) -> bool:
    """Save a tokenizer, and return whether another process can recreate it from the folder and its class.

    It can't if the class is defined in the main module, or if `save` omits an option that matters.
    """
    kind = type(tokenizer)
    if kind.__module__ == "__main__":
        return False
    try:
        tokenizer.save(folder)
        same_class = class_of(kind.__module__, kind.__qualname__) is kind
        return same_class and recreated(kind, folder).fingerprint == tokenizer.fingerprint
    # classes from outside minllm may fail in many ways
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


def recreated(kind: type[Tokenizer], folder: Path) -> Tokenizer:
    """Return the tokenizer that was saved in a folder; its other options are not used."""
    options = inspect.signature(kind).parameters.values()
    needed = [
        option.name
        for option in options
        if option.kind is option.KEYWORD_ONLY and option.default is option.empty
    ]
    return kind(folder, **dict.fromkeys(needed))


class Helper:
    """An encoding process, as its parent sees it.

    It runs `serve` below. `multiprocessing` would run the main module again in each process, and with it a script that
    lacks `if __name__ == "__main__"`; a fork isn't safe with torch's threads.
    """

    def __init__(self, kind: type[Tokenizer], folder: str) -> None:
        saved = {"module": kind.__module__, "name": kind.__qualname__, "folder": folder}
        try:
            self.process = subprocess.Popen(
                command("minllm.data.encoding", json.dumps(saved)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C on the terminal is handled by the parent
                env={
                    **os.environ,
                    "TOKENIZERS_PARALLELISM": "false",
                },  # there's already a process per CPU
            )
        except OSError as error:
            raise UserError(COULD_NOT_ENCODE) from error

    def encode(self, texts: Texts) -> Encoded:
        """Return the tokens of texts.

        Raises:
            UserError: the tokenizer is lossy on one of the texts, or the process was killed.
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
        """Read an array of the answer. ValueError if the process was killed before writing all of it."""
        return np.frombuffer(self.process.stdout.read(length * np.dtype(dtype).itemsize), dtype, length)

    def close(self) -> None:
        """Wait for the killed process and close its pipes."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # closing flushes, which fails
                if pipe is not None:
                    pipe.close()


def encode(tokenizer: Tokenizer, texts: Texts) -> Encoded:
    shared = tokenizer.bos_id == tokenizer.eos_id
    if isinstance(texts[0], str):
        encoded_texts = tokenizer.encode_batch(texts, bos=True, eos=not shared)
        tokens, lengths, sizes = joined(tokenizer, encoded_texts, texts)
        return Encoded(tokens, lengths, sizes, np.zeros_like(lengths), np.zeros(0, bool))
    parts, counts = list(chain.from_iterable(texts)), np.array([len(document) for document in texts])
    firsts, lasts = np.cumsum(counts) - counts, np.cumsum(counts) - 1
    encoded_parts = tokenizer.encode_batch(parts)
    for first, last in zip(firsts.tolist(), lasts.tolist()):
        encoded_parts[first] = [tokenizer.bos_id, *encoded_parts[first]]
        encoded_parts[last] = encoded_parts[last] + [tokenizer.eos_id] * (not shared)
    tokens, lengths, sizes = joined(tokenizer, encoded_parts, parts)
    are_answers = np.arange(len(parts)) % 2 == 1  # each document has an even number of parts
    return Encoded(
        tokens,
        np.add.reduceat(lengths, firsts),
        np.add.reduceat(sizes * are_answers, firsts),
        lengths[firsts] - 1,  # without bos
        np.repeat(are_answers, lengths),
    )


def joined(
    tokenizer: Tokenizer, encoded_texts: list[list[int]], texts: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the concatenated tokens of texts, how many each has, and the size of each in bytes of UTF-8."""
    lengths = np.array([len(ids) for ids in encoded_texts], np.int64)
    tokens = np.fromiter(chain.from_iterable(encoded_texts), np.uint32, lengths.sum())
    sizes = np.array([len(text.encode()) for text in texts], np.int64)
    refuse_lossy(tokenizer, tokens, lengths, texts, sizes)
    return tokens, lengths, sizes


def refuse_lossy(
    tokenizer: Tokenizer, tokens: np.ndarray, lengths: np.ndarray, texts: list[str], sizes: np.ndarray
) -> None:
    """Raise UserError if the tokens don't have as many bytes as their texts, whose `sizes` are given."""
    ends = np.cumsum(np.append(0, tokenizer.byte_lengths[tokens]))[np.append(0, np.cumsum(lengths))]
    if len(lost := np.flatnonzero(np.diff(ends) != sizes)):
        raise UserError(
            f"The tokenizer is lossy: it doesn't keep all of {texts[lost[0]][:60]!r}…, so bits per byte would be wrong."
            " Choose another: tokenizer=<option>"
        )


def batches_of(texts: Iterable[str] | Iterable[Parts]) -> Iterator[Texts]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) if isinstance(text, str) else sum(map(len, text))
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def usable_cpus() -> int:
    """Return how many CPUs this process may use; a container or `taskset` may limit them."""
    with contextlib.suppress(AttributeError):  # only on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- in the other processes ------------------------------------------------------------------------

ANSWER = {"tokens": "<u4", "lengths": "<i8", "bytes": "<i8", "given": "<i8", "is_answer": "?"}
"""An answer: a line of JSON with the length of each array, then the arrays; or a line with an error message."""


def main() -> None:
    serve(**json.loads(sys.argv[1]))


def serve(module: str, name: str, folder: str) -> None:
    """Answer each line of texts on standard input with their tokens, until the parent is gone."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep library output out of the answers
    tokenizer = recreated(class_of(module, name), Path(folder))
    with contextlib.suppress(BrokenPipeError):
        while line := sys.stdin.buffer.readline():
            try:
                encoded_texts = encode(tokenizer, json.loads(line))
            except UserError as error:
                answers.write(json.dumps({"refused": str(error)}).encode() + b"\n")
            else:
                arrays = {name: getattr(encoded_texts, name).astype(dtype) for name, dtype in ANSWER.items()}
                answers.write(
                    json.dumps({name: len(array) for name, array in arrays.items()}).encode() + b"\n"
                )
                for array in arrays.values():
                    answers.write(array.tobytes())
            answers.flush()
