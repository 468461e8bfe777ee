"""How arms are tuned: where the grid goes, what is chosen, what isn't settled, and that a killed tuning goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from opda.nonparametric import EmpiricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome
from minllm.study.report import sentences
from minllm.study.tuning import Tuning
from minllm.study.tuning_curves import CONFIDENCE, separate_at, tuning_curve
from minllm.sweep.plugin import LauncherOptions, NotSettled, Processes
from minllm.verdict import jobs
from minllm.verdict.ledger import Ledger
from minllm.verdict.protocol import refuse_same_results
from minllm.verdict.random_search import FINALISTS, RandomSearch, draws_of
from minllm.verdict.rate_search import RateSearch, rates_of
from minllm.verdict.results import Results
from minllm.verdict.tuning import choice_of
from tests.instant import Instant, inquiry
from tests.test_report_schema import validate_answer

RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
SEEDS = (1000, 1001)
Loss = Callable[[Mapping[str, float], int], float | None]


def carried_out(plan: RateSearch | RandomSearch, loss: Loss) -> tuple[Tuning | None, dict]:
    """Return what a plan chooses where training has these losses, and all results in the order of the runs."""
    results: dict = {}
    while runs := plan.next_round(results):
        assert not any(run in results for run in runs)
        results |= {(values, seed): loss(dict(values), seed) for values, seed in runs}
    return plan.choice(results), results


def bowl(best: float, breaks: float = math.inf) -> Loss:
    """Return a loss that is a quadratic in the logarithm of the rate, and diverges from `breaks` on."""

    def loss(values: Mapping[str, float], seed: int) -> float | None:
        rate = values["optim.lr"]
        return None if rate >= breaks else 2 + 0.05 * math.log2(rate / best) ** 2 + 0.01 * (seed - 1000)

    return loss


def rates_in(results: Results, seed: int) -> list[float]:
    return [dict(values)["optim.lr"] for values, one in results if one == seed]


# ---- the grid ------------------------------------------------------------------------------------


def test_rates_are_multiples_of_the_configured_one():
    assert rates_of(0.003, [1, 0.25, 4]) == (0.00075, 0.003, 0.012)


def test_the_minimum_between_rates_is_chosen_with_the_fewest_runs():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), bowl(0.003))
    assert choice.chosen == {"optim.lr": 0.003} and choice.how == (
        "the minimum of a quadratic through 5 rates, within the range that was tried"
    )
    assert rates_in(results, 1000) == list(RATES) and rates_in(results, 1001) in (
        [0.001, 0.002, 0.004],
        [0.002, 0.004, 0.008],
    )
    assert choice.runs == 8 and choice.unsettled == ""


@pytest.mark.parametrize(
    ("best", "beyond"),
    [(0.05, [0.032, 0.064, 0.128, 0.256]), (0.0003, [0.0005, 0.00025, 0.000125, 6.25e-05])],
)
def test_grid_is_extended_until_the_best_is_inside(best, beyond):
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), bowl(best))
    assert rates_in(results, 1000) == [*RATES, *beyond] and choice.chosen["optim.lr"] == pytest.approx(
        best, rel=1e-2
    )
    assert choice.unsettled == "" and [one.values["optim.lr"] for one in choice.tried if one.planned] == list(
        RATES
    )


def test_grid_is_extended_by_the_spacing_at_its_edge():
    _, results = carried_out(RateSearch((0.001, 0.002, 0.02), SEEDS, 16), bowl(0.1))
    assert rates_in(results, 1000)[3:] == [0.2, 2.0]


def test_the_limit_on_runs_leaves_an_edge_unsettled():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 7), bowl(1.0))
    assert len(results) == 7 and choice.chosen == {"optim.lr": 0.064}
    assert choice.unsettled == (
        "its best learning rate, 0.064, is the highest that was tried after 7 runs of at most 7 (search.tuning_runs)"
    )


def test_the_limit_on_runs_leaves_repeats_unsettled():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 7), bowl(0.004))
    assert len(results) == 5 and choice.unsettled.startswith(
        "its best learning rates weren't tried with every"
    )


def test_the_choice_is_a_fit_and_not_the_single_lowest():
    """One lucky run moves the choice less than to its own rate."""

    def loss(values: Mapping[str, float], seed: int) -> float:
        return bowl(0.004)(values, seed) - 0.06 * (values["optim.lr"] == 0.008)

    choice, results = carried_out(RateSearch(RATES, (1000,), 16), loss)
    assert min(results, key=results.__getitem__)[0] == (("optim.lr", 0.008),)
    assert 0.004 < choice.chosen["optim.lr"] < 0.007


def test_rates_are_compared_as_if_all_had_been_tried_with_every_seed():
    """The second seed is harder, and still the rates tried with it stay ahead of those that weren't."""

    def loss(values: Mapping[str, float], seed: int) -> float:
        return bowl(0.004)(values, 1000) + (seed == 1001)

    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), loss)
    assert choice.chosen == {"optim.lr": 0.004} and rates_in(results, 1001) == [0.002, 0.004, 0.008]


