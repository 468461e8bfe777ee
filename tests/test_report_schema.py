"""docs/report.schema.json describes every key of report.json and of the line that --json prints, and no other."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from minllm.cli.main import refused, without_json
from minllm.errors import UserError
from minllm.estimates import Estimate
from minllm.page.terminal import answer, json_output
from minllm.study.comparison import of_arms
from minllm.study.divergence import Divergence
from minllm.study.report.data import in_a_line, to_json
from minllm.study.report.markdown import to_markdown
from minllm.study.report.page import to_html
from minllm.study.scaling.answer import Prediction
from minllm.study.scaling.check import Check
from minllm.study.scaling.ladders import families_among
from minllm.study.scaling.rates import Optimum, line_through
from minllm.study.standing import Standing
from minllm.study.tuning import Tried, Tuning
from tests.comparisons import comparison, readings, with_documents
from tests.gradings import ANALYSIS, grading
from tests.test_scaling import arms_at

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/report.schema.json").read_text(encoding="utf-8"))
LEDGER = {"file": "outputs/ledger.jsonl", "id": "abc", "crowned": None, "sentence": "It is in the ledger."}


def validate_report(report: Any) -> None:
    jsonschema.validate(report, SCHEMA, jsonschema.Draft202012Validator)


def validate_answer(line: Any) -> None:
    jsonschema.validate(
        line, {**SCHEMA["$defs"]["answer"], "$defs": SCHEMA["$defs"]}, jsonschema.Draft202012Validator
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory):
    """A comparison that has something to say in every section."""
    one = comparison(tmp_path_factory.mktemp("compared"), {"pre": 2.0, "post": 2.1, "none": 2.0001}, aa=True)
    one = with_documents(one)
    tried = [Tried({"optim.lr": 0.01}, {1000: 2.0, 1001: 2.1}), Tried({"optim.lr": 0.02}, {1000: None})]
    found = Tuning(tried, {"optim.lr": 0.01}, "the lowest", 9, "0.02 failed")
    added = {"standing": Standing(3, 0.01, ("better",)), "divergence": Divergence([8], [], 8, 7, 1.0)}
    contests = [replace(contest, **added) for contest in one.contests]
    tuning = {"pre": found, "post": found}
    return replace(one, tuning=tuning, contests=contests, commands=["python sweep.py search=verdict"])


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_full_report_matches_schema(compared):
    report = json.loads(to_json(compared, readings(compared), LEDGER, grading(compared), ANALYSIS))
    validate_report(report)
    assert all(report[key] for key in report if key not in ("left_out", "ladders")), "each section is filled"
    validate_report(json.loads(to_json(compared, [])))
    validate_answer(in_a_line(compared, Path("report.json"), LEDGER, grading(compared)))
    validate_answer(in_a_line(compared, Path("report.json"), LEDGER))


def test_ladders_match_the_schema(tmp_path):
    optima = [Optimum(2e5, 0.01, 0.1), Optimum(4e5, 0.008, 0.1)]
    found = families_among(arms_at(tmp_path, [1e5, 2e5, 4e5, 8e5]))
    found = [replace(family, rates=line_through(optima[: 1 + at])) for at, family in enumerate(found)]
    prediction = Prediction(1.6e6, 2, 3, Estimate(-0.1, (-0.2, -0.05)))
    one = of_arms([arm for family in found for arm in family.arms], families=found)
    one = replace(one, checks={found[1].name: Check(prediction, [-0.1, -0.11, -0.12])})
    report = json.loads(to_json(one, []))
    validate_report(report)
    (ladder,) = report["ladders"]
    assert ladder["check"]["inside"] and [len(line["optima"]) for line in ladder["rates"]] == [1, 2]
    line = in_a_line(one, None, None)
    validate_answer(line)
    assert line["headline"] == one.headline and line["ladders"][0]["answer"] == "holds"
    assert one.headline == "norm=sandwich is better than norm=pre, and the difference holds at scale."
    assert line["status"] == "settled" and "inside the predicted" in to_markdown(one, [])
    assert "Learning rates" in to_html(one, [])


@pytest.mark.parametrize(
    "place",
    [
        *(
            (),
            ("contests", 0),
            ("contests", 0, "verdict"),
            ("contests", 0, "verdict", "looks", 0),
            ("arms", 0),
        ),
        *(("measures", 0), ("measures", 0, "stability"), ("tuning", "pre"), ("tuning_effort", 0)),
        *(("grades",), ("grades", "contests", 0), ("grades", "arms", 0, "shown", 0), ("analysis",)),
    ],
)
def test_a_key_that_is_not_described_is_refused(compared, place):
    report = json.loads(to_json(compared, readings(compared), LEDGER, grading(compared), ANALYSIS))
    changed = copy.deepcopy(report)
    inner = changed
    for step in place:
        inner = inner[step]
    inner["news"] = 1
    with pytest.raises(jsonschema.ValidationError, match="news"):
        validate_report(changed)


def test_every_key_is_described_and_every_object_closed():
    for path, node in objects(SCHEMA, "report"):
        assert "additionalProperties" in node, path
        for key, value in node.get("properties", {}).items():
            assert value.get("description"), f"{path}.{key}"
        assert set(node.get("required", [])) <= set(node.get("properties", {})), path


def objects(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schema of each object, at any depth."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from objects(value, f"{path}[{index}]")


# ---- the line of --json --------------------------------------------------------------------------


def test_only_the_answer_goes_to_standard_output(capfd, compared):
    with json_output():
        print("progress")
        answer(in_a_line(compared, Path("report.json"), None))
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and json.loads(out)["headline"] == compared.headline and err == "progress\n"
    answer({"status": "read"})
    print("after")
    assert capfd.readouterr().out == "after\n", "without --json there is no such line"


def test_a_refusal_is_a_line_as_well(capfd):
    with json_output():
        assert refused("It can't be.\x1b[31m") == 2
    out, err = capfd.readouterr()
    validate_answer(json.loads(out))
    assert json.loads(out)["error"] == "It can't be.\\x1b[31m" and err == "It can't be.\\x1b[31m\n"


@pytest.mark.parametrize(
    "words", [["task=compare"], ["task=grade"], ["task=ledger"], ["search=verdict", "arms.b=[norm=none]"]]
)
def test_json_is_no_override(words):
    assert without_json([*words, "--json"]) == words and without_json(words) == words


@pytest.mark.parametrize("words", [["norm=post"], ["search=size"], ["-m", "task=compare", "aa=true,false"]])
def test_json_where_there_is_no_single_answer_is_refused(words):
    assert without_json(words) == words
    with pytest.raises(UserError, match="--json is for a single task=compare, task=grade, task=ledger or"):
        without_json([*words, "--json"])


@pytest.mark.parametrize("word", ["sweep.dry_run=true", "--help", "--cfg"])
def test_json_where_there_is_no_answer_is_refused(word):
    with pytest.raises(UserError, match=f"--json prints the answer of a command, and {word} has none"):
        without_json(["search=verdict", word, "--json"])
