"""IsoFLOP: ladders of several sizes at each budget of FLOPs, of which the best one counts."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from minllm.schema.building import build
from minllm.schema.checking import check_node
from minllm.schema.overrides import quoted
from minllm.study.comparison import compare
from tests.simulate_frontiers import World, budgets_of, coverage, simulated
from tests.specs import composed
from tests.test_ladder import (
    FOLDER,
    climbed,
    composed_once,  # noqa: F401 (a fixture for all)
    counted,
    shapes_once,
)
from tests.test_ladder_budgets import ALPHA, BETA, OfTokens
from tests.test_report_schema import validate_report

SIZES = (
    *("ladder.params=null", "ladder.flops=[5e8,2e9,8e9]", "ladder.tokens_per_param=0.2"),
    *("ladder.sizes=[0.5,1,2]", "search.tune=[]"),
)


class OfFlops(OfTokens):
    """Writes the FLOPs that its model has, besides the loss."""

    known: dict[tuple[float, str], float] = {}

    def flops_per_token(self, cfg: DictConfig) -> float:
        key = (cfg.size.params, cfg.choices.norm)
        if key not in OfFlops.known:
            model = shapes_once(cfg, build(cfg.tokenizer).vocab_size)
            OfFlops.known[key] = counted(model, cfg.data.seq_len).flops_per_token
        return OfFlops.known[key]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert climbed(*SIZES, launcher=OfFlops) is True
    return folder


def test_each_budget_is_spent_on_each_size(trained):
    phases = [(folder, cfg) for folder, cfg in OfFlops.launched if folder.startswith("seeds")]
    assert len(phases) == 3 * 3 * 2 * 2 and len({folder for folder, _ in phases}) == 3 * 3 * 2
    for number, flops in enumerate((5e8, 2e9, 8e9), start=1):
        own = {folder: cfg for folder, cfg in phases if folder.startswith(f"seeds-a-{number}")}
        assert {folder.removeprefix(f"seeds-a-{number}") for folder in own} == {"", "-x0.5", "-x2"}
        for cfg in own.values():
            spent = cfg.train.tokens * OfFlops.known[cfg.size.params, "pre"]
            assert spent == pytest.approx(flops, rel=0.03)
        middle = own[f"seeds-a-{number}"].size.params
        assert own[f"seeds-a-{number}-x2"].size.params == pytest.approx(2 * middle)


def test_the_report_has_best_sizes_and_answers_for_the_losses_there(trained):
    report = json.loads((trained / FOLDER / "report.json").read_text(encoding="utf-8"))
    validate_report(report)
    (ladder,) = report["ladders"]
    assert ladder["answer"]["word"] == "holds" and ladder["axis"] == "flops"
    assert [rung["size"] for rung in ladder["rungs"]] == pytest.approx([5e8, 2e9, 8e9], rel=0.03)
    per_token = dict((params, flops) for (params, norm), flops in OfFlops.known.items() if norm == "pre")
    for best in ladder["best_sizes"][0]:
        assert best["is_inside"]
        low, high = best["params"]["interval"]
        assert low * 0.8 < true_best(best["flops"], per_token) < high * 1.25
    assert "Best sizes" in (trained / FOLDER / "report.md").read_text(encoding="utf-8")
    page = (trained / FOLDER / "report.html").read_text(encoding="utf-8")
    assert all(axis in page for axis in ("parameters", "tokens", "FLOPs of training", "seconds of training"))
    (found,) = compare([trained / FOLDER]).ladders
    assert found.answer.word == "holds" and len(found.bests[1]) == 3


def true_best(flops: float, per_token: dict[float, float]) -> float:
    known = sorted(per_token)
    sizes = np.geomspace(known[0], known[-1], 2000)
    costs = np.exp(np.interp(np.log(sizes), np.log(known), np.log([per_token[size] for size in known])))
    return float(sizes[np.argmin((sizes / 1e4) ** -ALPHA + (flops / costs / 1e3) ** -BETA)])


def test_the_ladders_of_the_page_on_scale_are_what_it_says():
    page = (Path(__file__).parents[1] / "docs/scale.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in page.splitlines() if line.startswith("python sweep.py search=ladder")]
    found = []
    for line in lines:
        with composed(*map(quoted, shlex.split(line)[2:])) as (master, _):
            check_node(master.ladder, "ladder", {"minllm"})
            found.append((build(master.ladder), master))
    plain, of_tokens, of_sizes = (rungs for rungs, _ in found)
    assert plain.params and not plain.ratios and plain.sizes is None
    assert of_tokens.ratios == [10, 20, 40] and len(of_sizes.sizes) == 5 and len(of_sizes.rungs) == 3
    assert found[1][1].schedule._target_.endswith("WSD") and found[1][1].schedule.warmup_steps == 50


# ---- the statistics ------------------------------------------------------------------------------


def test_best_sizes_are_where_the_truth_has_them():
    """Of 4 simulated ladders, two arms and 4 budgets; the best sizes of an arm aren't independent of each other."""
    world, hits = World(), []
    for index in range(4):
        ladder, truths = simulated(world, np.random.default_rng((1, index)), resamples=60)
        for bests, truth in zip(ladder.bests, truths):
            for best, flops in zip(bests, budgets_of(world), strict=True):
                params, loss = truth.best(flops)
                low, high = best.params.interval
                hits.append(low <= params <= high)
                assert best.loss.value == pytest.approx(loss, rel=0.01)
    assert np.mean(hits) > 0.85


def test_predictions_for_larger_budgets_contain_the_truth():
    near, far, answered = coverage(World(bend=0.003), 12)
    assert answered == 12 and min(near, far) > 0.85


def test_a_best_size_at_the_edge_is_said_and_nothing_is_claimed():
    ladder, _ = simulated(World(centre=8.0), np.random.default_rng(0), resamples=10)
    assert ladder.answer is None and not ladder.is_answered
    assert "at or beyond the edge" in ladder.problem and "ladder.sizes" in ladder.problem
    assert not any(best.is_inside for best in ladder.bests[0])
