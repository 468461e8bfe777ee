"""Which arms runs make up, what can be compared, and what a comparison and its command say of them."""

from __future__ import annotations

import html
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import run as door
from minllm.study.comparison import Comparison, compare
from minllm.study.report import sentences, summary, write_report
from tests.comparisons import ENVIRONMENT, POST, PRE, finished, refusal, two_arms
from tests.test_report_schema import validate_answer, validate_report


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*folders: Path, **asked) -> list[str]:
    return [arm.name for arm in compare(folders, **asked).arms]


def fact(comparison: Comparison, what: str) -> tuple[bool, str]:
    (found,) = (one for one in comparison.facts if one.what == what)
    return found.equal, found.said


# ---- what can be compared ------------------------------------------------------------------------


def test_runs_that_were_validated_on_different_text_are_refused(tmp_path):
    finished(tmp_path / "a", PRE)
    finished(tmp_path / "b", POST, "data=tinystories", validation_text="another")
    said = refusal(tmp_path)
    assert (
        "norm=pre (data=tales) and data=tinystories norm=post (data=tinystories) were validated on diff"
        in said
    )
    assert "\n" not in said and "Leave one out" in said


def test_another_tokenizer_is_compared_in_bits_a_byte(tmp_path):
    finished(tmp_path / "a", "tokenizer=bytes")
    finished(tmp_path / "b", "tokenizer=tales_512")
    comparison = compare([tmp_path])
    assert [arm.name for arm in comparison.arms] == ["tokenizer=bytes", "tokenizer=tales_512"]
    assert fact(comparison, "tokenizer") == (
        False,
        "different; bits per byte remain comparable (bytes, tales_512)",
    )
    assert fact(comparison, "data") == (True, "the same settings (tales)")


def test_common_properties_of_arms_are_reported(tmp_path):
    comparison = compare([two_arms(tmp_path)])
    assert all(one.equal for one in comparison.facts)
    assert fact(comparison, "tokens trained on")[1] == "4,000"
    assert fact(comparison, "parameters")[1] == "1.235 M"
    assert fact(comparison, "version of minllm")[1] == "0.1.0, 012345678"


