"""A judge behind an endpoint: answers, failures of every kind, the cache, the budget, and that no key is shown."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minllm.errors import UserError
from minllm.grading.judge import Question
from minllm.grading.judge.endpoint import Endpoint
from tests.judge_server import JudgeServer, Reply, Request, cut_off, hangs, judge_server, refuses

pytest.importorskip("openai")
pytest.importorskip("jsonschema")

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-very-secret-0123456789"
SCHEMA = {
    "type": "object",
    "properties": {
        "assessment": {"type": "string"},
        "grammar": {"type": "integer", "minimum": 0, "maximum": 10},
        "age": {"enum": ["A", "B", "C"]},
    },
    "required": ["assessment", "grammar", "age"],
    "additionalProperties": False,
}
GOOD = {"assessment": "Fine.", "grammar": 7, "age": "B"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Work in an empty folder, without a key, and don't pause between repeated requests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(f"openai._base_client.{name}", 0.001)


def questions(*texts: str) -> list[Question]:
    return [Question("Grade this story.", text, SCHEMA) for text in texts]


def judge(server: JudgeServer, **options) -> Endpoint:
    return Endpoint(base_url=server.base_url, model=server.model, **options)


def good(request: Request) -> dict:
    return {**GOOD, "grammar": min(len(request.text), 10)}


def first(reply: Reply | dict | str):
    """A policy that answers the first request about a text with `reply`, and later ones well."""
    return lambda request: good(request) if request.attempt else reply


# ---- answers -------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_questions_and_are_requested_side_by_side(capsys):
    together = threading.Barrier(3)  # broken unless three requests are made at the same time

    def policy(request):
        together.wait(60)
        return good(request)

    with judge_server(policy) as server:
        answers = judge(server, parallel=3, price_in=2.0, price_out=8).ask(
            questions(*("x" * n for n in range(9)))
        )
    assert [answer["grammar"] for answer in answers] == list(range(9))
    assert server.most_at_once == 3
    body = server.requests[0].body
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert list(body["response_format"]["json_schema"]["schema"]["properties"]) == list(SCHEMA["properties"])
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0, 0, 1000)
    printed = capsys.readouterr().out
    assert "9 questions, 0 answers" in printed and "estimated" in printed
    made = re.search(
        r"Judge: 9 requests so far, ([\d,]+) tokens in and (\d+) out .*, cost (\d\.\d+)", printed
    )
    tokens_in, tokens_out, cost = (float(number.replace(",", "")) for number in made.groups())
    assert cost == pytest.approx((2 * tokens_in + 8 * tokens_out) / 1e6, abs=1e-4) and cost > 0


def test_equal_questions_are_asked_once():
    with judge_server(good) as server:
        answers = judge(server).ask(questions("a", "bb", "a"))
    assert [answer["grammar"] for answer in answers] == [1, 2, 1]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "reply",
    [
        {**GOOD, "grammar": 11},
        {**GOOD, "grammar": "7"},
        {**GOOD, "age": "Z"},
        {"assessment": "Fine.", "grammar": 7},
        {**GOOD, "bonus": 1},
        "no JSON at all",
        '{"assessment": "Fine.", "grammar": NaN, "age": "B"}',
        '[{"assessment": "in a list"}]',
        "",
        Reply(content=json.dumps(GOOD)[:-5], finish_reason="length"),
        Reply(content=None, refusal="I can't grade this."),
        Reply(content=None, finish_reason="content_filter"),
        Reply(body='{"choices": []}'),
    ],
)
def test_what_is_no_grade_is_asked_again_in_another_way_and_then_missing(reply, capsys):
    with judge_server(first(reply)) as server:
        assert judge(server).ask(questions("a")) == [{**GOOD, "grammar": 1}]
        one, two = (request.body for request in server.requests)
        assert two["seed"] != one["seed"] and two["temperature"] > one["temperature"]
    with judge_server(lambda request: reply) as server:
        assert judge(server, attempts=2).ask(questions("b")) == [None]
        assert len(server.requests) == 2
        assert "1 of 1 answers are missing" in capsys.readouterr().out


def test_missing_answers_are_cached_for_as_many_attempts():
    with judge_server(lambda request: "not a grade") as server:
        for options, requests in (
            ({"attempts": 2}, 2),
            ({"attempts": 2}, 2),
            ({"attempts": 1}, 2),
            ({"attempts": 3}, 5),
            ({"attempts": 2, "retry_missing": True}, 7),
        ):
            assert judge(server, **options).ask(questions("a")) == [None]
            assert len(server.requests) == requests


def test_the_schema_is_in_the_instructions_unless_the_endpoint_enforces_it():
    with judge_server(lambda request: f"Let me think {{hm}}.\n```json\n{json.dumps(GOOD)}\n```") as server:
        for structured, kind in (("json_object", {"type": "json_object"}), ("none", None)):
            assert judge(server, structured=structured, system=False, seed=None).ask(questions("a")) == [GOOD]
            request = server.requests[-1]
            assert request.body.get("response_format") == kind and "seed" not in request.body
            assert json.dumps(SCHEMA) in request.text and request.instructions == ""


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        refuses(429),
        refuses(429, headers={}),
        refuses(429, headers={"Retry-After": "0.001"}),
        refuses(500),
        refuses(503, headers={}),
        cut_off(),
    ],
)
def test_passing_failures_are_repeated(reply):
    with judge_server(first(reply)) as server:
        endpoint = judge(server)
        assert endpoint.ask(questions("a", "b")) == [{**GOOD, "grammar": 1}] * 2
        assert len(server.requests) == endpoint.spent.requests == 4


@pytest.mark.parametrize("reply", [refuses(500), refuses(400), cut_off(), hangs(), Reply(body="<html>")])
def test_failures_that_stay_are_missing_and_asked_again_by_the_next_command(reply, capsys):
    with judge_server(lambda request: reply if request.text == "bad" else good(request)) as server:
        judge(server).ask(questions("a"))
        patience = 0.2 if reply.is_hanging else 60.0
        assert judge(server, retries=0, timeout_seconds=patience).ask(questions("a", "bad")) == [
            {**GOOD, "grammar": 1},
            None,
        ]
        assert "1 of 1 answers are missing" in capsys.readouterr().out
        assert len(server.requests) == 2
        server.policy = good
        assert judge(server).ask(questions("bad")) == [{**GOOD, "grammar": 3}]


@pytest.mark.parametrize(
    "reply, words",
    [
        (refuses(401), ["OPENAI_API_KEY", "needs a key"]),
        (refuses(403), ["OPENAI_API_KEY"]),
        (refuses(400, "response_format json_schema unsupported"), ["judge.structured=json_object"]),
        (refuses(400, "temperature must be 1"), ["judge.temperature=null"]),
        (refuses(422, "max_tokens is not supported"), ["judge.max_tokens=null"]),
        (refuses(429, "quota exceeded"), ["quota exceeded", "judge.parallel"]),
        (refuses(500, "out of order"), ["out of order", "500"]),
        (refuses(402, "no money"), ["no money"]),
        (cut_off(), ["can't be reached"]),
    ],
)
def test_an_endpoint_that_never_answers_is_reported_in_one_sentence(reply, words):
    with judge_server(lambda request: reply) as server, pytest.raises(UserError) as error:
        judge(server, retries=0, parallel=1).ask(questions("a", "b", "c"))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(server.requests) == 1


def test_a_slow_or_absent_endpoint_is_named():
    with judge_server(lambda request: hangs()) as server:
        with pytest.raises(UserError, match=r"doesn't reply within judge.timeout_seconds=0.1"):
            judge(server, retries=1, timeout_seconds=0.1).ask(questions("a"))
        assert len(server.requests) == 2
    with pytest.raises(UserError, match=r"127.0.0.1.*can't be reached.*judge.base_url"):
        judge(server, retries=1).ask(questions("a"))


def test_a_wrong_model_and_a_wrong_path_are_named():
    with judge_server(good, model="llama-3.1") as server:
        with pytest.raises(UserError, match="'llama3.1'. Did you mean 'llama-3.1'"):
            Endpoint(base_url=server.base_url, model="llama3.1").ask(questions("a"))
        with pytest.raises(UserError, match="end in /v1"):
            Endpoint(base_url=server.base_url.removesuffix("/v1"), model="llama-3.1").ask(questions("a"))


def test_a_judge_that_is_of_no_use_is_not_asked_any_further():
    useless = pytest.raises(UserError, match=r"20 times in a row.*no JSON object.*judge.structured")
    with judge_server(lambda request: "seven out of ten") as server, useless:
        judge(server, parallel=2).ask(questions(*map(str, range(100))))
    assert len(server.requests) <= 22


def test_an_endpoint_that_stops_working_is_left_alone_and_the_rest_asked_later():
    texts = questions(*(f"{number:02}" for number in range(40)))
    with judge_server(lambda request: good(request) if request.text < "05" else cut_off()) as server:
        with pytest.raises(UserError, match="20 times in a row.*can't be reached"):
            judge(server, parallel=1, retries=0).ask(texts)
        assert len(server.requests) == 25
        server.policy = good
        assert judge(server).ask(texts) == [{**GOOD, "grammar": 2}] * 40
        assert len(server.requests) == 25 + 35


# ---- the cache -----------------------------------------------------------------------------------


def test_a_repeated_command_makes_no_request_and_needs_no_endpoint(capsys):
    texts = questions("a", "bb", "ccc")
    with judge_server(good) as server:
        answers = judge(server).ask(texts)
    capsys.readouterr()
    assert judge(server, max_requests=1, parallel=2, timeout_seconds=1.0).ask(texts) == answers
    assert len(server.requests) == 3
    assert "all 3 answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed", [{"temperature": 1.0}, {"seed": 1}, {"max_tokens": 50}, {"system": False}]
)
def test_another_setting_another_answer(changed):
    with judge_server(good) as server:
        judge(server).ask(questions("a"))
        judge(server, **changed).ask(questions("a"))
        assert len(server.requests) == 2


def test_without_a_place_for_the_answers_nothing_is_asked(tmp_path):
    (tmp_path / "file").touch()
    with judge_server(good) as server:
        with pytest.raises(UserError, match="judge.cache=.*file can't be written"):
            judge(server, cache=str(tmp_path / "file")).ask(questions("a"))
        assert not server.requests


def test_damaged_files_are_ignored_and_replaced():
    with judge_server(good) as server:
        answers = judge(server).ask(questions("a", "bb", "ccc"))
        damaged = sorted(Path(".cache/judge").rglob("*.json"))
        damaged[0].write_bytes(b"")
        damaged[1].write_text('{"answer": {"grammar": 99}}')
        damaged[2].write_bytes(b"\xff\xfe{" * 10)
        assert judge(server).ask(questions("a", "bb", "ccc")) == answers
        assert len(server.requests) == 6
        assert judge(server).ask(questions("a", "bb", "ccc")) == answers
        assert len(server.requests) == 6


SCRIPT = """
import sys
from minllm.grading.judge import Question
from minllm.grading.judge.endpoint import Endpoint
questions = [Question("Grade.", str(number), {"type": "object"}) for number in range(12)]
Endpoint(base_url=sys.argv[1], model="stand-in", parallel=2).ask(questions)
"""


def test_after_a_kill_only_missing_answers_are_requested():
    command, victim = [sys.executable, "-c", SCRIPT], []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def policy(request):
        if request.text == "6":
            victim[0].kill()
            return hangs()
        return {}

    with judge_server(policy) as server:
        victim.append(subprocess.Popen([*command, server.base_url], env=environment))
        assert victim[0].wait() == -signal.SIGKILL
        kept = len(list(Path(".cache/judge").rglob("*.json")))
        assert 5 <= kept < 12  # with two at a time, the seventh was requested after five answers
        server.policy = lambda request: {}
        texts = [Question("Grade.", str(number), {"type": "object"}) for number in range(12)]
        endpoint = judge(server)
        assert endpoint.ask(texts) == [{}] * 12
        assert endpoint.spent.requests == 12 - kept


def test_ctrl_c_stops_at_once_and_keeps_the_answers(capsys):
    def policy(request):
        if request.text == "c":
            os.kill(os.getpid(), signal.SIGINT)
            return hangs()
        return good(request)

    with judge_server(policy) as server:
        with pytest.raises(KeyboardInterrupt):
            judge(server, parallel=1).ask(questions("a", "b", "c", "d"))
        assert "Judge: 3 requests" in capsys.readouterr().out
        server.policy = good
        judge(server).ask(questions("a", "b", "c", "d"))
        assert sorted(request.text for request in server.requests) == ["a", "b", "c", "c", "d"]


# ---- the budget ----------------------------------------------------------------------------------


def test_too_many_questions_are_refused_before_the_first_is_asked():
    with judge_server(good) as server:
        endpoint = judge(server, max_requests=5)
        endpoint.ask(questions("a", "b"))
        with pytest.raises(UserError, match=r"4 questions .* 3 requests .* judge.max_requests=7"):
            endpoint.ask(questions("a", "c", "d", "e", "f"))
        assert len(server.requests) == 2
        endpoint.ask(questions("a", "b", "c", "d", "e"))
        assert len(server.requests) == 5


@pytest.mark.parametrize("reply", [refuses(500), "not a grade"])
def test_repeated_requests_count_and_the_budget_is_never_exceeded(reply):
    with judge_server(first(reply)) as server:
        with pytest.raises(UserError, match=r"judge.max_requests=7 is used up.*repeat the command"):
            judge(server, max_requests=7, parallel=3).ask(questions(*"abcde"))
        assert len(server.requests) == 7
        judge(server, max_requests=7).ask(questions(*"abcde"))


# ---- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422, 429, 500, "html", "refusal"])
def test_the_key_is_sent_but_never_written_or_shown(status, monkeypatch, capfd, tmp_path, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level("DEBUG")
    shown = f"The header was Bearer {KEY}; partly {KEY[:12]}***{KEY[-4:]} " + "x" * 280 + KEY
    replies = {200: GOOD, "html": Reply(body=shown), "refusal": Reply(content=None, refusal=shown)}
    with judge_server(lambda request: replies.get(status) or refuses(status, shown), key=KEY) as server:
        endpoint, error = judge(server, key="MY_KEY", retries=0, attempts=1), None
        try:
            endpoint.ask(questions("a"))
        except UserError as refusal:
            error = refusal
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    everything = "".join(capfd.readouterr()) + caplog.text + str(error) + repr(endpoint)
    everything += "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY[:12] not in everything and KEY[-8:] not in everything
    assert (error is None) == (status in (200, "html", "refusal"))


def test_what_is_no_key_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nexport é")
    with judge_server(good) as server, pytest.raises(UserError, match="OPENAI_API_KEY") as error:
        judge(server).ask(questions("a"))
    assert KEY not in str(error.value) and not server.requests


def test_a_rejected_key_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-other")
    with judge_server(good, key=KEY) as server, pytest.raises(UserError, match="MY_KEY") as error:
        judge(server, key="MY_KEY").ask(questions("a"))
    assert "sk-other" not in str(error.value)