def test_a_rate_counts_only_if_all_lower_rates_held():
    """What once happened: a low rate diverged and higher ones didn't, and the highest was taken."""

    def loss(values: Mapping[str, float], seed: int) -> float | None:
        return None if values["optim.lr"] == 0.004 else bowl(0.02)(values, seed)

    choice, _ = carried_out(RateSearch(RATES, SEEDS, 16), loss)
    assert choice.chosen == {"optim.lr": 0.002} and choice.unsettled == ""


def test_a_rate_that_diverges_with_a_further_seed_isnt_chosen():
    def loss(values: Mapping[str, float], seed: int) -> float | None:
        return None if seed == 1001 and values["optim.lr"] > 0.003 else bowl(0.016)(values, seed)

    choice, _ = carried_out(RateSearch(RATES, SEEDS, 16), loss)
    assert choice.chosen == {"optim.lr": 0.002} and choice.unsettled == ""
    assert [one.mean for one in choice.tried if one.values["optim.lr"] == 0.004] == [None]


def test_a_best_rate_below_one_that_diverges_is_inside_and_isnt_exceeded():
    choice, _ = carried_out(RateSearch(RATES, SEEDS, 16), bowl(0.012, breaks=0.008))
    assert choice.chosen == {"optim.lr": 0.004} and choice.unsettled == ""
    assert choice.how.startswith("nearest to the minimum of a quadratic through 3 rates, which lies beyond")


def test_where_the_lowest_rate_diverges_lower_ones_are_tried():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 16), bowl(0.0001, breaks=0.001))
    assert rates_in(results, 1000)[5] == 0.0005 and choice.chosen["optim.lr"] == pytest.approx(
        0.0001, rel=1e-2
    )


def test_an_arm_that_always_diverges_has_no_choice():
    choice, results = carried_out(RateSearch(RATES, SEEDS, 9), bowl(0.004, breaks=0))
    assert choice is None and len(results) == 9


@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_the_choice_costs_less_than_that_of_the_lowest_loss(noise):
    """On a lopsided loss with noise, as models have it."""

    def true(rate: float) -> float:
        place = math.log2(rate / 0.005)
        return 0.02 * place**2 if place < 0 else 0.04 * place**2

    random = np.random.default_rng(0)
    fitted, lowest = [], []
    for _ in range(200):
        shift = 2 ** random.uniform(-0.5, 0.5)

        def loss(values: Mapping[str, float], seed: int, shift=shift) -> float:
            return true(values["optim.lr"] * shift) + noise * random.standard_normal()

        choice, results = carried_out(RateSearch(RATES, SEEDS, 16), loss)
        fitted.append(true(choice.chosen["optim.lr"] * shift))
        best = min((run for run in results if run[1] == 1000), key=results.__getitem__)
        lowest.append(true(dict(best[0])["optim.lr"] * shift))
    assert np.mean(fitted) < 0.8 * np.mean(lowest)


# ---- random search -------------------------------------------------------------------------------

CENTRE = {"optim.lr": 0.004, "schedule.warmup_steps": 20}


def random_search(centre: Mapping[str, float] = CENTRE, trials: int = 24) -> RandomSearch:
    return RandomSearch(draws_of(centre, trials, 8.0), SEEDS, centre, 8.0)


def test_draws_are_the_same_multiples_for_every_arm_and_within_the_span():
    draws, others = (random_search({**CENTRE, "optim.lr": rate}).draws for rate in (0.004, 0.04))
    assert len(draws) == 24 and len(set(draws)) == 24
    for draw, other in zip(draws, others):
        assert dict(other)["optim.lr"] == pytest.approx(10 * dict(draw)["optim.lr"], rel=1e-2)
        assert dict(other)["schedule.warmup_steps"] == dict(draw)["schedule.warmup_steps"]
    rates, steps = zip(*(dict(draw).values() for draw in draws))
    assert 0.0005 <= min(rates) < 0.001 and 0.016 < max(rates) <= 0.032
    assert all(isinstance(one, int) and 1 <= one <= 160 for one in steps)


