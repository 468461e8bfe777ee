"""The grades of a comparison: values, words and their sections in a report."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from minllm.grading.grades import Grades, Measure, Values
from minllm.grading.samples import Sample, Written
from minllm.study.comparison import Comparison
from minllm.study.grade_contests import Differences, judged
from minllm.study.graded_samples import best_and_worst, rule
from minllm.study.grades import Grading, _differences
from minllm.study.report import summary, write_report
from minllm.study.report.commands import commands
from tests.comparisons import comparison, readings
from tests.gradings import ANALYSIS, REACH, RIGHT, Broken, Words, grading
from tests.test_report_schema import validate_report
from tests.test_study_report import Page, well_formed

SHARE = Measure("share", "share", "share", "higher", 1.0)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return comparison(
        tmp_path_factory.mktemp("eight"), {"pre": 2.0, "post": 2.1, "none": 2.0}, seeds=range(8)
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return comparison(tmp_path_factory.mktemp("two"), {"pre": 2.0, "post": 2.1}, seeds=[3, 5])


def words(graded: Grading) -> dict[tuple[str, str], str]:
    return {(contest.arm, contest.measure): contest.word for contest in graded.contests}


# ---- what is graded, and the words ---------------------------------------------------------------


def test_with_enough_seeds_all_of_them_are_graded_and_paired(eight):
    graded = grading(eight, Words(), {"pre": 0.9, "post": 0.6, "none": 0.9})
    assert graded.basis == "seeds" and [len(arm.runs) for arm in graded.arms] == [8, 8, 8]
    assert words(graded)["post", "right"] == words(graded)["post", "reach"] == "worse"
    (contest,) = (each for each in graded.contests if (each.arm, each.measure) == ("none", "right"))
    assert contest.pairs == 8 and contest.word in ("equivalent", "inconclusive")
    assert contest.margin == pytest.approx(0.02), "of a share, the margin is a fraction of its span"
    values = {arm.arm: arm.values["right"] for arm in graded.arms}
    assert values["post"].value == pytest.approx(0.6, abs=0.03)
    assert values["post"].interval[0] < values["post"].value < values["post"].interval[1] < 0.7
    assert {contest.measure for contest in graded.contests} == {"right", "reach", "rare"}, (
        "others are described"
    )


def test_with_few_seeds_one_run_of_each_is_graded_and_beginnings_are_paired(two):
    graded = grading(two, Words())
    assert graded.basis == "beginnings" and [list(arm.runs) for arm in graded.arms] == [[3], [3]]
    (right, reach, rare) = graded.contests
    assert right.word == reach.word == "worse" and right.pairs == 30
    assert right.difference == pytest.approx(-0.3, abs=0.05)
    assert right.interval[0] < right.difference < right.interval[1] < 0
    assert "30 groups of samples" in right.sentence and "points lower" in right.sentence
    assert rare.word == "inconclusive" and rare.interval[1] > 0.6, "four samples of each run show little"
    page = "\n".join(write(two, graded).values())
    assert "about these trained models, not about the arms" in page


def test_fewer_seeds_than_so_many_tests_need_are_not_paired(tmp_path):
    """The smallest p-value of the sign-flip test with 7 pairs, times 4 tests, is above 0.05."""
    one = comparison(tmp_path, {"pre": 2.0, "post": 2.1, "none": 2.0}, seeds=range(7))
    graded = grading(one, Words())
    assert graded.basis == "beginnings" and graded.seeds_needed == 8
    assert "at least 8 seeds for so many tests" in summary(one, graded)


def test_higher_is_better_or_lower_is():
    values = [random.Random(0).gauss(0.2, 0.01) for _ in range(8)]
    lower = Measure("faults", "faults", "share", "lower", 1.0)
    results = judged(
        [Differences("a", "b", measure, values, 0.02, 100) for measure in (SHARE, lower)], "seeds"
    )
    assert [result.word for result in results] == ["better", "worse"]
    assert all(result.interval[0] < 0.2 < result.interval[1] for result in results)


def test_a_small_difference_is_equivalent_and_few_pairs_are_inconclusive():
    values = [random.Random(seed).gauss(0.001, 0.002) for seed in range(9)]
    several = judged([Differences("a", "b", SHARE, values, 0.02, 100)], "seeds")
    assert several[0].word == "equivalent" and "less than 2.0 points either way" in several[0].sentence
    (few,) = judged([Differences("a", "b", SHARE, [0.3, 0.31, 0.32], 0.02, 100)], "seeds")
    assert few.word == "inconclusive" and "at least 6" in few.sentence


@pytest.mark.parametrize("groups, word", [(100, "inconclusive"), (200, "equivalent")])
def test_the_same_share_everywhere_is_equivalent_only_if_enough_texts_show_it(groups, word):
    (result,) = judged([Differences("a", "b", SHARE, [0.0] * groups, 0.02, groups)], "beginnings")
    unseen = 1 - 0.025 ** (1 / groups)
    assert result.word == word and result.interval == pytest.approx((-unseen, unseen))
    free = Measure("reach", "reach", "characters", "higher", None)
    (result,) = judged([Differences("a", "b", free, [0.0] * groups, 3.0, groups)], "beginnings")
    assert result.word == "inconclusive" and not math.isfinite(result.interval[0])


def test_measures_without_any_difference_count_in_the_correction():
    values = [random.Random(seed).gauss(0.2, 0.05) for seed in range(8)]
    tested = [Differences("a", "b", SHARE, each, 0.02, 300) for each in (values, *[[0.0] * 8] * 3)]
    (alone,), (corrected, *same) = judged(tested[:1], "seeds"), judged(tested, "seeds")
    assert corrected.p_difference == pytest.approx(4 * alone.p_difference)
    assert corrected.difference == alone.difference and corrected.interval == alone.interval
    assert [result.difference for result in same] == [0.0] * 3


@pytest.mark.parametrize("few, many, word", [(1, 60, "inconclusive"), (20, 60, "worse")])
def test_a_run_with_few_values_is_not_better_or_worse(few, many, word):
    """Of facts that it forgot 1 of 1 times, where the other run recalled all but ten of 60."""
    forgetful = graded_facts([0.0] * few, 80)
    other = graded_facts([1.0] * (many - 10) + [0.0] * 10, 80)
    arms = {"a": {0: forgetful}, "b": {0: other}}
    (tested,) = _differences(contest_of("a", "b"), Recalling(), arms, "beginnings")
    assert tested.groups == few and tested.room is not None
    (result,) = judged([tested], "beginnings")
    assert result.word == word and (word == "worse" or "Too few samples" in result.sentence)


def test_that_few_forgot_the_same_facts_is_no_equivalence():
    arms = {"a": {0: graded_facts([0.0] * 3, 400)}, "b": {0: graded_facts([0.0] * 300, 400)}}
    (tested,) = _differences(contest_of("a", "b"), Recalling(), arms, "beginnings")
    assert tested.groups == 3
    (result,) = judged([tested], "beginnings")
    assert result.word == "inconclusive" and result.interval[1] > 0.7


@dataclass(frozen=True, kw_only=True)
class Recalling(Words):
    measures = (SHARE,)


def graded_facts(values: list[float], groups: int) -> Grades:
    """Return the grades of a run of whose texts only the first have a value."""
    samples = [Sample("", "text", group) for group in range(groups)]
    rest = [0.0] * (groups - len(values))
    written = Written("run", samples, SimpleNamespace(), SimpleNamespace())
    return Grades(written, {SHARE: Values([*values, *rest], [*[1.0] * len(values), *rest])})


def contest_of(arm: str, baseline: str) -> SimpleNamespace:
    contest = SimpleNamespace(arm=SimpleNamespace(name=arm), baseline=SimpleNamespace(name=baseline))
    return SimpleNamespace(contests=[contest])


def test_the_same_words_for_equal_models_are_seldom_wrong():
    """Of models that write alike, at most 5 % of comparisons claim a difference, over several measures together."""
    claims, draw = 0, random.Random(1)
    for _ in range(60):
        tested = [
            Differences("a", "b", SHARE, [draw.gauss(0, 0.1) for _ in range(12)], 0.02, 100) for _ in range(4)
        ]
        claims += any(result.word in ("better", "worse") for result in judged(tested, "beginnings"))
    assert claims <= 7, "at 5 %, more than that happens once in 100 times"


def test_a_model_that_can_not_generate_has_a_sentence(two):
    graded = grading(two, Words(), {"pre": 0.9})
    assert graded.arms[1].why_not == "Seed 3: The model can't generate." and not graded.contests
    files = write(two, graded)
    assert all("post: Seed 3: The model can" in text.replace("&#x27;", "'") for text in files.values())


def test_a_grader_that_fails_leaves_the_comparison_as_it_is(two):
    graded = grading(two, Broken())
    assert [arm.why_not for arm in graded.arms] == ["The judge can't be reached."] * 2
    files = write(two, graded)
    assert two.headline in files["report.md"] and "No run has been graded." in files["report.md"]


# ---- samples -------------------------------------------------------------------------------------


def test_the_best_and_the_worst_sample_are_chosen_by_the_rule(two):
    shown = grading(two, Words()).arms[1].shown
    best, worst = best_and_worst(shown)
    values = [shown.values[RIGHT].value(place) for place in range(len(shown.written.samples))]
    assert best.values["right"] == max(values) and worst.values["right"] == min(values)
    ties = [place for place, value in enumerate(values) if value == max(values)]
    reach = [shown.values[REACH].value(place) for place in ties]
    assert best.index == ties[reach.index(max(reach))]
    assert rule(shown).startswith(
        "The best and the worst sample of a run are chosen by right words, then by characters until a wrong word;"
    )


# ---- the report ----------------------------------------------------------------------------------


def write(one: Comparison, graded: Grading) -> dict[str, str]:
    folder = one.arms[0].first.folder.parent / "report"
    paths = write_report(one, folder, readings(one), None, graded, ANALYSIS)
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    validate_report(json.loads(texts["report.json"]))
    well_formed(texts["report.md"])
    Page(texts["report.html"])
    return texts


def test_a_report_shows_the_grades_beside_the_losses(eight):
    graded = grading(eight)
    files = write(eight, graded)
    page, data = Page(files["report.html"]), json.loads(files["report.json"])["grades"]
    section = page.sections["Grades"]
    for contest in graded.contests:
        assert contest.sentence in section and contest.sentence in files["report.md"].replace("\\", "")
    assert "Can the judge be believed? Yes" in section and "It can tell." in section
    assert "Recall by distance" in section and "75 % (" in files["report.md"].replace("\\", "")
    assert "A third is missing." in section and "100.0 %" in section
    assert 'id="grades"' in files["report.html"] and 'id="recall"' in files["report.html"]
    assert [arm["arm"] for arm in data["arms"]] == ["pre", "post", "none"]
    assert data["duels"][0]["won"]["value"] == 1.0 and data["duels"][0]["won"]["interval"][0] < 1
    assert len(data["contests"]) == 6 and data["settings"] == {"judge": "a stand-in"}


def test_a_break_is_marked_with_what_was_expected_and_all_text_is_escaped(two):
    files = write(two, grading(two))
    html, section = files["report.html"], Page(files["report.html"]).sections["Grades"]
    assert '<span class="given">Once &lt;u&gt; </span>' in html or 'class="broken"' in html
    assert "expected (word): “<b>right</b>” or “left”" in section and "<b>right" not in html
    assert "<i>So-so" not in html and "&lt;i&gt;So-so" in html
    assert "Analysis, in the words of a <judge>" in Page(html).sections and "<b>better" not in html
    assert "\\<b\\>better" in files["report.md"] and "A judge's words." in files["report.md"]


def test_the_summary_in_a_terminal_has_a_table_and_a_line_for_each_word(two):
    graded = grading(two)
    lines = summary(two, graded).splitlines()
    assert any(line.startswith("| right words") and " %" in line for line in lines)
    assert all(f"- {contest.sentence}" in lines for contest in graded.contests)
    assert "Spelling isn't graded." in summary(two, graded)


def test_without_grades_nothing_is_said_about_them(two, tmp_path):
    write_report(two, tmp_path, readings(two))
    assert "Grades" not in Page((tmp_path / "report.html").read_text()).sections
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["grades"] is None and report["analysis"] is None


def test_the_command_that_repeats_a_comparison_grades_again(tmp_path):
    compared = replace(comparison(tmp_path, {"a": 2.0, "b": 1.9}), options=["grader=grammar"])
    assert commands(compared)[-1].startswith("python run.py task=compare ")
    assert commands(compared)[-1].endswith(" grader=grammar")
