"""Which runs a comparison finds, which arms they make up, and what it says of those that can't be compared."""

from __future__ import annotations

import html
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import run as door
from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.runs import folder as rundir
from minllm.runs.folder import RunDir, is_running
from minllm.runs.outcome import Outcome, write
from minllm.study.comparison import Comparison, compare
from minllm.study.report import sentences, summary, write_report
from minllm.study.report.commands import compare_command
from minllm.study.report.data import to_json
from minllm.study.selection import Selection, find
from tests.comparisons import ENVIRONMENT, begun, figures, finished
from tests.test_config import idea  # noqa: F401  (a fixture)
from tests.test_doors import go  # noqa: F401  (a fixture)
from tests.test_report_schema import validate_answer, validate_report

PRE, POST = "norm=pre", "norm=post"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def two_arms(folder: Path, seeds: int = 2, apart: float = 0.1) -> Path:
    """Write the runs of a grid of norm=pre and norm=post, which is so much worse."""
    for number, norm in enumerate([PRE, POST]):
        for seed in range(seeds):
            where, bpb = folder / f"{number * seeds + seed}-{norm}", 2 + number * apart + seed / 1000
            finished(where, norm, seed=seed, bpb=bpb)
    return folder


def names(*folders: Path, **asked) -> list[str]:
    return [arm.name for arm in compare(folders, **asked).arms]


def reasons(comparison: Comparison) -> dict[str, str]:
    return {one.folder.name: one.why for one in comparison.left_out}


def fact(comparison: Comparison, what: str) -> tuple[bool, str]:
    (found,) = (one for one in comparison.facts if one.what == what)
    return found.equal, found.said


def refusal(*folders: Path, **asked) -> str:
    with pytest.raises(UserError) as refused:
        compare(folders, **asked)
    return str(refused.value)


# ---- finding runs --------------------------------------------------------------------------------


def found(**asked) -> list[str]:
    runs, _ = find(Selection(**{"folders": [], **asked}))
    return [run.folder.name for run in runs]


def test_a_folder_stands_for_all_runs_in_it(here):
    two_arms(here / "outputs/2026-11-25/12-00-00-grid")
    all_four = ["0-norm=pre", "1-norm=pre", "2-norm=post", "3-norm=post"]
    grid = "outputs/2026-11-25/12-00-00-grid"
    assert found(folders=["outputs"]) == found(folders=[grid]) == all_four
    assert found(folders=["outputs/*/*/1-*"]) == found(folders=[f"{grid}/1-norm=pre"]) == ["1-norm=pre"]
    assert found(folders=[f"{grid}/3-norm=post", grid]) == ["3-norm=post", *all_four[:3]], "each once"


def test_runs_are_selected_by_folder_and_configuration(here):
    finished(here / "outputs/2026-11-25/a-grid/0", PRE, "tags=[mine,first]")
    finished(here / "outputs/2026-11-26/another", POST, "model/attn=mqa")
    assert found(name="grid") == found(tag="mine") == found(date="2026-11-25") == ["0"]
    assert found(choice=["norm=post"]) == found(choice=["model/attn=mqa"]) == ["another"]
    assert found(choice=["attn=mqa", "norm=post"], date="2026-11-26") == ["another"]
    assert sorted(found(folders=["outputs"])) == ["0", "another"]
    for nobody in ({"tag": "min"}, {"choice": ["norm=post", "attn=gqa"]}, {"name": "grid", "tag": "third"}):
        with pytest.raises(UserError, match="No run matches"):
            find(Selection([], **nobody))


def test_a_run_in_a_folder_without_a_date_was_made_when_its_files_were(here):
    run = finished(here / "outputs/mine", PRE)
    os.utime(run / "config.yaml", (0, 1_700_000_000))  # 14 November 2023
    assert found(date="2023-11-14") == ["mine"]


def test_the_second_run_of_a_grid_comes_before_its_tenth(here):
    for number in (10, 2, 1):
        finished(here / f"grid/{number}-mqa", PRE, seed=number)
    assert found(folders=["grid"]) == found(folders=["grid/*"]) == ["1-mqa", "2-mqa", "10-mqa"]


def test_missing_selection_is_reported(here):
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=r"^No runs were selected. Type 'runs=\[outputs/…\]'"):
        Selection([])
    for word, sentence in {
        "nowhere": "There is no folder 'nowhere'. Give",
        "empty": "There is no run in 'em",
    }.items():
        with pytest.raises(UserError, match=sentence):
            find(Selection([word]))


# ---- runs that are left out ----------------------------------------------------------------------


def without_validation_text(folder: Path) -> None:
    old = figures(2.0, 0)
    del old["validation_text"]
    (finished(folder, PRE) / "summary.json").write_text(json.dumps(old))


def stopped(folder: Path) -> None:
    finished(folder, PRE)
    (folder / "summary.json").unlink()
    (folder / "log.txt").write_text("Training.\nStopped at step 3. To continue: python run.py resume=x\n")