def test_the_best_draw_is_chosen_after_the_finalists_were_repeated():
    def loss(values: Mapping[str, float], seed: int) -> float:
        worse = seed == 1001 and values["optim.lr"] == first
        return bowl(0.004)(values, seed) + worse

    first = math.nan
    choice, results = carried_out(random_search(), loss)
    assert len(results) == 24 + FINALISTS and choice.unsettled == ""
    first = choice.chosen["optim.lr"]
    again, results = carried_out(random_search(), loss)
    assert again.chosen["optim.lr"] != first and len(results) == 24 + FINALISTS + 1


def test_a_draw_counts_only_if_those_with_lower_rates_held():
    choice, _ = carried_out(random_search(), bowl(0.03, breaks=0.004))
    assert choice.chosen["optim.lr"] < 0.004

    def loss(values: Mapping[str, float], seed: int) -> float | None:
        lost = 0.003 < values["optim.lr"] < 0.004
        return None if lost else bowl(0.03)(values, seed)

    assert carried_out(random_search(), loss)[0].chosen["optim.lr"] < 0.004


def test_finalists_at_an_end_of_the_range_leave_it_unsettled():
    choice, _ = carried_out(random_search(), bowl(1.0))
    assert (
        choice.unsettled == "its best draws are all near the upper end of the range of optim.lr (search.span)"
    )
    choice, _ = carried_out(random_search(), bowl(0.004, breaks=0.0007))
    assert choice.unsettled.startswith("only ") and choice.unsettled.endswith(
        "of its 24 draws trained without failing"
    )
    assert carried_out(random_search(), bowl(0.004, breaks=0))[0] is None


# ---- tuning curves -------------------------------------------------------------------------------


def test_a_tuning_curve_is_that_of_opda():
    losses = list(np.random.default_rng(1).normal(2, 0.1, 24))
    curve = tuning_curve(losses)
    low, point, high = EmpiricalDistribution.confidence_bands(
        losses, CONFIDENCE, method="ld_equal_tailed", generator=np.random.default_rng(0), n_jobs=1
    )
    k = np.arange(1, 25)
    assert curve.best == list(point.quantile_tuning_curve(k, minimize=True))
    assert curve.low == list(high.quantile_tuning_curve(k, minimize=True))
    assert curve.high == list(low.quantile_tuning_curve(k, minimize=True))


def test_the_band_covers_the_true_curve():
    """The best of k uniform draws has the median 1 − 2^(−1/k), and the band must hold it for every k at once."""
    random, k = np.random.default_rng(2), np.arange(1, 13)
    true = 1 - 0.5 ** (1 / k)
    curves = [tuning_curve(list(random.random(12))) for _ in range(400)]
    covered = [(np.array(one.low) <= true).all() and (true <= np.array(one.high)).all() for one in curves]
    assert np.mean(covered) > 0.96


def test_trials_that_diverged_are_the_worst():
    curve = tuning_curve([2.0, None, 1.0, None, None])
    assert curve.best[0] == math.inf and curve.best[-1] == 1.0 and curve.low == [-math.inf] * 5


def test_curves_are_apart_where_their_bands_are():
    one, other = (tuning_curve([base + i / 100 for i in range(24)]) for base in (1.0, 2.0))
    assert separate_at(one, other) == separate_at(other, one) == [1, 2] and separate_at(one, one) == []


# ---- in a verdict --------------------------------------------------------------------------------

ARMS = ("arms.a=[norm=pre]", "arms.b=[norm=post,optim.lr=0.02]", "optim.lr=0.01", "search.equal=null")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tuned(outcome_of, *words: str) -> tuple[dict[str, Tuning], list]:
    """Tune the arms in the current folder, as a verdict does, and return that and what was launched."""
    with inquiry(*ARMS, *words) as asked:
        Instant.outcome_of, Instant.launched = staticmethod(outcome_of), []
        asked.save_protocol()
        return asked.tune(), Instant.launched


