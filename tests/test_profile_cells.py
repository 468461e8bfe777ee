"""The cells of a profile: how a mixer is tuned on a probe, and what sentences, pictures and pages say of it."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from minllm.estimates import clopper_pearson
from minllm.study.profile import sentences
from minllm.study.profile.cells import Cell, Probe, ProbeRun, Profile, above_chance
from minllm.study.profile.curves import difficulty_curves
from minllm.study.profile.heatmap import heatmap
from minllm.study.profile.report import data, in_a_terminal, page
from minllm.verdict.profile_tuning import RatesAndDecays, score
from minllm.verdict.results import Results

# ---- tuning --------------------------------------------------------------------------------------

PLAN = RatesAndDecays((0.001, 0.002, 0.004), (0.0, 0.1), (1000,), 10)


def tuned(plan: RatesAndDecays, result_of: Callable[[float, float], float | None]):
    """Return the choice, and all rounds of values that were tried."""
    results: dict = {}
    rounds = []
    while wanted := plan.next_round(results):
        rounds.append(
            [(dict(values)["optim.lr"], dict(values)["optim.weight_decay"]) for values, _ in wanted]
        )
        results |= {(values, seed): result_of(*(value for _, value in values)) for values, seed in wanted}
        assert len(results) <= plan.most_runs
    return plan.choice(results), rounds


def test_every_pair_of_rate_and_decay_is_tried_and_the_best_is_chosen():
    choice, rounds = tuned(PLAN, lambda rate, decay: 0.5 + abs(rate - 0.002) + decay)
    assert rounds == [[*itertools.product((0.001, 0.002, 0.004), (0.0, 0.1))]]
    assert choice.chosen == {"optim.lr": 0.002, "optim.weight_decay": 0.0} and not choice.unsettled


def test_an_edge_is_followed_with_its_decay_until_the_best_is_inside():
    choice, rounds = tuned(PLAN, lambda rate, decay: 0.5 + abs(rate - 0.008) - decay)
    assert rounds[1:] == [[(0.008, 0.1), (0.016, 0.1)]]
    assert choice.chosen == {"optim.lr": 0.008, "optim.weight_decay": 0.1} and not choice.unsettled
    choice, rounds = tuned(PLAN, lambda rate, decay: 0.5 + rate)
    assert rounds[1:] == [[(0.0005, 0.0), (0.00025, 0.0)], [(0.000125, 0.0), (6.25e-05, 0.0)]]
    assert "is at the edge of what was tried in 10 runs (search.tuning_runs)" in choice.unsettled


def test_what_is_solved_at_an_edge_is_solved():
    choice, rounds = tuned(PLAN, lambda rate, decay: -rate if rate > 0.001 else 0.3)
    assert len(rounds) == 1 and choice.chosen["optim.lr"] == 0.004 and "fewest steps" in choice.how
    assert not choice.unsettled


def test_lower_rates_are_tried_if_all_diverge():
    choice, rounds = tuned(PLAN, lambda rate, decay: None if rate > 0.0004 else 0.2)
    assert rounds[1] == [(0.0005, 0.0), (0.00025, 0.0)] and choice.chosen["optim.lr"] < 0.0004
    none, _ = tuned(PLAN, lambda rate, decay: None)
    assert none is None


def test_the_best_are_tried_with_every_tuning_seed():
    plan = replace(PLAN, seeds=(1000, 1001))
    results: Results = {(values, 1000): 0.5 + dict(values)["optim.weight_decay"] + abs(dict(values)["optim.lr"] - 0.002)
                        for values in plan.planned_values}  # fmt: skip
    again = plan.next_round(results)
    assert [seed for _, seed in again] == [1001, 1001] and dict(again[0][0])["optim.lr"] == 0.002
    assert "weren't tried with every tuning seed" in replace(plan, most_runs=6).choice(results).unsettled


def test_solved_trials_are_ranked_by_their_steps():
    fast, slow, unsolved = (
        SimpleNamespace(value=value, user_attrs={"steps": steps})
        for value, steps in ((0.009, 50), (0.0, 100), (0.02, 40))
    )
    ranked = sorted([unsolved, slow, fast], key=lambda trial: score(trial, 0.99))
    assert ranked == [fast, slow, unsolved]


# ---- cells and what is said of them --------------------------------------------------------------

PROBE = Probe("mqar", "mqar", ["data=probe/mqar"], chance=0.1)


def run(accuracy: float, seed: int = 0, tokens: int = 1000, steps: int = 600) -> ProbeRun:
    low, high = clopper_pearson(accuracy * 100, 100)
    return ProbeRun(seed, accuracy, (low, high), accuracy, tokens, steps, f"run-{seed}")


def cell(*accuracies: float, lost=(), mixer="attn=mha", probe=PROBE) -> Cell:
    return Cell(mixer, probe, 0.99, 3, [run(each, seed) for seed, each in enumerate(accuracies)], lost)


@pytest.mark.parametrize(
    ("made", "state", "words"),
    [
        (cell(1.0, 0.995, 0.991), "solved", "attn=mha solves mqar (99.5 % ["),
        (cell(1.0, 0.995, 0.4), "solved", "with 2 of 3 seeds"),
        (cell(1.0, 0.5, 0.4), "ran out", "solved with 1 of 3 seeds; chance is 10.0 %): it ran out."),
        (cell(0.3, 0.31, 0.32), "ran out", "attn=mha doesn't solve mqar within 600 steps (31.0 % ["),
        (cell(0.3, lost=[1, 2]), "diverged", "diverges on mqar with 2 of 3 seeds"),
        (cell(lost=[0, 1, 2]), "diverged", "attn=mha diverged on mqar with every seed."),
        (cell(0.3), "incomplete", "the time was up before all seeds had run"),
        (cell(1.0, 0.3), "incomplete", "solved with 1 of 2 seeds; chance is 10.0 %): the time was up"),
        (cell(0.2, 0.3), "ran out", "it ran out."),
        (cell(1.0, 1.0), "solved", "attn=mha solves mqar"),
        (cell(lost=[0]), "incomplete", "diverged on mqar with 1 of 3 seeds: the time was up"),
        (cell(), "incomplete", "wasn't trained on mqar: the time was up."),
    ],
)
def test_states_and_sentences(made, state, words):
    assert made.state == state and words in sentences.of_cell(made)
    assert "can't" not in sentences.of_cell(made)


def test_a_seed_that_was_not_trained_leaves_a_profile_incomplete():
    assert not profile_of(cell(1.0, 1.0)).is_complete and not profile_of(cell(0.2, 0.3)).is_complete
    assert profile_of(cell(0.2, lost=[1, 2])).is_complete


def test_intervals_take_seeds_as_groups():
    far = cell(0.1, 0.5, 0.9).estimate
    near = cell(0.48, 0.5, 0.52).estimate
    assert far.value == near.value == pytest.approx(0.5)
    assert far.interval[0] < 0.1 < 0.9 < far.interval[1] and near.interval[0] > 0.4 > 0.1
    assert cell(1.0, 1.0, 1.0).estimate.interval == run(1.0).interval  # those of documents
    assert above_chance(cell(0.55)) == pytest.approx(0.5) and above_chance(cell(0.05)) == 0
    assert above_chance(cell()) is None


def profile_of(*cells: Cell) -> Profile:
    mixers, probes = (
        list(dict.fromkeys(c.mixer for c in cells)),
        list({c.probe.name: c.probe for c in cells}.values()),
    )
    by_name = {(c.mixer, c.probe.name): c for c in cells}
    return Profile(
        mixers, probes, by_name, "with the same params on each", "python sweep.py search=profile", {}
    )


EASY, HARD = (Probe(f"mqar pairs={n}", "mqar", [], float(n), 0.1) for n in (4, 16))
SMALL = profile_of(
    cell(1.0, 1.0, 0.995, probe=EASY),
    cell(0.8, 0.8, 0.7, probe=HARD),
    cell(0.6, 0.5, 0.4, mixer="rec=<rglru>", probe=EASY),
    cell(mixer="rec=<rglru>", probe=HARD),
)


def test_pictures_are_svg_with_every_cell_and_difficulty():
    drawn = ET.fromstring(heatmap(SMALL))
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"99.8", "76.7", "50.0", "not run", "mqar pairs=4", "rec=<rglru>"} <= set(texts)
    titles = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 4 and any("solves mqar pairs=4" in title for title in titles)
    (curve,) = difficulty_curves(SMALL).values()
    assert len([*ET.fromstring(curve).iter("{http://www.w3.org/2000/svg}circle")]) == 3
    assert not difficulty_curves(profile_of(cell(0.5)))


def test_page_terminal_and_json_say_the_same():
    html, printed, content = page(SMALL), "\n".join(in_a_terminal(SMALL)), data(SMALL)
    assert content["status"] == "incomplete" and len(content["cells"]) == 4
    for part in content["cells"]:
        assert part["sentence"] in printed
        assert part["sentence"].replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#x27;") in html
    assert content["scores"]["mqar"] == {
        "attn=mha": pytest.approx((0.99833 + 0.76667) / 2, abs=1e-4),
        "rec=<rglru>": None,
    }
    assert "rec=<rglru>" not in html and "Solved, of 2 probes: attn=mha 1, rec=<rglru> 0." in printed
    assert len(html) < 100_000 and SMALL.command in html and "The time was up" in printed
    assert json.loads(json.dumps(content, allow_nan=False)) == content
