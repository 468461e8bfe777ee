"""A search's space: what is typed becomes parameters, and what doesn't matter isn't asked for."""

from __future__ import annotations

import functools
import itertools
import tracemalloc

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.sweep.dry_run import dry_run
from minllm.sweep.sampling import Grid, ask, make_sampler, shuffled
from minllm.sweep.space import choices, spelled
from minllm.sweep.store import open_study, requeue_interrupted
from tests.specs import plan, space, spec, study_of

# ---- words become parameters -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, kind",
    [
        ("model.dim=choice(64,128)", CategoricalDistribution([64, 128])),
        ("model.dim=64,128", CategoricalDistribution([64, 128])),
        ("model/attn=choice(mha,gqa)", CategoricalDistribution(["mha", "gqa"])),
        ("model.tie_embeddings=choice(true,false)", CategoricalDistribution([True, False])),
        ("train.clip=null,0.5", CategoricalDistribution(["null", 0.5])),
        ("model.layout=choice([attn mlp],[attn+mlp])", CategoricalDistribution(["[attn mlp]", "[attn+mlp]"])),
        ("model.n_layers=range(1,9)", IntDistribution(1, 8)),
        ("model.dim=range(32,129,32)", IntDistribution(32, 128, step=32)),
        ("model.dropout=range(0.0,0.3,0.1)", FloatDistribution(0.0, 0.2, step=0.1)),
        ("model.dim=int(interval(32,64))", IntDistribution(32, 64)),
        ("model.dropout=interval(0.0,0.5)", FloatDistribution(0.0, 0.5)),
        ("optim.lr=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("train.batch_size=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_each_kind_of_word_becomes_a_distribution(word, kind):
    asked = space(word)
    assert list(asked.distributions.values()) == [kind] and not asked.fixed


def test_glob_stands_for_options():
    with spec("search=none", "experiment=glob(small_m*)") as asked:
        options = asked.space.distributions["experiment"].choices
    assert {"small_mamba", "small_mamba2", "small_min_gru"} <= set(options) and "mamba" not in options


def test_the_command_line_wins_over_the_file():
    params = {"model.dim": "choice(64,128)", "model.n_layers": "range(1,5)"}
    asked = space("model.dim=choice(32,48)", "model.n_layers=3", params=params, fixed={"seed": 1})
    assert asked.distributions == {"model.dim": CategoricalDistribution([32, 48])}
    assert asked.fixed == {"seed": "1", "model.n_layers": "3"}
    assert list(space("seed=1,2", fixed={"seed": 1}).distributions) == ["seed"]
    assert not space("seed=1,2", fixed={"seed": 1}).fixed


def test_last_override_of_a_key_wins():
    params = {"model.dim": "choice(64,128)"}
    assert space("++model.dim=32", params=params).overrides({}) == ["++model.dim=32"]
    assert space("seed=3", "seed=1,2", "seed=4").overrides({}) == ["seed=4"]
    deleted = space("~model.dropout", params={"model.dropout": "choice(0.0,0.1)"})
    assert not deleted.distributions and deleted.overrides({}) == ["~model.dropout"]
    assert "dropout" not in deleted.base.model


def test_a_parameter_keeps_its_place_when_other_values_are_typed():
    params = {"schedule": "choice(cosine,constant)", "schedule.restarts": "range(0,3)"}
    when = {"schedule.restarts": {"schedule": ["cosine"]}}
    asked = space("schedule=choice(linear,cosine)", "seed=1,2", params=params, when=when)
    assert list(asked.distributions) == ["seed", "schedule", "schedule.restarts"]
    both = space("schedule=choice(linear,cosine)", params={"schedule.restarts": "range(0,3)"}, when=when)
    assert both.is_sampled("schedule.restarts", {"schedule": "cosine"})
    assert not both.is_sampled("schedule.restarts", {"schedule": "linear"})


TRICKY = [
    "'two words'",
    '"it\'s"',
    "'null'",
    "'true'",
    "'12'",
    "'1e-3'",
    "'a,b'",
    "a\\,b",
    "'[attn mlp]'",
    "'\\\\'",
    "''",
    "[attn mlp,'rec mlp']",
    "[attn+mlp]",
    "{a:1,b:[x y]}",
    "null",
    "true",
    "1",
    "1.0",
    "1e-05",
    "1e-4",
    "inf",
    "0x10",
    "plain words here",
    "07",
    "'grüße'",
]


def test_sampled_values_compose_to_the_same_value():
    asked = space(f"+word={','.join([*TRICKY, 'last'])}")
    drawn = asked.distributions["+word"].choices[:-1]
    again = [
        asked.overrides({"+word": value})[0].replace("+word", f"+word{i}") for i, value in enumerate(drawn)
    ]
    wanted = compose([f"+word{i}={word}" for i, word in enumerate(TRICKY)])
    found = compose(again)
    for i, word in enumerate(TRICKY):
        assert found[f"word{i}"] == wanted[f"word{i}"], word
        assert type(found[f"word{i}"]) is type(wanted[f"word{i}"]), word


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        1e-30,
        "null",
        "true",
        "12",
        "two words",
        "it's",
        "a,b",
        "choice(1,2)",
        "",
        " a ",
        "a: b",
    ]
    + [
        "grüße",
        "[x]",
        "\\",
        "a=b",
        ["attn mlp", "rec mlp"],
        [],
        ["a,b", None, [1, "2"]],
        {"a": 1, "b": "x y"},
    ],
)
def test_a_value_that_a_file_fixes_is_composed_as_it_is(value):
    found = compose([f"+word={spelled(value)}"]).word
    found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "word", ["optim.lr=tag(log,interval(0.0,1.0))", "model.dim=range(4,4)", "model.dim=interval(4,2)"]
)
def test_invalid_search_spaces_are_rejected(word):
    with pytest.raises(UserError, match=r"Can't search .*\."):
        space(word)


