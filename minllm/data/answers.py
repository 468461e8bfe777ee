"""Documents with several answers, as a store keeps them: what a model reads, and the answer at each position, if any.

given a b, answer x, given c, answer y:     x is read like any token           x is hidden

    tokens                                  bos  a   b   x   c                 bos  a   b   c
    answers                                 -    -   x   -   y                 -    -   x   y

There is no end of the text, which isn't an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minllm.data.encoding import Encoded
from minllm.errors import UserError

NO_ANSWER = -100
"""The answer where there is none."""


@dataclass(frozen=True)
class Answered:
    """The concatenated documents.

    tokens: uint32, those that are read; each document begins with bos
    answers: int32, the token that has to be predicted at each of them, or -100
    lengths, bytes, given: see `Encoded`; lengths include bos
    """

    tokens: np.ndarray
    answers: np.ndarray
    lengths: np.ndarray
    bytes: np.ndarray
    given: np.ndarray


def answered(encoded: Encoded, hidden: bool, ends: bool) -> Answered:
    """Return encoded documents with their answers.

    Args:
        hidden: whether answers are predicted and not read; each must be one token then.
        ends: whether documents end with an eos of their own.

    Raises:
        UserError: an answer that is hidden has several tokens.
    """
    tokens, is_answer = encoded.tokens, encoded.is_answer
    lasts = np.cumsum(encoded.lengths) - 1
    is_end = np.zeros(len(tokens), bool)
    if ends:
        is_end[lasts] = True
    counts = is_answer & ~is_end
    after = np.roll(counts, -1)  # the first token of all is a bos, which is no answer
    answers = np.where(after, np.roll(tokens, -1).astype(np.int32), np.int32(NO_ANSWER))
    if hidden:
        if (counts & after).any():
            raise UserError("An answer that isn't read has several tokens: choose tokenizer=symbols.")
        is_read = ~counts & ~is_end
    else:  # what comes last is only predicted
        is_read = ~is_end
        is_read[lasts - ends] = False
    firsts = lasts - encoded.lengths + 1
    lengths = np.add.reduceat(is_read.astype(np.int64), firsts)
    return Answered(tokens[is_read], answers[is_read], lengths, encoded.bytes, encoded.given)
