"""How many answers a model predicts right: in evaluation, in a run, and as the end of one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import minllm
from minllm.data.batches import IGNORED, open_data
from minllm.errors import UserError
from minllm.estimates import clopper_pearson, share_of
from minllm.model.build import build_model
from minllm.objective.cross_entropy import head_cross_entropy
from minllm.objective.cross_entropy_gpu import head_cross_entropy_on_gpu
from minllm.runs.documents import DOCUMENTS
from minllm.schema.building import build
from minllm.study.arms import Arm
from minllm.study.comparison import of_arms
from minllm.study.metric import METRICS
from minllm.study.report import summary
from minllm.study.report.data import to_json
from minllm.sweep.metric import minimized, value
from minllm.training.answers import answers_of, described
from minllm.training.evaluation import evaluate
from minllm.training.launched import Place
from minllm.training.parallel import ALONE, Processes
from minllm.training.train import train
from tests.comparisons import run as finished_run
from tests.test_report_schema import validate_report

STRINGS = [
    "data=reverse",
    "data.alphabet=abc",
    "data.max_length=6",
    "data.train_pairs=300",
    "data.val_pairs=50",
]
TINY = [
    *(
        "tokenizer=bytes",
        "model.dim=16",
        "model.n_layers=1",
        "model.attn.n_heads=2",
        "model.attn.n_kv_heads=2",
    ),
    *(
        "train.device=cpu",
        "train.precision=fp32",
        "train.compile=false",
        "train.check=false",
        "schedule=constant",
    ),
    *("train.eval_every=5", "sample.max_new_tokens=4", "train.batch_size=8"),
]
ENCODER = ["model/encoder=same", "model/layout=decoder"]
IN_ORDER = {
    "causal": [],
    "fim": ["data.packing=pad"],
    "prefix": [],
    "seq2seq": ENCODER,
    "span": ENCODER,
    "mixture": ENCODER,
}
CPU = torch.device("cpu")


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [*STRINGS, *TINY, f"data.cache={tmp_path / 'stores'}"]


def random_model(cfg, tokenizer, seed=0):
    """Return a random model that mostly predicts the letters of the strings and their end."""
    model = build_model(cfg, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
        likely = torch.tensor([*b"abc", tokenizer.eos_id])
        kept = model.head_weight_VD[likely].clone()
        model.head_weight_VD.mul_(0.01)
        model.head_weight_VD[likely] = 3 * kept
    return model.eval()


def ready(words):
    """Return a random model, its objective, and the validation set."""
    cfg = minllm.compose(words)
    tokenizer, objective = build(cfg.tokenizer), build(cfg.objective)
    corpus = open_data(build(cfg.data), tokenizer)
    return random_model(cfg, tokenizer), objective, corpus.validation(7), tokenizer


@pytest.mark.parametrize("name", IN_ORDER)
def test_shares_are_those_of_each_prediction(words, name):
    """Windows are shorter than documents, so that answers are in several rows."""
    model, objective, validation, _ = ready(
        [
            *words,
            f"objective={name}",
            *IN_ORDER[name],
            f"data.seq_len={8 if name in ('causal', 'fim') else 16}",
        ]
    )
    answers = answers_of(validation, objective)
    found = evaluate(model, objective, validation, CPU, "fp32", answers=answers)
    right, tokens, wrong = np.zeros((3, len(validation.documents.lengths)))
    with torch.no_grad():
        for rows, batch in validation.batches():
            of_rows = validation.documents_of_windows[rows.start : rows.stop]
            x_ND, targets_N = objective.predictions(model, batch)
            logits_NV = x_ND @ model.head_weight_VD[: objective.text_size(model)].T
            counted = (batch.targets_BT != IGNORED).nonzero()[:, 0]
            for row, guess, target in zip(counted, logits_NV.argmax(-1), targets_N):
                document, is_end = of_rows[row], target == batch.eos_id
                right[document] += (guess == target) & ~is_end
                tokens[document] += ~is_end
                wrong[document] += guess != target
    assert tokens.sum() == validation.tokens - len(tokens) and 0 < right.sum() < tokens.sum()
    assert found["val_accuracy"] == right.sum() / tokens.sum()
    assert found["val_exact"] == (wrong == 0).mean()
    low, high = answers.summary()["val_accuracy_interval"]
    assert 0 <= low < found["val_accuracy"] < high <= 1
    without = evaluate(model, objective, validation, CPU, "fp32")
    assert without == {key: found[key] for key in ("val_loss", "val_bpb")}


def test_exact_is_what_greedy_decoding_writes(words):
    words = [*words, "data.max_length=2", "data.val_pairs=8", "data.alphabet=abcdefgh", "optim.lr=1e-2"]
    minllm.train(minllm.compose([*words, "train.steps=50"]), Path("run"))
    model, tokenizer, cfg = minllm.load("run")
    pairs, validation = [*build(cfg.data).pairs("val")], open_data(build(cfg.data), tokenizer).validation(8)
    objective = build(cfg.objective)
    answers = answers_of(validation, objective)
    found = evaluate(model, objective, validation, CPU, "fp32", answers=answers)
    written = minllm.generate(
        model, tokenizer, [pair.given for pair in pairs], temperature=0.0, max_new_tokens=4
    )
    exact = np.mean([text == pair.target for text, pair in zip(written, pairs)])
    assert found["val_exact"] == exact and 0 < exact < 1


def test_processes_add_up_their_answers(words):
    model, objective, validation, _ = ready([*words, "data.seq_len=16"])
    whole = answers_of(validation, objective)
    expected = evaluate(model, objective, validation, CPU, "fp32", answers=whole)

    class One(Processes):
        def add_up(self, tensors):
            sent[self.place.rank] += [tensor.clone() for tensor in tensors]
            for at, tensor in enumerate(tensors, len(sent[self.place.rank]) - len(tensors)):
                if sent[1 - self.place.rank]:
                    tensor += sent[1 - self.place.rank][at]

    sent = [[], []]
    for rank in (0, 1):
        parts = answers_of(validation, objective)
        place = replace(Place(), rank=rank, size=2)
        found = evaluate(model, objective, validation, CPU, "fp32", processes=One(place), answers=parts)
    assert found == pytest.approx(expected, rel=1e-12) and parts.shares == whole.shares


def test_metrics_and_summary_have_them(words):
    summary = minllm.train(minllm.compose([*words, "train.steps=10"]), Path("run"))
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [line for line in lines if "val_loss" in line]
    assert len(evaluations) == 2
    for name in ("val_accuracy", "val_exact"):
        assert evaluations[-1][name] == summary[name]
        low, high = summary[f"{name}_interval"]
        assert low <= summary[name] <= high
    from minllm.tasks.evaluate import evaluate as task

    again = task(minllm.compose(["task=evaluate", "run=run"]), Path("unused"), run="run")
    assert again["val_accuracy_interval"] == pytest.approx(summary["val_accuracy_interval"])


@pytest.mark.parametrize(
    "more", [["data=tales", "data.train_stories=30", "data.val_stories=5"], ["objective=masked"]]
)
def test_text_and_other_objectives_have_none(tmp_path, monkeypatch, words, more):
    strings = [] if "data=tales" in more else STRINGS
    given = [
        *strings,
        *TINY,
        f"data.cache={tmp_path}",
        "data.seq_len=32",
        "data.packing=pad",
        "train.steps=2",
        *more,
    ]
    assert "val_accuracy" not in minllm.train(minllm.compose(given), Path("run"))
    with pytest.raises(UserError, match=r"train\.stop_at_accuracy needs a val_accuracy, but .*Leave it out"):
        minllm.train(minllm.compose([*given, "train.stop_at_accuracy=0.5"]), Path("stopped"))


def test_where_several_answers_are_right_none_is_exact(words):
    """Brevo's answers are any topological order; the one that is learned isn't the only right one."""
    _, objective, validation, _ = ready([*words, "data.seq_len=16"])
    cfg = minllm.compose(
        ["data=probe/brevo_small", "data.train_examples=4", "data.val_examples=4", words[-1]]
    )
    answers = answers_of(validation, objective, build(cfg.data))
    answers.begin()
    answers.rows[0] = 1
    assert answers_of(validation, objective).are_unique and not answers.are_unique
    assert [*answers.end(ALONE)] == ["val_accuracy"] and "whole" not in described(answers.summary())


def test_a_search_maximizes_an_accuracy():
    assert value({"val_loss": 2.0, "val_exact": 0.75}, "val_exact") == 0.25
    assert value({"val_loss": 2.0}, "val_loss") == 2.0
    assert minimized("val_accuracy") == "1 − val_accuracy" and minimized("val_bpb") == "val_bpb"
    with pytest.raises(UserError, match="has no val_accuracy, .* Choose sweep.metric=val_loss"):
        value({"val_loss": 2.0}, "val_accuracy")


def test_a_run_ends_when_it_is_accurate_enough(words):
    words = [*words, "data.op=copy", "data.max_length=2", "data.alphabet=abcdefgh", "data.val_pairs=5"]
    words += ["train.steps=400", "optim.lr=1e-2"]
    cfg = minllm.compose([*words, "train.stop_at_accuracy=0.8"])
    summary = minllm.train(cfg, Path("run"))
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    accuracies = {line["step"]: line["val_accuracy"] for line in lines if "val_loss" in line}
    assert summary["steps"] == min(step for step, accuracy in accuracies.items() if accuracy >= 0.8) < 400
    assert summary["val_accuracy"] >= 0.8 and Path("run", DOCUMENTS).is_file()
    assert "has reached train.stop_at_accuracy=0.8" in Path("run/log.txt").read_text(encoding="utf-8")
    saved = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert any(str(summary["steps"]) in name for name in saved)


def test_a_resumed_run_that_is_accurate_enough_ends(words):
    """Its checkpoint's step wasn't evaluated, but is one that is."""
    words = [*words, "train.steps=6", "train.checkpoint_every=3", "train.eval_every=100"]
    train(minllm.compose(words), Path("run"))
    (last,) = (path for path in Path("run/checkpoints").iterdir() if path.name.endswith("6"))
    shutil.rmtree(last)
    cfg = minllm.compose([*words, "train.eval_every=3", "train.stop_at_accuracy=0"])
    assert train(cfg, Path("run"), resume="run")["steps"] == 3
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "val_accuracy" in line] == [3]


@pytest.mark.parametrize("compute", [head_cross_entropy, head_cross_entropy_on_gpu])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_head_tells_which_targets_are_the_most_probable(compute, softcap):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(700, 5, generator=generator), torch.randn(9, 5, generator=generator)
    bias = torch.randn(9, generator=generator)
    targets = torch.randint(0, 9, (700,), generator=generator)
    targets[::3] = IGNORED
    right = torch.ones(700, dtype=torch.bool)
    with torch.no_grad():
        with_right = compute(x, weight, targets, bias, softcap=softcap, right_N=right)
        without = compute(x, weight, targets, bias, softcap=softcap)
    assert torch.equal(right, (x @ weight.T + bias).argmax(-1) == targets) and with_right == without
    assert 0 < right.sum() < 400


def test_intervals_of_shares_take_groups_as_dependent():
    random = np.random.default_rng(0)
    apart = share_of((random.random(200) < 0.8).astype(float), np.ones(200))
    assert apart.interval == pytest.approx(clopper_pearson(200 * apart.value, 200), abs=0.005)
    together = share_of(10.0 * (random.random(20) < 0.8), np.full(20, 10.0))
    assert np.diff(together.interval) > 2 * np.diff(apart.interval)
    assert share_of(np.full(50, 4.0), np.full(50, 4.0)).interval == pytest.approx(clopper_pearson(50, 50))


# ---- comparing accuracies ------------------------------------------------------------------------


def arms_with(tmp_path, accuracies):
    """Return two arms whose loss says one thing and whose accuracy may say another."""
    return [
        Arm(
            name,
            {
                seed: finished_run(
                    tmp_path,
                    name,
                    seed,
                    2.0 + (name == "post") * (1 + seed / 99),
                    val_accuracy=value,
                    val_exact=value**2,
                )
                for seed, value in enumerate(values)
            },
        )
        for name, values in accuracies.items()
    ]


def test_a_higher_accuracy_is_better(tmp_path):
    noise = [0.0, 0.01, -0.01, 0.02, -0.02, 0.005, -0.005, 0.0]
    arms = arms_with(
        tmp_path, {"pre": [0.7 + each for each in noise], "post": [0.9 + each / 2 for each in noise]}
    )
    by_loss, by_accuracy = of_arms(arms), of_arms(arms, metric=METRICS["val_accuracy"])
    assert by_loss.contests[0].verdict.word == "worse" and by_accuracy.contests[0].verdict.word == "better"
    assert (
        by_accuracy.contests[0].verdict.difference == pytest.approx(-0.2) and by_accuracy.margin_bpb == 0.005
    )
    printed = summary(by_accuracy)
    assert "0.2000 of the answers' tokens wrong lower" in printed and "90.0 %" in printed
    report = json.loads(to_json(by_accuracy, []))
    validate_report(report)
    assert report["metric"] == "val_accuracy" and report["arms"][1]["val_accuracy"] == pytest.approx(0.9)
    assert "1 − val_accuracy (lower is better)" in report["introduction"]


def test_accuracies_of_one_are_equivalent_and_few_seeds_prove_nothing(tmp_path):
    same = arms_with(tmp_path / "same", {"pre": [1.0] * 8, "post": [1.0] * 7 + [0.999]})
    assert of_arms(same, metric=METRICS["val_accuracy"]).contests[0].verdict.word == "equivalent"
    few = arms_with(tmp_path / "few", {"pre": [0.1, 0.11, 0.1], "post": [0.99, 0.98, 1.0]})
    assert of_arms(few, metric=METRICS["val_exact"]).contests[0].verdict.word == "inconclusive"


def test_runs_without_answers_have_no_accuracy_to_compare(tmp_path):
    arms = [Arm(name, {0: finished_run(tmp_path, name, 0, 2.0)}) for name in ("pre", "post")]
    with pytest.raises(
        UserError, match="pre has no val_exact, which needs data with answers.*Leave metric= out"
    ):
        of_arms(arms, metric=METRICS["val_exact"])
    assert "accuracy" not in summary(of_arms(arms))
