"""The report of a comparison: what is in it, that it's whole, and that nothing in it is taken for markup."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minllm.page import units
from minllm.study.comparison import Comparison, of_arms, with_tuning
from minllm.study.reading import Reading
from minllm.study.report import summary, write_report
from minllm.study.report.commands import commands
from minllm.study.report.curves import at_quarters, curve
from minllm.study.selection import LeftOut
from minllm.study.tuning import Tried, Tuning
from tests.comparisons import comparison, readings, run

THREE = {"pre": 2.0, "none": 1.9, "sandwich": 2.0005}
VOID = {"meta", "br"}


class Page(HTMLParser):
    """The text of a page by the heading it stands below, without scripts; fails where tags aren't closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {"": ""}
        self.heading = ""
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []
        self.sections = {heading: " ".join(said.split()) for heading, said in self.sections.items()}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name in ("src", "href") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2"):
            self.heading = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("h1", "h2"):
            self.sections[self.heading] = ""

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        if self.open and self.open[-1] in ("h1", "h2"):
            self.heading += data
        else:
            self.sections[self.heading] = (
                self.sections.get(self.heading, "") + data.replace("\u00a0", " ") + " "
            )


def written(one: Comparison, folder: Path, read: list[Reading] | None = None) -> tuple[Page, str, dict]:
    """Return the three files of a report, each read as what it is."""
    paths = write_report(one, folder / "report", readings(one) if read is None else read)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json"]
    assert sorted(paths) == sorted((folder / "report").iterdir())
    page, text, data = (path.read_text(encoding="utf-8") for path in paths)
    assert page.count("<script>/**\n* plotly.js") == 1
    well_formed(text)
    return Page(page), text, json.loads(data, parse_constant=pytest.fail)


