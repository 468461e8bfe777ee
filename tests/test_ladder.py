"""Ladders: what is refused, the learning rates and times of rungs, and whole ladders whose runs are written at once."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from minllm.errors import UserError
from minllm.model.size import sized
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome, write
from minllm.schema.overrides import quoted
from minllm.study.comparison import compare
from minllm.study.scaling.rates import USUAL, Optimum, line_through, optimum_of
from minllm.study.tuning import Tried, Tuning
from minllm.sweep.plugin import NotSettled
from minllm.sweep.spec import SearchSpec
from minllm.sweep.trial import Assignment
from minllm.verdict.ladder import climb
from minllm.verdict.ladder_protocol import LadderProtocol, Rungs
from minllm.verdict.ladder_rungs import RungPlan, Training
from minllm.verdict.ladder_time import Pace, Timed, refuse_too_long, time_lines, total_seconds, work_of
from tests.comparisons import ENVIRONMENT, figures, write_metrics
from tests.instant import LITTLE, SMALL, Instant
from tests.specs import composed
from tests.test_report_schema import validate_answer, validate_report

RUNGS = {
    **{"params": [2e5, 4e5, 8e5], "flops": None, "sizes": None, "pairs": 4, "tuned": None},
    **{"tokens": None, "tokens_per_param": None, "check": False},
}


OF_FLOPS = {"params": None, "flops": [1e12, 2e12, 4e12]}


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"params": None}, r"A ladder needs its rungs.*'ladder.params=\[2e5,4e5,8e5,1.6e6\]'"),
        ({"flops": [1e12, 2e12, 4e12]}, "A ladder needs its rungs, as parameters or as FLOPs"),
        ({"params": [2e5, 4e5]}, "ladder.params must be 3 or more increasing sizes"),
        ({"params": [4e5, 2e5, 8e5]}, "ladder.params must be 3 or more increasing sizes"),
        ({"params": [2e5, 2.1e5, 8e5]}, "at least 1.2 times the one before"),
        ({"pairs": 1}, "needs 4 pairs or more in all: type ladder.pairs=2"),
        ({"pairs": 1001}, "ladder.pairs can't exceed 1000"),
        ({"tuned": 4}, "ladder.tuned=4 is more than the 3 rungs of ladder.params"),
        ({"tokens": 1e6, "tokens_per_param": 20}, "can't be combined with ladder.tokens_per_param"),
        ({"tokens_per_param": [20, 21]}, r"increasing ones.*such as \[10,20,40\]"),
        ({"sizes": [0.5, 1, 2]}, "type 'ladder.flops=.*instead of ladder.params"),
        ({"sizes": [1, 2]}, r"ladder.sizes must be 3 or more increasing factors.*\[0.25,0.5,1,2,4\]"),
        (
            {**OF_FLOPS, "sizes": [0.5, 1, 2], "check": True},
            "ladder.check can't be combined with ladder.sizes",
        ),
        ({"tokens_per_param": []}, "must be a number, or several increasing ones"),
        (
            {**OF_FLOPS, "tokens_per_param": [10, 20]},
            "type a single ladder.tok",
        ),
    ],
)
def test_rungs_that_show_no_trend_are_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        Rungs(**{**RUNGS, **changed})


def test_a_ladder_tunes_the_learning_rate_alone():
    protocol = {"tune": ["optim.weight_decay"], "rates": [1.0], "tuning_runs": 4, "tuning_seeds": [1000]}
    with pytest.raises(UserError, match=r"type search.tune=\[optim.lr\], or search.tune=\[\]"):
        LadderProtocol(**protocol, margin=0.01, prompts=[], stories=0)


def test_two_rungs_are_tuned_or_three_of_many():
    assert Rungs(**RUNGS).n_tuned == 2 and Rungs(**{**RUNGS, "tuned": 1}).n_tuned == 1
    assert Rungs(**{**RUNGS, "params": [1e5, 2e5, 4e5, 8e5, 1.6e6]}).n_tuned == 3


# ---- learning rates ------------------------------------------------------------------------------


def tuning(best: float, noise: float = 0.0, seed: int = 0, seeds: int = 2) -> Tuning:
    """Return a tuning whose losses are quadratic in log2 of the rate, with the minimum at `best`."""
    generator = np.random.default_rng(seed)
    shifts = generator.normal(0, 0.1, seeds)
    tried = [
        Tried(
            {"optim.lr": rate},
            {
                1000 + at: 2 + 0.1 * math.log2(rate / best) ** 2 + shift + generator.normal(0, noise)
                for at, shift in enumerate(shifts)
            },
        )
        for rate in (0.001, 0.002, 0.004, 0.008, 0.016)
    ]
    places = np.log2([one.values["optim.lr"] for one in tried])
    bend, slope, _ = np.polyfit(places, [one.mean for one in tried], 2)
    return Tuning(tried, {"optim.lr": float(2 ** (-slope / (2 * bend)))}, "the minimum of a quadratic", 16)


def test_the_error_of_an_optimum_is_how_much_it_varies():
    best = [optimum_of(1e5, tuning(0.004, noise=0.2, seed=seed)) for seed in range(200)]
    spread = np.std([math.log2(one.rate) for one in best])
    assert 0.8 < np.sqrt(np.mean([one.error**2 for one in best])) / spread < 1.25


def test_without_a_fit_an_optimum_is_as_uncertain_as_the_spacing_of_the_rates():
    tried = [Tried({"optim.lr": rate}, {1000: loss}) for rate, loss in ((0.001, 2.0), (0.002, 1.9))]
    best = optimum_of(1e5, Tuning(tried, {"optim.lr": 0.002}, "", 4))
    assert best.error == pytest.approx(1 / math.sqrt(3))


def test_a_slope_that_is_well_known_is_extrapolated():
    slope = -0.8
    sizes = (1e5, 1e6, 1e7, 1e8)
    line = line_through([Optimum(size, 0.01 * (size / 1e5) ** slope, 0.15) for size in sizes])
    assert line.slope == pytest.approx(slope, abs=0.02) and line.estimated == pytest.approx(slope)
    assert line.at(1e9) == pytest.approx(0.01 * 1e4**slope, rel=0.2)
    assert "straight line" in line.sentence and "-0.80 ±" in line.sentence


@pytest.mark.parametrize("rates", [(0.227, 0.0627), (0.01, 0.02), (0.01, 0.01)])
def test_a_slope_of_two_close_sizes_is_hardly_believed(rates):
    """A wrong slope would be extrapolated far: what two rates say of it is as uncertain as their distance is short."""
    line = line_through([Optimum(1e5, rates[0], 0.4), Optimum(2e5, rates[1], 0.4)])
    assert -0.6 < line.slope < 0.1
    low, high = sorted((USUAL, line.estimated))
    assert low <= line.slope <= high


def test_transferred_rates_are_nearly_constant():
    optima = [Optimum(1e5, 0.02, 0.15), Optimum(4e5, 0.01, 0.15)]
    usual, transferred = (line_through(optima, covered) for covered in (False, True))
    assert usual.slope < -0.2 and -0.1 < transferred.slope < 0
    assert "usual +0.00 ± 0.05" in transferred.sentence


def test_optima_that_scatter_make_a_slope_less_certain():
    sizes = (1e5, 4e5, 1.6e6)
    smooth, scattered = (
        line_through([Optimum(size, rate, 0.15) for size, rate in zip(sizes, rates)])
        for rates in ((0.01, 0.02, 0.04), (0.01, 0.08, 0.04))
    )
    assert scattered.error > smooth.error and scattered.slope < smooth.slope


def test_a_better_known_optimum_counts_more_and_a_single_one_alone():
    optima = [Optimum(1e5, 0.01, 0.15), Optimum(2e5, 0.02, 1.5)]
    assert line_through(optima).at(1e5) == pytest.approx(0.01, rel=0.02)
    alone = line_through(optima[:1])
    assert alone.at(1e7) == 0.01 and math.isnan(alone.error) and "the lowest size" in alone.sentence


# ---- time ----------------------------------------------------------------------------------------

PACE = Pace(Timed(1e9, 0.1, 1.0), Timed(4e9, 0.3, 2.0))


def training(flops_per_step: float, steps: int = 10) -> Training:
    return Training(1000, flops_per_step / 100, steps, steps * 100, steps)


def rung(number: int, flops_per_step: float) -> RungPlan:
    return RungPlan(number, (), {"a": training(flops_per_step), "b": training(flops_per_step)}, False, False)


def test_times_are_a_line_in_flops_through_two_runs():
    assert PACE.seconds(training(1e9)) == pytest.approx(10 * 0.1 + 1)
    assert PACE.seconds(training(2.5e9)) == pytest.approx(10 * 0.2 + 1.5)
    assert PACE.seconds(training(4e9, steps=100)) == pytest.approx(100 * 0.3 + 2)
    by_chance = Pace(Timed(1e9, 0.3, 1.0), Timed(4e9, 0.2, 1.0))
    assert by_chance.seconds(training(1e9)) == by_chance.seconds(training(4e9)) == pytest.approx(3)


def test_time_is_predicted_for_each_rung_and_more_than_the_minutes_is_refused():
    paces = {"a": PACE, "b": PACE}
    works = [work_of(rung(1, 1e9), "paired", {"a": 4, "b": 4}, paces)]
    works.append(work_of(rung(2, 4e9), "paired", {"a": 4, "b": 2}, paces))
    assert total_seconds(works, 1) == pytest.approx(8 * 2 + 6 * 5)
    assert total_seconds(works, 2) == pytest.approx(23) and total_seconds(works, 100) == pytest.approx(2 + 5)
    lines = time_lines(works, 1)
    assert lines[1] == "Rung 2 (1,000 parameters): 6 paired runs of about 5.0 s; together 30 s."
    assert lines[-1] == "In all about 46 s."
    refuse_too_long(46, 1, {})
    with pytest.raises(
        UserError, match=r"needs about 46 s.*sweep.minutes=0.5. Type sweep.minutes=1. ladder.pa"
    ):
        refuse_too_long(46, 0.5, {"ladder.pairs=3": 40, "ladder.pairs=2": 20})


# ---- whole ladders -------------------------------------------------------------------------------

BEST_RATE = 0.006
"""At 20,000 parameters; it falls with the root of the size."""


class Written(Instant):
    """Writes each run at once, with a loss that depends on its size, its learning rate, its norm and its seed."""

    seconds = 1.0
    before_launch: Callable[[DictConfig, Path], None] = staticmethod(lambda cfg, folder: None)

    def launch(self, job_overrides, initial_job_idx) -> list[JobReturn]:
        assignment = json.loads(Assignment.file(self.folder, initial_job_idx).read_text())
        cfg = OmegaConf.create(assignment["config"])
        Written.before_launch(cfg, self.folder)
        type(self).launched.append((self.folder.name, cfg))
        run_dir = Path(assignment["run_dir"])
        run_dir.mkdir(parents=True)
        OmegaConf.save(cfg, run_dir / "config.yaml")
        tokens = 128 * math.ceil((cfg.train.tokens or 128 * (cfg.train.steps or 5)) / 128)
        bpb = self.loss(cfg)
        write_metrics(run_dir, bpb, cfg.seed, [tokens // 2, tokens])
        counted = {"params": round(cfg.size.params), "tokens": tokens, "steps": tokens // 128}
        summary = figures(bpb, cfg.seed, **counted, flops_per_token=self.flops_per_token(cfg))
        (run_dir / "summary.json").write_text(json.dumps(summary))
        (run_dir / "environment.json").write_text(json.dumps(ENVIRONMENT))
        (run_dir / "log.txt").write_text("Training.\nThe last line.\n")
        outcome = Outcome("complete", bpb, figures={"seconds": Written.seconds})
        write(outcome, run_dir, assignment["attempt"])
        return [JobReturn(status=JobStatus.COMPLETED)]

    def flops_per_token(self, cfg: DictConfig) -> float:
        return 6 * cfg.size.params

    def loss(self, cfg: DictConfig) -> float:
        relative = cfg.size.params / 2e4
        noise = np.random.default_rng((cfg.seed, round(cfg.size.params))).normal(0, 0.002, 2)
        noise, gain = (noise.sum(), 0.9) if cfg.choices.norm == "sandwich" else (noise[0], 1.0)
        off = math.log2(cfg.optim.lr / (BEST_RATE * relative**-0.5))
        return 1.5 + gain * relative**-0.3 * math.exp(noise) * (1 + 0.05 * off**2)


LADDER = (
    *(*LITTLE, *SMALL, "arms.a=[norm=pre]", "arms.b=[norm=sandwich]", "ladder.params=[2e4,8e4,3.2e5]"),
    *("search.prompts=[]", "search.stories=0", "ladder.pairs=2", "train.steps=5", "train.batch_size=4"),
    *("train.check=false", "hydra.sweeper.n_jobs=1", "train.device=cpu", "search.tuning_seeds=[1000]"),
    *("search.rates=[0.35,0.6,1,1.7,2.9]", "optim.lr=0.0042", "train.precision=fp32"),
)


def climbed(*words: str, launcher: type[Instant] = Written) -> bool | None:
    """Climb in the current folder as `python sweep.py search=ladder <words>` would."""
    Plugins.instance().register(launcher)
    node, name = {"_target_": f"{launcher.__module__}.{launcher.__name__}"}, launcher.__name__.lower()
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, replace=True)
    launcher.launched = []
    typed = [quoted(word) for word in ("search=ladder", *LADDER, *words)]
    with composed(*typed, f"hydra/launcher={name}") as (master, context):
        sweeper = Plugins.instance().instantiate_sweeper(
            config=master, hydra_context=context, task_function=lambda cfg: None
        )
        return climb(sweeper, [word for word in typed if not word.startswith("hydra")])


@contextlib.contextmanager
def before_each_run(act: Callable[[DictConfig, Path], None]) -> Iterator[None]:
    Written.before_launch = staticmethod(act)
    try:
        yield
    finally:
        Written.before_launch = staticmethod(lambda cfg, folder: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """Compose and check an arm once, and solve for its widths once at each size: all of its runs ask again."""
    cfgs: dict[tuple[str, ...], DictConfig] = {}
    refusals: dict[tuple[str, ...], str | None] = {}
    widths: dict[tuple[object, ...], DictConfig] = {}
    settled, refusal = SearchSpec.settled, SearchSpec._refusal

    def split(overrides: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
        varying = [word for word in overrides if re.fullmatch(VARYING, word)]
        return tuple(word for word in overrides if word not in varying), varying

    def settled_once(self: SearchSpec, overrides: Sequence[str]) -> DictConfig:
        common, varying = split(overrides)
        if common not in cfgs:
            cfgs[common] = settled(self, common)
        cfg = cfgs[common].copy()
        for name, _, value in (word.partition("=") for word in varying):
            is_place = name == "branch_from"
            OmegaConf.update(cfg, name, str(Path(value).resolve()) if is_place else json.loads(value))
        return sized_once(cfg, common) if cfg.size.params else cfg

    def sized_once(cfg: DictConfig, arm: tuple[str, ...]) -> DictConfig:
        key = (cfg.size.params, *(word for word in arm if not word.startswith("train.")))
        if key not in widths:
            widths[key] = sized(cfg).model
        cfg.model = widths[key]
        return cfg

    def refusal_once(self: SearchSpec, overrides: Sequence[str]) -> str | None:
        common, _ = split(overrides)
        if common not in refusals:
            refusals[common] = refusal(self, overrides)
        return refusals[common]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchSpec, "settled", settled_once)
        patch.setattr(SearchSpec, "_refusal", refusal_once)
        yield


VARYING = r"(seed|optim\.lr|size\.params|train\.(steps|tokens|branches))=[\d.,e+\[\]null-]+|branch_from=.*"
"""What differs between the runs of an arm."""
FOLDER = Path("outputs/sweeps/a-search")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A ladder whose folder is copied while the seventh pair is trained, as a kill would leave it."""
    folder = tmp_path_factory.mktemp("ladder")

    def copy(cfg: DictConfig, of_search: Path) -> None:
        if of_search.name == "seeds-b-3" and cfg.seed == 1:
            shutil.copytree("outputs", folder / "killed/outputs")

    with pytest.MonkeyPatch.context() as patch, before_each_run(copy):
        patch.chdir(folder)
        answered = climbed()
        report = json.loads((FOLDER / "report.json").read_text())
    yield SimpleNamespace(folder=folder, answered=answered, runs=Written.launched, report=report)


