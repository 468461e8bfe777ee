"""Texts to tokens, by as many processes as there are CPUs: in order, and never much of a corpus at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process

import numpy as np

from minllm.errors import UserError
from minllm.tokenizer import Tokenizer

AT_ONCE = 1 << 18  # characters: enough that handing them over costs nothing beside encoding them
ALONE = 32  # batches that are encoded before other processes are worth starting: a second's work
AHEAD = 3  # batches in each process's hands


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
    """Encode in other processes. They are started afresh, since a fork would copy torch's threads half."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), begin, [tokenizer])
    waiting: deque = deque()
    try:
        for batch in batches:
            with deaf_to_ctrl_c():
                waiting.append(pool.submit(encode_here, batch))
            if len(waiting) >= AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "A process that encodes couldn't start, or was killed, perhaps since memory ran out. Do without:"
            " data.num_proc=1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


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


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C for a moment. A process that starts now does so for good: it's for the one that started it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where signals can't be set
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def usable_cpus() -> int:
    """Return how many CPUs this process may use, which a container or `taskset` may have limited."""
    with contextlib.suppress(AttributeError):  # only Linux can tell
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- in the other processes ------------------------------------------------------------------------

tokenizer_here: Tokenizer


def begin(tokenizer: Tokenizer) -> None:
    global tokenizer_here
    tokenizer_here = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there's a process for each CPU already
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Stop when the process that started this one is gone: it may have been killed, and nobody else would say so."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def encode_here(texts: list[str]) -> Encoded:
    return encode(tokenizer_here, texts)
