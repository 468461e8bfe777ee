"""What every probe must prove, whoever wrote it: each file of conf/data/probe is found and held to the same laws."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import minllm
from minllm.data.batches import IGNORED, check_data, open_data
from minllm.data.probe import Probe, written
from minllm.data.probe.recall import MQAR
from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.groups import CONF
from minllm.tokenizer.bytes import Bytes
from minllm.tokenizer.symbols import Symbols

NAMES = sorted(path.stem for path in (CONF / "data" / "probe").glob("*.yaml"))
SMALL = [name for name in NAMES if name.endswith("_small")]
every_probe = pytest.mark.parametrize("name", SMALL)
PAGE = (Path(__file__).parents[1] / "docs" / "probes.md").read_text(encoding="utf-8")
FEW = {"train_examples": 60, "val_examples": 40, "num_proc": 1}


@functools.cache
def probe(name: str) -> Probe:
    """Return a probe with few examples."""
    return made(name, **FEW)


def made(name: str, **options: int | str) -> Probe:
    return build(OmegaConf.merge(composed(name), {"data": options}).data)


@functools.cache
def composed(name: str) -> DictConfig:
    return minllm.compose([f"data=probe/{name}"])


@functools.cache
def examples(name: str, split: str) -> list:
    return list(probe(name).examples(split))


def questions(source: Probe, example):
    """Yield what a model has read before each answer, and the answer."""
    before = []
    for given, answer in zip(example[::2], example[1::2]):
        before += given
        yield list(before), list(answer)
        if not source.hides_answers:
            before += answer


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_made_of_symbols_and_fit(name):
    source = probe(name)
    symbols = set(source.symbols)
    assert len(symbols) == len(source.symbols)
    for example in islice(source.drawn("train", 20), 4):
        assert len(example) % 2 == 0 and all(example[1::2])
        assert {symbol for part in example for symbol in part} <= symbols
        read = sum(map(len, example[::2] if source.hides_answers else example)) + source.hides_answers
        assert read <= source.longest <= source.seq_len
    assert not source.hides_answers or all(len(answer) == 1 for answer in example[1::2])


@every_probe
def test_an_oracle_that_sees_only_the_input_reaches_the_ceiling(name):
    source, right, total = probe(name), 0, 0
    for number, example in enumerate(examples(name, "val")):
        for before, answer in questions(source, example):
            found = source.answer(tuple(before))
            right += sum(one == other for one, other in zip(found, answer))
            total += len(answer)
            assert number >= 5 or (source.is_right(before, found) and source.is_right(before, answer))
    assert right / total == pytest.approx(source.ceiling)


@every_probe
def test_a_wrong_answer_is_not_right(name):
    source = probe(name)
    for example in examples(name, "val")[:5]:
        before, answer = list(questions(source, example))[-1]
        other = next(symbol for symbol in source.symbols if symbol != answer[-1])
        assert not source.is_right(before, [*answer[:-1], other])


@every_probe
def test_chance_is_the_accuracy_of_the_best_constant_guess(name):
    """The most frequent answer of training is, in validation, no better a guess than chance, and about as good."""
    source = probe(name)
    answers = {
        split: [symbol for example in examples(name, split) for part in example[1::2] for symbol in part]
        for split in ("train", "val")
    }
    guess = max(sorted(set(answers["train"])), key=answers["train"].count)
    shares = {split: some.count(guess) / len(some) for split, some in answers.items()}
    assert shares["val"] <= source.chance < source.ceiling
    noise = math.sqrt(source.chance / len(answers["val"]))
    assert shares["train"] == pytest.approx(source.chance, abs=5 * noise)


@every_probe
def test_nothing_is_both_trained_and_validated_on(name):
    keys = {
        split: [written(probe(name).key(example)) for example in examples(name, split)]
        for split in ("train", "val")
    }
    assert not set(keys["train"]) & set(keys["val"])
    assert len(set(keys["val"])) == len(keys["val"]) == 40


def test_they_are_the_same_in_every_process():
    """Whatever Python hashes strings with."""
    code = (
        "import importlib, json, sys\n"
        "for module, kind, options in json.loads(sys.argv[1]):\n"
        "    source = getattr(importlib.import_module(module), kind)(**options)\n"
        "    parts = [list(source.parts(split)) for split in ('train', 'val')]\n"
        "    print(json.dumps([parts, source.fingerprint, list(source.symbols)]))\n"
    )
    sources = [probe(name) for name in SMALL]
    known = [(type(source).__module__, type(source).__name__, asdict(source)) for source in sources]
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    command = [sys.executable, "-c", code, json.dumps(known)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for source, line in zip(sources, done.stdout.splitlines(), strict=True):
        parts = [[list(parts) for parts in source.parts(split)] for split in ("train", "val")]
        assert json.loads(line) == [parts, source.fingerprint, list(source.symbols)]


@every_probe
def test_only_answers_count_in_the_rows_that_a_model_reads(name, tmp_path):
    """Each counted target is the answer to what comes before it in the row, and all answers are counted."""
    source = made(name, **FEW, cache=str(tmp_path))
    tokenizer = Symbols(data=lambda: source)
    corpus = open_data(source, tokenizer)
    assert corpus.chance == source.chance and corpus.ceiling == source.ceiling
    assert corpus.floor_bits_per_byte == source.floor_bits_per_byte()
    validation = corpus.validation(8)
    expected = sorted(
        (written(before), written(answer))
        for example in examples(name, "val")
        for before, answer in one_by_one(source, example)
    )
    found = []
    for batch in validation:
        assert torch.equal(batch.given_BT, batch.targets_BT == IGNORED)
        for row, targets in zip(batch.tokens_BT, batch.targets_BT):
            for place in (targets != IGNORED).nonzero()[:, 0].tolist():
                before = tokenizer.decode(row[: place + 1].tolist())
                found.append((before, tokenizer.decode([int(targets[place])])))
    assert sorted(found) == expected
    assert validation.tokens == len(found)
    assert validation.bytes == sum(len(answer.encode()) for _, answer in found)
    assert corpus.store.split("val").sizes(tokenizer.byte_lengths).sum() == validation.bytes


def one_by_one(source: Probe, example):
    """Yield what a model has read before each symbol of an answer, and the symbol."""
    for before, answer in questions(source, example):
        for n, symbol in enumerate(answer):
            yield before + answer[:n], [symbol]


@every_probe
def test_a_model_takes_a_step(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = {"steps": 2, "check": False, "eval_every": 0, "sample_every": 0, "compile": False}
    model, sample = {"dim": 16, "n_layers": 1}, {"max_new_tokens": 4}
    cfg = OmegaConf.merge(composed(name), {"data": FEW, "model": model, "train": train, "sample": sample})
    summary = minllm.train(cfg)
    assert math.isfinite(summary["val_loss"]) and summary["val_bpb"] > 0
    assert summary["bpb_above_floor"] > 0


# ---- tokens, and what is refused ----------------------------------------------------------------


def test_symbols_are_tokens_that_survive_a_folder(tmp_path):
    source = MQAR(vocabulary=16, n_pairs=2, length=16, seq_len=16)
    tokenizer = Symbols(data=lambda: source)
    tokenizer.save(tmp_path)
    saved = Symbols(tmp_path, data=None)
    text = written(source.symbols)
    for one in (tokenizer, saved):
        assert one.vocab_size == 17 and one.encode(text) == list(range(1, 17))
        assert one.decode(one.encode(text, bos=True, eos=True)) == text
        assert one.fingerprint == tokenizer.fingerprint
        assert b"".join(one.token_bytes(token) for token in one.encode("k1 v2 ")) == b"k1 v2 "
    with pytest.raises(UserError, match="'k99' isn't one"):
        tokenizer.encode("k1 k99 ")
    with pytest.raises(UserError, match="needs a space after each symbol, and 'v2' has none"):
        tokenizer.encode("k1 v2")
    (tmp_path / "symbols.json").write_text('{"symbols": ["a", "a"]}')
    with pytest.raises(UserError, match="damaged"):
        Symbols(tmp_path, data=None)


def test_other_tokenizers_are_refused(tmp_path):
    source = MQAR(vocabulary=16, n_pairs=2, length=16, seq_len=16, cache=str(tmp_path))
    with pytest.raises(UserError, match="add tokenizer=symbols"):
        check_data(source, Bytes())
    with pytest.raises(UserError, match="is for probes"):
        minllm.train(minllm.compose(["data=tales", "tokenizer=symbols"]))
    with pytest.raises(UserError, match="data.packing=concat would cut examples"):
        minllm.train(minllm.compose(["data=probe/mqar_small", "data.packing=concat"]))


def test_the_data_chooses_its_tokenizer_unless_another_is_typed():
    assert minllm.compose(["data=probe/mqar"]).tokenizer._target_.endswith("Symbols")
    assert minllm.compose(["data=probe/mqar_small", "model/attn=mha"]).tokenizer._target_.endswith("Symbols")
    assert minllm.compose(["data=probe/mqar", "tokenizer=bytes"]).tokenizer._target_.endswith("Bytes")
    assert "tales" in minllm.compose([]).tokenizer.folder


def test_an_objective_that_noises_the_text_cannot_learn_hidden_answers(tmp_path):
    source = MQAR(
        vocabulary=16, n_pairs=2, length=16, seq_len=16, cache=str(tmp_path), train_examples=4, val_examples=4
    )
    batch = open_data(source, Symbols(data=lambda: source)).train(2, seed=0).batch(0)
    with pytest.raises(UserError, match="objective=causal"):
        _ = batch.text_BT


@pytest.mark.parametrize("objective", ["masked", "prefix", "fim", "seq2seq"])
def test_it_is_refused_before_anything_is_written(objective, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = minllm.compose(["data=probe/parity_small", f"objective={objective}", "train.steps=1"])
    with pytest.raises(UserError, match="choose objective=causal|: objective=causal"):
        minllm.train(cfg, Path("run"))
    assert not any(tmp_path.iterdir())


def test_one_of_ones_own_from_outside(tmp_path, monkeypatch):
    """One Python file and one YAML file."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    text = (
        "from dataclasses import dataclass\n"
        "from minllm.data.probe import Probe\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class First(Probe):\n"
        '    """Which bit came first?"""\n\n'
        "    symbols = ('0', '1', '?')\n"
        "    longest = 10\n\n"
        "    def example(self, draw, split):\n"
        "        given = [*draw.several('01', 8), '?']\n"
        "        return [given, self.answer(given)]\n\n"
        "    def answer(self, before):\n"
        "        return [before[0]]\n"
    )
    (tmp_path / "mine" / "last.py").write_text(text)
    folder = tmp_path / "conf" / "data" / "probe"
    folder.mkdir(parents=True)
    (folder / "first.yaml").write_text(
        "# Which bit came first?\ndefaults:\n  - _self_\n  - override /tokenizer@_global_.tokenizer: symbols\n"
        "_target_: mine.last.First\ntrain_examples: 50\nval_examples: 20\nseq_len: 16\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = minllm.compose(
        [f"hydra.searchpath=[file://{tmp_path}/conf]", "extensions=[mine]", "data=probe/first"]
        + ["model.dim=16", "model.n_layers=1", "train.steps=2", "train.check=false", "train.sample_every=0"]
    )
    assert math.isfinite(minllm.train(cfg)["val_loss"])
    source = build(cfg.data)
    assert 0.5 <= source.chance < 0.9 and source.ceiling == 1
    before = source.fingerprint
    (tmp_path / "mine" / "last.py").write_text(text.replace("before[0]", "before[1]"))
    assert build(cfg.data).fingerprint != before, "an edit makes other documents"


# ---- docs/probes.md -----------------------------------------------------------------------------


@every_probe
def test_the_worked_example_of_the_docs_is_what_the_code_makes(name):
    block = worked_example(name)
    assert block in PAGE, f"Put this into docs/probes.md:\n{block}"


def test_the_docs_have_a_row_for_every_probe():
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert rows == {name.removesuffix("_small") for name in NAMES}
    assert {f"{row}_small" for row in rows} == set(SMALL)


def worked_example(name: str) -> str:
    """Return the first validation example, with its answers in brackets, and the chance level and ceiling."""
    source = made(name)
    example = next(source.examples("val"))
    parts = [
        " ".join(part) if number % 2 == 0 else f"[{' '.join(part)}]" for number, part in enumerate(example)
    ]
    lines = textwrap.wrap(" ".join(filter(None, parts)), 110, break_on_hyphens=False)
    head = f"data=probe/{name}    chance {source.chance:.1%}, ceiling {source.ceiling:.1%}"
    return "\n".join(["```text", head, "", *lines, "```"])