@pytest.mark.parametrize(
    ("words", "changed", "what", "said"),
    [
        (["train.steps=400"], {"tokens": 2000}, "tokens trained on", "2,000 to 4,000"),
        ([POST], {"params": 1_300_000}, "parameters", "1.235 M to 1.3 M"),
        ([POST], {"wall_seconds": 260.0}, "time of training", "2 min to 4 min"),
        ([POST], {"wall_seconds": 133.0}, "time of training", "about 2 min"),
        (["data.seq_len=128"], {}, "data", "different (tales)"),
        (["data.packing=concat"], {}, "data", "different (tales)"),
        ([POST], {"decisions": {"precision": "fp32"}}, "precision", "bf16 and fp32"),
        ([POST], {"environment": {**ENVIRONMENT, "threads": 2}}, "threads", "1 and 2"),
        ([POST], {"environment": {**ENVIRONMENT, "gpu": "H100"}}, "processor", "an abacus and H100"),
        (
            [POST],
            {"environment": {**ENVIRONMENT, "git": {"commit": None, "dirty": True}}},
            "version of minllm",
            "0.1.0, 012345678 and 0.1.0, no commit with uncommitted changes",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_differences_between_arms_are_reported(tmp_path, words, changed, what, said):
    finished(tmp_path / "a", PRE)
    finished(tmp_path / "b", *words, **changed)
    assert fact(compare([tmp_path]), what) == (False, said)


def test_amounts_that_are_within_a_hundredth_are_equal(tmp_path):
    finished(tmp_path / "a", PRE, params=1_000_000)
    finished(tmp_path / "b", POST, params=1_009_000)
    assert fact(compare([tmp_path]), "parameters") == (True, "1 M to 1.009 M")


# ---- arms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([["model/attn=gqa"], ["model/attn=mqa"]], ["attn=gqa", "attn=mqa"]),
        ([[PRE, "model/attn=mqa"], [POST]], ["attn=mqa norm=pre", "attn=gqa norm=post"]),
        ([["optim.lr=1e-3"], []], ["lr=0.001", "lr=0.003"]),
        ([["optim.lr=1e-3"], [PRE], [POST]], ["norm=pre lr=0.001", "norm=pre lr=0.003", "norm=post"]),
        ([["experiment=small_mamba"], ["experiment=small_gla"]], ["experiment=small_mamba", "experiment=small_gla"]),
        ([["model.attn.dropout=0.1"], ["model.mlp.dropout=0.1"]], [
            "attn.dropout=0.1 mlp.dropout=0.0",
            "attn.dropout=0.0 mlp.dropout=0.1",
        ]),
        ([[PRE, "logger=wandb"], [POST]], ["norm=pre", "norm=post"]),
        ([["model.layout=[attn mlp]"], ["model.layout=[attn+mlp]"]], ["layout=['attn mlp']", "layout=['attn+mlp']"]),
    ],
    ids=lambda arms: " against ".join(map(str, arms)),
)  # fmt: skip
def test_arm_is_named_by_its_distinguishing_options(tmp_path, arms, expected):
    for number, words in enumerate(arms):
        finished(tmp_path / str(number), *words)
    assert names(tmp_path) == expected


def test_arms_of_one_size_are_called_by_their_choice_and_not_by_the_widths_that_follow(tmp_path):
    sized = ["size.params=1e5", "tokenizer=bytes", "model.n_layers=2"]
    for choice in ("mha", "mqa"):
        finished(tmp_path / choice, f"model/attn={choice}", *sized)
    comparison = compare([tmp_path])
    assert [arm.name for arm in comparison.arms] == ["attn=mha", "attn=mqa"]
    widths = [arm.first.config.model.mlp.hidden or arm.first.config.model.dim for arm in comparison.arms]
    assert widths[0] != widths[1]


ASIDE = [
    "train.log_every=7",
    "train.evals=9",
    "train.sample_every=0",
    "train.keep_checkpoints=1",
    "logger=wandb",
    "tags=[mine]",
    "data.cache=elsewhere",
    "data.num_proc=2",
    "sample.top_k=3",
    "train.clip=1",  # as 1.0
]


def test_options_that_do_not_affect_training_make_no_arm(tmp_path):
    for seed, words in enumerate([[], *([word] for word in ASIDE)]):
        finished(tmp_path / f"{seed}", PRE, *words, seed=seed)
    finished(tmp_path / "other", POST)
    comparison = compare([tmp_path])
    assert {arm.name: len(arm.runs) for arm in comparison.arms} == {PRE: 1 + len(ASIDE), POST: 1}


# ---- contests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven seeds of each of three arms, in the order of how bad they are."""
    folder = tmp_path_factory.mktemp("three")
    for number, words in enumerate([[PRE], [POST, "model/attn=mqa"], [POST]]):
        for seed in range(7):
            bpb = 2 + number / 10 + seed / 1000 + number * seed**2 / 10_000
            finished(folder / f"{number}/{seed}", *words, seed=seed, bpb=bpb)
    return folder


def test_the_first_arm_is_the_baseline_unless_another_is_named(three_arms):
    in_order = ["attn=gqa norm=pre", "attn=mqa norm=post", "attn=gqa norm=post"]
    assert names(three_arms) == in_order
    assert names(three_arms, baseline="mqa") == names(three_arms, baseline="attn=mqa") == [
        *in_order[1:2], in_order[0], in_order[2],
    ]  # fmt: skip
    assert names(three_arms, baseline="attn=gqa norm=post")[0] == "attn=gqa norm=post"


def test_unknown_or_ambiguous_baseline_is_rejected(three_arms):
    listed = "The arms are attn=gqa norm=pre, attn=mqa norm=post, attn=gqa norm=post."
    assert refusal(three_arms, baseline="post").startswith(f"baseline=post matches several arms. {listed}")
    assert refusal(three_arms, baseline="sandwich").startswith(f"baseline=sandwich matches no arm. {listed}")


def test_each_against_each_asks_for_more_pairs(three_arms):
    comparison = compare([three_arms], baseline="all")
    assert [one.verdict.word for one in comparison.contests] == ["worse", "worse", "worse"]
    assert comparison.headline == "attn=gqa norm=pre is better than all others."
    six = compare([three_arms / f"*/{seed}" for seed in range(6)], baseline="all")
    assert [one.verdict.word for one in six.contests] == ["inconclusive"] * 3
    assert (
        "The sign-flip test needs at least 7 pairs with this many contests and looks."
        in six.contests[0].sentence
    )


def test_fewer_than_six_pairs_are_inconclusive_however_far_apart(three_arms):
    five = [three_arms / f"{arm}/{seed}" for arm in (0, 1) for seed in range(5)]
    comparison = compare(five)
    assert comparison.headline == "attn=mqa norm=post against attn=gqa norm=pre: inconclusive."
    assert "5 pairs: 0.1006 bits per byte higher" in comparison.contests[0].sentence
    assert "The sign-flip test needs at least 6 pairs." in comparison.contests[0].sentence


def test_a_seed_that_one_arm_lacks_makes_no_pair(three_arms):
    runs = [
        *(three_arms / f"0/{seed}" for seed in range(6)),
        *(three_arms / f"1/{seed}" for seed in (1, 3, 5)),
    ]
    contest = compare(runs).contests[0]
    assert contest.seeds == [1, 3, 5] and contest.verdict.pairs == 3
    assert contest.differences == pytest.approx({1: 0.1001, 3: 0.1009, 5: 0.1025})


def test_inconclusive_result_reports_pairs_to_settle(three_arms, tmp_path):
    arms = (0, 1)
    expected = {
        1: "How many pairs would settle it can't be estimated from fewer than two.",
        5: "pairs in total would settle it, if the mean and the spread stay the same.",
    }
    for seeds, sentence in expected.items():
        comparison = compare([three_arms / f"{arm}/{seed}" for arm in arms for seed in range(seeds)])
        write_report(comparison, tmp_path, [])
        page, text, _ = (tmp_path / f"report.{kind}" for kind in ("html", "md", "json"))
        plainly = html.unescape(page.read_text()).replace("\xa0", " ")
        for shown in (summary(comparison), plainly, text.read_text()):
            assert sentence in shown
    noise = compare([three_arms / f"0/{seed}" for seed in range(5)], aa=True)
    assert "pairs in total would settle it" in summary(noise)
    settled = compare([three_arms / "0", three_arms / "1"])
    assert settled.contests[0].verdict.word == "worse" and "settle it" not in summary(settled)


@pytest.mark.parametrize("looks", [0, 3, [], [8, 6], [0, 6]])
def test_looks_that_are_no_numbers_of_pairs_are_refused(three_arms, looks):
    assert "must be increasing numbers of pairs, such as [6, 8, 12]" in refusal(three_arms, looks=looks)


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0, 1e308, math.nan, math.inf])
def test_a_margin_that_is_no_share_is_refused(three_arms, margin):
    assert "must be a fraction of the baseline's bits per byte" in refusal(three_arms, margin=margin)


