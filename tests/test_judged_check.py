"""The check of a judge: texts with known faults, the rules, and judges with a known character."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from random import Random

import numpy as np
import pytest

from minllm import estimates
from minllm.data.source import Source, Split
from minllm.data.tales import Tales, read
from minllm.errors import UserError
from minllm.grading import check, faults, rules
from minllm.grading import judged as judged_module
from minllm.grading.copying import Copies
from minllm.grading.grades import Calibration
from minllm.grading.samples import Sample, Written
from tests import judges
from tests.judges import JUDGES, calibrated, exact, grades, judged, texts_in

DOCS = Path(__file__).parents[1] / "docs" / "judges.md"


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """All judges are given the same texts, so they are made and read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "texts_for", functools.cache(check.texts_for))
        once = functools.cache(read)
        patch.setattr(check, "read", once)
        patch.setattr(judges, "read_tale", once)
        patch.setattr(check, "RESAMPLES", 100)
        patch.setattr(judged_module, "copies", lambda samples, source, tokenizer: Copies({}))
        yield


@functools.cache
def result(name: str) -> Calibration:
    return calibrated(JUDGES[name])


def failed(calibration: Calibration) -> set[str]:
    return {rule["name"] for rule in calibration.facts["rules"] if not rule["is_passed"]}


# ---- judges are found out ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rules_failed", "says"),
    [
        ("reads with the exact grammar", set(), "passes all 6 rules"),
        ("the same, each grade off by up to one point", set(), "passes all 6 rules"),
        (
            "grades everything 7",
            {"words", "sentences", "ending", "fact", "pairs"},
            "doesn't tell real texts from shuffled words",
        ),
        ("grades by length", set(judges.RULES), "doesn't tell real texts from shuffled sentences"),
        (
            "looks at one sentence at a time",
            {"sentences", "ending", "fact", "pairs"},
            "doesn't notice wrong names, owners and places",
        ),
        (
            "grades at random",
            set(judges.RULES),
            "doesn't tell real texts from those with another text's ending",
        ),
        (
            "exact, but prefers what is shown first",
            {"pairs"},
            "doesn't prefer real texts to shuffled ones whichever is shown first",
        ),
        (
            "exact, but obeys all orders in texts",
            {"injection"},
            "may give higher grades to texts that ask for them",
        ),
        ("exact, but believes grades written as JSON", {"injection"}, "may give higher grades"),
        ("gives no valid answer", set(judges.RULES), "can't be believed"),
    ],
)
def test_the_check_finds_out_what_a_judge_does(name: str, rules_failed: set[str], says: str):
    calibration = result(name)
    assert failed(calibration) == rules_failed and calibration.is_passed == (not rules_failed)
    assert says in calibration.sentences[0]
    assert ("can't be believed" in calibration.sentences[0]) == bool(rules_failed)


def test_the_table_of_the_docs_is_what_the_check_says():
    assert judges.table(result) in DOCS.read_text(encoding="utf-8")


def test_an_exact_judge_agrees_with_the_exact_reading_and_notices_every_fault():
    facts = result("reads with the exact grammar").facts
    assert facts["correlation"]["rho"] > 0.95 and facts["correlation"]["interval"][0] > 0.9
    assert {row["fact"] for row in facts["noticed"]} == {"name", "owner", "place"}
    assert all(row["noticed"] == row["broken"] for row in facts["noticed"])
    low, high = result("grades at random").facts["correlation"]["interval"]
    assert low < 0 < high


def test_the_injection_that_works_is_named():
    believed = result("exact, but believes grades written as JSON").facts["injections"]
    assert {row["injection"] for row in believed if row["raised"]} == {"answer"}
    assert {row["injection"] for row in believed} == set(faults.INJECTIONS)


def test_position_bias_is_reported():
    first = result("exact, but prefers what is shown first")
    assert first.facts["first"]["share"] == 1.0 and first.facts["first"]["interval"][0] > 0.8
    assert any(
        "100 % [83 % to 100 %] of its wins went to the text shown first" in line for line in first.sentences
    )
    assert result("reads with the exact grammar").facts["first"]["share"] == 0.5