def pruned(folder: Path) -> None:
    finished(folder, PRE)
    write(Outcome("pruned", reason="pruner", text="Others were better at step 20."), folder, "1")


def diverged(folder: Path) -> None:
    finished(folder, PRE)
    (folder / "summary.json").unlink()
    (folder / "log.txt").write_text(
        "Training.\nThe loss is NaN or infinite at step 3: training diverged. Try\n"
    )


def of_an_extension(folder: Path) -> None:
    file = finished(folder, PRE) / "config.yaml"
    file.write_text(file.read_text().replace("extensions: []", "extensions: [my_idea]"))


LEFT_OUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "stopped by Ctrl-C": (stopped, "It was stopped before it finished. To continue: python run.py resume="),
    "killed": (
        lambda folder: (finished(folder, PRE) / "summary.json").unlink(),
        "It crashed or was killed before it finished. To continue: python run.py resume=",
    ),
    "diverged": (diverged, "Its training diverged: the loss or the gradient became NaN or infinite."),
    "pruned by its search": (pruned, "It was ended by its search. Others were better at step 20."),
    "lost": (
        lambda folder: finished(folder, PRE, bpb=math.nan),
        "Its validation loss is NaN or infinite.",
    ),
    "infinite": (
        lambda folder: finished(folder, PRE, bpb=math.inf),
        "Its validation loss is NaN or infinite.",
    ),
    "torn": (
        lambda folder: (finished(folder, PRE) / "summary.json").write_text('{"val_bpb": 2.'),
        "Its summary.json is damaged: it isn't a JSON object.",
    ),
    "another file's": (
        lambda folder: (finished(folder, PRE) / "summary.json").write_text("[1, 2]"),
        "Its summary.json is damaged: it isn't a JSON object.",
    ),
    "without an environment": (
        lambda folder: (finished(folder, PRE) / "environment.json").unlink(),
        "Its environment.json can't be read: No such file or directory.",
    ),
    "of an older version": (without_validation_text, "It was made by an older minllm"),
    "with code of somebody's": (
        of_an_extension,
        "uses code from my_idea. If you trust it, add 'extensions=[my_idea]'",
    ),
    "imported": (lambda folder: begun(folder, PRE), "It wasn't trained: it has no metrics.jsonl."),
    "damaged": (
        lambda folder: (begun(folder, PRE) / "config.yaml").write_text("model: ["),
        "is damaged: it isn't valid YAML.",
    ),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_run_without_a_result_is_named_with_its_reason_and_the_rest_is_compared(tmp_path, kind):
    make, reason = LEFT_OUT[kind]
    make(two_arms(tmp_path, seeds=1) / "odd")
    comparison = compare([tmp_path])
    assert list(reasons(comparison)) == ["odd"] and reason in reasons(comparison)["odd"]
    assert [len(arm.runs) for arm in comparison.arms] == [1, 1]


def test_divergence_counts_and_other_failures_leave_it_open(tmp_path):
    for seed in range(8):
        finished(tmp_path / f"a{seed}", PRE, seed=seed, bpb=2 + seed / 1000)
        finished(tmp_path / f"b{seed}", POST, seed=seed, bpb=2.1 + seed / 500)
    for seed in (8, 9):
        finished(tmp_path / f"a{seed}", PRE, seed=seed)
        finished(tmp_path / f"b{seed}", POST, seed=seed, bpb=math.nan)
    (contest,) = compare([tmp_path]).contests
    assert (contest.verdict.word, contest.verdict.pairs, len(contest.differences)) == ("worse", 10, 8)
    assert contest.divergence.arm == [8, 9] and contest.divergence.counts == ("2 of 10", "0 of 10")
    (tmp_path / "b8/summary.json").unlink()
    (contest,) = compare([tmp_path]).contests
    assert contest.verdict.word == "inconclusive" and contest.verdict.why.startswith(
        "norm=post failed with seed 8"
    )
    write(Outcome("pruned", reason="diverged", text="The loss is NaN."), tmp_path / "b8", "1")
    assert compare([tmp_path]).contests[0].divergence.arm == [8, 9]


def test_an_arm_that_diverged_with_every_seed_is_compared(tmp_path):
    for seed in range(7):
        finished(tmp_path / f"a{seed}", POST, seed=seed, bpb=math.nan)
        finished(tmp_path / f"b{seed}", PRE, seed=seed, bpb=2 + seed / 1000)
    comparison = compare([tmp_path])
    (contest,) = comparison.contests
    assert [arm.name for arm in comparison.arms] == ["norm=pre", "norm=post"]
    assert (contest.outcome, contest.verdict.pairs, contest.divergence.counts) == (
        "worse", 7, ("7 of 7", "0 of 7")
    )  # fmt: skip
    validate_report(json.loads(to_json(comparison, [])))
    assert compare([tmp_path], baseline="norm=post").contests[0].outcome == "better"


