"""Profiles: what is refused, how mixers are tuned on a probe, what the page says, and whole profiles."""

from __future__ import annotations

import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.estimates import clopper_pearson
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome
from minllm.study.profile import sentences
from minllm.study.profile.cells import Cell, Probe, ProbeRun, Profile, above_chance
from minllm.study.profile.curves import difficulty_curves
from minllm.study.profile.heatmap import heatmap
from minllm.study.profile.report import data, in_a_terminal, page
from minllm.sweep.plugin import NotSettled
from minllm.verdict.profile import ProfileSearch, profile
from minllm.verdict.profile_protocol import ProfileProtocol, difficulty_of, mixers_in, probes_in
from minllm.verdict.profile_tuning import RatesAndDecays, score
from minllm.verdict.results import Results
from tests.instant import Instant, composed_once, protocol_at_once
from tests.pages import ROOT, commands

PROTOCOL = {
    **{"equal": "params", "solved": 0.99, "seeds": 3, "rates": [0.5, 1.0, 2.0], "decays": [0.0, 0.1]},
    **{"tuning_runs": 10, "tuning_seeds": [1000]},
}


# ---- what is typed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rates": []}, "search.rates must have one or more different numbers"),
        ({"decays": [0.1, 0.1]}, "search.decays must have one or more different numbers"),
        ({"rates": [1.0, 1.05]}, "search.rates must differ by a factor of 1.1 or more"),
        ({"tuning_seeds": [3]}, "search.tuning_seeds must be 1000 or above"),
        ({"seeds": 1001}, "search.seeds can't exceed 1000"),
        ({"tuning_runs": 5}, "search.tuning_runs=5 is too few to try 6 pairs"),
    ],
)
def test_protocols_that_tune_unfairly_are_refused(changed, sentence):
    ProfileProtocol(**PROTOCOL)
    with pytest.raises(UserError, match=sentence):
        ProfileProtocol(**{**PROTOCOL, **changed})


def test_mixers_are_words_with_overrides_after_them():
    found = mixers_in(
        ["attn=mha", "rec=mamba2", "attn=local model.attn.mask.window=32", "model/layout=griffin"]
    )
    assert found == {
        "attn=mha": ["model/layout=transformer", "model/attn=mha"],
        "rec=mamba2": ["model/layout=recurrent", "model/rec=mamba2"],
        "attn=local window=32": ["model/layout=transformer", "model/attn=local", "model.attn.mask.window=32"],
        "model/layout=griffin": ["model/layout=griffin"],
    }
    assert probes_in(["mqar_small data.pairs=4", "data=reverse data.op=copy"]) == {
        "mqar_small pairs=4": ["data=probe/mqar_small", "data.pairs=4"],
        "data=reverse op=copy": ["data=reverse", "data.op=copy"],
    }


@pytest.mark.parametrize(
    ("read", "section", "sentence"),
    [
        (mixers_in, [], r"mixers must be a list, such as 'mixers=\[attn=mha,rec=mamba2\]'"),
        (
            mixers_in,
            ["mamba2"],
            "mixers has 'mamba2', which isn't an override. Type attn=<option> or rec=<option>",
        ),
        (mixers_in, ["attn=mha", "attn=mha"], "mixers has attn=mha twice"),
        (mixers_in, [["attn=mha"]], "mixers must be a list"),
        (probes_in, "mqar", "probes must be a list"),
        (probes_in, [" "], "probes must be a list"),
    ],
)
def test_what_is_no_mixer_or_probe_is_refused(read, section, sentence):
    with pytest.raises(UserError, match=sentence):
        read(section)


def test_the_number_that_differs_is_the_difficulty():
    names = [
        "mqar pairs=4",
        "mqar pairs=8",
        "copying",
        "parity op=x",
        "parity op=y",
        "a b=1 c=2",
        "a b=2 c=1",
    ]
    found = {name: difficulty_of(name, names) for name in names}
    assert found["mqar pairs=4"] == ("mqar", 4) and found["mqar pairs=8"] == ("mqar", 8)
    assert found["copying"] == ("copying", None) and found["parity op=x"] == ("parity", None)
    assert found["a b=1 c=2"] == ("a", None)  # two numbers


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


# ---- whole profiles ------------------------------------------------------------------------------


