"""The ledger: numbers and levels of ideas, damage, what counts once, champions, and what is shown of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from minllm.errors import UserError
from minllm.study.arms import Arm
from minllm.study.comparison import Comparison, Contest
from minllm.study.standing import Standing
from minllm.study.statistics import verdicts
from minllm.verdict.discoveries import level
from minllm.verdict.entry import (
    Entry,
    Question,
    contests_of,
    entry_for_question,
    record_reached,
    with_standings,
)
from minllm.verdict.ledger import Contents, Ledger, next_places
from tests.comparisons import comparison
from tests.verdicts import ASKED

COMMAND = "python sweep.py search=verdict"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "outputs" / "ledger.jsonl")


def question(
    folder: Path, name: str, idea: str = "", arms: Sequence[str] = "ab", **protocol: Any
) -> Question:
    """A verdict's question, whose first arm is always the same."""
    cfgs = {
        arm: OmegaConf.create(
            {"norm": {"kind": f"{arm}{idea if arm != 'a' else ''}"}, "train": {}, "choices": {}}
        )
        for arm in arms
    }
    names = {arm: f"norm={cfg.norm.kind}" for arm, cfg in cfgs.items()}
    return Question(
        name=name,
        folder=folder / name,
        cfgs=cfgs,
        names=names,
        arms={arm: [] if arm == "a" else [named] for arm, named in names.items()},
        overrides=["search=verdict", "sweep.storage=postgresql://me:secret@host/studies"],
        size=["size.params=1000"],
        protocol={**ASKED, **protocol},
        contests=contests_of(list(arms), None),
    )


def compared(
    asked: Question, entry: Entry, differences: Mapping[str, Sequence[float]], looks: Sequence[int] = ()
) -> Comparison:
    """The comparison with these differences for each arm but the first."""
    arms = {arm: Arm(name, {}) for arm, name in asked.names.items()}
    judged = verdicts(list(differences.values()), margin=0.005, looks=looks)
    contests = [
        Contest(arms[arm], arms["a"], dict(enumerate(values)), verdict)
        for (arm, values), verdict in zip(differences.items(), judged)
    ]
    return with_standings(Comparison(list(arms.values()), contests, 0.005, [], [], []), entry, every=False)


def told(asked: Question, entry: Entry, comparison: Comparison, ledger: Ledger) -> dict[str, Any]:
    arms = {asked.names[arm]: words for arm, words in asked.arms.items()}
    return record_reached(comparison, entry, ledger, {"report": "report.html", "seconds": 1.0, "runs": 2},
                   {"arms": arms, "command": COMMAND})  # fmt: skip


def better(pairs: int) -> list[float]:
    return [-0.1 - 0.001 * (pair % 3) for pair in range(pairs)]


def unclear(pairs: int) -> list[float]:
    return [0.1 * (-1) ** pair for pair in range(pairs)]


# ---- numbers and levels --------------------------------------------------------------------------


def test_ideas_get_numbers_and_levels_in_the_order_in_which_they_start(ledger, tmp_path):
    first = entry_for_question(question(tmp_path, "first", arms="abc"), ledger, None, None)
    second = entry_for_question(question(tmp_path, "second", "x"), ledger, None, None)
    assert [place["number"] for place in (*first.places, *second.places)] == [1, 2, 3]
    expected = [level(number, []) for number in (1, 2, 3)]
    assert [place["level"] for place in (*first.places, *second.places)] == pytest.approx(expected, rel=1e-5)
    assert first.announcement.startswith("Among all ideas tried here, idea 1 needs p ≤ 0.011, idea 2 needs")


def test_a_discovery_allows_more_for_the_ideas_after_it_and_only_once(ledger, tmp_path):
    asked = question(tmp_path, "first")
    entry = entry_for_question(asked, ledger, None, None)
    told(asked, entry, compared(asked, entry, {"b": better(9)}), ledger)
    assert ledger.read().discoveries() == [1]
    again = question(tmp_path, "renamed")
    same = entry_for_question(again, ledger, None, None)
    assert same.places[0]["number"] == 2 and same.places[0]["level"] == pytest.approx(level(2, [1]), rel=1e-5)
    told(again, same, compared(again, same, {"b": better(14)}), ledger)
    assert ledger.read().discoveries() == [1], "the same idea under another name is no second discovery"


