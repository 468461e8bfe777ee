"""From arms to a verdict in one command: what is refused, when it's looked at, and that it goes on after a kill."""

from __future__ import annotations

import contextlib
import html
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from minllm.errors import UserError
from minllm.schema.overrides import quoted
from minllm.study.report import sentences, summary, write_report
from minllm.study.tuning import Tried, Tuning
from minllm.verdict import sequential
from minllm.verdict.comparing import compare_pairs
from minllm.verdict.protocol import Protocol, arms_in, refuse_changes, refuse_own_seeds
from minllm.verdict.sequential import VerdictSearch, reach_verdict
from minllm.verdict.tuning import NothingToCompare
from tests.comparisons import finished, run_all_until
from tests.instant import SMALL, complete, inquiry
from tests.searches import Search, Workplace, wait_until
from tests.specs import composed
from tests.test_report_schema import validate_report

ASKED = {
    **{
        "equal": "params",
        "tune": ["optim.lr"],
        "rates": [0.5, 1.0],
        "tuning_runs": 4,
        "trials": 4,
        "span": 8.0,
    },
    **{"tuning_seeds": [1000], "first_seed": 0, "looks": [6, 8], "metric": "val_bpb", "margin": 0.005},
    **{"baseline": None, "aa": False, "prompts": [], "stories": 0, "ledger": True, "champion": False},
}
PROTOCOL = Protocol(**ASKED)


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

ARMS = ("arms.a=[norm=pre]", "arms.b=[norm=post,model/attn=mha]")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerdictSearch]:
    """An inquiry that several tests look at, and none runs."""
    with inquiry(
        "arms.a=['norm=pre','model.layout=[attn mlp,mlp]']", *ARMS[1:], "search.equal=null"
    ) as asked:
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


# ---- looks ---------------------------------------------------------------------------------------


class Trained:
    """Stands in for an inquiry's trials: runs by hand, whose bits per byte are what a test says."""

    def __init__(self, asked: VerdictSearch, bpb, seconds: float, allowed: Mapping[str, int]):
        self.asked, self.bpb, self.seconds, self.allowed = asked, bpb, seconds, allowed
        self.asked_for: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def __call__(
        self, phase: str, name: str, words: Sequence[str], n_trials: int, keep: str
    ) -> Iterator[SimpleNamespace]:
        assert keep == "all" and "optim.lr=0.02" in words

        def run_until(n_trials: int) -> list[FrozenTrial]:
            self.asked_for.append((phase, n_trials))
            n_trials = min(n_trials, self.allowed.get(phase, n_trials))
            for seed in range(n_trials):
                folder = self.asked.folder / phase / f"trial-{seed}"
                if not folder.exists():
                    self.asked.deadline -= self.seconds
                    bpb = self.bpb(name, seed)
                    finished(folder, *self.asked.arms[name], seed=seed, bpb=bpb or 0.0)
                    if bpb is None:  # it crashed
                        (folder / "summary.json").unlink()
            return complete(n_trials, self.seconds)

        def trials() -> list[FrozenTrial]:
            return complete(len(list((self.asked.folder / phase).glob("trial-*"))), self.seconds)

        yield SimpleNamespace(run_until=run_until, trials=trials)


@pytest.fixture
def settled(asked: VerdictSearch, here: Path, monkeypatch: pytest.MonkeyPatch):
    """Settle it with trials whose bits per byte are given, and return the comparison and what was asked for."""

    def settle(
        bpb,
        *,
        seconds=1.0,
        time_left=math.inf,
        allowed=None,
        unsettled=(),
        diverged=(),
        again=False,
        **protocol,
    ):
        if not again:
            shutil.rmtree(asked.folder, ignore_errors=True)
        trials = Trained(asked, bpb, seconds, allowed or {})
        monkeypatch.setattr(asked, "opened", trials)
        monkeypatch.setattr(sequential, "run_all_until", run_all_until)
        monkeypatch.setattr(asked, "seconds", {})
        monkeypatch.setattr(asked, "deadline", time.monotonic() + time_left)
        monkeypatch.setattr(asked, "protocol", replace(PROTOCOL, **protocol))
        tuned = {name: DIVERGED if name in diverged else tuning(name in unsettled) for name in asked.arms}
        return asked.train_pairs(tuned), trials.asked_for

    return settle


def tuning(unsettled: bool) -> Tuning:
    tried = [
        Tried({"optim.lr": rate}, {1000: loss}) for rate, loss in ((0.01, 2.0), (0.02, 1.9), (0.04, 2.0))
    ]
    why = "its best learning rate is the highest that was tried" if unsettled else ""
    return Tuning(tried, {"optim.lr": 0.02}, "the lowest mean loss", 4, why)