def test_the_command_that_compares_again_names_runs_that_diverged(tmp_path):
    """Also where it can't name their folder, which has a run that wasn't selected."""
    for seed in range(2):
        finished(tmp_path / f"a{seed}", PRE, seed=seed)
        finished(tmp_path / f"b{seed}", POST, seed=seed, bpb=math.nan if seed else 2.0)
    runs = [tmp_path / name for name in ("a0", "a1", "b0", "b1")]
    finished(tmp_path / "c0", "norm=sandwich")
    assert str(tmp_path / "b1") in compare_command(compare(runs))


@pytest.mark.parametrize("looks", [0, 3, [], [8, 6], [0, 6]])
def test_looks_that_are_no_numbers_of_pairs_are_refused(three_arms, looks):
    assert "must be increasing numbers of pairs, such as [6, 8, 12]" in refusal(three_arms, looks=looks)


def test_a_run_that_is_still_going_is_left_out_until_it_ends(tmp_path):
    run = two_arms(tmp_path) / "3-norm=post"
    with RunDir(run).alone():
        assert reasons(compare([tmp_path])) == {run.name: "It's still running."}
    assert compare([tmp_path]).left_out == []


def test_where_no_run_has_a_result_each_has_its_reason(tmp_path):
    stopped(tmp_path / "one")
    pruned(tmp_path / "other")
    said = refusal(tmp_path)
    assert said.startswith("None of these runs can be compared:\n") and said.count("\n") == 2
    assert (
        f"{tmp_path}/one: It was stopped" in said and f"{tmp_path}/other: It was ended by its search" in said
    )


def test_of_the_same_run_twice_the_later_one_counts_even_if_it_is_worse(tmp_path):
    two_arms(tmp_path)
    again = finished(tmp_path / "again", PRE, seed=1, bpb=3.0)
    for place, when in (("1-norm=pre", 2000), ("again", 3000)):
        os.utime(tmp_path / place / "summary.json", (when, when))
    comparison = compare([tmp_path])
    assert comparison.arms[0].runs[1].folder == again and comparison.arms[0].values("val_bpb")[1] == 3.0
    assert reasons(comparison) == {"1-norm=pre": "It was run again in again."}
    os.utime(again / "summary.json", (1000, 1000))
    assert reasons(compare([tmp_path])) == {"again": "It was run again in 1-norm=pre."}


# ---- who trains in a folder ----------------------------------------------------------------------


def test_a_folder_has_one_process_that_trains_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "PROBE_SECONDS", 0.01)
    assert not is_running(tmp_path)
    with RunDir(tmp_path).alone():
        assert is_running(tmp_path)
        with pytest.raises(UserError, match=f"Another process is training in {tmp_path}. Wait"):
            RunDir(tmp_path).alone().__enter__()
    assert not is_running(tmp_path)
    with RunDir(tmp_path).alone():  # once more, since looking must not have taken it
        assert is_running(tmp_path)


def test_a_process_that_was_killed_trains_no_more(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from minllm.runs.folder import RunDir\n"
        f"with RunDir(Path({str(tmp_path)!r})).alone(): print('.', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(door.__file__).parent,
    )
    with child:
        assert child.stdout.readline() == b".\n" and is_running(tmp_path)
        child.kill()
        child.wait()
        assert not is_running(tmp_path)


def test_unreadable_lock_does_not_count_as_running(tmp_path):
    """As that of a colleague's run, which nobody else may write to."""
    (tmp_path / ".lock").mkdir()
    assert not is_running(tmp_path)


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


def test_a_run_of_one_arm_says_which_others_were_left_out(tmp_path):
    finished(tmp_path / "a", PRE)
    stopped(tmp_path / "b")
    said = refusal(tmp_path)
    assert said.startswith("All these runs belong to one arm.")
    assert f" Left out:\n  {tmp_path}/b: It was stopped before it finished." in said


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


# ---- what was typed ------------------------------------------------------------------------------


def test_configuration_records_overrides():
    words = ["norm=post", "seed=3", "model.layout=[attn mlp,attn mlp]"]
    assert compose(words).typed == words


def test_interpolated_override_is_recorded_resolved():
    assert compose(["optim.lr=${oc.decode:'0.25'}", "+tags=[a${seed}]"]).typed == [
        "optim.lr=0.25", '+tags=["a0"]',
    ]  # fmt: skip


def test_each_run_of_a_grid_records_its_overrides(go):  # noqa: F811
    assert go("-m", "word=write", "seed=1,2", "model.dim=8")[0] == 0
    typed = [OmegaConf.load(file).typed for file in sorted(Path("outputs").rglob("config.yaml"))]
    assert [[word for word in words if "seed" in word] for words in typed] == [["seed=1"], ["seed=2"]]
    assert all(words[0] == "--config-dir=conf" and words[-1] == "model.dim=8" for words in typed)


def test_resumed_run_records_overrides_of_both_commands(here):
    begun(here / "run", "norm=post")
    cfg = compose(["resume=run", "train.steps=900"])
    assert cfg.typed == ["norm=post", "seed=0", "train.steps=900"]