def test_a_ladder_is_tuned_at_its_lower_rungs_and_trained_from_the_top(trained):
    assert trained.answered is True
    validate_report(trained.report)
    headline = "norm=sandwich is better than norm=pre, and the difference holds at scale."
    assert trained.report["headline"] == headline and trained.report["status"] == "settled"
    (ladder,) = trained.report["ladders"]
    assert [round(rung["size"], -4) for rung in ladder["rungs"]] == [2e4, 8e4, 3.2e5]
    assert all(len(rung["arm"]) == len(rung["baseline"]) == 2 for rung in ladder["rungs"])
    phases = [folder for folder, _ in trained.runs]
    assert [name.partition("-")[0] for name in phases] == ["time"] * 4 + ["tune"] * 20 + ["seeds"] * 12
    assert {name for name in phases[4:24]} == {"tune-a-1", "tune-b-1", "tune-a-2", "tune-b-2"}
    pairs = phases[24:]
    assert pairs[:6] == ["seeds-a-3", "seeds-b-3", "seeds-a-2", "seeds-b-2", "seeds-a-1", "seeds-b-1"]
    assert pairs[6:8] == ["seeds-b-3", "seeds-a-3"], "which arm begins alternates"


def test_learning_rates_follow_the_line_through_the_tuned_ones(trained):
    rates = {folder: cfg.optim.lr for folder, cfg in trained.runs if folder.startswith("seeds")}
    for number, size in enumerate((1, 4, 16), start=1):
        for name in "ab":
            assert rates[f"seeds-{name}-{number}"] == pytest.approx(BEST_RATE * size**-0.5, rel=0.2)
    (ladder,) = trained.report["ladders"]
    assert all(line["slope"] == pytest.approx(-0.5, abs=0.05) for line in ladder["rates"])
    chosen = {name: tuning["chosen"]["optim.lr"] for name, tuning in trained.report["tuning"].items()}
    assert len(chosen) == 4 and set(chosen.values()) <= set(rates.values())


