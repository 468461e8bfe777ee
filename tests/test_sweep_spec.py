"""What a search asks: files of conf/search, trials that ask the same, and the first of several sizes that fits."""

from __future__ import annotations

from pathlib import Path
from random import Random

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.runs.outcome import Outcome
from minllm.schema.groups import CONF
from minllm.sweep.sampling import ask
from minllm.sweep.spec import fingerprint
from tests.instant import search_at_once
from tests.specs import spec

SEARCHES = {path.stem: path.read_text() for path in sorted(Path(CONF, "search").glob("*.yaml"))}
SPACES = [name for name, text in SEARCHES.items() if "\n_target_: minllm.sweep.space.Plan\n" in text]
SPACES.remove("none")


# ---- the spaces that there are -----------------------------------------------------------------------


def test_protocols_are_searches_but_no_spaces():
    assert {*SPACES, "none", "verdict", "ladder", "profile", "rates", "ranking", "finding"} == {*SEARCHES}


@pytest.mark.parametrize("search", SEARCHES)
def test_search_files_begin_with_a_comment(search):
    comment, after = SEARCHES[search].removeprefix("# @package _global_\n").splitlines()[:2]
    assert comment.startswith("# ") and not after.startswith("#")


@pytest.mark.slow  # a configuration takes a tenth of a second to compose
@pytest.mark.parametrize("search", SPACES)
def test_most_sampled_combinations_can_be_built(search):
    with spec(f"search={search}") as asked:
        study = optuna.create_study(sampler=InTurn())
        refused = [asked.refusal(ask(study, asked.space)[1]) for _ in range(10)]
    for why in filter(None, refused):
        assert why.endswith(".") and "\n" not in why
        assert "isn't an option" not in why and "no key" not in why, (
            "a parameter is asked for where it isn't one"
        )
    assert sum(map(bool, refused)) < 0.3 * len(refused)


class InTurn(optuna.samplers.RandomSampler):
    """Draws each choice of a parameter once before it draws one again."""

    def __init__(self):
        super().__init__(seed=0)
        self.random, self.left = Random(2), {}

    def sample_independent(self, study, trial, name, kind):
        if not isinstance(kind, CategoricalDistribution):
            return super().sample_independent(study, trial, name, kind)
        if not self.left.get(name):
            self.left[name] = self.random.sample(kind.choices, len(kind.choices))
        return self.left[name].pop()


def test_conditions_of_the_grid_hold():
    with spec("search=grid", "train.steps=800") as asked:
        grid = list(asked.space.grid())
    assert len(grid) == 3444
    assert all(one["model.dim"] % one["model.attn.n_heads"] == 0 for one in grid)
    flat = [one for one in grid if one["schedule"] == "constant"]
    assert flat and all(
        name.partition(".")[0] != "schedule" or name == "schedule" for one in flat for name in one
    )
    assert all(("schedule.t_mult" in one) == (one.get("schedule.restarts", 0) > 0) for one in grid)


# ---- refusals ----------------------------------------------------------------------------------------


def test_refusals_are_cached(monkeypatch):
    with spec("search=none", "model.dim=choice(30,32)", "train.steps=10,1000") as asked:
        composed, settled = [], asked.settled
        monkeypatch.setattr(asked, "settled", lambda words: composed.append(words) or settled(words))
        for _ in range(3):
            assert asked.refusal({"model.dim": 32, "train.steps": 1000}) is None
            assert asked.refusal({"model.dim": 30, "train.steps": 1000}).endswith(".")
        assert len(composed) == 2


def test_a_trial_is_composed_once_and_belongs_to_whoever_asks_for_it(monkeypatch):
    with spec("search=none", "model.dim=32,64") as asked:
        words, composed, compose = ["model.dim=32"], [], asked.composed
        monkeypatch.setattr(asked, "composed", lambda words: composed.append(words) or compose(words))
        asked.settled(words).model.dim = 48
        assert asked.settled(words).model.dim == 32 and composed == [words]
        assert asked.settled(["model.dim=64"]).model.dim == 64


def test_a_schedule_that_is_longer_than_the_run_is_refused_before_it_is_tried():
    with spec("search=none", "schedule.warmup_steps=5,50", "train.steps=20") as asked:
        assert asked.refusal({"schedule.warmup_steps": 5}) is None
        assert "The schedule's parts take 50 steps" in asked.refusal({"schedule.warmup_steps": 50})


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["search=none"], "There's nothing to search."),
        (["search=size", "task=bench"], "A search trains new models"),
        (
            ["search=none", "seed=1,2", "sweep.metric=val_loss,val_bpb"],
            "sweep.metric configures the search itself",
        ),
    ],
)
def test_missing_search_space_is_reported(words, sentence):
    with pytest.raises(UserError, match=sentence), spec(*words):
        pass


def test_unknown_parameter_is_rejected():
    with spec("search=none", "model.dmi=1,2") as asked:
        assert "dmi" in asked.refusal({"model.dmi": 1})


# ---- trials that ask the same ------------------------------------------------------------------------