def well_formed(text: str) -> None:
    """Assert that each table has the same number of cells in all rows, and each block of code an end."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()]
        assert len(set(rows)) == 1 and len(rows) > 2
    assert text.count("\n```") % 2 == 0


def test_the_verdict_comes_first(tmp_path):
    one = comparison(tmp_path, THREE)
    page, text, data = written(one, tmp_path)
    headline = "none against pre: better; sandwich against pre: equivalent."
    assert list(page.sections)[1] == headline == data["headline"]
    assert text.startswith(f"# {headline}\n")
    for contest in one.contests:
        assert contest.sentence in page.sections[headline] and contest.sentence in text
    assert "Held equal: validation text identical" in page.sections[headline]
    assert "3 arms with 7 seeds each" in page.sections[headline]
    assert [*page.sections][2:] == [
        "Learning curves",
        "Other measures",
        "Arms",
        "Configuration differences",
        "Samples and held-out text",
        "Runs left out",
        "Looks",
        "Methods",
        "Reproduction",
    ]


def test_a_row_has_what_an_arm_is_and_took(tmp_path):
    page, text, data = written(comparison(tmp_path, THREE), tmp_path)
    cells = ["1.235 M", "1 M", "900 k", "6 M", "4 KiB", "100 k", "2 min", "768 MiB", "0.003"]
    assert all(cell in page.sections["Arms"] for cell in cells)
    row = next(line for line in text.splitlines() if line.startswith("| `none` ") and "768 MiB" in line)
    assert [cell.strip() for cell in row.split("|")[6:-1]] == cells
    none = data["arms"][1]
    assert none["params_active"] == 1_000_000 and none["learning_rate"] == 0.003 and len(none["runs"]) == 7
    assert none["val_bpb"] == pytest.approx(1.9, abs=0.01) and 0 < none["val_bpb_sd"] < 0.01
    assert none["bpb_above_floor"] == pytest.approx(none["val_bpb"] - 1.5)


def test_differences_and_nothing_else(tmp_path):
    page, text, data = written(comparison(tmp_path, THREE), tmp_path)
    assert data["differences"] == [{"key": "norm.kind", "values": {name: name for name in THREE}}]
    assert "norm.kind" in page.sections["Configuration differences"]
    assert "optim.lr" not in page.sections["Configuration differences"]
    assert "| `norm.kind` |" in text


def test_json_has_the_verdicts_and_each_seed(tmp_path):
    one = comparison(tmp_path, THREE)
    _, _, data = written(one, tmp_path)
    assert data["format"] == 2 and data["baseline"] == "pre" and data["margin"] == 0.005
    for contest, told in zip(one.contests, data["contests"]):
        assert told["verdict"] == json.loads(json.dumps(dataclasses.asdict(contest.verdict)))
        differences = [pair["difference"] for pair in told["pairs"]]
        assert sum(differences) / 7 == pytest.approx(contest.verdict.difference)
        assert [pair["seed"] for pair in told["pairs"]] == list(range(7))
    assert data["curves"][0]["flops"] == [6e9, 12e9, 18e9, 24e9]
    assert data["readings"][2]["samples"] == [["Once", " there was a fox."]]
    assert data["floor_bpb"] == 1.5


def test_commands_are_those_that_were_typed(tmp_path):
    one = comparison(tmp_path / "grid", {"pre": 2.0, "no ne": 1.9}, seeds=[0, 1, 4])
    *arms, last = commands(one)
    assert arms[0] == "python run.py -m norm=pre 'model.layout=[attn mlp]' seed=0,1,4"
    assert shlex.split(arms[1])[3] == "norm=no ne"
    assert last == f"python run.py task=compare 'runs=[{tmp_path}/grid]' baseline=pre margin=0.005"
    page, text, data = written(one, tmp_path)
    assert data["commands"] == [*arms, last]
    assert all(line in page.sections["Reproduction"] and line in text for line in data["commands"])
    remark = "If you train the runs again, put their new folders in the last command."
    assert remark in page.sections["Reproduction"] and remark in text
    found = dataclasses.replace(one, commands=["python sweep.py search=verdict"])
    assert commands(found) == ["python sweep.py search=verdict", *arms]
    page, text, _ = written(found, tmp_path / "verdict")
    assert remark not in page.sections["Reproduction"] and remark not in text


def test_commands_of_other_runs(tmp_path):
    (tmp_path / "grid/another").mkdir(parents=True)
    (tmp_path / "grid/another/config.yaml").touch()
    one = comparison(
        tmp_path / "grid", {"a=1 b=2": 2.0, "c": 1.9}, [3], {"typed": None}, baseline="all", aa=False
    )
    old, _, last = commands(one)
    assert old.startswith("# a=1 b=2: made by an older minllm")
    assert f"runs=['{tmp_path}/grid/c-3'" not in last and f"{tmp_path}/grid/c-3" in last
    assert 'baseline="a=1 b=2"' in shlex.split(last)
    each = comparison(tmp_path / "each", THREE, [0], {"typed": ["x=1"]}, baseline="all")
    assert commands(each)[0] == "python run.py x=1 seed=0" and "baseline=all" in commands(each)[-1]


def test_nothing_is_taken_for_markup(tmp_path):
    evil = "<script>alert('|`*')</script>"
    one = comparison(tmp_path, {"pre": 2.0, evil: 1.9})
    one = dataclasses.replace(one, left_out=[LeftOut(Path("/tmp/<b>x"), "It's | <i>odd</i>")])
    page, text, data = written(one, tmp_path)
    raw = (tmp_path / "report/report.html").read_text()
    assert raw.count("alert(") >= 5 and "<script>alert" not in raw and "</script>alert" not in raw
    assert page.tags.count("i") == 0 and "/tmp/<b>x" in page.sections["Runs left out"]
    assert list(page.sections)[1] == one.headline == f"{evil} is better than pre."
    assert data["arms"][1]["arm"] == evil and "\\<i\\>odd\\</i\\>" in text


def test_one_pair_has_no_interval(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9}, seeds=[0])
    assert math.isinf(one.contests[0].verdict.interval[0])
    page, text, data = written(one, tmp_path)
    assert data["contests"][0]["verdict"]["interval"] == [None, None]
    assert data["arms"][0]["val_bpb_sd"] is None
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", text + " ".join(page.sections.values()))
    assert "no interval from one pair" in (tmp_path / "report/report.html").read_text()


def test_no_pair_at_all(tmp_path):
    arms = [comparison(tmp_path / str(seed), {"pre": 2.0, "none": 1.9}, seeds=[seed]).arms for seed in (0, 1)]
    page, _, data = written(of_arms([arms[0][0], arms[1][1]]), tmp_path)
    assert data["contests"][0]["pairs"] == [] and "No pair of runs has finished." in " ".join(
        page.sections.values()
    )


def test_unknown_figures_are_a_dash(tmp_path):
    lacking = {
        "state_bytes_per_sequence": None,
        "floor_bpb": None,
        "bpb_above_floor": None,
        "tokens_per_second": math.nan,
    }
    page, text, data = written(comparison(tmp_path, THREE, changed=lacking), tmp_path)
    assert data["arms"][0]["state_bytes_per_sequence"] is None and data["floor_bpb"] is None
    assert "–" in page.sections["Arms"] and "The floor" not in page.sections["Learning curves"]
    assert "nan" not in page.sections["Arms"]


def test_what_no_arm_has_read_is_nowhere(tmp_path):
    unread = [Reading(name, 0, [], [], None) for name in THREE]
    page, text, data = written(comparison(tmp_path, THREE), tmp_path, unread)
    assert [one["stories"] for one in data["readings"]] == [[], [], []]
    assert "top-1" not in text + page.sections["Samples and held-out text"]


def test_runs_left_out_have_their_reason(tmp_path):
    page, text, data = written(comparison(tmp_path, THREE), tmp_path)
    assert (
        "None: the comparison includes every run" in page.sections["Runs left out"]
        and "None: the comparison includes every run" in text
    )
    one = comparison(tmp_path / "other", THREE, left_out=[LeftOut(Path("/runs/7"), "It's still running.")])
    page, text, data = written(one, tmp_path / "other")
    assert (
        "It's still running." in page.sections["Runs left out"] and "- `/runs/7`: It's still running." in text
    )
    assert data["left_out"] == [{"folder": "/runs/7", "why": "It's still running."}]
    assert "Left out: /runs/7: It's still running." in summary(one)


def tuning(rates: dict[float, float | None], chosen: float, unsettled: str = "") -> Tuning:
    tried = [Tried({"optim.lr": rate}, {1000: loss}) for rate, loss in rates.items()]
    return Tuning(tried, {"optim.lr": chosen}, "the lowest mean loss", 16, unsettled)


def test_tuning_is_shown(tmp_path):
    tunings = {
        "pre": tuning({0.001: 2.1, 0.003: 2.0, 0.01: None}, 0.003),
        "none": tuning({0.001: 2.1, 0.003: 2.0, 0.01: 2.0}, 0.01, "its best rate is the highest"),
    }
    one = with_tuning(comparison(tmp_path, THREE), tunings)
    page, text, data = written(one, tmp_path)
    said = "pre: optim.lr=0.003: the lowest mean loss. Tried in 3 runs (at most 16): 0.001 (2.1000); 0.003 (2.0000)"
    assert said in page.sections["Tuning"].replace("\u00a0", " ") and "Not settled: its best rate is" in text
    assert "0.003 (tuned)" in page.sections["Arms"] and "0.003 (tuned, not settled)" in text
    assert "overlap at every number of trials" in page.sections["Tuning"].replace("\u00a0", " ")
    assert "| 3 | 2.0000 (– to –) | 2.0000 (– to –) |" in " ".join(text.split())
    assert not data["tuning"]["none"]["settled"] and data["tuning"]["pre"]["tried"][2] == {
        **{"values": {"optim.lr": 0.01}, "planned": True, "val_bpb": None, "val_bpb_by_seed": {"1000": None}}
    }
    assert data["tuning"]["pre"]["curve"]["low"] == [None] * 3 and data["tuning"]["pre"]["chosen"] == {
        "optim.lr": 0.003
    }
    assert [effort["separate_at"] for effort in data["tuning_effort"]] == [[]]


def test_tuning_that_survives_more_effort(tmp_path):
    tunings = {
        name: tuning({i / 1000: loss + i / 100 for i in range(1, 25)}, 0.001)
        for name, loss in (("pre", 2.0), ("none", 1.0))
    }
    one = with_tuning(comparison(tmp_path, {"pre": 2.0, "none": 1.0}), tunings)
    page, text, data = written(one, tmp_path)
    said = "The tuning curves of none and pre are apart, with none lower, after 1 and 2 trials of tuning"
    assert said in page.sections["Tuning"].replace("\u00a0", " ") and said in text and said in summary(one)
    assert (
        data["tuning_effort"][0]["separate_at"] == [1, 2]
        and "bands overlap" in data["tuning_effort"][0]["sentence"]
    )


def test_the_noise_floor(tmp_path):
    one = comparison(tmp_path, {"": 2.0}, aa=True)
    page, text, data = written(one, tmp_path)
    assert "Two runs of the only arm" in page.sections["Noise floor"] and "Two runs of the only arm" in text
    assert 0 < data["noise"][0]["floor"] < 0.1 and data["contests"] == []
    assert "baseline=" not in data["commands"][-1] and "aa=true" in data["commands"][-1]


def test_curves_on_common_points(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 2.0}).arms[0]
    alike = curve(one)
    assert alike.tokens == [1000, 2000, 3000, 4000] and alike.seconds == pytest.approx([1.3, 2.3, 3.3, 4.3])
    assert all(low <= mean <= high for low, mean, high in zip(alike.low, alike.mean, alike.high))
    assert at_quarters(alike) == pytest.approx(alike.mean)
    runs = {
        0: run(tmp_path, "a", 0, 2.0, tokens=[1000, 2000, 3000]),
        1: run(tmp_path, "a", 1, 2.0, tokens=[1500, 2500, 3500]),
    }
    apart = curve(dataclasses.replace(one, runs=runs))
    assert apart.tokens == [1500, 2250, 3000] and apart.seeds == 2
    ends = {seed: run(tmp_path, "b", seed, 2.0, tokens=[4000 + seed]) for seed in (0, 1)}
    assert curve(dataclasses.replace(one, runs=ends)).tokens == [4000.5]


LOST = '{"step": 1, "tokens": 10, "seconds": 1, "val_bpb": NaN}\n'


def test_lost_and_broken_evaluations(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 2.0})
    for number, seed in enumerate(one.arms[0].runs):
        metrics = one.arms[0].runs[seed].folder / "metrics.jsonl"
        metrics.unlink() if number else metrics.write_text(LOST)
    page, text, data = written(one, tmp_path)
    assert data["curves"][0]["mean"] == [] and data["curves"][1]["seeds"] == 7


def test_twelve_arms_each_against_each(tmp_path):
    one = comparison(tmp_path, {f"arm{i}": 2 + i / 1000 for i in range(12)}, [0, 1], baseline="all")
    page, _, data = written(one, tmp_path)
    assert len(data["contests"]) == 66
    assert data["headline"] == "None of the 12 arms is better than all others."


def test_a_terminal_gets_the_answer_first(tmp_path):
    one = comparison(tmp_path, THREE)
    lines = summary(one).splitlines()
    assert lines[0] == one.headline and lines[2] == f"- {one.contests[0].sentence}"
    assert any(line.split()[1:4] == ["none", "|", "7"] for line in lines)
    assert max(len(line) for line in lines if line.startswith("|")) <= 80
    assert lines[-1].startswith("Nothing that was checked differed")


def test_units():
    assert [units.count(value) for value in (7, 39008, 282240.0, 1_234_567, 5.78e9, None, math.nan)] == [
        *("7", "39,008", "282.2 k", "1.235 M", "5.78 G", "–", "–")
    ]
    assert [units.memory(value) for value in (0, 800, 16384, 3 * 2**29, None)] == [
        *("0 bytes", "800 bytes", "16 KiB", "1.5 GiB", "–")
    ]
    assert [units.duration(value) for value in (1.95, 42, 61, 7500, math.inf)] == [
        *("1.9 s", "42 s", "1 min", "2 h 5 min", "–")
    ]
    assert [units.duration(value, tenths=False) for value in (0.2, 59, 61, 3599, 5400)] == [
        *("0 s", "59 s", "1 min", "1 h 0 min", "1 h 30 min")
    ]
    assert [units.mib(value) for value in (0, 2**20, 2000 * 2**20)] == ["0 MiB", "1 MiB", "2,000 MiB"]


def test_tuning_that_is_not_settled_is_said_on_the_first_screen(tmp_path):
    one = comparison(tmp_path, {"pre": 2.0, "none": 1.9})
    tuned = with_tuning(one, {"pre": tuning({0.1: 2.0, 0.2: 2.1}, 0.1, "its best rate is the lowest")})
    page, text = (file.read_text() for file in write_report(tuned, tmp_path, readings(tuned))[:2])
    said = "The tuning of pre isn't settled: its best rate is the lowest."
    page = page.replace("\u00a0", " ").replace("&#x27;", "'")
    assert page.index(said) < page.index('class="verdicts"') and said in text.partition("## ")[0]
    assert (
        summary(tuned).splitlines()[0]
        == "none against pre: inconclusive because the tuning of pre isn't settled."
    )
    assert summary(tuned).splitlines()[1].startswith(f"WARNING: {said}")
    assert one.contests[0].verdict.word == "better" and tuned.contests[0].verdict.word == "inconclusive"
    assert "isn't settled" not in summary(one)
