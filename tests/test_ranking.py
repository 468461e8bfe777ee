"""Rankings: rank correlations, changes of places, what is refused, what the page says, and whole rankings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from scipy.stats import kendalltau, spearmanr

from minllm.errors import UserError
from minllm.files.names import LONGEST
from minllm.page.terminal import json_output
from minllm.runs.outcome import Outcome
from minllm.schema.checking import fits
from minllm.schema.options import FolderName
from minllm.study.ranking.cells import Cell, Ranking
from minllm.study.ranking.correlation import correlations, rank_correlations, swaps
from minllm.study.ranking.report import data, in_a_terminal, page
from minllm.sweep.plugin import NotSettled
from minllm.verdict.ranking import RankingSearch, rank
from minllm.verdict.ranking_protocol import RankingProtocol, datasets_in, models_in
from tests.instant import LITTLE, SMALL, Instant, protocol_at_once
from tests.pages import commands
from tests.pages import page as page_of
from tests.simulate_rankings import shares

pytestmark = pytest.mark.usefixtures("each_composed_once")

# ---- rank correlations ---------------------------------------------------------------------------


@pytest.mark.parametrize("values", [10, 3], ids=["few ties", "many ties"])
def test_rank_correlations_are_those_of_scipy(values):
    random = np.random.default_rng(0)
    x, y = random.integers(values, size=(2, 20, 8)) * 1.0
    rho, tau = rank_correlations(x, y)
    assert rho == pytest.approx([spearmanr(*pair).statistic for pair in zip(x, y)])
    assert tau == pytest.approx([kendalltau(*pair).statistic for pair in zip(x, y)])


def test_divergence_is_the_last_rank_and_equal_values_have_no_correlation():
    assert rank_correlations(np.array([1, 2, math.inf]), np.array([1, 2, 9.0]))[0] == 1
    assert np.isnan(rank_correlations(np.ones(3), np.arange(3.0))).all()


def test_intervals_contain_the_true_correlation_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr("minllm.study.ranking.correlation.DRAWS", 400)
    of_rho, of_tau, low = shares(12, 0.95, 0.05, rankings=40)
    assert of_rho >= 0.9 and of_tau >= 0.9 and 0.5 < low < 0.8  # 99 % of 300


def test_intervals_are_the_same_in_every_call_and_absent_with_few_models():
    first = [[1.0, 1.1], [2.0, 2.1], [3.0, 3.1], [4.0, 4.1], [5.0, 5.1]]
    rho, tau = correlations(first, first[::-1])
    assert (rho.value, tau.value) == (-1, -1) and rho == correlations(first, first[::-1])[0]
    assert rho.interval == (-1, -1)  # seeds change no rank
    assert correlations(first[:4], first[:4])[0].interval == (-math.inf, math.inf)
    assert correlations(first, [[math.inf]] * 5)[0].interval == (-math.inf, math.inf)  # all rank equally


# ---- changes of places ---------------------------------------------------------------------------


def runs(*means: float, noise: float = 0.01) -> list[list[float]]:
    return [[mean - noise, mean, mean + noise] for mean in means]


def test_only_what_differs_on_both_datasets_changes_places_for_certain():
    found = swaps(runs(1.0, 2.0, 3.0, 3.001), runs(2.0, 1.0, 3.001, 3.0))
    assert [(swap.models, swap.is_certain) for swap in found] == [((0, 1), True), ((2, 3), False)]
    assert found[0].differences == pytest.approx((-1.0, 1.0)) and found[1].p == 1.0
    assert not swaps(runs(1.0, 2.0), runs(3.0, 4.0)) and not swaps(runs(1.0, 1.0), runs(1.0, 2.0))


def test_a_change_needs_a_difference_larger_than_the_noise_on_each_dataset():
    (swap,) = swaps(runs(1.0, 2.0), runs(1.02, 1.0, noise=0.5))
    assert not swap.is_certain and swap.p > 0.9
    (single,) = swaps([[1.0], [2.0]], [[2.0], [1.0]])  # nothing is known of the noise
    assert single.p == 1.0
    (lost,) = swaps([[1.0, 1.1], [math.inf, 2.0]], [[2.0, 2.1], [1.0, 1.1]])
    assert lost.p == 1.0 and lost.models == (0, 1)


def test_p_values_are_students_with_the_pooled_deviation():
    from scipy.stats import ttest_ind

    first, second = runs(1.0, 1.03, noise=0.02), runs(1.04, 1.0, noise=0.02)
    (swap,) = swaps(first, second)
    assert swap.p == pytest.approx(max(ttest_ind(*first).pvalue, ttest_ind(*second).pvalue))


# ---- what is said --------------------------------------------------------------------------------

NAMES = ["a", "b", "<c>", "d", "e", "f"]


def ranking_of(first: list[list[float]], second: list[list[float]], planned: int = 3) -> Ranking:
    cells = {
        (model, dataset): Cell(model, dataset, planned, dict(enumerate(losses)))
        for dataset, values in (("tales", first), ("text", second))
        for model, losses in zip(NAMES, values)
    }
    models = NAMES[: len(first)]
    return Ranking(models, ["tales", "text"], cells, {"tales": True, "text": False}, 0.7, "python sweep.py")


def test_datasets_rank_alike_or_not_or_it_is_inconclusive():
    means = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    alike = ranking_of(runs(*means), runs(*means))
    assert alike.agreements[0].word == "equivalent" and alike.is_answered and alike.is_complete
    assert data(alike)["headline"] == "text ranks the models as tales does."
    opposite = ranking_of(runs(*means), runs(*means[::-1]))
    assert opposite.agreements[0].word == "worse" and len(opposite.agreements[0].certain_swaps) == 15
    early = ranking_of(runs(*means), runs(*means), planned=4)
    assert early.agreements[0].word == "inconclusive" and early.agreements[0].spearman.value == 1
    mixed = ranking_of(runs(*means), runs(1.0, 2.0, 5.0, 4.0, 3.0, 6.0))
    assert mixed.agreements[0].word == "inconclusive" and not mixed.is_answered


def test_page_terminal_and_json_say_the_same():
    ranking = ranking_of(runs(1, 2, 3, 4, 5, 6), runs(1, 3, 2, 4, 5, 6))
    html, printed, content = page(ranking), "\n".join(in_a_terminal(ranking)), data(ranking)
    (contest,) = content["contests"]
    (moved,) = contest["swaps"]
    assert (moved["better"], moved["worse"], moved["certain"]) == ("b", "<c>", True)
    assert (
        moved["sentence"] in printed and moved["sentence"].replace("<", "&lt;").replace(">", "&gt;") in html
    )
    assert (
        contest["verdict"]["difference"] == pytest.approx(1 - 6 * 2 / (6 * 35))
        and contest["verdict"]["pairs"] == 6
    )
    assert "1 of 15 pairs of models change places, 1 of them by more than noise" in contest["sentence"]
    assert contest["sentence"] in printed and "<c>" not in html
    assert "1 is tales, in bits per byte above the corpus's floor; 2 is text, in bits per byte." in printed
    ranks = {(cell["model"], cell["dataset"]): cell["rank"] for cell in content["cells"]}
    assert ranks["b", "tales"] == 2 and ranks["b", "text"] == 3


def test_no_difference_is_named_where_a_model_diverged():
    ranking = ranking_of(runs(1, 2, 3), [[math.inf, 1.0, 1.0], *runs(2, 3)])
    said = data(ranking)["contests"][0]["swaps"][0]["sentence"]
    assert said == "a is 1.0000 bits per byte better than b on tales, and worse on text (p 1: may be noise)."


def test_models_that_were_not_trained_on_both_are_left_out():
    ranking = ranking_of(runs(1, 2, 3, 4, 5), [*runs(1, 2), [math.inf, 1.0, 1.0], [], []])
    (agreement,) = ranking.agreements
    assert agreement.models == ["a", "b", "<c>"] and not ranking.is_complete
    printed = "\n".join(in_a_terminal(ranking))
    assert "An interval needs 5 models." in printed and "The time was up" in printed
    assert "WARNING: <c> on text: training diverged with 1 of 3 seeds." in printed
    none = ranking_of(runs(1, 2), [[], []])
    assert "Fewer than two models were trained on both." in page(none)
    assert json.loads(json.dumps(data(none)["contests"][0]["swaps"])) == []


# ---- what is refused -----------------------------------------------------------------------------

PROTOCOL = {"alike": 0.7, "seeds": 3, "rates": [0.5, 1.0, 2.0], "tuning_runs": 10, "tuning_seeds": [1000]}


def test_models_and_datasets_are_options_or_overrides():
    models = models_in(["small_gla", "norm=post", "small_conv model.dim=64", "model/mlp=relu", "norm=pre"])
    assert models["small_gla"] == ["experiment=small_gla"] and models["norm=post"] == ["norm=post"]
    assert models["small_conv dim=64"] == ["experiment=small_conv", "model.dim=64"]
    assert datasets_in(["tales", "text data.path=a.txt"])["text path=a.txt"] == [
        "data=text",
        "data.path=a.txt",
    ]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: models_in(["a", "b"]), "A ranking needs 5 models or more"),
        (lambda: models_in("a"), "models must be a list"),
        (lambda: datasets_in(["tales"]), "A ranking compares two datasets or more"),
        (lambda: datasets_in([]), "datasets must be a list, such as"),
        (lambda: datasets_in(["tales", "tales"]), "datasets has tales twice"),
        (lambda: RankingProtocol(**{**PROTOCOL, "tuning_runs": 2}), "too few to try 3 learning rates"),
        (lambda: RankingProtocol(**{**PROTOCOL, "tuning_seeds": [1]}), "the ranking uses the seeds below"),
    ],
)
def test_what_cannot_be_ranked_is_refused(act, sentence):
    with pytest.raises(UserError, match=sentence):
        act()


# ---- whole rankings ------------------------------------------------------------------------------

WORDS = (
    *("search=ranking", *LITTLE, *SMALL, "train.device=cpu", "train.steps=6", "optim.lr=0.004"),
    *("memory.predict=false", "train.check=false", "hydra.sweeper.n_jobs=1"),
    *("search.rates=[0.5,1,2]", "search.tuning_runs=5", "search.seeds=2"),
    f"models=[{','.join(f'model.scale_logits={1 + at}' for at in (1, 2))}]",
    "datasets=[tales,tales data.seq_len=16]",
)
FOLDER = Path("outputs/sweeps/a-search")


def loss_of(cfg: DictConfig) -> float:
    """Return a loss that rises with the scale of the logits, apart from two models with short rows."""
    order = {2: 3, 3: 2} if cfg.data.seq_len == 16 else {}
    scale = int(cfg.model.scale_logits)
    return 1 + order.get(scale, scale) + 0.1 * math.log2(cfg.optim.lr / 0.004) ** 2 + 0.01 * (cfg.seed % 2)


def outcome_of(cfg: DictConfig) -> Outcome:
    bound = "upper" if cfg.model.scale_logits == 3 else "exact"
    return Outcome("complete", loss_of(cfg), figures={"seconds": 1.0, "val_bound": bound})


def summary_of(cfg: DictConfig) -> dict[str, Any]:
    above = {"bpb_above_floor": loss_of(cfg) - 1} if cfg.data.seq_len == 32 else {}
    return {"val_bpb": loss_of(cfg), **above}


def ranked(*words: str, act=rank):
    """Rank in the current folder as `python sweep.py search=ranking <words>` would."""
    Instant.outcome_of, Instant.summary_of = staticmethod(outcome_of), staticmethod(summary_of)
    return protocol_at_once(act, *WORDS, *words)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Instant, "summary_of", None)  # restored at the end
    monkeypatch.setattr("minllm.verdict.ranking_protocol.LEAST_MODELS", 2)  # two are cheap to compose
    return tmp_path


def test_a_whole_ranking(here, capfd, monkeypatch):
    monkeypatch.setattr(Instant, "stop_after", 12)
    with pytest.raises(KeyboardInterrupt):
        ranked()
    Instant.stop_after = math.inf
    capfd.readouterr()
    with json_output():
        ranking = ranked()
    assert len(Instant.launched) == 2 * 2 * (3 + 2) - 12  # the others were done
    line, content = json.loads(capfd.readouterr().out), json.loads((FOLDER / "report.json").read_text())
    assert line == {**content, "report": str(FOLDER / "report.json")} and content["complete"]
    (agreement,) = ranking.agreements
    assert agreement.spearman.value == -1 and agreement.baseline == "tales"
    assert [swap.models for swap in agreement.certain_swaps] == [(0, 1)]
    cells = {(cell["model"], cell["dataset"]): cell for cell in content["cells"]}
    of_tales, of_short = (cells["model.scale_logits=2", name] for name in ("tales", "tales seq_len=16"))
    assert of_tales["mean"] == pytest.approx(2.005) and of_tales["above_floor"] and of_tales["rank"] == 1
    assert of_short["mean"] == pytest.approx(4.005) and not of_short["above_floor"] and of_short["rank"] == 2
    assert of_tales["tuned"]["optim.lr"] == 0.004
    assert (
        "Losses of model.scale_logits=3 are upper bounds, so true ranks may be better." in content["warnings"]
    )
    with pytest.raises(UserError, match=r"began with datasets=\['tales', 'tales data.seq_len=16'\]"):
        ranked("datasets=[tales,tales data.seq_len=64]")


def test_a_dataset_that_cannot_be_read_is_refused_before_any_is_trained_on(here):
    (here / "file").touch()
    with pytest.raises(UserError, match="tokens can't be written in .*file"):
        ranked("datasets=[tales,tales data.seq_len=16 data.cache=file]")
    assert not Instant.launched


def test_long_names_are_shortened(here):
    """Also those of its searches, which have the names of the ranking, of a dataset and of a model."""

    def names(*args) -> list[tuple[str, str]]:
        search = RankingSearch(*args)
        places = [search.place(*key) for key in search.cfgs]
        return [(place, search.config_of(place, "none", 1).sweep.name) for place in places]

    long = " ".join(["tales", *["data.seq_len=16"] * 30])
    words = [f"sweep.name={'x' * LONGEST}", f"datasets=[tales,{long}]"]
    found = ranked(*words, act=names)
    of_searches = [name for _, name in found]
    assert len(set(of_searches)) == 4 and all(fits(name, FolderName) for name in of_searches)
    assert max(len(place) for place, _ in found) <= 255 < len(long)  # what file systems allow


def test_a_ranking_whose_time_is_up_is_not_settled(here, capsys):
    def run(sweeper, overrides):
        RankingProtocol(**PROTOCOL).run(sweeper, overrides)

    with pytest.raises(NotSettled):
        ranked("sweep.minutes=1e-9", act=run)
    assert not Instant.launched and "The time was up before everything was trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["models=[norm=pre,model.dim=16]"],
            r"^norm=pre and model.dim=16 are the same: .* Change one of them\.$",
        ),
        (
            ["models=[norm=pre,norm=post seed=1]"],
            "^models.norm-post-seed-1 has a seed, but all models use the",
        ),
        (
            ["datasets=[tales,tales data.seq_len=32]"],
            "^model.scale_logits=2 would be trained on the same data twice, as tales and as tales seq_len=32",
        ),
        (["datasets=[tales optim.lr=1e-2,tales optim.lr=1e+2]"], "have too similar names"),
        (
            ["data=tales_pairs", "train.stop_at_accuracy=0.9"],
            "^train.stop_at_accuracy=0.9 ends runs .* after which val_bpb can't be compared",
        ),
    ],
)
def test_what_makes_no_ranking_is_refused(here, words, sentence):
    with pytest.raises(UserError, match=sentence):
        ranked(*words, act=RankingSearch)
    assert not Instant.launched


def test_every_command_of_the_page_on_scale_says_what_it_would_train(here, capsys):
    found = [command for command in commands(page_of("scale")) if "search=ranking" in command]
    assert len(found) == 2
    Path("stories.jsonl").write_text('{"text": "Once upon a time."}\n' * 20, encoding="utf-8")
    for command in found:
        others = [word for word in command[2:] if not word.startswith("models=")]
        words = [*others, "models=[small_gla,norm=post]", "train.check=false", "sweep.dry_run=true"]
        assert protocol_at_once(rank, *words) is None
        assert "Each model tries multiples of its learning rate" in capsys.readouterr().out
