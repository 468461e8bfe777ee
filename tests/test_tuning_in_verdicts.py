"""Tuning in a verdict: that it goes on when interrupted, what is refused, and how its runs share the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState, create_trial

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome
from minllm.study.report import sentences
from minllm.study.tuning import Tuning
from minllm.sweep.plugin import LauncherOptions, NotSettled, Processes
from minllm.verdict import jobs
from minllm.verdict.ledger import Ledger
from minllm.verdict.protocol import refuse_same_results
from minllm.verdict.rate_search import RateSearch
from minllm.verdict.tuning import choice_of
from tests.instant import Instant, inquiry
from tests.test_report_schema import validate_answer
from tests.tunings import RATES, SEEDS, bowl, carried_out, random_search

pytestmark = pytest.mark.usefixtures("each_composed_once")

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
