"""The protocol of a test of published findings, and the findings: data, all of which is fixed before the first run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from minllm.errors import UserError
from minllm.schema.options import Count, Matching, Name, Natural, Positive
from minllm.study.scaling.answer import Word as ScaleWord
from minllm.study.verdict import Word
from minllm.verdict.protocol import FIRST_TUNING_SEED, OfArms

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

Paper = Annotated[str, Matching("an arXiv number, such as '2002.04745'", r"\d{4}\.\d{4,5}")]
Preset = Literal["laptop", "gpu"]


@dataclass(frozen=True, kw_only=True)
class FindingProtocol(OfArms):
    """The `search:` section of a test of findings.

    preset: the budget that each finding is tested with
    first_seed: the first seed of a verdict's pairs
    """

    preset: Preset
    first_seed: Natural

    noun = "finding"

    def __post_init__(self):
        if self.first_seed >= FIRST_TUNING_SEED:
            raise UserError(f"search.first_seed must be below {FIRST_TUNING_SEED}, not {self.first_seed}.")

    def run(self, sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
        """Test each finding by the search that it names, and write the page.

        Args:
            sweeper: has the configuration.
            overrides: the command line's, without Hydra's own.
        """
        from minllm.sweep.plugin import NotSettled
        from minllm.verdict.finding import put_to_the_test

        tested = put_to_the_test(sweeper, overrides)
        if tested is not None and not tested.is_settled:
            raise NotSettled


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A file of conf/finding: a published claim, and the search that tests it.

    number: its place on the page; null for the end
    claim: a sentence
    papers: their arXiv numbers
    search: the option of conf/search that tests it
    arms: of the search, the baseline first
    overrides: what else would be typed after `python sweep.py search=<search>`
    minutes: about how long it takes on two cores; findings that are tested together share sweep.minutes accordingly
    gpu: further overrides with search.preset=gpu
    parts: further overrides of each part, if the claim is about a difference that changes from one to another
    gpu_parts: the same, after these, with search.preset=gpu
    predicts: the outcome of each arm, or several that the claim allows; of a finding with parts, in the first of them
    change: the outcome of each arm in the last part, compared with its own difference in the first part: better if
        that falls
    at_scale: what becomes of the difference at scale, if the search is a ladder
    bounds: whether the claim is about upper bounds of the loss themselves, which prove nothing about the loss
    refuted_by: what would refute it, as a sentence
    found: what was found when a contradiction was looked into
    """

    number: Count | None = None
    claim: Name
    papers: list[Paper]
    search: Literal["verdict", "ladder", "rates", "ranking"]
    arms: dict[str, list[str]] = field(default_factory=dict)
    overrides: list[str]
    minutes: Positive = 8.0
    gpu: list[str] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)
    gpu_parts: dict[str, list[str]] = field(default_factory=dict)
    predicts: dict[str, list[Word]]
    change: dict[str, list[Word]] = field(default_factory=dict)
    at_scale: dict[str, list[ScaleWord]] = field(default_factory=dict)
    bounds: bool = False
    refuted_by: Name
    found: str = ""

    def __post_init__(self):
        if not self.predicts:
            raise UserError(
                "finding.predicts is empty, so nothing could refute it: predict an outcome of each arm."
            )
        if self.arms:
            later = list(self.arms)[1:]
            for name in ("predicts", "change", "at_scale"):
                refuse_unknown(name, getattr(self, name), later)
        if unknown := set(self.gpu_parts) - set(self.parts):
            raise UserError(
                f"finding.gpu_parts has {', '.join(sorted(unknown))}, which finding.parts hasn't."
            )
        if self.change and len(self.parts) < 2:
            raise UserError(
                "finding.change needs two parts or more in finding.parts, between which it is tested."
            )
        if self.change and self.search != "verdict":
            raise UserError("finding.change compares pairs of verdicts, so it needs finding.search=verdict.")
        if self.at_scale and self.search != "ladder":
            raise UserError("finding.at_scale is an answer of ladders, so it needs finding.search=ladder.")

    def words(self, preset: Preset) -> dict[str, list[str]]:
        """Return the overrides of each part, as they would be typed; without parts there is one, without a name."""
        arms = [f"arms.{name}=[{','.join(overrides)}]" for name, overrides in self.arms.items()]
        gpu, gpu_parts = (self.gpu, self.gpu_parts) if preset == "gpu" else ([], {})
        common = [f"search={self.search}", *arms, *self.overrides, *gpu]
        return {
            part: [*common, *more, *gpu_parts.get(part, ())]
            for part, more in (self.parts or {"": []}).items()
        }

    def expected(self) -> Iterable[tuple[str, str, list[str]]]:
        """Yield what is predicted: of what, for which arm, and the outcomes that the claim allows."""
        first = next(iter(self.parts), "")
        for arm, words in self.predicts.items():
            yield first, arm, list(words)
        for arm, words in self.at_scale.items():
            yield AT_SCALE, arm, list(words)
        for arm, words in self.change.items():
            yield CHANGE, arm, list(words)


AT_SCALE, CHANGE = "at scale", "change"
"""The names of what is predicted besides the outcomes of a part."""


def refuse_unknown(key: str, predicted: Mapping[str, object], arms: Sequence[str]) -> None:
    for arm in predicted:
        if arm not in arms:
            raise UserError(
                f"finding.{key} has {arm}, but the arms that are compared with the first are {', '.join(arms)}."
            )