def test_a_report_claims_nothing_of_when_its_margin_was_chosen(three_arms, tmp_path):
    comparison = compare([three_arms], margin=0.02)
    for file in write_report(comparison, tmp_path, []):
        said = html.unescape(file.read_text()).replace("\xa0", " ").replace("\\'", "'")
        assert "in advance" not in said.partition("<body>")[2] + said.partition("</style>")[0][:2000]
        assert "isn't recorded" in said or file.suffix == ".json"


def test_report_describes_what_pairs_share(tmp_path):
    finished(tmp_path / "a", PRE)
    finished(tmp_path / "b", POST)
    alike = compare([tmp_path])
    assert "give both the same batches in the same order." in sentences.judged(alike)[0]
    finished(tmp_path / "c", "data.seq_len=128", "tokenizer=bytes")
    said = sentences.judged(compare([tmp_path]))[0]
    assert "They see different batches, because their settings differ (data, tokenizer)." in said
    changes = {**ENVIRONMENT, "git": {"commit": "0" * 40, "dirty": True}}
    for folder, norm in (("d", PRE), ("e", POST)):
        finished(tmp_path / "changed" / folder, norm, environment=changes)
    changed = compare([tmp_path / "changed"])
    assert fact(changed, "version of minllm") == (
        False,
        "0.1.0, 000000000 with uncommitted changes, which may differ",
    )
    assert "Their code may differ (version of minllm)" in sentences.judged(changed)[0]