def test_verdicts_that_start_at_once_take_distinct_numbers(ledger, tmp_path):
    asked = [question(tmp_path, f"v{number}", str(number)) for number in range(12)]
    with ThreadPoolExecutor(6) as threads:
        entries = list(threads.map(lambda one: entry_for_question(one, ledger, None, None), asked))
    assert sorted(entry.places[0]["number"] for entry in entries) == list(range(1, 13))
    assert ledger.read().ideas == 12 and not ledger.read().damaged


def test_the_level_stays_the_same_however_often_a_verdict_is_continued(ledger, tmp_path):
    asked = question(tmp_path, "first")
    entry = entry_for_question(asked, ledger, None, None)
    for number in range(3):
        entry_for_question(question(tmp_path, f"v{number}", str(number)), ledger, None, None)
    kept = json.loads(json.dumps(entry.saved))
    assert entry_for_question(asked, ledger, kept, None) == entry and ledger.read().ideas == 4
    assert entry_for_question(asked, ledger, None, None) == entry, "killed before verdict.json was written"
    other = entry_for_question(question(tmp_path, "first", "other"), ledger, kept, None)
    assert other.places[0]["number"] == 5, "another question in the same folder is another idea"


def test_a_verdict_that_continues_after_its_ledger_was_removed_is_entered_again(ledger, tmp_path):
    """Or it would be a discovery of an idea that was never started, before which no further idea can have a level."""
    entry_for_question(question(tmp_path, "first"), ledger, None, None)
    asked = question(tmp_path, "second", "x")
    entry = entry_for_question(asked, ledger, None, None)
    ledger.path.unlink()
    entry_for_question(question(tmp_path, "third", "y"), ledger, None, None)
    kept = json.loads(json.dumps(entry.saved))
    assert (
        entry_for_question(asked, ledger, kept, None)
        == entry
        == entry_for_question(asked, ledger, kept, None)
    )
    assert [line["places"][0]["number"] for line in ledger.read().of("started")] == [1, 2]
    told(asked, entry, compared(asked, entry, {"b": better(14)}), ledger)
    assert ledger.read().discoveries() == [2] and ledger.read().ideas == 2


def test_a_discovery_without_the_line_of_its_start_allows_no_more_than_it_should(ledger, tmp_path):
    asked = question(tmp_path, "first")
    entry = entry_for_question(asked, ledger, None, None)
    told(asked, entry, compared(asked, entry, {"b": better(9)}), ledger)
    ledger.path.write_text(ledger.path.read_text().split("\n", 1)[1])
    assert ledger.read().ideas == 1 and ledger.read().discoveries() == [1]
    after = entry_for_question(question(tmp_path, "second", "x"), ledger, None, None)
    assert after.places[0]["number"] == 2 and after.places[0]["level"] == pytest.approx(
        level(2, [1]), rel=1e-5
    )


def test_a_verdict_that_is_made_again_from_nothing_is_another_idea(ledger, tmp_path):
    asked = question(tmp_path, "first")
    entry = entry_for_question(asked, ledger, None, None)
    told(asked, entry, compared(asked, entry, {"b": unclear(9)}), ledger)
    again = entry_for_question(asked, ledger, None, None)
    assert (again.identifier, again.places[0]["number"]) == (f"{entry.identifier}-2", 2)


def test_without_the_ledgers_control_no_idea_is_counted_and_the_verdict_is_recorded(ledger, tmp_path):
    asked = question(tmp_path, "first", ledger=False)
    entry = entry_for_question(asked, ledger, None, None)
    comparison = compared(asked, entry, {"b": better(9)})
    line = told(asked, entry, comparison, ledger)
    assert comparison.contests[0].standing is None and comparison.is_answered
    assert comparison.headline == "norm=b is better than norm=a." and entry.announcement == ""
    assert line["outcomes"][0]["level"] is None and ledger.read().ideas == 0


