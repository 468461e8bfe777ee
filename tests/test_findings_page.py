"""The ledger of findings, and the page that is made of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.schema.groups import find_groups
from minllm.study.findings import rows
from minllm.study.findings.outcomes import Outcome
from minllm.study.findings.page import (
    CHANGED,
    Entry,
    cells_of,
    decided,
    in_order,
    to_html,
    to_markdown,
)
from minllm.study.findings.rows import Row
from minllm.tasks.findings import entries_of, finding_of, findings, published
from minllm.verdict.finding import digest
from tests.pages import ROOT

OUTCOME = asdict(
    Outcome("", "norm=post", "norm=pre", ["worse"], "worse", 0.2, (0.1, None), 7, "bits per byte")
)
ROW = Row(
    "one", "abc", "laptop", 0, [], "replicated", [OUTCOME], 7.5, "python sweep.py finding=one", "2026-11-28"
)
ENTRY = Entry(
    "one", "laptop", None, "One <b> beats the other.", ["2002.04745"], "it is wrong.", "Nothing.", "abc"
)


def test_a_row_is_added_once_and_read_as_it_was(tmp_path: Path):
    path = tmp_path / "outputs/findings.jsonl"
    odd = replace(ROW, command="python sweep.py \u2028 \x85")  # no ends of lines in JSON
    for row in (ROW, replace(ROW, time="later"), replace(odd, first_seed=100)):
        rows.append(row, path)
    assert [(row.time, row.first_seed) for row in rows.read(path)] == [(ROW.time, 0), (ROW.time, 100)]
    assert rows.read(path)[1].command == odd.command
    assert rows.outcomes_of(rows.read(path)[0])[0].interval == [0.1, None]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2, is damaged. It isn't a JSON object"),
        ('{"finding": "one"}', "line 2, is damaged. Its row has no 'digest'"),
        (rows.line(replace(ROW, outcomes=[{**OUTCOME, "pairs": "x"}])), "outcomes.pairs is"),
        (rows.line(replace(ROW, outcomes=[{**OUTCOME, "interval": [0.1]}])), "outcomes.interval needs two"),
        (rows.line(replace(ROW, decision="proved")), "decision is"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, line: str, sentence: str):
    path = tmp_path / "findings.jsonl"
    path.write_text(f"{rows.line(ROW)}\n{line}\n")
    with pytest.raises(UserError, match=sentence):
        rows.read(path)


def test_the_page_has_the_newest_test_of_the_finding_as_it_is_now():
    newest = replace(ROW, decision="contradicted", minutes=8.0)
    again = replace(ROW, first_seed=100, decision="undecided")
    (cells,) = cells_of(ENTRY, [ROW, again, newest])
    assert cells[1:] == ["worse", "+0.2000", "–", "7", "8.0", "contradicted; undecided from seed 100"]
    assert cells_of(replace(ENTRY, digest="other"), [ROW])[0][-1] == CHANGED
    for page in (to_html([ENTRY], [ROW, again]), to_markdown([ENTRY], [ROW, again])):
        assert (
            "One <b>" not in page and "it is wrong." in page and "Nothing." in page and "2002.04745" in page
        )
        assert "norm=post against norm=pre: worse, +0.2000 bits per byte, 7 pairs. Predicted: worse." in page
        assert "Replicated here, in 7.5 minutes. With seeds from 100: undecided." in page
        assert "Tested: 1 of 1 findings, in 8 minutes: 1 replicated." in page
        assert (
            page.count("python sweep.py finding=one") == 2 + 1
        )  # in the table, and twice below: it was repeated


def test_the_page_says_what_was_decided_before_a_file_was_changed():
    before = [replace(ROW, digest="first", decision="undecided"), replace(ROW, digest="gpu", preset="gpu")]
    assert "Replicated here, in 7.5 minutes. Before its file was changed: undecided." in to_markdown(
        [ENTRY], [*before, ROW]
    )
    assert "None of 1 findings was tested." in to_html([ENTRY], [])


def test_each_outcome_has_a_row_and_findings_are_in_the_order_of_their_numbers():
    change = {**OUTCOME, "of": "change", "word": "better", "difference": None, "pairs": None}
    first, second = cells_of(ENTRY, [replace(ROW, outcomes=[OUTCOME, change])])
    assert first[0] == ENTRY.claim and second == ["", "change: better", "–", "–", "–", "", ""]
    names = [replace(ENTRY, name=name, number=at) for name, at in (("c", None), ("b", 2), ("a", 10))]
    assert [entry.name for entry in in_order(names)] == ["b", "a", "c"]
    numbers = [finding_of(name).number for name in find_groups()["finding"]]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_docs_are_what_the_code_makes_of_the_rows():
    tested = published(rows.read(ROOT / "docs/findings.jsonl"))
    made = to_markdown(entries_of(tested), tested)
    assert made == (ROOT / "docs/findings.md").read_text(encoding="utf-8"), (
        "python run.py task=findings ledger=docs/findings.jsonl makes it"
    )


def test_a_contradiction_was_looked_into():
    tested = published(rows.read(ROOT / "docs/findings.jsonl"))
    for entry in entries_of(tested):
        assert not decided(entry, tested).startswith("Contradicted") or entry.found, entry.name


def test_the_task_writes_the_pages_without_what_the_command_line_changed(tmp_path: Path, capsys):
    own = replace(ROW, finding="gated_mlp", digest=digest(finding_of("gated_mlp"), "laptop"))
    for row in (own, replace(own, typed=["train.steps=2"], decision="contradicted")):
        rows.append(row, tmp_path / "ledger.jsonl")
    made = findings(DictConfig({}), tmp_path / "run", ledger=str(tmp_path / "ledger.jsonl"))
    assert [row.typed for row in made] == [[]]
    table = capsys.readouterr().out
    assert table.count("replicated") == 1 and "contradicted" not in table
    page = (tmp_path / "run/findings.md").read_text()
    assert "Replicated here" in page and "Contradicted here" not in page
    with pytest.raises(UserError, match="no finding has been tested in this folder yet"):
        findings(DictConfig({}), tmp_path / "run", ledger=str(tmp_path / "none.jsonl"))


def test_a_preset_that_was_tested_has_a_section_of_its_own():
    gpu = replace(ENTRY, preset="gpu", digest="other")
    made = to_markdown([ENTRY, gpu], [ROW, replace(ROW, digest="other", preset="gpu", decision="undecided")])
    assert "Tested: 1 of 1 findings, in 15 minutes: 1 replicated, 1 undecided." in made
    assert "\n## one\n" in made and "\n## one-gpu\n" in made and "(#one-gpu)" in made
    assert "finding=one search.preset=gpu" in to_html([gpu], [])