def test_a_ladder_that_was_killed_goes_on_and_a_check_may_be_added(trained, monkeypatch, capfd):
    monkeypatch.chdir(trained.folder / "killed")
    predicted: list[bool] = []

    def note(cfg: DictConfig, folder: Path) -> None:
        if folder.name.endswith("-4"):
            predicted.append((FOLDER / "prediction.json").is_file())

    with before_each_run(note), json_output():
        assert climbed("ladder.check=true") is True
    again = [(folder, cfg.seed) for folder, cfg in Written.launched if not folder.startswith("time")]
    first = [(folder, cfg.seed) for folder, cfg in trained.runs]
    checks = {(f"seeds-{name}-4", seed) for name in "ab" for seed in (0, 1)}
    assert again[:-4] == first[first.index(("seeds-b-3", 1)) :] and set(again[-4:]) == checks
    assert predicted == [True] * 4

    report = json.loads((FOLDER / "report.json").read_text())
    validate_report(report)
    (before,), (after,) = trained.report["ladders"], report["ladders"]
    check = after.pop("check")
    assert before.pop("check") is None and before == after
    saved = json.loads((FOLDER / "prediction.json").read_text())["predictions"]["norm=sandwich"]
    low, high = saved["difference"]["interval"]
    assert check["prediction"] == saved and check["inside"] is True and len(check["differences"]) == 2
    assert low < check["measured"]["value"] < high < 0 and saved["factor"] == pytest.approx(4, rel=0.02)
    out, said = capfd.readouterr()
    validate_answer(json.loads(out))
    assert "inside the predicted" in said and "Rung 4 (1.2" in said

    with pytest.raises(UserError, match="The ladder 'a-search' began with ladder.pairs=2, and a choice made"):
        climbed("ladder.pairs=3")
    # the pairs of all four rungs are what a comparison finds in the folder
    (found,) = compare([FOLDER]).ladders
    assert len(found.rungs) == 4 and found.answer.word == "holds"


