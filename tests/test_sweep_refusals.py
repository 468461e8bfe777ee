"""Searches that are refused before anything runs: a mistake costs one sentence."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import sweep as door
from tests.searches import GRID, SMALL, Workplace, one_sentence


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Iterator[Callable]:
    """Call the door in this process: `go("search=size")` gives (exit code, stdout, stderr)."""
    Workplace(tmp_path)  # whose optimizer is an extension
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers = logging.getLogger().handlers[:]

    def call(*words: str, before: Sequence[str] = SMALL) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sweep.py", *before, *words])
        return door.main([*before, *words]), *capfd.readouterr()

    yield call
    logging.getLogger().handlers[:] = handlers  # Hydra's write to a stream that this test is about to close


LR = "optim.lr=choice(0.1,0.2)"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["search=sise"], "There is no search=sise.* Did you mean 'size'"),
        ([LR, "sweep.metrik=x"], "'metrik'.* Did you mean '(sweep.)?metric'"),
        ([LR, "sweep.metric=loss"], "sweep.metric.*val_loss"),
        ([LR, "hydra.sweeper.n_trails=3"], "n_trails.* Did you mean 'n_trials'"),
        ([LR, "hydra.sweeper.n_trials=few"], "n_trials"),
        ([LR, "hydra.sweeper.n_trials=-1"], "n_trials"),
        ([LR, "hydra.sweeper.n_jobs=0"], "n_jobs"),
        ([LR, "memory.limit=lots"], "memory.limit=lots isn't a size"),
        ([LR, "task=generate"], "trains new models: leave out task="),
        ([LR, "sweep/pruner=medain"], "Did you mean 'median'"),
        ([LR, "sweep.storage=postgresql://nowhere.invalid/x"], "nowhere.invalid|driver"),
        ([LR, "sweep.storage=nonsense"], "isn't a database URL"),
        ([LR, "optim.fualt=bug"], "'fualt'.* Did you mean '(optim.)?fault'"),
        ([LR, "optim.at=0"], "optim.at"),
        ([], "There's nothing to search"),
        (["optim.lr=tag(log,interval(1e-2,1e-4))"], "Can't search optim.lr"),
        (["optim.lr=choice(0.1"], "Can't parse"),
        (["optim.lr=interval(0.1,0.2)", GRID], "a continuous range, which a grid can't enumerate"),
        (["model.dim=choice(15,17)"], "None of 300 combinations"),
        ([LR, "hydra.mode=RUN"], "Leave out hydra.mode"),
        (["model.dim=choice(15,17)", GRID], "None of the combinations"),
        ([LR, "hydra/launcher=basic"], "Use hydra/launcher=processes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_costs_one_sentence_and_leaves_nothing(go: Callable, words: list[str], expected: str):
    code, out, err = go(*words)
    assert code == 2 and out == "" and one_sentence(err), err
    assert re.search(expected, err), err
    assert not Path("outputs").exists()


def test_no_password_is_handed_to_a_launcher_that_writes_it_down(go: Callable):
    pytest.importorskip("submitit", reason="submitit isn't installed")
    storage = "sweep.storage='postgresql+psycopg://me:hunter2@host/db'"
    code, _, err = go(LR, "hydra/launcher=submitit_local", storage)
    assert code == 2 and one_sentence(err) and "put it into ~/.pgpass" in err
    assert "hunter2" not in err and not Path("outputs").exists()


@pytest.mark.parametrize(
    ("lines", "words", "expected"),
    [
        ("extensions: [evil]\nsweep: {pruner: {_target_: evil.run}}", [], "can't set extensions"),
        ("hydra: {job: {env_set: {LD_PRELOAD: evil.so}}}", [], "sets hydra.job.env_set.LD_PRELOAD"),
        (
            "hydra: {launcher: {setup: [touch evil]}}",
            ["hydra/launcher=submitit_slurm"],
            "sets hydra.launcher.setup",
        ),
    ],
)
def test_a_file_from_elsewhere_runs_nothing(go: Callable, lines: str, words: list[str], expected: str):
    if words:
        pytest.importorskip("submitit", reason="submitit isn't installed")
    space = "search: {_target_: minllm.sweep.space.Plan, params: {seed: 'choice(0,1)'}, fixed: {}, when: {},"
    Path("conf/search").mkdir()
    Path("conf/search/evil.yaml").write_text(
        f"# @package _global_\n# A space\n{space} multiples: {{}}, first_that_fits: {{}}}}\n{lines}\n",
        encoding="utf-8",
    )
    Path("evil.py").write_text("open('evil', 'w')\ndef run(): pass\n", encoding="utf-8")
    code, _, err = go("search=evil", *words, before=["--config-dir=conf"])
    assert code == 2 and one_sentence(err) and expected in err, err
    assert not Path("evil").exists() and not Path("outputs").exists()
