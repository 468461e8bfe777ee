"""How much of the validation documents' answers a model predicts right, each token given the right ones before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minllm.data.batches import IGNORED, Batch, Validation, hidden_answers
from minllm.data.probe import Probe
from minllm.data.source import PairSource, Source
from minllm.objective import Objective
from minllm.training.parallel import Processes

if TYPE_CHECKING:
    from minllm.estimates import Estimate

ACCURACY, EXACT = "val_accuracy", "val_exact"


@dataclass
class Answers:
    """The answers of the validation set, and how much of each is predicted right.

    val_accuracy: the share of the answers' tokens that are the most probable ones; the end of a document isn't part of
        its answer
    val_exact: the share of documents whose answer is right in every token, and ends where it should: greedy decoding
        writes exactly these answers. Absent if other answers than the one that is learned may be right
    are_unique: whether no others are right
    """

    validation: Validation
    are_unique: bool = True
    shares: dict[str, Estimate] = field(default_factory=dict)
    """The latest evaluation's, each with its 95 % interval."""
    tokens: int = 0
    """How many tokens the answers have."""

    def begin(self) -> None:
        # of each row: answer tokens, those that are right, and wrong tokens with the end
        self.rows = torch.zeros(3, self.validation.rows, dtype=torch.float64)

    def add(self, rows: range, batch: Batch, right_N: Tensor) -> None:
        """Count a batch, whose counted targets are predicted right or not, row by row."""
        counted_BT = batch.targets_BT != IGNORED
        right_BT = torch.zeros_like(counted_BT)
        right_BT[counted_BT] = right_N
        answer_BT = counted_BT & (batch.targets_BT != batch.eos_id)
        columns = answer_BT, answer_BT & right_BT, counted_BT & ~right_BT
        self.rows[:, rows.start : rows.stop] = torch.stack([column.sum(1) for column in columns]).cpu()

    def end(self, processes: Processes) -> dict[str, float]:
        """Return both shares. Intervals take tokens of one document as dependent."""
        from minllm.estimates import share_of  # SciPy takes a moment to import

        processes.add_up([self.rows])
        tokens, right, wrong = np.zeros((3, len(self.validation.documents.lengths)))
        for total, rows in zip((tokens, right, wrong), self.rows.numpy()):
            np.add.at(total, self.validation.documents_of_windows, rows)
        self.tokens = int(tokens.sum())
        self.shares = {ACCURACY: share_of(right, tokens)}
        if self.are_unique:
            self.shares[EXACT] = share_of((wrong == 0).astype(float), np.ones_like(wrong))
        return {name: estimate.value for name, estimate in self.shares.items()}

    def summary(self) -> dict[str, Any]:
        """Return the latest shares, their intervals, and the number of answer tokens, for summary.json."""
        found: dict[str, Any] = {"val_answer_tokens": self.tokens}
        for name, estimate in self.shares.items():
            found |= {name: estimate.value, f"{name}_interval": list(estimate.interval)}
        return found


def refuse_hidden_answers(source: Source, objective: Objective) -> None:
    """Raise UserError if a probe hides its answers, and the objective needs them in the text."""
    if isinstance(source, Probe) and source.hides_answers and not objective.learns_hidden:
        raise hidden_answers()


def why_none(source: Source, objective: Objective) -> str | None:
    """Return why evaluation has no accuracy, as a clause; None if it has one."""
    if not isinstance(source, PairSource):
        return "the documents of this data have no answers"
    return None if objective.counts_right else "this objective doesn't predict one token after the other"


def answers_of(validation: Validation, objective: Objective, source: Source | None = None) -> Answers | None:
    """Return the answers to count; None if documents have no answers, or the objective doesn't predict in order."""
    if not (validation.has_answers and objective.counts_right):
        return None
    return Answers(validation, not isinstance(source, Probe) or source.has_unique_answers)


def described(answers: Mapping[str, Any]) -> str:
    """Return what was right, as a clause."""

    def told(name: str) -> str:
        low, high = answers[f"{name}_interval"]
        return f"{answers[name]:.1%} [{low:.1%}, {high:.1%}]"

    exact = f" and {told(EXACT)} of whole answers" if EXACT in answers else ""
    return f"{told(ACCURACY)} of the answers' tokens{exact} right"