def test_a_file_that_cannot_be_read_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="Can't read model.dim=choice"):
        space(params={"model.dim": "choice(1,"})
    with pytest.raises(UserError, match="null can't be in a function, so write train.clip=null,1"):
        space(params={"train.clip": "choice(null,1.0)"})
    with pytest.raises(UserError, match="such as choice"):
        plan({"model.dim": [1, 2]})
    with pytest.raises(UserError, match="no parameter 'schedul.restarts'. Did you mean 'schedule.restarts'"):
        plan({"schedule.restarts": "range(0,2)"}, when={"schedul.restarts": {}})
    with pytest.raises(UserError, match="no values to try"):
        plan(first_that_fits={"train.batch_size": []})


# ---- conditions --------------------------------------------------------------------------------------

SCHEDULES = {
    "schedule": "choice(constant,cosine,linear)",
    "schedule.restarts": "choice(0,1,3)",
    "schedule.t_mult": "choice(1.0,2.0)",
    "seed": "range(0,2)",
}
WHEN = {
    "schedule.restarts": {"schedule": ["cosine", "linear"]},
    "schedule.t_mult": {"schedule.restarts": [1, 3]},
}
schedules = functools.partial(space, params=SCHEDULES, when=WHEN)


def asked_for(given, **values) -> set[str]:
    known = {name.replace("__", "."): value for name, value in values.items()}
    return {name for name in given.distributions if given.is_sampled(name, known)}


def test_irrelevant_parameters_are_not_sampled():
    given = schedules()
    assert asked_for(given, schedule="constant") == {"schedule", "seed"}
    assert asked_for(given, schedule="cosine", schedule__restarts=0) == {
        "schedule",
        "schedule.restarts",
        "seed",
    }
    assert asked_for(given, schedule="cosine", schedule__restarts=3) == set(SCHEDULES)


def test_conditions_use_fixed_values_and_defaults():
    assert asked_for(schedules("schedule=constant")) == {"seed"}
    assert asked_for(schedules("schedule.restarts=1"), schedule="cosine") == {
        "schedule",
        "schedule.t_mult",
        "seed",
    }
    assert asked_for(schedules("schedule.restarts=0"), schedule="cosine") == {"schedule", "seed"}
    no_schedule = {name: one for name, one in SCHEDULES.items() if name != "schedule"}
    assert asked_for(space(params=no_schedule, when=WHEN), schedule__restarts=1) == set(no_schedule)
    by_default = {"seed": {"model.layout": [["attn mlp"]], "train.clip": [1.0], "model.softcap": [None]}}
    assert asked_for(space(params={"seed": "range(0,2)"}, when=by_default)) == {"seed"}


