"""From arms to a verdict in one command: what is refused, what is asked, and that it goes on after a kill."""

from __future__ import annotations

import html
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from minllm.errors import UserError
from minllm.schema.overrides import quoted
from minllm.verdict.protocol import Protocol, arms_in, refuse_changes, refuse_own_seeds
from minllm.verdict.sequential import VerdictSearch, reach_verdict
from tests.instant import SMALL, complete, inquiry
from tests.searches import Search, Workplace, wait_until
from tests.specs import composed
from tests.verdicts import ARMS, ASKED, PROTOCOL, QUESTION

# ---- the protocol --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"looks": []}, "search.looks must be increasing numbers of pairs"),
        ({"looks": [8, 8]}, "search.looks must be increasing numbers of pairs"),
        ({"looks": [12, 8]}, "search.looks must be increasing numbers of pairs"),
        ({"looks": [8, 1001]}, "search.looks can't exceed 1000 pairs, but ends at 1001"),
        ({"looks": [501], "aa": True}, "search.looks can't exceed 500 pairs"),
        ({"first_seed": 995}, "search.looks can't exceed 5 pairs from seed 995, but ends at 8"),
        ({"looks": list(range(1, 102))}, "search.looks has 101 numbers of pairs, which is more than 100"),
        ({"tuning_seeds": [1000, 7]}, "search.tuning_seeds must be 1000 or above"),
        ({"tuning_seeds": []}, "search.tuning_seeds has no seed to tune on"),
        ({"tuning_runs": 1}, "search.tuning_runs=1 is too few to try each of the 2 learning rates"),
        ({"rates": [1.0, 1.001]}, "search.rates must differ by a factor of 1.1 or more"),
        ({"tune": ["optim.lr", "optim.lr"]}, "search.tune has a duplicate"),
        ({"tune": ["optim.weight_decay"], "trials": 2}, "search.trials must be 3 or more, not 2"),
        ({"span": 1.0}, "search.span must be a factor above 1, not 1"),
    ],
)
def test_a_protocol_that_proves_nothing_is_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        Protocol(**{**ASKED, **changed})


@pytest.mark.parametrize(("first", "aa"), [(0, False), (300, False), (300, True)])
def test_pairs_are_counted_from_the_first_seed(first, aa):
    protocol = Protocol(**{**ASKED, "first_seed": first, "aa": aa})
    trials = [*complete(first, 1.0), *complete(first + 5, 1.0)[first:]]
    assert protocol.pairs_in([trials, trials[: first + 4]]) == (2 if aa else 4)
    assert protocol.seeds_of(2) == range(first, first + (4 if aa else 2))


@pytest.mark.parametrize("nothing", [{"rates": []}, {"tune": []}], ids=str)
def test_without_tuning_no_seed_is_needed_for_it(nothing):
    assert not Protocol(**{**ASKED, **nothing, "tuning_seeds": []}).is_tuned


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        ({"a": []}, "A verdict needs two arms"),
        ({"a": [], "b": None}, "A verdict needs two arms"),
        ({"a": [], "b": "norm=pre"}, "arms.b must be a list of overrides"),
        ({"a": [], "b": ["pre"]}, "arms.b must be a list of overrides"),
        ({"a": [], "b": [3]}, "arms.b must be a list of overrides"),
        ({"a": ["seed=3"], "b": []}, "arms.a has a seed"),
        ({"a": ["++seed=3"], "b": []}, "arms.a has a seed"),
        ({"a": [], "b": ["search.margin=0.1"]}, "arms.b has search.margin=0.1, which concerns the whole"),
        ({"a": [], "b": ["+sweep/pruner=median"]}, "arms.b has .* Put it outside arms"),
    ],
)
def test_arms_that_are_none_are_refused(arms, sentence):
    with pytest.raises(UserError, match=sentence):
        arms_in(arms, PROTOCOL)


def test_an_only_arm_is_held_against_itself():
    assert arms_in({"a": [], "b": None}, replace(PROTOCOL, aa=True)) == {"a": []}


