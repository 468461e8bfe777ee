"""The table at the end of a grid."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from minllm.grid.table import grid_table


def run(folder, name: str, val_bpb: float | None, *, seed: int = 0, device: str = "cpu") -> object:
    """Write what a run leaves; one without `val_bpb` didn't train."""
    path = folder / f"{name}-{seed}"
    path.mkdir()
    machine = {"cpu": "a processor", "threads": 2, "gpu": "a card", "versions": {"torch": "2.13.0"}}
    summary = {"params": 1000, "tokens": 2048, "seed": seed, "tokens_per_second": 123.4, "device": device}
    summary |= {"state_bytes_per_sequence": 4096} | ({} if val_bpb is None else trained(val_bpb))
    (path / "environment.json").write_text(json.dumps(machine))
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def trained(val_bpb: float) -> dict:
    return {"val_bpb": val_bpb, "bpb_above_floor": val_bpb - 0.3}


def test_seeds_are_one_row_and_the_best_is_first(tmp_path):
    jobs = [
        (["model/attn=mha", f"seed={seed}", "train.steps=4"], run(tmp_path, "mha", bpb, seed=seed))
        for seed, bpb in [(0, 0.5), (1, 0.54)]
    ]
    jobs.append((["model/attn=mqa", "seed=0", "train.steps=4"], run(tmp_path, "mqa", 0.4)))
    rows = grid_table(jobs, 80).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:4]]
    assert cells[2] == ["`model/attn=mqa`", "1,000", "0.4000", "123", "4,096"]
    assert cells[3] == ["`model/attn=mha`", "1,000", "0.5200 ± 0.0283", "123", "4,096"]
    assert len(set(map(len, rows[:4]))) == 1  # it reads well as plain text too
    said = " ".join(rows[5:])
    assert said.startswith(
        "2,048 tokens each; seeds 0, 1 (± is the standard deviation over seeds). The floor, "
    )
    assert "is 0.3000." in said and "a processor, 2 threads, torch 2.13.0" in said and "a card" not in said


def test_other_floors_are_a_column(tmp_path):
    one, other = run(tmp_path, "one", 0.5), run(tmp_path, "other", 0.6)
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**summary, "bpb_above_floor": 0.1}))
    rows = grid_table([(["a=1"], one), (["a=2"], other)], 80).splitlines()
    assert [row.split("|")[3:5] for row in rows[2:4]] == [
        ["  0.5000 ", "          0.2000 "], ["  0.6000 ", "          0.1000 "],
    ]  # fmt: skip
    assert "The floor" not in " ".join(rows)


@pytest.mark.parametrize("width", [48, 60, 80, 200])
def test_a_table_fits_its_width_and_says_what_it_left_out(tmp_path, width: int):
    words = [f"model.layout=[attn mlp mlp,{'attn mlp,' * number}]" for number in range(3)]
    jobs = [
        ([word, f"seed={seed}"], run(tmp_path, f"{number}", 0.5 + number + seed / 9, seed=seed))
        for number, word in enumerate(words)
        for seed in range(2)
    ]
    lines = grid_table(jobs, width).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert max(map(len, rows)) <= width and len(rows) == 5
    assert all(len(line) <= width or line.startswith("  ") for line in lines)
    shown = all(word in line for word, line in zip(words, rows[2:]))
    assert shown == (width == 200) == ("…" not in "".join(rows))
    assert [line.strip() for line in lines if line.startswith("  ")][:-1] == ([] if shown else words)
    assert ("state, bytes" in rows[0]) == (width >= 80)
    assert ("Columns left out" in " ".join(lines)) == (width < 80)


@pytest.mark.parametrize("name", ["outputs/a-grid", "my grid", "it's, here", "[a]", "x" * 90])
def test_the_command_to_compare_names_the_folder_of_this_grid(tmp_path, monkeypatch, name: str):
    """As a shell and Hydra read it, on one line; with the packages of code that were named."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    jobs = [
        ([f"norm={norm}", "extensions=[my_idea]"], run(Path(name), norm, bpb))
        for norm, bpb in [("a", 1), ("b", 2)]
    ]
    line = grid_table(jobs, 80).splitlines()[-1]
    python, door, extensions, task, runs = shlex.split(line)
    assert (python, door, extensions, task) == ("python", "run.py", "extensions=[my_idea]", "task=compare")
    assert OverridesParser.create().parse_overrides([runs])[0].value() == [name]


def test_what_did_not_train_is_left_out(tmp_path):
    failed = tmp_path / "failed"
    failed.mkdir()
    jobs = [(["a=1"], run(tmp_path, "one", 0.5)), (["a=2"], failed), (["a=3"], run(tmp_path, "three", None))]
    assert grid_table(jobs) == "" == grid_table([])
    jobs.append((["a=4"], run(tmp_path, "four", 0.6, device="cuda")))
    table = grid_table(jobs)
    assert "a=1" in table and "a=4" in table and "a=2" not in table and "a=3" not in table
    assert "a card, torch 2.13.0 and a processor" in " ".join(table.split())
