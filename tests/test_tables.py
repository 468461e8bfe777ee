"""Tables fit a terminal, and say what they left out; what is null isn't what isn't there."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minllm.config.compose import compose
from minllm.page.markdown import TERMINAL, fit_to_width
from minllm.study.comparison import compare
from minllm.study.report import summary, write_report
from minllm.tasks.describe import column
from minllm.tasks.describe import table as described
from tests.comparisons import comparison, finished, readings

HEAD = ["arm", "seeds", "bits per byte", "sd", "parameters", "tokens per second"]
FIGURES = ["7", "2.0500", "0.0707", "1.235 M", "100 k"]


def test_fitting_table_is_unchanged():
    assert len(fit_to_width(HEAD, [["pre", *FIGURES]], "lrrrrr")) == 1


def test_omissions_are_listed_below_the_table():
    names = [f"norm=pre model/attn=differential model.mlp.hidden={width}" for width in (1024, 2048)]
    text, *notes = fit_to_width(HEAD, [[name, *FIGURES] for name in names], "lrrrrr")
    assert notes == ["Names are shortened here.", "Left out here: tokens per second."]
    assert max(map(len, text.splitlines())) <= TERMINAL and "hidden=1024" in text and "hidden=2048" in text


def test_names_that_differ_in_their_middle_stay_different():
    names = [f"{'a' * 40}{number}{'b' * 40}" for number in range(3)]
    text, *_ = fit_to_width(HEAD, [[name, *FIGURES] for name in names], "lrrrrr")
    assert [line.split()[1] for line in text.splitlines()[2:]] == ["1", "2", "3"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abc=/. ", max_size=150), min_size=1, max_size=4, unique=True),
    st.lists(st.text("abc ", max_size=25), min_size=1, max_size=9),
)
def test_every_table_fits_and_says_so_if_it_lost_something(names, headings):
    rows = [[name, *("1.0000" for _ in headings)] for name in names]
    text, *notes = fit_to_width(["arm", *headings], rows, "l" + "r" * len(headings))
    lines = text.splitlines()
    assert max(map(len, lines)) <= TERMINAL
    assert ("Names are shortened here." in notes) == (not all(name in text for name in names))
    assert bool([note for note in notes if note.startswith("Left out")]) == (
        lines[0].count("|") < 2 + len(headings)
    )


def test_a_comparison_fits_a_terminal(tmp_path):
    names = ["attn=gqa norm=pre", "attn=differential norm=sandwich lr=0.00123 layout=['attn mlp']"]
    lines = summary(comparison(tmp_path, dict(zip(names, (2.0, 1.9))))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert max(map(len, rows)) <= TERMINAL and any("sd is the standard deviation" in line for line in lines)
    assert "±" not in "".join(lines)


@pytest.mark.parametrize("words", [["experiment=small_jamba"], ["model/attn=mqa"]])
def test_a_description_fits_a_terminal_and_leaves_nothing_out(words):
    columns = [column(compose(words)), column(compose(["model/layout=local_global", "norm=post"]))]
    lines = described(columns)
    assert max(map(len, lines)) <= TERMINAL
    said = "".join(lines).replace(" ", "")
    for layer in (one["layout"] for one in columns):
        assert all(part.replace(" ", "") in said for part in layer.split(", "))


def test_null_differs_from_missing(tmp_path):
    finished(tmp_path / "a", "model/attn=gqa")
    finished(tmp_path / "b", "model/attn=mla")
    one = compare([tmp_path])
    page, text, data = (file.read_text() for file in write_report(one, tmp_path / "report", readings(one)))
    differences = {row["key"]: row["values"] for row in json.loads(data)["differences"]}
    absent = {key for key, values in differences.items() if len(values) == 1}
    null = {key for key, values in differences.items() if None in values.values()}
    assert absent and null and all(len(differences[key]) == 1 for key in absent)
    rows = {
        line.split("|")[1].strip(" `"): line for line in text.splitlines() if line.startswith("| `model.")
    }
    assert all("–" in rows[key] for key in absent) and all("null" in rows[key] for key in null)
    assert "<td>–</td>" in page and "<td>null</td>" in page and "null means that it is set to null" in page


@pytest.mark.parametrize("width", [40, 60, 80])
def test_table_fits_a_narrow_terminal(width):
    text, *notes = fit_to_width(HEAD, [["norm=sandwich model/attn=differential", *FIGURES]], "lrrrrr", width)
    assert max(map(len, text.splitlines())) <= width
    left = text.partition("\n")[0].count("|") - 1 < len(HEAD)
    assert left == any(note.startswith("Left out here: ") for note in notes) and (left or width == 80)