DIVERGED = Tuning(
    [Tried({"optim.lr": rate}, {1000: None}) for rate in (0.02, 0.04, 0.08)],
    {"optim.lr": 0.02},
    "the lowest values that were tried, because training diverged with them",
    3,
    "training diverged with all values that were tried, in 3 runs",
)


def clear(name: str, seed: int) -> float:
    return 2 + (name == "b") * (0.1 + seed / 1000)


def unclear(name: str, seed: int) -> float:
    return 2 + (name == "b") * (0.1 + seed / 1000) * (-1) ** seed


def doubtful(name: str, seed: int) -> float:
    return 2 + (name == "b") * ((0.1 if seed % 3 else -0.03) + seed / 1000)


def open_to_the_end(name: str, seed: int) -> float:
    return doubtful(name, seed) if seed < 9 else unclear(name, seed)


def weak(name: str, seed: int) -> float:
    return 2 + (name == "b") * ((0.1 if seed % 3 else -0.1) + seed / 1000)


def alike(name: str, seed: int) -> float:
    return 2 + (name == "b") * 1e-5 * seed


def test_the_first_look_that_settles_it_is_the_last(settled, capfd):
    comparison, asked_for = settled(clear, looks=[7, 9])
    assert asked_for[-1] == ("seeds-b", 7) and max(pairs for _, pairs in asked_for) == 7
    assert (
        comparison.headline == "norm=post model/attn=mha is worse than norm=pre model.layout=[attn mlp,mlp]."
    )
    assert comparison.contests[0].seeds == list(range(7))
    assert capfd.readouterr().out == f"After 7 pairs: {comparison.headline}\n"
    assert set(comparison.tuning) == {"norm=pre model.layout=[attn mlp,mlp]", "norm=post model/attn=mha"}
    assert comparison.commands[0].startswith("python sweep.py search=verdict")


@pytest.mark.parametrize(("n_jobs", "turns"), [
    (1, ["a1", "b1", "b2", "a2", "a3", "b3", "b4", "a4", "a5", "b5", "b6", "a6"]),
    (2, ["a1", "b1", "b2", "a2", "a3", "b3", "b4", "a4", "a5", "b5", "b6", "a6"]),
    (3, ["a3", "b3", "b6", "a6"]),
    (4, ["a2", "b2", "b4", "a4", "a6", "b6"]),
])  # fmt: skip
def test_arms_take_turns_and_each_begins_as_often(settled, asked, monkeypatch, n_jobs, turns):
    """What slows the machine meanwhile slows both, so that their tokens per second can be compared."""
    monkeypatch.setattr(asked.sweeper, "n_jobs", n_jobs)
    _, asked_for = settled(clear, looks=[6])
    assert [f"{phase[-1]}{pairs}" for phase, pairs in asked_for] == turns


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_arm_whose_tuning_is_not_settled_decides_nothing(settled, capfd, name):
    """Not even where it's ahead, and no further pairs are trained."""
    comparison, asked_for = settled(clear, looks=[7, 9], unsettled=[name])
    called = {"a": "norm=pre model.layout=[attn mlp,mlp]", "b": "norm=post model/attn=mha"}
    verdict = comparison.contests[0].verdict
    assert (verdict.word, verdict.pairs) == ("inconclusive", 7) and max(pairs for _, pairs in asked_for) == 7
    assert comparison.headline == (
        f"{called['b']} against {called['a']}: inconclusive because the tuning of {called[name]} isn't settled."
    )
    assert verdict.why.startswith(f"{called[name]}: its best learning rate is the highest that was tried.")
    assert capfd.readouterr().out == f"After 7 pairs: {comparison.headline}\n"
    warned = [line for line in summary(comparison).splitlines() if line.startswith("WARNING")]
    assert len(warned) == 1 and f"The tuning of {called[name]} isn't settled" in warned[0]


@pytest.mark.parametrize("lost", ["a", "b"])
def test_an_arm_that_diverges_in_all_of_its_tuning_is_worse(settled, lost):
    def bpb(name: str, seed: int) -> float:
        return math.nan if name == lost else 2.0

    comparison, asked_for = settled(bpb, looks=[6, 7, 9], diverged=[lost])
    contest = comparison.contests[0]
    assert contest.outcome == {"a": "better", "b": "worse"}[lost] and comparison.is_answered
    name = comparison.arms["ab".index(lost)].name
    because = (
        f"because in the tuning of {name}, training diverged with all values that were tried, in 3 runs."
    )
    assert comparison.headline.endswith(because)
    (warning,) = (one for one in sentences.warnings(comparison) if name in one)
    assert "It can't be better than another arm, only worse." in warning