@pytest.mark.parametrize("word", ["seed=3", "+seed=3", "seed=1,2"])
def test_a_seed_that_is_typed_is_refused(word):
    with pytest.raises(UserError, match="A verdict chooses its seeds: leave seed= out."):
        refuse_own_seeds(["norm=pre", word], PROTOCOL)


def test_a_protocol_of_another_version_is_refused():
    older = {key: value for key, value in ASKED.items() if key != "tuning_runs"}
    with pytest.raises(UserError, match="The verdict 'mine' was begun by another version of minllm"):
        refuse_changes(older, ASKED, "mine", "verdict")


def test_what_is_chosen_after_a_look_is_refused_and_what_is_shown_is_not():
    refuse_changes(ASKED, {**ASKED, "prompts": ["Once"], "stories": 3}, "mine", "verdict")
    with pytest.raises(UserError, match=r"'mine' began with search.margin=0.005, and .* sweep.name=<name>"):
        refuse_changes(ASKED, {**ASKED, "margin": 0.01}, "mine", "verdict")


# ---- what is run, before anything is -------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerdictSearch]:
    with inquiry(*QUESTION) as asked:
        yield asked


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(here, capfd):
    words = ("search.rates=[2,1]", "search.looks=[5,8]", "search.tuning_seeds=[1000,1001]", "optim.lr=0.01")
    with inquiry(*ARMS, *words, "sweep.dry_run=true") as asked:
        reach_verdict(asked.sweeper, [*asked.overrides, *map(quoted, ARMS)])
    size = asked.size[0]
    assert capfd.readouterr().out.splitlines() == [
        "a: norm=pre",
        "b: norm=post model/attn=mha",
        f"All arms have the same size: {size}.",
        "a tries optim.lr=0.01, 0.02, and beyond if the best is at an edge.",
        "b tries optim.lr=0.01, 0.02, and beyond if the best is at an edge.",
        "Tuning: 4 runs with seed 1000, and then what is best with seed 1001; at most 16 runs for each arm.",
        "Pairs: seeds 0, 1, 2, …; the results are tested after 5 and 8 pairs.",
        "With these looks, no arm can be called better or worse before 8 pairs.",
    ]
    assert list(here.iterdir()) == []


def test_the_command_that_is_given_back_asks_the_same(asked):
    program, door, *words = shlex.split(asked.command())
    assert (program, door) == ("python", "sweep.py") and words.count("search.equal=null") == 1
    with composed(*map(quoted, words)) as (master, _):
        assert master.search == asked.config.search and master.model == asked.config.model
        assert arms_in(master.arms, PROTOCOL) == asked.arms == {
            "a": ["norm=pre", "model.layout=[attn mlp,mlp]"],
            "b": ["norm=post", "model/attn=mha"],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.dim=choice(32,64)"], "model.dim has several values. Make each a separate arm"),
        (["arms.c=[model.n_layers=64]"], "size.params="),
        (["arms.c=[norm=pro]"], "norm"),
        (["seed=3"], "A verdict chooses its seeds"),
        (["task=bench"], "leave out task="),
        (
            [
                "extensions=[tests]",
                "arms.c=['+model.own._target_=tests.test_laws.NextToken','model.layout=[own mlp,attn mlp]']",
            ],
            r"^Arm c: model\.own \(NextToken\) looks ahead",
        ),
        (["arms.a=[]", "arms.b=[model.dim=15]"], "affects training, once they have been given the same size"),
        (["sweep.minutes=0"], "^sweep.minutes must be a number above 0, or null, not 0"),
        (["sweep.minutes=-1"], "^sweep.minutes must be a number above 0, or null, not -1"),
        (["sweep.name=../x"], "^sweep.name must be a folder's name"),
        (["sweep.metric=val_loss"], "^sweep.metric=val_loss has no effect in a verdict, .* Leave it out"),
        (["sweep/pruner=none"], "^sweep/pruner=none has no effect in a verdict"),
        (["hydra.sweeper.n_trials=3"], "^hydra.sweeper.n_trials=3 has no effect in a verdict"),
        (["hydra/sweeper/sampler=grid"], "^hydra/sweeper/sampler=grid has no effect in a verdict"),
        (["judge.check=true"], "^judge.check would do nothing, because nothing is graded"),
        (["grader=grammar", "judge.check=true"], "^judge.check would do nothing, because the grader asks no"),
        (["grader=grammar", "grader.stories=-1"], "^grader.stories must be a whole number of 0 or more"),
        (["grader=grammar", "data=tales_pairs"], "^grader=grammar reads the stories of data=tales only"),
        (["arms.c=[grader=grammar]"], "which concerns the whole verdict. Put it outside arms"),
        (["grader=judge"], "^judge=openai needs an endpoint: type judge.base_url="),
    ],
    ids=lambda value: str(value),
)
def test_what_cannot_be_asked_is_refused_before_anything_is_run(here, words, sentence):
    with pytest.raises(UserError, match=sentence) as refused, inquiry(*ARMS, *words):
        pass
    assert "\n" not in str(refused.value) and list(here.iterdir()) == []


