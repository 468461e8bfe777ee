"""`grader=grammar`: exact grades of stories whose grammar is known, without any judge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from scipy.special import stdtrit

from minllm.data.source import PairSource, Source
from minllm.data.tales import Tales
from minllm.errors import UserError
from minllm.grading.copying import COPYING_MEASURES, copies
from minllm.grading.grader import Grader
from minllm.grading.grades import Break, Grades, Measure, Values
from minllm.grading.recall import KINDS, Analysis, Recall, analyse
from minllm.grading.samples import Sample, Written
from minllm.tokenizer import Tokenizer

STORIES = Measure("stories", "whole stories", "share", "higher", 1.0)
UNBROKEN = Measure("unbroken", "characters until the first break", "characters", "higher", None)
UNFINISHED = Measure("unfinished", "unfinished stories", "share", "neither", 1.0)
RECALL = {kind: Measure(f"recall_{kind}", f"{kind} recalled", "share", "higher", 1.0) for kind in KINDS}
SURPRISAL = Measure("surprisal", "surprisal under the grammar", "bits per character", "neither", None)

DISTANCES = ((1, 16), (17, 32), (33, 64), (65, 128), (129, None))
"""The bins of distances in tokens."""
ANY = "any"


@dataclass(frozen=True, kw_only=True)
class Grammar(Grader):
    """Reads each sample with the grammar of `data=tales`.

    stories: 1 for a whole story
    unbroken: the characters that the model wrote up to where no story goes on so; all of them if there is no such place
    unfinished: 1 for the beginning of a story
    recall_<kind>: of the places where only what the text had said before decided what comes next, the share where the
        text had it right. A text is read on after a wrong recall, until something else is wrong (`recall.py`)
    surprisal: of the right part that the model wrote, in bits per character
    """

    measures: ClassVar[tuple[Measure, ...]] = (
        STORIES, UNBROKEN, UNFINISHED, *RECALL.values(), SURPRISAL, *COPYING_MEASURES,
    )  # fmt: skip

    def check(self, source: Source) -> None:
        if not isinstance(source, Tales) or isinstance(source, PairSource):
            raise UserError(
                "grader=grammar reads the stories of data=tales only, and this run was trained on"
                f" {type(source).__name__}. A judge can grade other texts: grader=judge"
            )

    def grade(self, written: Written) -> Grades:
        self.check(written.source)
        graded = [Graded.of(sample) for sample in written.samples]
        copied = copies(written.samples, written.source, written.tokenizer)
        bold = Boldness.of(graded)
        return Grades(
            written,
            values_of(graded) | copied.values,
            breaks=[text.broken for text in graded],
            facts={
                "recall_by_distance": by_distance(recalls_with_distances(graded, written.tokenizer)),
                "surprisal": bold.facts if bold else {},
                **copied.facts,
            },
            notes=[*wrong_beginnings(graded), *([bold.sentence] if bold else ()), *copied.notes],
        )


@dataclass(frozen=True)
class Graded:
    """A sample as the grammar reads it.

    analysis: of its text with its beginning
    beginning: of its beginning alone
    """

    sample: Sample
    analysis: Analysis
    beginning: Analysis

    @classmethod
    def of(cls, sample: Sample) -> Graded:
        return cls(sample, analyse(sample.whole), analyse(sample.beginning))

    @property
    def is_graded(self) -> bool:
        """Whether the beginning that the model was given is right."""
        return self.beginning.reading.status != "broken"

    @property
    def right(self) -> int:
        """The characters that the model wrote up to the first break."""
        return self.analysis.reading.offset - len(self.sample.beginning)

    @property
    def bits(self) -> float:
        """The surprisal of these characters, given the beginning."""
        return self.analysis.bits - self.beginning.bits

    @property
    def expected_bits(self) -> float:
        """What their surprisal is expected to be if the grammar tells them."""
        return self.analysis.expected_bits - self.beginning.expected_bits

    @property
    def recalls(self) -> list[Recall]:
        """Those that the model wrote."""
        return [recall for recall in self.analysis.recalls if recall.offset >= len(self.sample.beginning)]

    @property
    def broken(self) -> Break | None:
        reading = self.analysis.reading
        if reading.status != "broken":
            return None
        return Break(reading.offset, reading.expected, reading.recalled)


def values_of(graded: Sequence[Graded]) -> dict[Measure, Values]:
    """Return the values of all measures that need the grammar; a sample whose beginning is wrong has none."""

    def values(
        amount: Callable[[Graded], float], count: Callable[[Graded], float] = lambda text: 1
    ) -> Values:
        pairs = [(amount(text), count(text)) if text.is_graded else (0, 0) for text in graded]
        return Values([float(amount) for amount, _ in pairs], [float(count) for _, count in pairs])

    def recall(kind: str) -> Values:
        return values(
            lambda text: sum(recall.is_right for recall in text.recalls if recall.kind == kind),
            lambda text: sum(recall.kind == kind for recall in text.recalls),
        )

    return {
        STORIES: values(lambda text: text.analysis.reading.status == "complete"),
        UNBROKEN: values(lambda text: text.right),
        UNFINISHED: values(lambda text: text.analysis.reading.status == "prefix"),
        **{measure: recall(kind) for kind, measure in RECALL.items()},
        SURPRISAL: values(lambda text: text.bits, lambda text: text.right),
    }


def wrong_beginnings(graded: Sequence[Graded]) -> list[str]:
    wrong = {text.sample.beginning for text in graded if not text.is_graded}
    if not wrong:
        return []
    return [
        f"{len(wrong)} of the beginnings that were given can't begin a story, for example {min(wrong)[:60]!r}: what"
        " follows them isn't read."
    ]


# ---- memory by distance --------------------------------------------------------------------------


def recalls_with_distances(graded: Sequence[Graded], tokenizer: Tokenizer) -> list[tuple[Recall, int]]:
    """Return every recall with its distance: the number of tokens from the last one of the mention that tells it to the
    first one of the recall."""
    graded = [text for text in graded if text.is_graded]
    encoded = tokenizer.encode_batch(text.sample.whole for text in graded)
    recalls = []
    for text, tokens in zip(graded, encoded):
        at = tokens_at(text.sample.whole, tokens, tokenizer)
        recalls += [(recall, int(at[recall.offset] - at[recall.previous - 1])) for recall in text.recalls]
    return recalls


def tokens_at(text: str, tokens: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    """Return for each character of a text, which of its tokens has the character's first byte."""
    ends = np.cumsum([len(tokenizer.token_bytes(token)) for token in tokens])
    sizes = [len(character.encode()) for character in text]
    return np.searchsorted(ends, list(accumulate(sizes[:-1], initial=0)), side="right")