def test_an_arm_that_diverges_in_all_of_its_tuning_and_not_afterwards_decides_nothing(settled):
    """The loss that it has with the lowest rate isn't the one that tuning would give it."""
    contest = settled(clear, looks=[7], diverged=["a"])[0].contests[0]
    assert contest.outcome == "inconclusive" and "tuning of norm=pre" in contest.reason
    contest = settled(lambda name, seed: 2.0, looks=[7], diverged=["a", "b"])[0].contests[0]
    assert contest.outcome == "inconclusive"


def test_arms_that_are_equivalent_settle_it_too(settled):
    comparison, asked_for = settled(alike, looks=[7, 9])
    assert comparison.contests[0].verdict.word == "equivalent" and len(asked_for) == 14


def test_each_look_must_be_surer_where_there_are_several(settled):
    """Six pairs of one sign settle it if they are looked at once, and not if that was the first look of many."""
    assert settled(clear, looks=[6])[0].contests[0].verdict.word == "worse"
    comparison, asked_for = settled(clear, looks=[6, 7, 20])
    assert max(pairs for _, pairs in asked_for) == 7
    verdict = comparison.contests[0].verdict
    assert [(look.pairs, look.word) for look in verdict.looks] == [(6, "inconclusive"), (7, "worse")]
    assert all(look.level < 0.05 for look in verdict.looks) and verdict.confidence == 0.95


def test_what_no_look_settles_is_inconclusive_after_the_last(settled):
    comparison, asked_for = settled(open_to_the_end, looks=[6, 9, 20])
    assert max(pairs for _, pairs in asked_for) == 20 and not comparison.is_settled
    assert (
        comparison.headline
        == "norm=post model/attn=mha against norm=pre model.layout=[attn mlp,mlp]: inconclusive."
    )


def test_what_no_look_can_settle_any_more_is_given_up(settled, capfd):
    """Differences of alternating sign: after six pairs, a seventh and an eighth change nothing."""
    comparison, asked_for = settled(unclear, looks=[6, 7, 8])
    contest = comparison.contests[0]
    assert max(pairs for _, pairs in asked_for) == 6 and contest.verdict.futile and contest.is_settled
    assert contest.verdict.word == "inconclusive"
    said = "The remaining looks, up to 8 pairs, are unlikely to settle it (chance below 14 %)."
    assert said in contest.sentence and said in capfd.readouterr().out


def test_a_turn_may_go_beyond_a_look_which_uses_the_first_pairs_only(settled, asked, monkeypatch):
    monkeypatch.setattr(asked.sweeper, "n_jobs", 4)
    comparison, asked_for = settled(clear, looks=[6, 7, 20])
    assert asked_for[-1][1] == 8 and comparison.contests[0].seeds == list(range(7))


def test_the_same_runs_have_the_same_looks_again(settled, asked):
    first, _ = settled(doubtful, looks=[6, 7, 9, 20])
    looks = [compare_pairs(asked, {}, pairs).contests[0].verdict.looks for pairs in (6, 7, 9, 20)]
    assert looks[-1] == first.contests[0].verdict.looks and len(looks[-1]) == 4
    assert all(looks[-1][: len(earlier)] == earlier for earlier in looks)


def test_pairs_that_there_is_no_time_for_are_not_begun(settled):
    """Two runs of ten seconds make a pair, and a look at a number that wasn't planned would be one too many."""
    comparison, asked_for = settled(doubtful, looks=[6, 20], seconds=10, time_left=170)
    assert asked_for[-1] == ("seeds-a", 8) and list(comparison.contests[0].seeds) == list(range(6))
    comparison, asked_for = settled(clear, looks=[6, 20], seconds=10, time_left=45)
    assert [pairs for _, pairs in asked_for] == [1, 1, 2, 2]
    verdict = comparison.contests[0].verdict
    assert (verdict.word, verdict.pairs) == ("inconclusive", 2)
    assert verdict.why.startswith(
        "Time ran out before the first look at 6 pairs. Run the same command to continue"
    )


def test_pairs_that_are_there_count_when_there_is_no_time_for_more(settled):
    first, _ = settled(doubtful, looks=[6, 7, 9, 20])
    again, asked_for = settled(doubtful, looks=[6, 7, 9, 20], time_left=0, again=True)
    assert asked_for == [] and again.headline == first.headline
    assert [one.verdict for one in again.contests] == [one.verdict for one in first.contests]


