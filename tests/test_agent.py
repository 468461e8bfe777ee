"""The program of docs/agent.md runs as it stands, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.commands import python
from tests.test_readme import ROOT, TINY, blocks

PAGE = (ROOT / "docs/agent.md").read_text(encoding="utf-8")


def test_the_program_of_the_page_proposes_is_told_and_reads_the_ledger(tmp_path: Path, monkeypatch, capsys):
    (program,) = blocks("python", PAGE)
    words = ["search.rates=[]", "search.looks=[1]", "search.prompts=[]", "search.stories=0", "train.evals=1"]
    words += ["train.steps=2", "train.device=cpu", "memory.predict=false", "train.check=false"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["agent.py", *TINY, *words])
    monkeypatch.setattr(subprocess, "run", run)
    exec(compile(program.replace("(1.5, 2.5, 3.5)", "(1.5,)"), "docs/agent.md", "exec"), {})
    headline, idea = capsys.readouterr().out.splitlines()
    assert headline == "model/mlp=power_1_5 against a: inconclusive."
    assert idea == "model/mlp=power_1_5: inconclusive, among all ideas: no"
    lines = [json.loads(line) for line in (tmp_path / "outputs/ledger.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "reached"]


def run(command: list[str], **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m minllm …`, forked. That -m opens both doors is shown by tests/test_installed.py."""
    assert command[:3] == [sys.executable, "-m", "minllm"] and streams == {"stdout": subprocess.PIPE}
    door, words = ("sweep.py", command[4:]) if command[3] == "sweep" else ("run.py", command[3:])
    return python(door, *words, cwd=Path.cwd())