def test_the_grader_is_the_verdicts_and_no_setting_of_its_runs(here):
    with inquiry(*ARMS, "grader=grammar", "grader.stories=3") as asked:
        assert asked.grader.stories == 3
        for cfg in asked.cfgs.values():
            assert not {"grader", "judge"} & {*cfg, *cfg.choices} and "grader" not in " ".join(cfg.typed)
        assert "grader=grammar grader.stories=3" in asked.command()


@pytest.mark.parametrize(
    "words",
    [
        ["arms.a=[]", "arms.b=[]"],
        ["arms.a=[norm=post]", "arms.b=['norm=post']"],
        ["arms.a=[norm=post,model/attn=mha]", "arms.b=[model/attn=mha,norm=post]"],
        ["arms.a=[]", "arms.b=[norm=pre,model/attn=gqa]"],
        ["arms.a=[]", "arms.b=['tags=[mine]',train.evals=7,train.log_every=3]"],
        ["arms.a=[]", "arms.b=[data.num_proc=2,sample.top_k=3]"],
        ["arms.a=[optim.lr=1e-3]", "arms.b=[optim.lr=0.001]"],
        ["arms.a=[train.clip=1]", "arms.b=[++train.clip=1.0]"],
        ["arms.a=[model.attn.qk_norm=head]", "arms.b=['model.attn={qk_norm: head}']"],
        ["arms.a=[norm=pre,norm.kind=layer]", "arms.b=[norm.kind=layer]", "arms.c=[norm=post]"],
        ["arms.a=[norm=post]", "arms.b=[norm=sandwich]", "arms.c=[norm=post]"],
    ],
    ids=" ".join,
)
def test_arms_that_are_the_same_are_refused_however_they_are_spelled(here, words):
    said = "are the same: they don't differ in anything that affects training"
    with pytest.raises(UserError, match=said), inquiry(*words, "search.equal=null"):
        pass
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "word", ["interval(nan,1)", "interval(0,inf)", "nan", "inf", "choice(nan,1)", "1,2", "range(0)"]
)
def test_an_arm_with_a_value_that_is_none_is_refused(here, word):
    with pytest.raises(UserError) as refused, inquiry("arms.a=[]", f"arms.b=['optim.lr={word}']"):
        pass
    assert "optim.lr" in str(refused.value) and "\n" not in str(refused.value)


def test_a_protocol_that_is_missing_or_damaged_is_no_protocol(here):
    with inquiry(*ARMS) as asked:
        asked.save_protocol()
        (asked.folder / "seeds-a").mkdir()
    file = asked.folder / "verdict.json"
    for text in ("{", "[]", '{"protocol": 5, "words": []}', '{"protocol": {}, "words": [1]}'):
        file.write_text(text)
        with pytest.raises(UserError, match="Its verdict.json .* Restore the file"), inquiry(*ARMS):
            pass
    file.unlink()
    with (
        pytest.raises(UserError, match="verdict.json is missing, so the margin"),
        inquiry(*ARMS),
    ):
        pass