def test_interrupted_tuning_extends_the_grid(here, capfd):
    def outcome_of(cfg) -> Outcome:
        if cfg.norm.before and len(Instant.launched) == stop_at:
            raise KeyboardInterrupt
        return Outcome("complete", bowl(0.01 * (1 + cfg.norm.before))({"optim.lr": cfg.optim.lr}, cfg.seed))

    stop_at, words = 2, ("search.rates=[0.5,1]", "logger=wandb")
    with pytest.raises(KeyboardInterrupt):
        tuned(outcome_of, *words)
    before, stop_at = Instant.launched[:-1], -1
    found, after = tuned(outcome_of, *words)
    assert found["a"].chosen == {"optim.lr": 0.02} and found["b"].chosen == {"optim.lr": 0.01}
    launched = [(cfg.optim.lr, cfg.seed) for cfg in (*before, *after) if cfg.norm.before]
    assert launched == [
        *((rate, 1000) for rate in (0.005, 0.01, 0.02, 0.04)),
        (0.01, 1001),
        (0.02, 1001),
        (0.04, 1001),
    ]
    assert {cfg.logger.group for cfg in after} == {"a-search-tuning"}
    assert (
        "a: optim.lr=0.02: the minimum of a quadratic through 4 rates, within the range"
        in capfd.readouterr().out
    )