@pytest.mark.parametrize("kept", ["x", {}, {"id": "a", "question": "b", "places": [{}], "kind": None}])
def test_damaged_saved_entry_is_rejected(ledger, tmp_path, kept):
    with pytest.raises(UserError, match="ledger section of verdict.json is damaged"):
        entry_for_question(question(tmp_path, "first"), ledger, kept, None)


# ---- outcomes alone and among all ----------------------------------------------------------------


def test_better_alone_may_not_be_a_discovery(ledger, tmp_path):
    for number in range(59):
        entry_for_question(question(tmp_path, f"v{number}", str(number)), ledger, None, None)
    asked = question(tmp_path, "mine", "mine")
    entry = entry_for_question(asked, ledger, None, None)
    comparison = compared(asked, entry, {"b": better(9)})
    assert comparison.contests[0].verdict.word == "better"
    assert comparison.headline == (
        "norm=bmine is better than norm=a on its own, not yet among 60 ideas: needs p ≤ 1.6e-05, has 0.0039."
    )
    assert not comparison.is_settled and not comparison.is_answered
    more = compared(asked, entry, {"b": better(18)})
    assert more.is_answered and more.headline.startswith(
        "norm=bmine is better than norm=a, also among 60 ideas"
    )


def test_several_contests_name_those_that_do_not_hold_yet(ledger, tmp_path):
    asked = question(tmp_path, "mine", arms="abc")
    entry = entry_for_question(asked, ledger, None, None)
    comparison = compared(asked, entry, {"b": better(7), "c": unclear(7)})
    assert comparison.headline.endswith(
        "On its own, not yet among all ideas: norm=b against norm=a (needs p ≤ 0.011, has 0.016)."
    )


def test_worse_and_equivalent_need_no_level():
    (worse,) = verdicts([[0.1 + 0.001 * pair for pair in range(7)]], margin=0.005)
    place = Standing(60, 1e-9, ("better",))
    assert worse.word == "worse" and not place.is_open(worse) and not place.holds(worse)
    assert Standing(60, 1e-9, ("better", "worse")).is_open(worse), "with every arm an idea, worse is a claim"


@pytest.mark.parametrize("baseline", [None, "all", "y"])
def test_the_ideas_of_a_verdict_are_the_contests_of_its_comparison(tmp_path, baseline):
    one = comparison(tmp_path, {"x": 2.0, "y": 2.1, "z": 2.2}, baseline=baseline)
    pairs = [(contest.arm.name, contest.baseline.name) for contest in one.contests]
    assert contests_of(["x", "y", "z"], baseline) == pairs


def test_the_p_value_counts_every_look_and_the_pairs_after_the_one_that_settled_it():
    found = [verdicts([better(pairs)], margin=0.005, looks=[9, 13, 19, 28])[0] for pairs in (9, 13, 19, 28)]
    assert [one.pairs for one in found] == [9] * 4, "each is settled at the first look"
    first, second, third, last = (one.p_overall for one in found)
    assert 2 / 2**9 <= first <= 0.05 and first > second > third > last
    assert last == pytest.approx(2 * 2 / 2**28), "half of the error rate is for the last look alone"


# ---- what is written once, and what is mended ----------------------------------------------------


def test_the_same_verdict_is_written_once_and_more_pairs_are_another_line(ledger, tmp_path):
    asked = question(tmp_path, "first")
    entry = entry_for_question(asked, ledger, None, None)
    first = told(asked, entry, compared(asked, entry, {"b": unclear(9)}), ledger)
    assert told(asked, entry, compared(asked, entry, {"b": unclear(9)}), ledger) == first
    assert len(ledger.read().lines) == 2 and first["updates"] is None
    second = told(asked, entry, compared(asked, entry, {"b": better(13)}), ledger)
    assert second["updates"] == first["time"] and second["id"] == first["id"]
    contents = ledger.read()
    assert len(contents.lines) == 3 and contents.ideas == 1 and contents.discoveries() == [1]


def test_nothing_secret_is_written(ledger, tmp_path):
    entry_for_question(question(tmp_path, "first"), ledger, None, None)
    text = ledger.path.read_text()
    assert "me:secret" not in text and "sweep.storage=<database>" in text