@pytest.mark.parametrize("aa", [False, True])
def test_only_pairs_that_were_trained_count_where_the_time_runs_out_within_a_turn(settled, capfd, aa):
    """The second arm's last runs weren't begun any more."""
    runs = 2 if aa else 1
    allowed = {"seeds-a": 7 * runs, "seeds-b": 7 * runs - 1}
    comparison, asked_for = settled(weak, looks=[6, 7, 20], allowed=allowed, aa=aa)
    assert asked_for[-1][1] == 7 * runs and len(comparison.contests[0].seeds) == 6 * runs
    assert "After 6 pairs" in (said := capfd.readouterr().out) and "After 7 pairs" not in said
    allowed = {"seeds-a": 3 * runs, "seeds-b": 3 * runs - 1}
    verdict = settled(unclear, looks=[6, 7], allowed=allowed, aa=aa)[0].contests[0].verdict
    assert verdict.pairs == 2 * runs and "before the first look at 6 pairs" in verdict.why


def test_pairs_are_counted_by_the_seeds_that_every_arm_has():
    trials = [
        optuna.trial.create_trial(
            state=state,
            value=None if state == TrialState.RUNNING else 1.0,
            params={"seed": seed},
            distributions={"seed": IntDistribution(0, 999)},
        )
        for seed, state in enumerate([TrialState.COMPLETE] * 5 + [TrialState.RUNNING, TrialState.COMPLETE])
    ]
    one, two = PROTOCOL, replace(PROTOCOL, aa=True)
    assert one.pairs_in([trials, trials[:4]]) == 4 and one.pairs_in([trials, trials]) == 5
    assert two.pairs_in([trials]) == 2 and one.pairs_in([trials, []]) == 0


def test_a_seed_that_crashed_leaves_it_undecided_and_no_further_pairs_are_trained(settled, capfd):
    comparison, asked_for = settled(
        lambda name, seed: None if (name, seed) == ("b", 3) else clear(name, seed), looks=[7, 9, 11]
    )
    contest = comparison.contests[0]
    assert (contest.verdict.word, contest.verdict.pairs, contest.divergence) == ("inconclusive", 6, None)
    assert contest.verdict.why.startswith(
        "norm=post model/attn=mha failed with seed 3, so the remaining seeds may be"
    )
    assert max(pairs for _, pairs in asked_for) == 7 and contest.is_settled
    assert "would settle it" not in summary(comparison) + capfd.readouterr().out


def test_an_arm_that_diverges_and_is_no_better_elsewhere_is_worse(settled):
    comparison, asked_for = settled(
        lambda name, seed: math.nan if (name, seed) == ("b", 3) else clear(name, seed), looks=[7, 9, 11]
    )
    contest = comparison.contests[0]
    assert (contest.verdict.word, contest.verdict.pairs, len(contest.seeds)) == ("worse", 7, 6)
    assert contest.verdict.diverged == (1, 0) and max(pairs for _, pairs in asked_for) == 7
    name, other = "norm=post model/attn=mha", "norm=pre model.layout=[attn mlp,mlp]"
    assert contest.sentence.startswith(
        f"{name} is worse than {other}. Training diverged with 1 of 7 seeds of {name} and 0 of 7 of {other} (exact"
        " McNemar test: p = 1)."
    )


@pytest.mark.parametrize("lost", ["a", "b"])
def test_an_arm_that_diverges_with_every_seed_is_worse(settled, lost, tmp_path):
    comparison, asked_for = settled(
        lambda name, seed: math.nan if name == lost else clear("a", seed), looks=[6, 7, 9]
    )
    contest = comparison.contests[0]
    assert contest.outcome == {"a": "better", "b": "worse"}[lost] and contest.is_settled
    assert contest.seeds == [] and contest.verdict.difference is None
    pairs = contest.verdict.pairs
    assert max(asked for _, asked in asked_for) == pairs
    assert f"{pairs} of {pairs}" in contest.sentence
    assert f"{pairs} pairs: at least one run of each diverged, p = 0." in contest.sentence
    arms = {arm.name: len(arm.runs) for arm in comparison.arms}
    assert sorted(arms.values()) == [0, pairs]
    write_report(comparison, tmp_path / "report", [])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    validate_report(report)
    assert report["contests"][0]["verdict"]["difference"] is None
    assert len(report["contests"][0]["divergence"][{"a": "baseline", "b": "arm"}[lost]]) == pairs


