"""Whole ladders whose runs are written at once: what is trained, what goes on, and what is refused."""

from __future__ import annotations

import contextlib
import functools
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
from minllm.model.build import build_shapes
from minllm.model.cost import Cost, cost
from minllm.model.lm import LM
from minllm.model.size import sized
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome, write
from minllm.schema.overrides import quoted
from minllm.study.comparison import compare
from minllm.sweep.plugin import NotSettled
from minllm.sweep.spec import SearchSpec
from minllm.sweep.trial import Assignment
from minllm.verdict import ladder_rungs
from minllm.verdict.ladder import climb
from minllm.verdict.ladder_protocol import LadderProtocol
from tests.comparisons import ENVIRONMENT, figures, write_metrics
from tests.instant import LITTLE, SMALL, Instant
from tests.specs import composed
from tests.test_report_schema import validate_answer, validate_report

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
    *("search.rates=[0.35,0.6,1,1.7,2.9]", "optim.lr=0.0042", "train.precision=fp32", "model.n_layers=1"),
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


@functools.cache
def counted(model: LM, seq_len: int) -> Cost:
    """Return the cost of a model of `shapes_once`."""
    return cost(model, seq_len)


def shapes_once(cfg: DictConfig, vocab_size: int) -> LM:
    """Build the shapes of a model once, so that its cost is counted once."""
    key = (words_of_model(cfg), vocab_size)
    if key not in SHAPES:
        SHAPES[key] = build_shapes(cfg, vocab_size)
    return SHAPES[key]


def sized_once(cfg: DictConfig) -> DictConfig:
    """Solve once for the widths of a model of some size."""
    key = f"{cfg.size} {words_of_model(cfg)}"
    if key not in WIDTHS:
        WIDTHS[key] = sized(cfg).model
    cfg.model = WIDTHS[key]
    return cfg


def words_of_model(cfg: DictConfig) -> str:
    return f"{cfg.model} {cfg.norm} {cfg.objective} {cfg.tokenizer} {cfg.data.seq_len}"


# of all ladders, most of which have the same arms at the same sizes
SHAPES: dict[tuple[str, int], LM] = {}
WIDTHS: dict[str, DictConfig] = {}


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """Compose and check an arm once, and solve for its widths and count its cost once at each size.

    All runs of an arm ask again.
    """
    cfgs: dict[tuple[str, ...], DictConfig] = {}
    refusals: dict[tuple[str, ...], str | None] = {}
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
        return sized_once(cfg) if cfg.size.params else cfg

    def refusal_once(self: SearchSpec, overrides: Sequence[str]) -> str | None:
        common, _ = split(overrides)
        if common not in refusals:
            refusals[common] = refusal(self, overrides)
        return refusals[common]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchSpec, "settled", settled_once)
        patch.setattr(SearchSpec, "_refusal", refusal_once)
        patch.setattr(ladder_rungs, "build_shapes", shapes_once)
        patch.setattr(ladder_rungs, "cost", counted)
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