def test_several_keys_are_tuned_with_the_same_draws(here):
    def outcome_of(cfg) -> Outcome:
        return Outcome("complete", bowl(0.01)({"optim.lr": cfg.optim.lr}, cfg.seed) + cfg.optim.weight_decay)

    words = (
        "search.tune=[optim.lr,optim.weight_decay,schedule.warmup_steps]",
        "search.trials=4",
        "train.steps=300",
    )
    found, launched = tuned(outcome_of, *words)
    assert len(launched) == sum(one.runs for one in found.values())
    a, b = ([tried.values for tried in found[name].tried if 1000 in tried.losses] for name in "ab")
    for one, other in zip(a, b, strict=True):
        assert other["optim.lr"] == pytest.approx(2 * one["optim.lr"], rel=1e-2)
        assert other["optim.weight_decay"] == one["optim.weight_decay"]
        # a warm-up that isn't configured is a tenth of the run
        assert (
            other["schedule.warmup_steps"] == one["schedule.warmup_steps"]
            and 4 <= one["schedule.warmup_steps"] <= 240
        )
    assert found["a"].overrides[0].startswith("optim.lr=") and len(found["a"].overrides) == 3
    assert {cfg.schedule.warmup_steps for cfg in launched} == {one["schedule.warmup_steps"] for one in a}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["search.tune=[optim.lr,optim.beta3]"], "search.tune has optim.beta3, but arm a has no such number"),
        (["search.tune=[optim.lr,train.steps]"], "search.tune has train.steps, but arm a has no such number"),
        (
            ["search.tune=[optim.lr,schedule.warmup_steps]", "schedule.warmup_steps=20", "train.steps=100"],
            "Arm a can't be trained with the highest values of its random search",
        ),
        (
            ["search.tune=[optim.weight_decay]", "arms.c=[optim.weight_decay=0]"],
            "search.tune=optim.weight_decay tries multiples of a number above 0, but in arm c it is 0",
        ),
        (["search.tune=[schedule.lr_min]"], "in arm a it is null. Set it, such as schedule.lr_min=1"),
        (["search.tune=[optim.decay_embeddings]"], "in arm a it is true"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_untunable_keys_are_rejected_before_any_run(here, words, sentence):
    with pytest.raises(UserError) as refused, inquiry(*ARMS, *words):
        pass
    assert sentence in str(refused.value) and list(here.iterdir()) == []


def test_tuning_options_that_change_on_the_way_are_refused(here):
    with inquiry(*ARMS, "search.tuning_runs=6") as asked:
        asked.save_protocol()
        (asked.folder / "tune-a").mkdir()
    with pytest.raises(UserError, match="began with search.tuning_runs=6"), inquiry(*ARMS):
        pass


def test_arms_that_compute_the_same_are_refused_once_that_shows():
    plan = RateSearch(RATES, SEEDS, 16)
    one, other, lost = (
        carried_out(plan, loss)[0] for loss in (bowl(0.004), bowl(0.003), bowl(0.004, breaks=0.01))
    )
    refuse_same_results({"a": one, "b": other, "c": lost, "d": lost})
    with pytest.raises(
        UserError, match="arms.a and arms.b reached exactly the same loss in every tuning run"
    ):
        refuse_same_results({"a": one, "b": one})


def test_an_arm_that_diverges_with_every_rate_is_compared_at_the_lowest():
    plan = RateSearch(RATES, SEEDS, 6)
    _, results = carried_out(plan, bowl(0.004, breaks=0))
    choice = choice_of("b", plan, results, lost("diverged"))
    assert choice.chosen == {"optim.lr": 0.0005} and choice.always_diverged and choice.runs == 6
    assert choice.unsettled == "training diverged with all values that were tried, in 6 runs"


def test_an_arm_of_which_only_the_lowest_rate_diverges_did_not_always_diverge():
    plan = RateSearch(RATES, SEEDS, 6)
    _, results = carried_out(plan, lambda values, seed: None if values["optim.lr"] < 0.01 else 2.0)
    choice = choice_of("b", plan, results, lost("diverged"))
    assert not choice.always_diverged
    assert choice.unsettled == "training diverged with the lowest values that were tried, in 6 runs"


def test_of_several_keys_that_always_diverge_the_lowest_rate_is_compared():
    plan = random_search({"optim.weight_decay": 0.1, "optim.lr": 0.004})
    _, results = carried_out(plan, lambda values, seed: None)
    choice = choice_of("b", plan, results, lost("diverged"))
    assert choice.chosen["optim.lr"] == min(dict(draw)["optim.lr"] for draw in plan.draws)
    assert "24 values, of which 24 failed. Not settled" in sentences.tuned(choice)


def test_an_arm_whose_tuning_runs_fail_in_another_way_is_named():
    plan = RateSearch(RATES, SEEDS, 6)
    _, results = carried_out(plan, bowl(0.004, breaks=0))
    said = r"Arm b can't be tuned: no .* down to optim.lr=0.0005, .* other failure: It lost by memory\."
    with pytest.raises(UserError, match=said):
        choice_of("b", plan, results, [*lost("diverged"), *lost("memory")])


def lost(reason: str) -> list[FrozenTrial]:
    attributes = {"reason": reason, "text": f"It lost by {reason}."}
    return [create_trial(state=TrialState.PRUNED, user_attrs=attributes)]


def test_a_time_that_is_too_short_for_one_run_is_not_settled(here, capfd):
    """There is no report, but a line of JSON, and the ledger has the verdict as started."""
    words = (*ARMS, "sweep.minutes=1e-6", "search.aa=true")
    with json_output(), inquiry(*words) as asked, pytest.raises(NotSettled):
        asked.protocol.run(asked.sweeper, [*asked.overrides, *ARMS[:2]])
    line = json.loads(capfd.readouterr().out)
    validate_answer(line)
    assert line["status"] == "not settled" and line["report"] is None and line["ledger"]["crowned"] is None
    assert line["headline"].endswith("inconclusive because time ran out while tuning arm a.")
    assert [(one["outcome"], one["pairs"]) for one in line["contests"]] == [("inconclusive", 0)]
    assert [one["outcome"] for one in line["noise"]] == ["inconclusive"] * 2
    assert [line["event"] for line in Ledger().read().lines] == ["started"]


# ---- how the runs share the machine --------------------------------------------------------------


class Server:
    """Stands in for the process that starts runs."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_all_searches_of_a_verdict_share_a_server(here):
    with inquiry(*ARMS) as asked:
        asked.server = Server()
        with (
            asked.opened_tuning("a", asked.plans["a"]) as one,
            asked.opened_tuning("b", asked.plans["b"]) as other,
        ):
            assert one.sweeper.server is other.sweeper.server is asked.server


def test_a_shared_server_is_only_closed_for_a_search_that_was_interrupted():
    launcher, server = Processes(), Server()
    launcher.start(2, server)
    launcher.close(interrupted=False)
    assert server.closed == 0
    launcher.close(interrupted=True)
    assert server.closed == 1


def test_small_models_that_train_here_have_a_job_for_each_thread(monkeypatch):
    def verdict(launcher: str, processes: int = 1) -> DictConfig:
        sweep = {"processes_per_trial": processes}
        return OmegaConf.create({"hydra": {"launcher": {"_target_": launcher}}, "sweep": sweep})

    arm = compose(["model.dim=16", "model.n_layers=1", "tokenizer=bytes", "train.device=cpu"])
    monkeypatch.setattr(jobs.torch, "get_num_threads", lambda: 6)
    assert jobs.jobs_for(verdict(LauncherOptions._target_), arm) == 6
    assert jobs.jobs_for(verdict(LauncherOptions._target_, processes=2), arm) == 3
    assert jobs.jobs_for(verdict("a.cluster"), arm) == 1
    monkeypatch.setattr(jobs, "SMALL", 1000)
    assert jobs.jobs_for(verdict(LauncherOptions._target_), arm) == 1
