"""The table at the end of a grid."""

from __future__ import annotations

import json

from minllm.grid import grid_table


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
    rows = grid_table(jobs).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:4]]
    assert cells[2] == ["`model/attn=mqa`", "1,000", "0.4000", "0.1000", "123", "4,096"]
    assert cells[3] == ["`model/attn=mha`", "1,000", "0.5200 ± 0.0200", "0.2200 ± 0.0200", "123", "4,096"]
    assert len(set(map(len, rows[:4]))) == 1  # it reads well as plain text too
    assert rows[5].startswith("2,048 tokens each; seeds 0, 1 ")
    assert "a processor, 2 threads, torch 2.13.0" in rows[5] and "a card" not in rows[5]


def test_what_did_not_train_is_left_out(tmp_path):
    failed = tmp_path / "failed"
    failed.mkdir()
    jobs = [(["a=1"], run(tmp_path, "one", 0.5)), (["a=2"], failed), (["a=3"], run(tmp_path, "three", None))]
    assert grid_table(jobs) == "" == grid_table([])
    jobs.append((["a=4"], run(tmp_path, "four", 0.6, device="cuda")))
    table = grid_table(jobs)
    assert "a=1" in table and "a=4" in table and "a=2" not in table and "a=3" not in table
    assert "a card, torch 2.13.0 and a processor" in table