def test_where_every_arm_diverges_with_every_seed_there_is_nothing_to_compare(settled):
    with pytest.raises(NothingToCompare, match="training diverged with every seed of every arm"):
        settled(lambda name, seed: math.nan, looks=[6, 7])


@pytest.mark.parametrize("unstable", ["a", "b"])
def test_an_arm_that_is_better_only_where_it_survives_is_unstable_and_settles_it(settled, unstable):
    def bpb(name: str, seed: int) -> float:
        if name != unstable:
            return 2.0
        return math.nan if seed in (2, 5) else 1.81 + seed / 10_000

    comparison, asked_for = settled(bpb, looks=list(range(6, 29)))
    contest = comparison.contests[0]
    names = ["norm=pre model.layout=[attn mlp,mlp]", "norm=post model/attn=mha"]
    name, other = names if unstable == "a" else reversed(names)
    assert comparison.headline == (
        f"{name} is unstable: training diverged with 2 of 7 seeds (against 0 of 7 of {other}), although it reached"
        " 0.1897 bits per byte less where it didn't."
    )
    assert (contest.verdict.word, contest.outcome, contest.is_settled) == ("inconclusive", "unstable", True)
    assert max(pairs for _, pairs in asked_for) == 7 and contest.verdict.interval == (-math.inf, math.inf)


def test_an_arm_that_needs_no_more_pairs_is_not_trained_further(settled, asked, monkeypatch):
    monkeypatch.setattr(asked, "arms", {**asked.arms, "c": ["norm=sandwich"]})

    def bpb(name: str, seed: int) -> float:
        return doubtful("b", seed) if name == "c" else clear(name, seed)

    comparison, asked_for = settled(bpb, looks=[8, 9, 20])
    most = {phase: max(pairs for which, pairs in asked_for if which == phase) for phase, _ in asked_for}
    assert most == {"seeds-a": 20, "seeds-b": 8, "seeds-c": 20}
    assert [one.verdict.pairs for one in comparison.contests] == [8, 20]
    again, asked_for = settled(bpb, looks=[8, 9, 20], time_left=0, again=True)
    assert asked_for == [] and again.contests == comparison.contests


def test_what_would_settle_it_is_said_after_each_look(settled, capfd):
    comparison, _ = settled(open_to_the_end, looks=[6, 9, 20])
    settling = comparison.contests[0].verdict.settling
    assert settling.startswith("About ") and settling.endswith("stay the same.")
    looks = [line for line in capfd.readouterr().out.splitlines() if line.startswith("After ")]
    assert len(looks) == 3 and looks[2] == f"After 20 pairs: {comparison.headline} {settling}"


def test_the_margin_is_said_to_be_kept_where_it_was(settled):
    comparison, _ = settled(clear, looks=[7])
    assert sentences.KEPT in sentences.introduction(comparison)


@pytest.mark.parametrize("seeds", [0, 1])
def test_a_time_that_is_up_before_each_arm_has_a_run_is_said(settled, seeds):
    with pytest.raises(NothingToCompare, match="time ran out before every arm had a run"):
        settled(clear, allowed={"seeds-a": seeds, "seeds-b": 0})


def test_an_arm_whose_runs_are_all_lost_is_named_with_the_reason(settled):
    with pytest.raises(
        UserError,
        match=r"None of the 6 runs of arm b .* can be .* first is \S+seeds-b/trial-0: It crashed",
    ):
        settled(lambda name, seed: 2.0 if name == "a" else None)


def test_each_against_each_and_each_against_itself(settled):
    comparison, asked_for = settled(clear, looks=[6], aa=True, baseline="b")
    assert asked_for[-2:] == [("seeds-b", 12), ("seeds-a", 12)], "two seeds of an arm make a pair with itself"
    assert (
        comparison.headline == "norm=pre model.layout=[attn mlp,mlp] is better than norm=post model/attn=mha."
    )
    assert [noise.verdict.pairs for noise in comparison.noise] == [6, 6]


def test_an_only_arm_has_a_noise_floor(settled, asked, monkeypatch):
    monkeypatch.setattr(asked, "arms", {"a": ["norm=pre"]})
    comparison, asked_for = settled(lambda name, seed: 2 + seed % 3 / 1e5, looks=[6, 8], aa=True)
    assert asked_for == [("seeds-a", 2 * pairs) for pairs in range(1, len(asked_for) + 1)]
    assert comparison.contests == [] and comparison.noise[0].verdict.word == "equivalent"


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