def by_distance(recalls: Iterable[tuple[Recall, int]]) -> dict[str, list[dict[str, int | None]]]:
    """Return for each kind of memory, and for any, how many recalls are at each distance, and how many are right."""
    right, of = Counter(), Counter()
    for recall, distance in recalls:
        place = next(n for n, (_, most) in enumerate(DISTANCES) if most is None or distance <= most)
        for kind in (recall.kind, ANY):
            of[kind, place] += 1
            right[kind, place] += recall.is_right
    return {
        kind: [
            {"least": least, "most": most, "right": right[kind, place], "of": of[kind, place]}
            for place, (least, most) in enumerate(DISTANCES)
        ]
        for kind in (*KINDS, ANY)
    }


# ---- too bold, too timid -------------------------------------------------------------------------


@dataclass(frozen=True)
class Boldness:
    """Whether a model draws unlikely continuations as often as the grammar does.

    ratio: the surprisal of what it wrote, divided by what the grammar's own is expected to be with the same draws; 1 if
        the model is the grammar, less if it is timid
    interval: of the ratio, 95 %, between groups of samples
    """

    bits: float
    expected_bits: float
    ratio: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, graded: Sequence[Graded]) -> Boldness | None:
        """Return None if there are less than two groups, or nothing right was written."""
        graded = [text for text in graded if text.is_graded]
        bits = sum(text.bits for text in graded)
        expected = sum(text.expected_bits for text in graded)
        groups = {text.sample.group for text in graded}
        if len(groups) < 2 or expected <= 0:
            return None
        ratio = bits / expected
        residuals = dict.fromkeys(groups, 0.0)  # of the linearised ratio estimator
        for text in graded:
            residuals[text.sample.group] += text.bits - ratio * text.expected_bits
        squares = math.fsum(residual**2 for residual in residuals.values())
        error = math.sqrt(squares * len(groups) / (len(groups) - 1)) / expected
        half = float(stdtrit(len(groups) - 1, 0.975)) * error
        return cls(bits, expected, ratio, (ratio - half, ratio + half))

    @property
    def result(self) -> str:
        low, high = self.interval
        return "too timid" if high < 1 else "too bold" if low > 1 else "as the grammar"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "expected_bits": self.expected_bits,
            "ratio": self.ratio,
            "interval": list(self.interval),
            "result": self.result,
        }

    @property
    def sentence(self) -> str:
        low, high = self.interval
        meaning = {
            "too timid": "the model is too timid: it prefers likely continuations more than the grammar does",
            "too bold": "the model is too bold: it draws unlikely continuations more often than the grammar does",
            "as the grammar": "the model is as bold as the grammar, as far as so many samples can tell",
        }[self.result]
        return (
            f"The surprisal of the right parts is {self.ratio:.3f} of what it would be if the grammar told them"
            f" [{low:.3f}, {high:.3f}]: {meaning}."
        )