def test_a_last_line_that_was_cut_off_is_set_aside(ledger, tmp_path, capsys):
    entry_for_question(question(tmp_path, "first"), ledger, None, None)
    whole = ledger.path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 2):
        ledger.path.write_bytes(whole + whole[:cut])
        assert ledger.read().ideas == 1, "whoever only reads leaves it alone"
        entry_for_question(question(tmp_path, f"cut{cut}", str(cut)), ledger, None, None)
        assert "was cut off when it was written, so it was moved to" in capsys.readouterr().out
        assert whole[:cut] in ledger.path.with_suffix(".torn").read_bytes()
        assert ledger.read().ideas == 2 and not ledger.read().damaged


def test_last_line_without_newline_is_completed(ledger, tmp_path):
    entry_for_question(question(tmp_path, "first"), ledger, None, None)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-1])
    entry = entry_for_question(question(tmp_path, "second", "x"), ledger, None, None)
    assert entry.places[0]["number"] == 2 and not ledger.path.with_suffix(".torn").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "it isn't JSON"),
        (b"", "it is empty"),
        (b"\xff", "it isn't UTF-8"),
        (b"[]", "it isn't an object"),
        (b'{"version": 1, "event": "sold", "id": "a", "time": "b"}', "its event is 'sold'"),
        (b'{"version": 9, "event": "started", "id": "a", "time": "b"}', "written by a newer minllm"),
        (b'{"version": 1, "event": "started", "id": "a", "time": "b", "name": 3}', "its name is '3'"),
        (
            b'{"version": 1, "event": "started", "id": "a", "time": "b", "name": "c", "question": {},'
            b' "places": [{"arm": "b"}]}',
            r"it has no places\[0\].baseline",
        ),
    ],
)
def test_a_damaged_line_is_named_and_no_level_is_made_up(ledger, tmp_path, text, why):
    entry_for_question(question(tmp_path, "first"), ledger, None, None)
    ledger.path.write_bytes(ledger.path.read_bytes() + text + b"\n")
    with pytest.raises(UserError, match=rf"ledger.jsonl, line 2, is damaged: .*{why}"):
        entry_for_question(question(tmp_path, "second", "x"), ledger, None, None)
    entry = entry_for_question(question(tmp_path, "third", "y", ledger=False), ledger, None, None)
    assert entry.places == [] and len(ledger.read().lines) == 2


def test_a_link_is_refused(ledger, tmp_path):
    (tmp_path / "elsewhere").write_text("")
    ledger.path.parent.mkdir()
    os.symlink(tmp_path / "elsewhere", ledger.path)
    with pytest.raises(UserError, match="is a symbolic link"):
        entry_for_question(question(tmp_path, "first"), ledger, None, None)


# ---- A/A -----------------------------------------------------------------------------------------


def test_a_hundred_ideas_that_are_no_better_are_hardly_ever_crowned():
    """Each of twenty ledgers tests a hundred ideas like the baseline; without the levels, most would crown one."""
    draw = np.random.default_rng(0)
    crowned, alone = 0, 0
    for _ in range(20):
        contents, found, lucky = Contents([]), False, False
        for number in range(100):
            (place,) = next_places(contents, [("b", "a", str(number))])
            verdict = studied(draw, place["level"])
            holds = Standing(place["number"], place["level"], ("better",)).holds(verdict)
            found, lucky = found or holds, lucky or verdict.word == "better"
            contents = Contents(
                [
                    *contents.lines,
                    {"event": "started", "id": str(number), "places": [place]},
                    {"event": "reached", "id": str(number), "outcomes": [{**place, "holds": holds}]},
                ]
            )
        crowned, alone = crowned + found, alone + lucky
    assert crowned <= 2 and alone >= 5


def studied(draw: np.random.Generator, needed: float):
    """The verdict on an idea like the baseline, which stops as a verdict does."""
    looks, differences = [7, 8, 10], draw.normal(0, 0.01, 10)
    (last,) = verdicts([differences], margin=0.005, looks=looks)
    if last.word == "inconclusive":  # at each look, because what is settled stays so
        return last
    for look in looks:
        (verdict,) = verdicts([differences[:look]], margin=0.005, looks=looks)
        if verdict.word != "inconclusive" and not Standing(1, needed, ("better",)).is_open(verdict):
            break
    return verdict
