"""Studies of learning rates: sensitivity and shift, what is refused, what the page says, and whole studies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from omegaconf import DictConfig

from minllm.errors import UserError
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome
from minllm.study.rates import report
from minllm.study.rates.curves import Curve, RateStudy, sensitivity, shift
from minllm.study.rates.report import data, in_a_terminal
from minllm.sweep.plugin import NotSettled
from minllm.verdict.rates import NEXT_TO_NOTHING, RatesSearch, study_rates
from minllm.verdict.rates_protocol import RatesProtocol
from tests.instant import LITTLE, SMALL, Instant, protocol_at_once
from tests.pages import commands, page

pytestmark = pytest.mark.usefixtures("each_composed_once")

PROTOCOL = {
    **{"measure": "sensitivity", "equal": None, "rates": [0.5, 1.0, 2.0], "seeds": 6},
    **{"margin": None, "widths": None, "sizes": None},
}


# ---- sensitivity and shift -----------------------------------------------------------------------


def curve(*losses: float | None, start: float | None = 8.0, seed: int = 0, best: float | None = 2.0) -> Curve:
    return Curve(seed, {2.0**at: loss for at, loss in enumerate(losses)}, best, start=start)


def test_sensitivity_is_the_mean_loss_above_the_best_and_divergence_counts_as_the_start():
    assert sensitivity(curve(3.0, 2.0, 4.0)) == pytest.approx((1 + 0 + 2) / 3)
    assert sensitivity(curve(3.0, 2.0, 9.5)) == pytest.approx((1 + 0 + 6) / 3)  # above the start
    assert sensitivity(curve(3.0, 2.0, None)) == pytest.approx((1 + 0 + 6) / 3)
    assert sensitivity(curve(2.0, 2.0, 2.0)) == 0


def test_what_no_rate_trains_is_not_called_insensitive():
    assert sensitivity(curve(None, None, None)) == sensitivity(curve(8.1, 8.0, None)) == math.inf
    assert shift(curve(3.0, best=None), curve(3.0)) == math.inf


def test_shift_is_in_octaves_either_way():
    assert shift(curve(best=0.001), curve(best=0.004)) == shift(curve(best=0.004), curve(best=0.001)) == 2
    assert shift(curve(best=0.003), curve(best=0.003)) == 0


def study_of(curves: dict[tuple[str, str], list[Curve]], measure="sensitivity", seeds=6) -> RateStudy:
    arms, sizes = ([*dict.fromkeys(key[place] for key in curves)] for place in (0, 1))
    return RateStudy(measure, arms, sizes, curves, seeds, 0.02, "with the same params", "python sweep.py")


def curves_losing(lost: float, seeds=6, **more) -> list[Curve]:
    return [curve(3.0, 2.0, 2.0 + lost + 0.01 * seed, seed=seed, **more) for seed in range(seeds)]


def test_arms_are_compared_in_pairs_of_seeds():
    study = study_of({("a", ""): curves_losing(3.0), ("<b>", ""): curves_losing(0.6)})
    (contest,) = study.contests
    assert contest.verdict.word == "better" and contest.verdict.pairs == 6 and study.is_answered
    assert contest.verdict.difference == pytest.approx(-0.8)
    assert study.estimate("a").value == pytest.approx((1 + 3.025) / 3)
    html, printed, content = report.page(study), "\n".join(in_a_terminal(study)), data(study)
    assert "<b> is less sensitive to the learning rate than a. 6 pairs: 0.8000 bits per byte lower" in printed
    assert "&lt;b&gt; is less sensitive" in html and "WARNING" not in printed
    assert content["contests"][0]["verdict"]["word"] == content["contests"][0]["outcome"] == "better"
    assert len(content["curves"]) == 12 and content["curves"][0]["losses"][1] == {"rate": 2.0, "val_bpb": 2.0}


def test_only_seeds_that_every_arm_has_are_paired():
    study = study_of({("a", ""): curves_losing(3.0), ("b", ""): curves_losing(0.6, seeds=4)})
    assert study.pairs == 4 and not study.is_complete and not study.is_answered
    assert "The time was up" in "\n".join(in_a_terminal(study)) and "The time was up" in report.page(study)
    empty = study_of({("a", ""): [], ("b", ""): []})
    assert not empty.is_answered and "No pair of runs has finished" in "\n".join(
        [*in_a_terminal(empty), report.page(empty)]
    )


def test_a_best_rate_at_an_edge_and_one_that_is_missing_are_said():
    edge = [Curve(seed, {1.0: 2.0}, 1.0, at_edge=seed < 2) for seed in range(6)]
    none = [Curve(seed, {1.0: None}, None) for seed in range(6)]
    inner = [Curve(seed, {1.0: 2.0}, 1.0) for seed in range(6)]
    study = study_of(
        {("a", "s"): edge, ("b", "s"): inner, ("a", "l"): inner, ("b", "l"): none}, measure="shift"
    )
    warnings = data(study)["warnings"]
    assert "a: with 2 of 6 seeds a best rate is the lowest or the highest" in warnings[0]
    assert warnings[1] == "b: no learning rate trains it with 6 of 6 seeds." and len(warnings) == 2
    (contest,) = study.contests
    assert contest.verdict.word == "worse"
    assert "The best learning rate of b moves more with the size" in report.page(study)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rates": [1.0, 2.0]}, "search.rates must have 3 or more"),
        ({"rates": [1.0, 1.05, 2.0]}, "search.rates must differ by a factor"),
        ({"seeds": 1001}, "search.seeds can't exceed 1000"),
        ({"measure": "shift"}, "search.measure=shift compares the best rates of two or more sizes"),
        ({"measure": "shift", "widths": [64]}, "two or more sizes"),
        ({"measure": "shift", "widths": [64, 32]}, "search.widths must increase"),
        ({"measure": "shift", "sizes": ["model.dim=8", "16"]}, "search.sizes must be overrides key=value"),
        ({"measure": "shift", "sizes": ["model.dim=8", " "]}, "search.sizes must be different overrides"),
        ({"measure": "shift", "sizes": ["model.dim=8"], "widths": [8, 16]}, "leave one of them out"),
        ({"widths": [8, 16]}, "search.measure=sensitivity is of a single size"),
    ],
)
def test_protocols_that_measure_nothing_are_refused(changed, sentence):
    RatesProtocol(**PROTOCOL)
    with pytest.raises(UserError, match=sentence):
        RatesProtocol(**{**PROTOCOL, **changed})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=3"], "A rate study chooses its seeds"),
        (["sweep.metric=val_loss"], "has no effect in a rate study, which compares val_bpb"),
        (["arms.b=[]"], r"arms.a and arms.b are the same: .* Change one of them\.$"),
        (
            ["data=tales_pairs", "train.stop_at_accuracy=0.9"],
            "^train.stop_at_accuracy=0.9 ends runs .* after which val_bpb can't be compared",
        ),
        (["arms.b=[seed=1]"], "has a seed"),
        (
            ["search.measure=shift", "search.widths=[16,32]", "arms.b=[model.dim=32]", "search.equal=null"],
            "arms.b is the same at several of the sizes model.dim=16, model.dim=32",
        ),
    ],
)
def test_what_makes_no_study_is_refused(here, words, sentence):
    with pytest.raises(UserError, match=sentence):
        studied(*words, act=RatesSearch)
    assert not Instant.launched


# ---- whole studies -------------------------------------------------------------------------------


def outcome_of(cfg: DictConfig) -> Outcome:
    """Return the end of a run: QK-norm widens the range of rates, and the best rate falls with the width."""
    if cfg.optim.lr == NEXT_TO_NOTHING:
        return Outcome("complete", 8.0, figures={"seconds": 1.0})
    best = 0.004 * (16 / cfg.model.dim) ** (cfg.norm.before is True)
    octaves = abs(math.log2(cfg.optim.lr / best)) + 0.01 * cfg.seed
    if cfg.optim.lr > 5 * best:
        return Outcome("pruned", reason="diverged", text="The loss is NaN.")
    return Outcome(
        "complete", 2.0 + (0.1 if cfg.model.attn.qk_norm else 0.5) * octaves**2, figures={"seconds": 1.0}
    )


WORDS = (
    *("search=rates", *LITTLE, *SMALL, "train.device=cpu", "train.steps=6", "optim.lr=0.004"),
    *("memory.predict=false", "train.check=false", "hydra.sweeper.n_jobs=1"),
    *("search.rates=[0.5,1,2,8]", "search.seeds=2", "arms.b=[model.attn.qk_norm=head]"),
)
FOLDER = Path("outputs/sweeps/a-search")


def studied(*words: str, act=study_rates):
    """Study in the current folder as `python sweep.py search=rates <words>` would."""
    Instant.outcome_of = staticmethod(outcome_of)
    return protocol_at_once(act, *WORDS, *words)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_of_the_optimizer_may_be_typed(here):
    """They would have no effect on the loss at initialisation, and what has none is refused."""
    assert len(studied("optim.weight_decay=0.0", "optim.beta2=0.99").contests) == 1
    assert {cfg.optim.weight_decay for cfg in Instant.launched if cfg.optim.lr > 1e-9} == {0.0}


def test_a_whole_study_of_sensitivity(here, capfd, monkeypatch):
    monkeypatch.setattr(Instant, "stop_after", 12)
    with pytest.raises(KeyboardInterrupt):
        studied()
    before, Instant.stop_after = list(Instant.launched), math.inf
    capfd.readouterr()
    with json_output():
        study = studied()
    assert len(Instant.launched) == 2 * 2 * (4 + 1) - 12  # the others were done
    (contest,) = study.contests
    assert (contest.arm.name, contest.verdict.word) == ("model.attn.qk_norm=head", "inconclusive")
    assert study.curves["a", ""][0].losses == pytest.approx({0.002: 2.5, 0.004: 2.0, 0.008: 2.5, 0.032: None})
    assert study.values("a")[0] == pytest.approx((2.5 + 2.0 + 2.5 + 8.0) / 4 - 2.0)
    assert contest.differences[0] == pytest.approx(-0.8 / 4)
    line, content = json.loads(capfd.readouterr().out), json.loads((FOLDER / "report.json").read_text())
    assert line == {**content, "report": str(FOLDER / "report.json")} and line["status"] == "not settled"

    of_start = [cfg for cfg in [*before, *Instant.launched] if cfg.optim.lr == NEXT_TO_NOTHING]
    assert {cfg.train.steps for cfg in of_start} == {1} and len(of_start) == 4
    assert len({cfg.size.params for cfg in Instant.launched} - {None}) == 1
    assert (
        studied().values("a") == study.values("a") and not Instant.launched
    )  # nothing is left to be trained
    with pytest.raises(UserError, match=r"began with search.seeds=2, and a choice made after seeing results"):
        studied("search.seeds=7")


def test_a_whole_study_of_shift(here, capsys):
    words = ("search.measure=shift", "search.widths=[16,32]", "arms.b=[norm=post]", "search.seeds=1")
    study = studied(*words, "search.rates=[0.25,0.5,1,2]")
    assert {cfg.model.dim for cfg in Instant.launched} == {16, 32} and len(Instant.launched) == 2 * 2 * 4
    assert study.values("a") == pytest.approx([1.0], abs=0.05)
    assert study.values("norm=post") == pytest.approx([0.0], abs=0.05)
    assert study.contests[0].differences[0] == pytest.approx(-1.0, abs=0.05) and not data(study)["warnings"]
    assert "1 pair: 1.0000 octaves lower" in capsys.readouterr().out


def test_a_study_whose_time_is_up_is_not_settled(here, capsys):
    def run(sweeper, overrides):
        RatesProtocol(**PROTOCOL).run(sweeper, overrides)

    with pytest.raises(NotSettled):
        studied("sweep.minutes=1e-9", act=run)
    assert not Instant.launched and "The time was up before everything was trained" in capsys.readouterr().out


def test_too_few_seeds_are_said_before_anything_is_trained(here, capsys):
    assert studied("search.seeds=5", "sweep.dry_run=true") is None
    said = capsys.readouterr().out
    assert "a is trained at optim.lr=0.002, 0.004, 0.008, 0.032." in said and "50 runs" in said
    assert "With 5 seeds no arm can be called better or worse: search.seeds=6" in said
    assert not FOLDER.exists()


def test_every_command_of_the_page_on_scale_says_what_it_would_train(here, capsys):
    found = [command for command in commands(page("scale")) if "search=rates" in command]
    assert len(found) == 2
    for command in found:
        words = [*command[2:], "tokenizer=bytes", "train.check=false", "sweep.dry_run=true"]
        assert protocol_at_once(study_rates, *words) is None
        assert "is trained at optim.lr=" in capsys.readouterr().out