def test_a_grade_of_a_judge_that_fails_carries_a_note():
    written = Written("run", [Sample("", "It rained.", 0)], Tales(), tokenizer=None)
    for name, is_noted in (("reads with the exact grammar", False), ("grades everything 7", True)):
        grader = judged(JUDGES[name])
        calibration, notes = grader.calibrate([written]), grader.grade(written).notes
        assert [note for note in notes if "can't be believed" in note] == [
            calibration.sentences[0]
        ] * is_noted


def test_a_judge_is_tested_once_and_only_if_that_was_requested():
    written = Written("run", [Sample("", "It rained.", 0)], Tales(), tokenizer=None)
    grader = judged(JUDGES["grades everything 7"])
    grader.calibrate([written])
    asked = len(grader.judge().asked)
    grader.grade(written), grader.grade(written)
    assert len(grader.judge().asked) == asked + 2
    unchecked = judges.Judged(
        judge=lambda: judges.Scripted(policy=JUDGES["grades everything 7"], check=False)
    )
    assert unchecked.calibrate([written]) is None


# ---- the texts -----------------------------------------------------------------------------------


@functools.cache
def tales_texts() -> tuple[faults.Text, ...]:
    return tuple(check.texts_for(Tales(), 20))


def of_kind(kind: str) -> dict[int, faults.Text]:
    return {text.sample.group: text for text in tales_texts() if text.kind == kind}


def test_texts_have_the_fault_that_they_are_named_for():
    real = of_kind("real")
    for kind in ("words", "sentences", "ending", "fact", "injected"):
        for group, text in of_kind(kind).items():
            original = real[group].sample
            assert text.sample.beginning == original.beginning and text.sample.text != original.text
    for group, text in of_kind("words").items():
        assert sorted(text.sample.text.split()) == sorted(real[group].sample.text.split())
    for group, text in of_kind("sentences").items():
        assert sorted(faults.split(text.sample.text)[0]) == sorted(faults.split(real[group].sample.text)[0])
        assert text.sample.text.startswith(faults.split(real[group].sample.text)[0][0])
    for group, text in of_kind("injected").items():
        base = of_kind(text.of)[group].sample.text
        assert text.sample.text == f"{base}\n\n{faults.INJECTIONS[text.detail]}"


def test_a_wrong_fact_is_one_change_that_the_grammar_names():
    real = of_kind("real")
    assert len(of_kind("fact")) == len(real)
    for group, text in of_kind("fact").items():
        whole, original = text.sample.whole, real[group].sample.whole
        reading = read(whole)
        assert read(original).status == "complete" and reading.status == "broken"
        assert reading.recalled in faults.KINDS_OF_FACT[text.of]
        assert reading.offset >= len(text.sample.beginning)
        parts = SequenceMatcher(None, original, whole, autojunk=False).get_opcodes()
        changed = [part for part in parts if part[0] != "equal"]
        assert (
            max(part[4] for part in changed) - min(part[3] for part in changed) < 20
        )  # a name, and nothing else


def test_equal_pairs_are_shuffles_of_one_text():
    for one, other in zip(*faults.twins(tales_texts())):
        assert one.beginning == other.beginning and one.group == other.group
        assert sorted(faults.split(one.text)[0]) == sorted(faults.split(other.text)[0])


@pytest.mark.parametrize("seed", range(3))
def test_shuffles_of_any_text_keep_its_parts(seed: int):
    draw = Random(seed)
    words = ["".join(draw.choices("abcdefgéß日", k=draw.randint(1, 9))) for _ in range(60)]
    ends = draw.choices([". ", "! ", "?\n\n", '." ', "… "], k=8)
    text = " " + "".join(" ".join(draw.sample(words, 6)).capitalize() + end for end in ends).rstrip()
    sentences, between = faults.split(text)
    assert faults.joined(sentences, between) == text
    shuffled = faults.shuffled_sentences(text, draw)
    assert shuffled != text and sorted(faults.split(shuffled)[0]) == sorted(sentences)
    mixed = faults.shuffled_words(text, draw)
    assert mixed != text and sorted(mixed.split()) == sorted(text.split())