def outcome_of(cfg: DictConfig) -> Outcome:
    """Return the end of a run whose accuracy depends on its mixer, its probe and its learning rate."""
    accuracy = accuracy_of(cfg)
    if accuracy is None:
        return Outcome("pruned", reason="diverged", text="The loss is NaN.")
    return Outcome("complete", 1 - accuracy, figures={"seconds": 1.0, "steps": steps_of(cfg, accuracy)})


def summary_of(cfg: DictConfig) -> dict[str, Any]:
    accuracy = accuracy_of(cfg) or 0.0
    interval = [max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.1)]
    summary = {"seed": cfg.seed, "steps": steps_of(cfg, accuracy), "val_accuracy": accuracy}
    return {**summary, "val_exact": accuracy, "val_accuracy_interval": interval, "val_answer_tokens": 500}


def steps_of(cfg: DictConfig, accuracy: float) -> int:
    return 200 if accuracy >= cfg.train.stop_at_accuracy else cfg.train.steps


def accuracy_of(cfg: DictConfig) -> float | None:
    """Attention solves everything at learning rates up to 0.002; the RNN solves short strings by chance of its seed."""
    if cfg.optim.lr > 0.005:
        return None
    if cfg.choices["model/layout"] == "transformer":
        return 0.995 if cfg.optim.lr <= 0.002 else 0.9
    return 0.3 + 0.01 * cfg.seed % 7 if cfg.data.max_length > 3 else 0.995 - 0.5 * (cfg.seed == 2)


WORDS = (
    *("mixers=[attn=mha,rec=rnn]", "probes=[data=reverse data.max_length=3,data=reverse data.max_length=9]"),
    *(
        "tokenizer=bytes",
        "data=reverse",
        "data.train_pairs=40",
        "data.val_pairs=4",
        "data.seq_len=32",
        "train.device=cpu",
    ),
    *("model.dim=16", "train.steps=600", "optim.lr=0.004", "hydra.sweeper.n_jobs=1"),
    *(
        "search.rates=[0.25,0.5,1]",
        "search.decays=[0.1]",
        "search.tuning_runs=7",
        "memory.predict=false",
        "train.check=false",
    ),
)


def profiled(*words: str, act=profile, shared=WORDS):
    """Profile in the current folder as `python sweep.py search=profile <words>` would."""
    Instant.outcome_of, Instant.summary_of = staticmethod(outcome_of), staticmethod(summary_of)
    return protocol_at_once(act, "search=profile", *shared, *words)


@pytest.fixture(scope="module", autouse=True)
def each_composed_once() -> Iterator[None]:
    with composed_once():
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Instant, "summary_of", None)  # restored at the end
    return tmp_path


FOLDER = Path("outputs/sweeps/a-search")


def test_a_whole_profile(here, capfd):
    with json_output():
        made = profiled()
    states = {key: found.state for key, found in made.cells.items()}
    short, long = "data=reverse max_length=3", "data=reverse max_length=9"
    assert states == {
        ("attn=mha", short): "solved",
        ("rec=rnn", short): "solved",
        ("attn=mha", long): "solved",
        ("rec=rnn", long): "ran out",
    }
    line = json.loads(capfd.readouterr().out)
    content = json.loads((FOLDER / "report.json").read_text())
    assert line == {**content, "report": str(FOLDER / "report.json")} and line["status"] == "complete"
    assert [probe["difficulty"] for probe in content["probes"]] == [3, 9]
    (of_rnn,) = (part for part in content["cells"] if (part["mixer"], part["probe"]) == ("rec=rnn", short))
    assert (of_rnn["seeds_solved"], of_rnn["tuned"]["optim.lr"]) == (2, 0.001)
    assert ET.parse(FOLDER / "heatmap.svg") and "Difficulty" in (FOLDER / "report.html").read_text()

    lines = {
        (cfg.choices["model/layout"], cfg.data.max_length, cfg.optim.lr, cfg.seed) for cfg in Instant.launched
    }
    assert len(lines) == len(Instant.launched)
    for layout, length in itertools.product(("transformer", "recurrent"), (3, 9)):
        own = {(rate, seed) for one, other, rate, seed in lines if (one, other) == (layout, length)}
        assert {(0.001, 1000), (0.002, 1000), (0.004, 1000)} <= own  # the same for all
        assert {seed for _, seed in own if seed < 1000} == {0, 1, 2}
    sizes = {
        (cfg.choices["model/layout"], cfg.data.max_length): cfg.size.params_non_embedding
        for cfg in Instant.launched
    }
    assert len(set(sizes.values())) == 1 and None not in sizes.values()
    assert {cfg.train.stop_at_accuracy for cfg in Instant.launched} == {0.99}

    assert profiled().cells == made.cells and not Instant.launched  # nothing is left to be trained
    with pytest.raises(UserError, match=r"began with search.seeds=3, and a choice made after seeing results"):
        profiled("search.seeds=4")