def test_the_processor_that_is_named_is_the_one_that_computed(tmp_path):
    with_gpu = {**ENVIRONMENT, "gpu": "H100"}
    for folder, norm in (("a", PRE), ("b", POST)):
        finished(tmp_path / folder, norm, environment=with_gpu, device="cpu")
    assert fact(compare([tmp_path]), "processor") == (True, "an abacus")


def test_arms_with_identical_losses_are_reported(tmp_path):
    for seed in range(7):
        for word in (PRE, POST):
            finished(tmp_path / f"{word}-{seed}", word, seed=seed, bpb=2 + seed / 100)
    assert "Every pair reached exactly the same loss" in summary(compare([tmp_path]))


def test_a_single_arm_has_a_noise_floor_and_no_rival(three_arms):
    said = refusal(three_arms / "0")
    assert said.startswith("All these runs belong to one arm. Add runs of another arm") and "aa=true" in said
    comparison = compare([three_arms / "0"], aa=True)
    (noise,) = comparison.noise
    assert comparison.contests == [] and comparison.headline == "The arm against itself: inconclusive."
    assert noise.verdict.pairs == 3 and noise.verdict.difference == pytest.approx(
        0.001
    )  # (0,1), (2,3), (4,5)
    assert 0 < noise.floor < 0.02
    assert "needs at least two seeds" in refusal(three_arms / "0/0", aa=True)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def typed(here: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Iterator[Callable]:
    """Type a command in this process: `typed("task=compare")` gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers = logging.getLogger().handlers[:]

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        code = door.main(words)
        return code, *capfd.readouterr()

    yield call
    logging.getLogger().handlers[:] = handlers  # Hydra's write to a stream that this test is about to close


def test_the_command_says_the_verdict_and_writes_a_report(typed, here):
    two_arms(here / "outputs/a-grid", seeds=7)
    finished(here / "outputs/a-grid/odd", "norm=none")
    code, out, err = typed(
        "task=compare",
        "runs=[outputs/a-grid]",
        "choice=[model/attn=gqa]",
        "hydra.run.dir=there",
        "baseline=post",
    )
    assert (code, err) == (3, ""), "a contest is inconclusive"
    assert "norm=pre against norm=post: better" in out and "there/report.html" in out
    assert {"report.html", "report.md", "report.json"} == {file.name for file in Path("there").iterdir()}
    data = json.loads(Path("there/report.json").read_text(encoding="utf-8"))
    assert data["baseline"] == "norm=post" and [one["verdict"]["word"] for one in data["contests"]] == [
        *("better", "inconclusive")
    ]


def test_with_json_a_settled_comparison_is_one_line_and_its_report_is_as_described(typed, here):
    two_arms(here / "outputs/a-grid", seeds=7)
    code, out, err = typed(
        "task=compare", "runs=[outputs/a-grid]", "hydra.run.dir=there", "aa=true", "--json"
    )
    line = json.loads(out)
    assert (code, line["status"], out.count("\n")) == (0, "settled", 1) and line["headline"] in err
    validate_answer(line)
    validate_report(json.loads(Path(line["report"]).read_text(encoding="utf-8")))
    code, out, _ = typed("task=compare", "runs=[nowhere]", "--json")
    assert (code, json.loads(out)["status"]) == (2, "refused")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No runs were selected"),
        (["runs=[nowhere]"], "There is no folder 'nowhere'"),
        (["choice=[norm=none]"], "No run matches"),
        (["choice=[norm=pre]"], "All these runs belong to one arm"),
        (["runs=[outputs]", "baseline=sandwich"], "baseline=sandwich matches no arm"),
        (["runs=[outputs]", "margin=0"], "margin"),
        (["runs=[outputs]", "margin=1e308"], "margin"),
        (["runs=[outputs]", "margin=nan"], "margin"),
    ],
)
def test_failed_comparison_prints_one_line_and_writes_nothing(typed, here, words, sentence):
    two_arms(here / "outputs/a-grid", seeds=1)
    before = sorted(here.rglob("*"))
    code, out, err = typed("task=compare", *words)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1
    assert sorted(here.rglob("*")) == before