def test_a_parameter_that_is_not_asked_for_meets_no_condition_whatever_its_default():
    given = schedules()
    given.base.schedule.restarts = 3  # as a preset might have it
    assert asked_for(given, schedule="constant") == {"schedule", "seed"}


def test_conditions_compare_parsed_values():
    params = {
        "model.layout": "choice([attn mlp],['attn+mlp'])",
        "train.clip": "null,1.0",
        "seed": "range(0,2)",
    }
    for needs, values in [
        ({"model.layout": [["attn+mlp"]]}, {"model.layout": "['attn+mlp']"}),
        ({"train.clip": [None]}, {"train.clip": "null"}),
        ({"train.clip": [1]}, {"train.clip": 1.0}),
    ]:
        given = space(params=params, when={"seed": needs})
        assert given.is_sampled("seed", values)
        assert not given.is_sampled("seed", {"model.layout": "[attn mlp]", "train.clip": 0.5})


def test_conditions_on_later_or_unknown_names_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="refers to schedule.restarts, which is sampled later: write"):
        space(
            params={"seed": "range(0,2)", "schedule.restarts": "range(0,2)"},
            when={"seed": {"schedule.restarts": [0]}},
        )
    with pytest.raises(UserError, match="refers to schedul, which doesn't exist"):
        space(params={"seed": "range(0,2)"}, when={"seed": {"schedul": ["cosine"]}})
    with pytest.raises(UserError, match="search.multiples refers to model.heads"):
        space(params={"model.dim": "choice(2,4)"}, multiples={"model.dim": "model.heads"})
    # an option that isn't the default has keys of its own
    space("schedule=trapezoid", params={"seed": "range(0,2)"}, when={"seed": {"schedule.restarts": [0]}})


def test_violated_multiples_are_explained():
    given = space(params={"model.dim": "range(2,9)"}, multiples={"model.dim": "model.attn.n_heads"})
    assert given.misfit({"model.dim": 8}) is None
    assert given.misfit({"model.dim": 6}) == "model.dim=6 isn't a multiple of model.attn.n_heads=4."
    # not asked for, no number, or nothing to divide by: what builds the model will judge
    assert space("model.attn.n_heads=0", multiples={"model.dim": "model.attn.n_heads"}).misfit({}) is None
    assert space("model.attn.n_heads=null", multiples={"model.dim": "model.attn.n_heads"}).misfit({}) is None


# ---- grids -------------------------------------------------------------------------------------------

SIZES = {"model.attn.n_heads": "choice(2,3,4)", "model.dim": "range(4,13,2)", **SCHEDULES}
grids = functools.partial(space, params=SIZES, when=WHEN, multiples={"model.dim": "model.attn.n_heads"})


def brute_force(given) -> list[dict]:
    """Every combination of all parameters, with what isn't asked for taken out, and what is left twice only once."""
    found = []
    for chosen in itertools.product(*map(choices, given.distributions.values())):
        values = {}
        for name, value in zip(given.distributions, chosen):
            if given.is_sampled(name, values):
                values[name] = value
        if given.misfit(values) is None and values not in found:
            found.append(values)
    return found


@pytest.mark.parametrize("typed", [(), ("schedule=constant",), ("schedule.restarts=1",), ("model.dim=12",)])
def test_grid_order_and_conditions(typed):
    given = grids(*typed)
    expected = brute_force(given)
    assert list(given.grid()) == expected and given.size() == len(expected) < given.size_without_conditions()


def test_a_step_of_a_range_is_written_as_it_was_typed():
    assert list(choices(space("model.dropout=range(0.0,0.5,0.1)").distributions["model.dropout"])) == [
        0.0, 0.1, 0.2, 0.3, 0.4
    ]  # fmt: skip