def test_a_margin_that_is_changed_on_the_way_is_refused(here):
    with inquiry(*ARMS, "search.margin=0.01") as asked:
        asked.save_protocol()
        (asked.folder / "seeds-a").mkdir()
    with (
        pytest.raises(UserError, match="The verdict 'a-search' began with search.margin=0.01"),
        inquiry(*ARMS),
    ):
        pass


# ---- the whole of it, with processes -------------------------------------------------------------

WORDS = [
    *(
        "search=verdict",
        *ARMS,
        "search.rates=[1]",
        "search.tuning_runs=2",
        "search.looks=[2]",
        "search.prompts=['']",
        "search.stories=1",
    ),
    *("tokenizer=tales_512", "data.train_stories=64", "data.val_stories=4", "data.packing=pack", *SMALL),
    *("train.device=cpu", "train.steps=4", "train.batch_size=4", "memory.predict=false", "sweep.name=test"),
    "sample.max_new_tokens=4",
]


@pytest.fixture(scope="module")
def killed_and_gone_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A verdict that is killed once it has two of its runs, and then typed again."""
    with Workplace(tmp_path_factory.mktemp("verdict")) as place:

        def summaries() -> dict[Path, int]:
            files = place.study_folder.glob("seeds-*/trial-*/summary.json")
            return {file: file.stat().st_mtime_ns for file in files}

        def start(*words: str) -> Search:
            return place.start_program("sweep.py", *WORDS, *words)

        first = start()
        wait_until(lambda: len(summaries()) > 0, first)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert place.nobody_is_left()
        before, again = summaries(), start().ended()
        yield SimpleNamespace(place=place, before=before, after=summaries(), again=again)


@pytest.mark.slow  # two arms of three runs each, with processes
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_a_verdict_that_was_killed_goes_on_and_no_run_is_made_twice(killed_and_gone_on):
    one = killed_and_gone_on
    assert one.again.returncode == 3, one.again.err  # two pairs settle nothing
    assert 1 <= len(one.before) < 4 and len(one.after) == 4
    assert {file: when for file, when in one.after.items() if file in one.before} == one.before
    data = json.loads((one.place.study_folder / "report.json").read_text())
    assert [pair["seed"] for pair in data["contests"][0]["pairs"]] == [0, 1]
    assert data["left_out"] == [] and data["headline"] in one.again.out
    assert {(found["runs"], found["settled"]) for found in data["tuning"].values()} == {(2, False)}
    assert data["headline"].endswith(
        "inconclusive because the tuning of norm=pre and of norm=post model/attn=mha isn't settled."
    )
    assert len(data["readings"]) == 2 and all(reading["samples"] for reading in data["readings"])
    for name in ("report.html", "report.md"):
        assert data["headline"] in html.unescape((one.place.study_folder / name).read_text())


@pytest.mark.slow  # where it's the first of this file that needs them
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_arms_are_trained_alike(killed_and_gone_on):
    one = killed_and_gone_on
    cfgs = {file.parent.parent.name: OmegaConf.load(file.with_name("config.yaml")) for file in one.after}
    a, b = cfgs["seeds-a"], cfgs["seeds-b"]
    assert a.norm != b.norm and a.data == b.data
    assert a.train == b.train and a.train.precision in ("bf16", "fp32")
    assert a.size == b.size and a.size.params > 0
    params = [json.loads(file.read_text())["params"] for file in one.after]
    assert max(params) <= 1.01 * min(params)
    tuning = [OmegaConf.load(file) for file in one.place.study_folder.glob("tune-*/trial-*/config.yaml")]
    assert tuning and {cfg.train.evals for cfg in tuning} == {1}, "only the last loss of a tuning run is read"
    assert a.train.evals == 3, "learning curves"