def test_minutes_that_cannot_suffice_are_refused_before_anything_else_runs(here, monkeypatch):
    monkeypatch.setattr(Written, "seconds", 60.0)
    with pytest.raises(
        UserError, match=r"needs about .* sweep.minutes=13. Type sweep.minutes=\d+. ladder.pairs=2"
    ):
        climbed("sweep.minutes=13", "ladder.pairs=3", "search.tune=[]")
    assert [folder.partition("-")[0] for folder, _ in Written.launched] == ["time"] * 4


def test_without_an_answer_a_ladder_is_not_settled(monkeypatch):
    protocol = LadderProtocol(
        tune=[], rates=[], tuning_runs=4, tuning_seeds=[], margin=0.01, prompts=[], stories=0
    )
    for answered, expected in ((False, pytest.raises(NotSettled)), (True, contextlib.nullcontext())):
        monkeypatch.setattr("minllm.verdict.ladder.climb", lambda *args, answered=answered: answered)
        with expected:
            protocol.run(None, [])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["size.params=3e4"], "size.params=3e4 can't be combined with a ladder"),
        (["train.minutes=1", "train.steps=null"], "so train.minutes can't limit its runs"),
        (["arms.b=[norm=pre]"], "are the same"),
        (["arms.b=[norm=post,train.steps=6]"], "the arms see different numbers of tokens"),
        (["seed=3"], "A ladder chooses its seeds: leave seed= out. Their number is set by ladder.pairs"),
        (["hydra.sweeper.n_trials=3"], "has no effect in a ladder, whose runs are limited by ladder.pairs"),
        (["arms.b=[ladder.pairs=3]"], "which concerns the whole ladder"),
        (["ladder.params=[2,4,8]"], "size.params=2 can't be met"),
        (["arms.b=null"], "A ladder needs two arms"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(here, words, sentence):
    with pytest.raises(UserError, match=sentence):
        climbed(*words)
    assert list(here.iterdir()) == []


def test_rungs_of_flops_have_tokens_in_proportion(here, capfd):
    words = ["ladder.params=null", "ladder.flops=[2e11,8e11,3.2e12]", "ladder.tokens_per_param=50"]
    assert climbed(*words, "sweep.dry_run=true", "search.tune=[]") is None
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Rung")]
    for row, flops in zip(rows, (2e11, 8e11, 3.2e12)):
        numbers = [
            float(word.replace(",", "")) for word in row.split() if word[0].isdigit() and word[-1] != ":"
        ]
        params, tokens, spent = numbers
        assert tokens == pytest.approx(50 * params, rel=0.02) and spent == pytest.approx(flops, rel=0.02)