def test_grid_rejects_continuous_ranges():
    with pytest.raises(
        UserError, match=r"optim.lr has a continuous range, which a grid can't enumerate: .*optim.lr=choice"
    ):
        space("optim.lr=interval(0.1,0.2)").size()


def a_grid(given, refusal=lambda values: None, seed=None):
    return study_of(functools.partial(optuna.samplers.GridSampler, seed=seed), given, refusal)


def gone_through(study, given, trials=10**6) -> list[dict]:
    seen = []
    while len(seen) < trials and study.sampler.next(study) is not None:
        trial, values = ask(study, given)
        assert trial.params == values
        study.tell(trial, 1.0)
        seen.append(values)
    return seen


def test_grid_tries_each_buildable_combination_once():
    given = grids()
    refusal = lambda values: "too wide" if values["model.dim"] == 12 else None  # noqa: E731
    study = a_grid(given, refusal)
    assert gone_through(study, given) == [one for one in given.grid() if one["model.dim"] != 12]
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))


def test_a_seed_shuffles_a_grid_the_same_way_each_time():
    given = grids("seed=0")
    straight, one, again, other = (gone_through(a_grid(given, seed=seed), given) for seed in (None, 1, 1, 2))
    assert one == again and one != other and one != straight
    in_order = sorted(map(str, straight))
    assert sorted(map(str, one)) == in_order == sorted(map(str, other))
    assert sorted(shuffled(1000, 0)) == list(range(1000)) and list(shuffled(0, 0)) == []


@pytest.mark.parametrize("seed", [None, 3])
def test_grid_continues_a_study(seed, tmp_path):
    given = grids("seed=0")

    def opened():
        chosen = functools.partial(optuna.samplers.GridSampler, seed=seed)
        sampler = make_sampler(chosen, given, lambda values: None)
        return open_study("stopped", None, tmp_path, sampler=sampler, pruner=optuna.pruners.NopPruner())

    study = opened()
    before = gone_through(study, given, trials=7)
    study.ask(), ask(study, given)  # one cut off before it had any value, and one after it had all
    study.ask().suggest_categorical("model.attn.n_heads", (2, 3, 4))  # and one when it had the first
    study = opened()
    assert requeue_interrupted(study) == [7, 8, 9]
    after = [ask(study, given)[1] for _ in range(3)]
    after += gone_through(study, given)
    assert sorted(map(str, before + after)) == sorted(map(str, given.grid()))


def test_a_grid_of_billions_is_counted_and_begun_at_once():
    typed = [f"+x{i}=range(0,{10 if i else 9})" for i in range(10)]
    given = space(*typed, "schedule=choice(constant,cosine)", params=SCHEDULES, when=WHEN)
    tracemalloc.start()
    size = given.size()
    assert size == 9 * 10**9 * (1 + 5) * 2
    grid = Grid(given, lambda values: None, seed=0)
    study = optuna.create_study(sampler=grid)
    assert len(gone_through(study, given, trials=100)) == 100
    assert given.combination(size - 1)["+x0"] == 8
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_dry_run_describes_the_space():
    with spec("search=grid", "model.n_layers=choice(1,2)", "optim.lr=1e-3") as asked:
        said = dry_run(asked).splitlines()
    assert "1,148 combinations satisfy the conditions, out of 2,592." in said
    assert "train.batch_size is the first of [64, 32, 16, 8] that fits in memory." in said
    shown = said[said.index("The first 10 that can be built:") + 1 :]
    assert len(shown) == 10 and shown[0].split()[:2] == ["model.dim=128", "model.n_layers=1"]
    with spec("search=none", "optim.lr=interval(0.001,0.01)") as asked:
        assert (
            "optim.lr is sampled from a continuous range, so the combinations can't be counted."
            in dry_run(asked)
        )
    with spec("search=none", "model.layout=choice([attn mlp],[attn+mlp])", "model.dim=31,32") as asked:
        assert dry_run(asked).splitlines()[-2:] == [
            "'model.layout=[attn mlp]' model.dim=32",
            "'model.layout=[attn+mlp]' model.dim=32",
        ]
