"""How runs write and read: held against the objective's own loss, and as the report shows it."""

import contextlib
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import minllm
from minllm.objective import Inputs
from minllm.objective.causal import Causal
from minllm.page.html import STYLE
from minllm.schema.building import build
from minllm.study.arms import Arm, arms_of
from minllm.study.comparison import compare
from minllm.study.reading import (
    OTHER_TEXT,
    Guess,
    Reading,
    accuracy,
    bits_per_byte,
    held_out,
    read_arm,
    read_arms,
)
from minllm.study.report.texts import STYLE_TEXTS, coloured, differences, texts_html, texts_markdown
from minllm.study.selection import Selection, find
from minllm.training import checkpoints
from minllm.training.evaluation import LOOKAHEAD_WARNING

TINY = ["model.dim=16", "model.n_layers=1", "model.attn.n_heads=2", "model.attn.n_kv_heads=1", "seed=3"]
TINY += ["data=text", "data.separator='; '", "data.seq_len=32", "data.val_fraction=0.3", "data.num_proc=1"]
TINY += ["train.steps=5", "train.batch_size=4", "train.precision=fp32", "train.compile=false"]
TINY += ["train.malloc=default", "train.sample_every=0", "schedule=constant", "schedule.warmup_steps=1"]
ARMS = {
    "words": ["tokenizer=tales_512"],
    "bytes": ["tokenizer=bytes"],
    "choosing": ["tokenizer=bytes", "model/mlp=moe_expert_choice"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the text and a run of each arm, which nobody changes."""
    folder = tmp_path_factory.mktemp("reading")
    texts = [f"Née <b>{n}</b> little foxes\nand {n} & {'more ' * (n % 9)}foxes" for n in range(80)]
    (folder / "foxes.txt").write_text("; ".join(texts), encoding="utf-8")
    data = [f"data.path={folder / 'foxes.txt'}", f"data.cache={folder / 'stores'}"]
    for name, choices in ARMS.items():
        minllm.train(minllm.compose([*choices, *TINY, *data]), folder / "runs" / name)
    with contextlib.chdir(folder):  # where runs that aren't under outputs/ may name files
        yield folder


@pytest.fixture(scope="module")
def comparison(trained):
    return compare([trained / "runs" / name for name in ("words", "bytes")])


@pytest.fixture(scope="module")
def cfg():
    return minllm.compose(["task=compare", "sample.max_new_tokens=12"])


@pytest.fixture(scope="module")
def readings(comparison, cfg):
    return by_arm(read_arms(comparison, cfg, ["", "Née"], stories=3))


@pytest.fixture
def movable(trained, tmp_path):
    """A copy of the runs, of which something may be taken away."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def by_arm(readings):
    """The readings by the names that ARMS has."""
    parts = {"words": "tales_512", "choosing": "moe_expert_choice", "bytes": "bytes"}
    return {next(arm for arm, part in parts.items() if part in one.arm): one for one in readings}


def joined(story):
    """The text of a story's tokens; é is two bytes, and a token of its own in neither tokenizer."""
    return "".join(guess.text for guess in story).replace("<C3><A9>", "é")


def test_losses_and_ranks_are_those_of_the_model(trained, readings):
    model, tokenizer, _ = checkpoints.load(trained / "runs" / "words", which="last")
    for story in readings["words"].stories:
        tokens_1T = torch.tensor([tokenizer.encode(joined(story), bos=True)])
        objective = Causal(predict_ahead=0, ahead_weight=0.0, z_loss=0.0)
        with torch.no_grad():
            loss = objective.loss(model, Inputs(tokens_1T[:, :-1], tokens_1T[:, 1:], None))
            logits_TV = model(tokens_1T[:, :-1])[0]
        assert sum(guess.nats for guess in story) == pytest.approx(loss.item(), rel=1e-5)
        best_first = logits_TV.argsort(dim=-1, descending=True).tolist()
        ranks = [order.index(token) + 1 for order, token in zip(best_first, tokens_1T[0, 1:].tolist())]
        assert [guess.rank for guess in story] == ranks


def test_the_texts_are_held_out_and_those_that_fit_a_window_come_first(trained, comparison):
    run = comparison.baseline.first
    source = build(run.config.data)
    documents = list(source.documents("val"))
    _, tokenizer, _ = minllm.load(run.folder)
    fit = [text for text in documents if len(tokenizer.encode(text)) < 32]
    cut = [text for text in documents if len(tokenizer.encode(text)) >= 32]
    assert fit and cut
    texts = held_out(run, len(documents))
    assert texts[: len(fit)] == fit
    assert all(whole.startswith(text) for text, whole in zip(texts[len(fit) :], cut, strict=True))
    assert held_out(run, 0) == []


def test_all_arms_read_the_same_texts_whatever_their_tokens(comparison, readings):
    words, letters = readings["words"], readings["bytes"]
    texts = held_out(comparison.baseline.first, 3)
    assert [joined(story) for story in words.stories] == texts
    assert [joined(story) for story in letters.stories] == texts
    assert [len(story) for story in letters.stories] == [len(text.encode()) for text in texts]
    assert max(map(len, letters.stories)) > 32  # longer than a window
    for reading in (words, letters):
        assert [sum(g.bytes for g in story) for story in reading.stories] == [len(t.encode()) for t in texts]


def test_a_text_longer_than_a_window_is_read_as_evaluation_reads_it(trained, comparison, readings):
    """Each token from the first window that has it; windows of 32 tokens go on by 16."""
    model, tokenizer, _ = checkpoints.load(trained / "runs" / "bytes", which="last")
    text = max(held_out(comparison.baseline.first, 3), key=len)
    tokens = tokenizer.encode(text, bos=True)
    story = next(one for one in readings["bytes"].stories if len(one) == len(tokens) - 1)
    for place, guess in enumerate(story):
        window = 16 * max(0, -(-(place + 1 - 32) // 16))
        with torch.no_grad():
            logits_V = model(torch.tensor([tokens[window : place + 1]]))[0, -1]
        assert guess.nats == pytest.approx(-logits_V.log_softmax(-1)[tokens[place + 1]].item(), abs=1e-4)


def test_the_same_seed_writes_the_same(trained, comparison, cfg, readings):
    again = by_arm(read_arms(comparison, cfg, ["", "Née"], stories=0))
    for arm, reading in again.items():
        assert reading.samples == readings[arm].samples and reading.stories == []
    _, sample = readings["bytes"].samples
    model, tokenizer, _ = checkpoints.load(trained / "runs" / "bytes", which="last")
    options = {"temperature": cfg.sample.temperature, "min_p": cfg.sample.min_p, "max_new_tokens": 12}
    assert sample == ("Née", minllm.generate(model, tokenizer, ["Née"], **options)[0])


def test_a_model_that_looks_ahead_reads_and_does_not_write(trained, cfg):
    (arm,), _ = arms_of(find(Selection([str(trained / "runs" / "choosing")]))[0])
    reading = read_arm(arm, arm.first.seed, cfg, ["Née"], held_out(arm.first, 3), None)
    assert reading.samples == [] and len(reading.stories) == 3
    assert "can't generate" in reading.why_not and LOOKAHEAD_WARNING in reading.why_not


def test_a_run_without_its_checkpoint_says_so_and_the_others_are_shown(movable, cfg):
    shutil.rmtree(movable / "choosing")
    shutil.rmtree(movable / "bytes" / "checkpoints")
    comparison = compare([movable], baseline="tales_512")
    readings = by_arm(read_arms(comparison, cfg, ["Née"], stories=1))
    assert "has no checkpoint" in readings["bytes"].why_not
    assert readings["words"].why_not is None
    next((movable / "words").rglob("model.safetensors")).write_bytes(b"no weights")
    damaged = by_arm(read_arms(comparison, cfg, ["Née"], stories=1))
    assert "is damaged" in damaged["words"].why_not
    page = texts_html(list(damaged.values()))
    assert page.count('class="why-not"') == 2 and "has no checkpoint" in page
    assert "has no checkpoint" in texts_markdown(list(readings.values()))


@pytest.mark.parametrize("becomes", [None, "; ".join(f"Quite another text, number {n}" for n in range(50))])
def test_without_held_out_text_only_samples_are_shown(trained, movable, cfg, becomes, monkeypatch):
    monkeypatch.chdir(movable.parent)
    text = movable / "foxes.txt"
    if becomes:
        text.write_text(becomes)
    for file in movable.glob("*/config.yaml"):
        words = file.read_text().replace(str(trained / "foxes.txt"), str(text))
        file.write_text(words.replace(str(trained / "stores"), str(movable.parent / "stores")))
    readings = read_arms(compare([movable / "words", movable / "bytes"]), cfg, ["Née"], stories=2)
    for reading in readings:
        assert len(reading.samples) == 1 and reading.stories == []
        assert reading.why_not == OTHER_TEXT if becomes else "foxes.txt" in reading.why_not
    assert texts_html(readings).count('class="why-not"') == 1  # the same for both
    assert math.isnan(accuracy(readings[0], 1)) and math.isnan(bits_per_byte(readings[0]))


def test_the_run_shown_is_that_of_the_shared_seed_or_else_the_first(comparison, cfg):
    def seeded(arm, *seeds):
        return Arm(arm.name, {seed: arm.first for seed in seeds})

    words, letters = comparison.arms
    arms = [seeded(words, 1, 3), seeded(letters, 2, 3), seeded(letters, 5, 6)]
    readings = read_arms(replace(comparison, arms=arms), cfg, [], stories=0)
    assert [reading.seed for reading in readings] == [3, 3, 5]
    assert f"{words.name}: seed 3" in texts_html(readings)


# ---- as the report shows it ----------------------------------------------------------------------

GUESSES = [
    Guess("A", 0.1, 1, 1),
    Guess(" <b>", 2.314, 4, 4),
    Guess("\n", 9.0, 22, 1),
    Guess("é", 5.0, 113, 2),
]
SHOWN = Reading("norm=<pre>", 0, [("Once *upon*", " a <i>time</i>\n- and _so_ on")], [GUESSES], None)


def test_figures_are_counted_over_all_tokens():
    assert accuracy(SHOWN, 1) == 1 / 4 and accuracy(SHOWN, 5) == 2 / 4
    assert bits_per_byte(SHOWN) == pytest.approx((0.1 + 2.314 + 9 + 5) / math.log(2) / 8)


def test_html_in_texts_is_escaped():
    page = texts_html([SHOWN])
    assert "<b>Once *upon*</b> a &lt;i&gt;time&lt;/i&gt;\n- and" in page
    assert " &lt;b&gt;</span>" in page and "norm=&lt;pre&gt;" in page
    assert "<i>" not in page and "<pre>" not in page
    assert 'title="2.31 nats, 4th guess"' in page and "22nd guess" in page and "113th guess" in page
    assert "25.0%" in page and "50.0%" in page


def test_colour_grows_with_loss_and_lines_tell_the_first_guesses():
    def strength(nats):
        return float(re.search(r"--surprise:([\d.]+)", coloured(Guess("a", nats, 1, 1)))[1])

    strengths = [strength(nats / 2) for nats in range(20)]
    assert all(less < more or less == more == 1 for less, more in pairwise(strengths))
    assert (strengths[0], strengths[-1]) == (0, 1)
    classes = {
        rank: re.search(r'class="([^"]+)"', coloured(Guess("a", 1.0, rank, 1)))[1] for rank in (1, 5, 6)
    }
    assert classes == {1: "token first", 5: "token among-five", 6: "token"}
    used = {name for one in re.findall(r'class="([^"]+)"', texts_html([SHOWN])) for name in one.split()}
    assert used - {"story", "sample"} == {name for name in used if f".{name}" in STYLE + STYLE_TEXTS} - {
        "story",
        "sample",
    }


def test_arms_are_shown_side_by_side_with_token_differences():
    """Blue with a solid line above where an arm loses less than the first, orange and dashed where it loses more."""
    other = replace(
        SHOWN, arm="other", stories=[[replace(g, nats=g.nats + m) for g, m in zip(GUESSES, MORE)]]
    )
    page = texts_html([SHOWN, other])
    assert "other minus norm=&lt;pre&gt;: -0.55 nats" in page
    marked = re.findall(
        r'class="token( lower| higher|)" style="--surprise:([\d.]+)" title="([+-][\d.]+) nats', page
    )
    assert marked == [
        (" lower", "0.667", "-2.00"), (" higher", "0.500", "+1.50"), ("", "0.000", "-0.05"), ("", "0.000", "+0.00"),
    ]  # fmt: skip
    assert ".token.higher { border-top: 2px dashed" in STYLE_TEXTS and "solid line above" in page
    assert "solid line above" not in texts_html([SHOWN])


MORE = (-2.0, 1.5, -0.05, 0.0)


def test_tokens_of_another_tokenizer_are_compared_over_the_same_bytes(readings):
    one = [Guess("ab", 2.0, 1, 2), Guess("cd", 4.0, 1, 2)]
    other = [Guess("a", 1.0, 1, 1), Guess("bc", 2.0, 1, 2), Guess("d", 0.5, 1, 1)]
    assert differences(one, other) == pytest.approx([2 - 2, 4 - 1.5])
    assert differences(other, one) == pytest.approx([1 - 1, 2 - 3, 0.5 - 2])
    for story, against in zip(readings["words"].stories, readings["bytes"].stories):
        apart = differences(story, against)
        total = sum(guess.nats for guess in story) - sum(guess.nats for guess in against)
        assert sum(apart) == pytest.approx(total) and len(apart) == len(story)


def test_markdown_in_texts_is_escaped():
    text = texts_markdown([SHOWN])
    assert "**After “Once \\*upon\\*”**" in text
    assert "> … a \\<i\\>time\\</i\\>\\\n> \\- and \\_so\\_ on" in text
    row = ["norm=\\<pre\\>", "25.0%", "50.0%", "2.960"]
    assert row in [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_same_reason_is_given_once_for_all_its_arms_and_means_nothing_to_markup():
    readings = [Reading(arm, 0, [], [], "No *such* <file>.") for arm in ("norm=pre", "norm=post")]
    assert "<b>norm=pre, norm=post</b>: No *such* &lt;file&gt;." in texts_html(readings)
    assert "`norm=pre`, `norm=post`: No \\*such\\* \\<file\\>." in texts_markdown(readings).splitlines()


@pytest.mark.parametrize("stories", [[], [[]]], ids=["no text", "an empty text"])
def test_where_nothing_was_read_no_figure_is_shown(stories):
    reading = Reading("norm=pre", 0, [("", "fox")], stories, None)
    assert math.isnan(accuracy(reading, 5)) and math.isnan(bits_per_byte(reading))
    for text in (texts_html([reading]), texts_markdown([reading])):
        assert "fox" in text and "nan" not in text and "top-5" not in text
