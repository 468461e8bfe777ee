"""Whether a difference generalises to similar texts, or holds for this validation text only.

Each run records the loss of each validation document. The difference of a document and a seed varies with both, and the
interval over seeds alone says what other seeds would give on the same documents. The interval over seeds and documents
says what other documents of the same kind would give too.

It comes from the variances between seeds, between documents, and of what remains (a two-way analysis of variance). This
is the variance that resampling seeds and documents together estimates, except that such a bootstrap counts what remains
three times (Owen, 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minllm.estimates import UNKNOWN, Estimate
from minllm.runs.documents import DocumentLosses
from minllm.study.arms import Arm
from minllm.study.intervals import t_estimate
from minllm.study.recorded import Damaged
from minllm.study.selection import TrainedRun


@dataclass(frozen=True)
class ByDocument:
    """The mean difference in bits per byte, arm minus baseline, with an interval for each kind of repetition.

    documents: how many there are
    won: the fraction of the documents on which the arm is better, averaged over seeds
    over_seeds: with other seeds, on the same documents
    over_documents: with the same seeds, on other documents
    over_both: with other seeds, on other documents
    """

    documents: int
    won: float
    over_seeds: Estimate
    over_documents: Estimate
    over_both: Estimate


def by_document(arm: Arm, baseline: Arm, seeds: Sequence[int]) -> ByDocument | str:
    """Return the difference with its intervals, or a sentence that says why it isn't known."""
    arms = (arm, baseline)
    losses: list[list[DocumentLosses]] = [[], []]
    for seed in seeds:
        for own, runs in zip(losses, arms):
            documents = losses_of(runs.runs[seed])
            if isinstance(documents, str):
                return documents
            own.append(documents)
    if not seeds:
        return "There is no pair of runs."
    sizes = losses[0][0].bytes
    if not all(np.array_equal(run.bytes, sizes) for own in losses for run in own):
        return "The runs recorded documents of different sizes."
    nats = [np.array([run.nats for run in own], dtype=np.float64) for own in losses]
    return two_way((nats[0] - nats[1]) / math.log(2), sizes.astype(np.float64))


def losses_of(run: TrainedRun) -> DocumentLosses | str:
    """Return the losses of a run's documents, or a sentence that says why they aren't known."""
    try:
        documents = run.documents
    except Damaged as error:
        return f"{run.folder}: {error}"
    return (
        documents
        or f"{run.folder} has no loss for each document, which older versions and some objectives don't record."
    )


def two_way(bits: np.ndarray, sizes: np.ndarray) -> ByDocument:
    """Judge the differences of documents and seeds.

    Args:
        bits: (seeds, documents), arm minus baseline.
        sizes: (documents,), in bytes.
    """
    n, d = bits.shape
    mean = float(bits.sum() / (n * sizes.sum()))
    # the mean is a ratio of sums, so that its errors are those of the residuals (the linearised ratio estimator)
    residuals = (bits - mean * sizes) / sizes.mean()
    of_seeds, of_documents = residuals.mean(1), residuals.mean(0)
    rest = residuals - of_seeds[:, None] - of_documents
    between_seeds = _Square(d * float(of_seeds @ of_seeds), n - 1)
    between_documents = _Square(n * float(of_documents @ of_documents), d - 1)
    remaining = _Square(float((rest**2).sum()), (n - 1) * (d - 1))

    def estimate(square: _Square) -> Estimate:
        if square.freedom <= 0:
            return Estimate(mean, UNKNOWN)
        return t_estimate(mean, math.sqrt(square.mean / (n * d)), square.freedom)

    return ByDocument(
        documents=d,
        won=float((bits.mean(0) < 0).mean()),
        over_seeds=estimate(between_seeds),
        over_documents=estimate(between_documents),
        over_both=estimate(_together(between_seeds, between_documents, remaining)),
    )


@dataclass(frozen=True)
class _Square:
    """A sum of squares with its degrees of freedom."""

    total: float
    freedom: float

    @property
    def mean(self) -> float:
        return self.total / self.freedom if self.freedom > 0 else 0.0


def _together(seeds: _Square, documents: _Square, rest: _Square) -> _Square:
    """Return the mean square of both, with Satterthwaite's degrees of freedom."""
    if min(seeds.freedom, documents.freedom) <= 0:
        return _Square(0.0, 0)
    mean = seeds.mean + documents.mean - rest.mean
    larger = max(seeds, documents, key=lambda square: square.mean)
    if mean <= larger.mean:  # by chance: neither can make the other's variance smaller
        return larger
    parts = sum(square.mean**2 / square.freedom for square in (seeds, documents, rest))
    freedom = mean**2 / parts if parts else larger.freedom
    return _Square(mean * freedom, freedom)