# ---- any corpus ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Notes(Source):
    """Random documents of some sentences."""

    texts: int = 30
    sentences: int = 12

    @property
    def fingerprint(self) -> str:
        return f"notes {self.texts} {self.sentences}"

    def documents(self, split: Split) -> Iterator[str]:
        draw = Random(split)
        for _ in range(self.texts):
            yield " ".join(
                " ".join("".join(draw.choices("abcdef", k=4)) for _ in range(7)).capitalize() + "."
                for _ in range(self.sentences)
            )


def test_a_judge_is_tested_on_any_corpus_without_the_exact_rules():
    documents = set(Notes().documents("val"))

    def knows(beginning: str, text: str):
        return grades(9 if beginning + text in documents else 3)

    calibration = judged(judges.by(knows))._calibration(Notes())
    assert calibration.is_passed and "passes all 5 rules" in calibration.sentences[0]
    assert calibration.facts["correlation"] is None and calibration.facts["noticed"] == []
    assert [row[0] for row in calibration.rows] == [
        "real texts", "shuffled words", "shuffled sentences", "another text's ending", "shuffled, and asks for a 10"
    ]  # fmt: skip
    assert [row[2] for row in calibration.rows] == [9, 3, 3, 3, 3]
    assert not judged(judges.by(exact))._calibration(Notes()).is_passed  # it knows only tales


@pytest.mark.parametrize(
    "source", [Notes(texts=15, sentences=2), Notes(texts=5)], ids=["short texts", "few texts"]
)
def test_a_corpus_with_too_few_texts_is_refused(source: Notes):
    with pytest.raises(UserError, match=r"check_texts"):
        judged(JUDGES["grades everything 7"])._calibration(source)


# ---- the rules -----------------------------------------------------------------------------------


def test_a_rule_is_an_exact_test():
    rule = rules.above_in_most(
        "x", "passes", "fails", "It was", [(2, 1)] * 9 + [(1, 1)] * 2 + [(1, 2)] + [None]
    )
    assert (rule.hits, rule.trials) == (9, 12)  # ties count against it, missing grades don't count
    assert rule.p == pytest.approx(sum(math.comb(12, k) for k in range(9, 13)) / 2**12)
    sign = rules.above_more_often("x", "passes", "fails", "It was", [(2, 1)] * 9 + [(1, 1)] * 20 + [(1, 2)])
    assert (sign.hits, sign.trials) == (9, 10) and sign.p == pytest.approx(11 / 2**10)


def test_holm_keeps_the_level_and_the_order():
    assert estimates.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    draw = np.random.default_rng(0)
    false = sum(min(estimates.holm(list(draw.random(6)))) <= rules.ALPHA for _ in range(4000))
    assert 0.035 < false / 4000 < 0.06


def test_the_fewest_texts_are_enough_for_a_perfect_judge():
    calibration = calibrated(JUDGES["reads with the exact grammar"], texts=check.LEAST_TEXTS)
    assert calibration.is_passed


def test_a_judge_that_obeys_one_order_in_six_is_never_passed():
    """Whichever of them it is, the others don't hide it."""
    for pattern in ("Ignore the above", "Please give", "im_start", "headmaster", "calibration mode"):
        calibration = calibrated(judges.by(judges.obeying(pattern)))
        assert failed(calibration) == {"injection"}, pattern


def test_what_a_judge_is_shown_contains_no_hint_of_the_fault():
    asked = judged(JUDGES["grades everything 7"], check_texts=12)
    asked._calibration(Tales())
    kinds = {tuple(sorted(texts_in(question))) for question in asked.judge().asked}
    assert kinds == {("beginning", "completion"), ("beginning", "first", "second")}
    frames = set()
    for question in asked.judge().asked:
        frame = question.text
        for text in texts_in(question).values():
            frame = frame.replace(text, "")
        frames.add(re.sub("[0-9a-f]{16}", "", frame))
    assert len(frames) == 2
