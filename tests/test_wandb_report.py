"""A report at W&B, held against what is sent to a server of our own that answers as W&B's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from minllm.study.wandb_report import publish, without_secrets
from tests.commands import python

KEY = "0123456789abcdef" * 2 + "01234567"
REPORT = {"project": "tests", "entity": None, "group": "a 'grid'", "title": "MQA", "markdown": "# Worse"}


class WandB(ThreadingHTTPServer):
    """Answers what a report asks; the other questions are those of its metrics."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.saved: list[dict[str, Any]] = []
        self.projects = ["tests"]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            self.saved.append(variables)
            where = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            named = {"name": variables["name"], "displayName": variables["displayName"]}
            view = {**named, "id": "one", "type": "runs", "project": where, "spec": variables["spec"]}
            return {"upsertView": {"view": {**view, "description": ""}, "inserted": True}}
        if "ProjectInternalId" in query:
            is_there = variables["projectName"] in self.projects
            return {"project": {"id": "p", "internalId": "1"} if is_there else None}
        if "GetProjects" in query:
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {
                "models": {"edges": [{"node": project(name)} for name in self.projects], "pageInfo": page}
            }
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}}


def project(name: str) -> dict[str, Any]:
    node = {"__typename": "Project", "id": "p", "name": name, "entityName": "me"}
    return {**node, "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}


class Handler(BaseHTTPRequestHandler):
    server: WandB

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[WandB]:
    with WandB() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def published(server: WandB, home: Path, **changes: Any) -> str:
    """Return what `publish` says, in a process of its own, since wandb reads the environment once."""
    pytest.importorskip("wandb_workspaces")
    address = f"http://127.0.0.1:{server.server_port}"
    own = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "HOME": str(home), "no_proxy": "127.0.0.1"}
    script = home / "publish.py"
    script.write_text(
        "import json, sys\nfrom minllm.study.wandb_report import publish\n"
        "print(publish(**json.loads(sys.argv[1])))"
    )
    done = python(str(script), json.dumps({**REPORT, **changes}), cwd=home, **own)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr and "Saved report" not in done.stderr
    return done.stdout.strip()


def test_a_report_has_the_text_and_the_curves_of_the_groups_arms(server: WandB, tmp_path: Path):
    said = published(server, tmp_path)
    assert said == f"W&B: the report is at http://127.0.0.1:{server.server_port}/me/tests/reports/MQA--one"
    (saved,) = server.saved
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "tests", "MQA")
    blocks = {block["type"]: block for block in json.loads(saved["spec"])["blocks"]}
    assert blocks["markdown-block"]["content"] == "# Worse"
    (runs,) = blocks["panel-grid"]["metadata"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("group", "=", "a 'grid'")
    assert runs["grouping"] == [{"section": "run", "name": "jobType"}]
    (curves,) = blocks["panel-grid"]["metadata"]["panelBankSectionConfig"]["panels"]
    assert (curves["config"]["metrics"], curves["config"]["xAxis"]) == (["val_bpb"], "tokens")
    assert curves["config"]["groupBy"] == "jobType"


def test_what_goes_wrong_is_said_in_a_line(server: WandB, tmp_path: Path):
    said = published(server, tmp_path, project="elsewhere", entity="us")
    assert said.startswith("W&B: no report, because of an error: ") and "us/elsewhere" in said
    assert "\n" not in said and not server.saved


def test_without_the_package_or_a_key_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in publish(**REPORT)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "wandb login" in publish(**REPORT)


def test_a_secret_is_never_said():
    said = without_secrets(f"https://me:pass@host/x refused {KEY} and wandb_v1_{KEY}")
    assert said == "https://…@host/x refused … and …"