def test_configurations_that_compute_the_same_have_the_same_fingerprint():
    with spec("search=none", "seed=1,2") as asked:
        one, same, other, seeded, logged, tagged = (
            fingerprint(asked.settled(words))
            for words in (
                ["model/attn=mqa"],
                ["model/attn=mha", "model.attn.n_kv_heads=1"],
                ["model/attn=mha"],
                ["model/attn=mqa", "seed=1"],
                ["model/attn=mqa", "sweep.max_failures=7", "memory.limit=1GiB"],
                ["model/attn=mqa", "tags=[mine]"],
            )
        )
    assert one == same == logged == tagged and len({one, other, seeded}) == 3


@pytest.mark.parametrize("key", ["sweep.storage", "++sweep.storage"])
def test_storage_url_is_not_shown(key):
    with spec("search=none", "seed=1,2", f"{key}=postgresql://me:secret@host/db") as asked:
        assert "secret" not in " ".join(asked.shown_overrides()) and "seed=1,2" in asked.shown_overrides()


def test_all_trials_begin_with_the_weights_of_one_run(here):
    """`latest` is another run as soon as a trial has saved its own."""
    run = here / "outputs/2026-01-01/00-00-00-train"
    (run / "checkpoints/step-1").mkdir(parents=True)
    OmegaConf.save(compose(["seed=3"]), run / "config.yaml")
    with spec("search=none", "seed=1,2", "init_from=latest") as asked:
        assert asked.settled(asked.space.overrides({"seed": 1})).init_from == str(run.resolve())
        assert not any(word == "init_from=latest" for word in asked.space.overrides({"seed": 1}))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


GRID = ("search=none", "hydra/sweeper/sampler=grid")


def complete(cfg, **figures) -> Outcome:
    return Outcome("complete", 1.0 + cfg.model.dim / 1000, figures=figures)


@pytest.mark.parametrize("jobs", [1, 3])
def test_identical_trials_run_once(here, jobs):
    study, launched = search_at_once(
        complete,
        *GRID,
        "model/attn=choice(mha,gqa,mqa)",
        "model.attn.n_kv_heads=1",
        "model.dim=choice(32,64)",
        f"hydra.sweeper.n_jobs={jobs}",
    )
    assert sorted(cfg.model.dim for cfg in launched) == [32, 64] and len(study.trials) == 6
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert {trial.value for trial in study.trials if trial.params["model.dim"] == 32} == {1.032}
    assert sum("same_as" in trial.user_attrs for trial in study.trials) == 4


def test_same_search_continues_and_another_is_rejected(here):
    words = (*GRID, "model.dim=choice(32,48,64)")
    study, launched = search_at_once(complete, *words, "hydra.sweeper.n_trials=2")
    assert [cfg.model.dim for cfg in launched] == [32, 48]
    study, launched = search_at_once(complete, *words, "hydra.sweeper.n_trials=9")
    assert [cfg.model.dim for cfg in launched] == [64] and len(study.trials) == 3
    with pytest.raises(UserError, match="was started with other settings: model.dim was"):
        search_at_once(complete, *GRID, "model.dim=choice(32,48)")


# ---- the first that fits -----------------------------------------------------------------------------

FITS = "+search.first_that_fits={train.batch_size:[16,8,4]}"


def halving_above(rows: int):
    """What a trial leaves whose batch was taken in halves until memory was enough."""

    def outcome(cfg) -> Outcome:
        micro = min(cfg.train.batch_size, rows)
        return complete(cfg, micro_batch_size=micro, micro_batch_size_asked=cfg.train.batch_size)

    return outcome


@pytest.mark.parametrize("rows, tried", [(16, [16]), (8, [16, 8]), (2, [16, 8, 4])])
def test_the_next_size_is_tried_only_where_memory_ran_out_with_the_one_before(here, rows, tried):
    study, launched = search_at_once(halving_above(rows), *GRID, "model.dim=choice(32,64)", FITS)
    for dim in (32, 64):
        assert [cfg.train.batch_size for cfg in launched if cfg.model.dim == dim] == tried
    said = [word for trial in study.trials for word in trial.user_attrs["overrides"]]
    assert sorted(word for word in said if word.startswith("train.batch_size")) == sorted(
        f"train.batch_size={size}" for size in tried * 2
    )


def test_the_next_size_is_tried_where_the_kernel_ended_the_one_before(here):
    def outcome(cfg) -> Outcome:
        return complete(cfg) if cfg.train.batch_size < 16 else Outcome("pruned", reason="killed")

    study, launched = search_at_once(outcome, *GRID, "seed=0,1", FITS)
    assert [cfg.train.batch_size for cfg in launched] == [16, 8, 16, 8]


def test_a_size_that_is_typed_is_the_only_one(here):
    study, launched = search_at_once(
        halving_above(2), *GRID, "model.dim=choice(32,64)", FITS, "train.batch_size=8"
    )
    assert [cfg.train.batch_size for cfg in launched] == [8, 8]
