"""Profiles: what is refused, which words make mixers and probes, and whole profiles."""

from __future__ import annotations

import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome
from minllm.sweep.plugin import NotSettled
from minllm.verdict.profile import ProfileSearch, profile
from minllm.verdict.profile_protocol import ProfileProtocol, difficulty_of, mixers_in, probes_in
from tests.instant import Instant, protocol_at_once
from tests.pages import ROOT, commands

pytestmark = pytest.mark.usefixtures("each_composed_once")

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