def test_an_interrupted_profile_goes_on(here, monkeypatch):
    words = ["probes=[data=reverse data.max_length=3]", "mixers=[rec=rnn]"]
    monkeypatch.setattr(Instant, "stop_after", 4)
    with pytest.raises(KeyboardInterrupt):
        profiled(*words)
    assert len(Instant.launched) == 4
    monkeypatch.setattr(Instant, "stop_after", math.inf)
    assert profiled(*words).is_complete
    assert [cfg.seed for cfg in Instant.launched] == [
        1,
        2,
    ]  # three of tuning, and one of three seeds, were done


def test_a_profile_whose_time_is_up_says_what_is_missing(here, capsys):
    words = ["sweep.minutes=1e-9", "mixers=[attn=mha]"]
    made = profiled(*words)
    assert not made.is_complete and not Instant.launched
    assert "attn=mha wasn't trained on data=reverse max_length=9: the time was up" in capsys.readouterr().out
    with pytest.raises(NotSettled):
        profiled(*words, act=lambda sweeper, overrides: ProfileProtocol(**PROTOCOL).run(sweeper, overrides))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=3"], "A profile chooses its seeds"),
        (
            ["sweep.metric=val_loss"],
            "sweep.metric=val_loss has no effect in a profile, which compares val_accuracy",
        ),
        (["train.stop_at_accuracy=0.5"], "has no effect in a profile, which stops runs by search.solved"),
        (["optim=lion", "mixers=[attn=mha]", "~optim.weight_decay"], "weight_decay"),
        (["mixers=[attn=mha,attn=mha model.attn.n_kv_heads=4]"], "are the same|compute the same"),
        (["mixers=[attn=mha seed=1]"], "has a seed"),
    ],
)
def test_what_makes_no_profile_is_refused(here, words, sentence):
    with pytest.raises(UserError, match=sentence):
        profiled(*words, act=ProfileSearch)
    assert not Instant.launched


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["probes=[data=tales]"], "data=tales has none: the documents of this data have no answers"),
        (["probes=[copying_small]", "objective=masked"], "copying_small has none: this objective doesn't"),
        (["probes=[parity_small]", "objective=masked"], "don't stand in its text"),
    ],
)
def test_what_has_no_accuracy_is_refused(here, words, sentence):
    with pytest.raises(UserError, match=sentence):
        profiled("mixers=[attn=mha]", *words, act=ProfileSearch, shared=())


def test_runs_end_at_the_accuracy_at_which_they_count_as_solved(here):
    words = ["mixers=[attn=mha]", "probes=[lano_small]", "train.check=false"]
    search = profiled(*words, act=ProfileSearch, shared=())
    (made,) = search.cells.values()
    (cfg,) = search.cfgs.values()
    assert 0.5 < made.solved_at == cfg.train.stop_at_accuracy < 0.7


def test_every_command_of_the_page_on_profiles_says_what_it_would_train(here, capsys):
    found = commands((ROOT / "docs/profile.md").read_text(encoding="utf-8"))
    assert [command[:3] for command in found] == [["python", "sweep.py", "search=profile"]] * len(found)
    for command in found:
        (given,) = [word for word in command if word.startswith("probes=")] or ["probes=[mqar_small]"]
        recalls = f"probes=[{','.join(re.findall(r'mqar_small[^,]*?(?=[],])', given))}]"
        words = [word for word in command[3:] if word != given]
        assert profiled(*words, recalls, "sweep.dry_run=true", "train.check=false", shared=()) is None
        said = capsys.readouterr().out
        assert "Each mixer tries optim.lr=" in said and "mqar_small" in said
