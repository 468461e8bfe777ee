"""What is special about single probes; test_probes.py has what holds for every probe."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest

from minllm.data.probe.copying import Copying
from minllm.data.probe.draw import Draw
from minllm.data.probe.lano import Lano
from minllm.data.probe.mad import FuzzyRecall, Memorization, NoisyRecall, SelectiveCopying
from minllm.data.probe.playground import Brevo, Depo, Mano
from minllm.data.probe.recall import MQAR
from minllm.data.probe.state import Parity, Words
from minllm.errors import UserError


def test_mqar_asks_each_key_once_and_fills_with_one_symbol():
    source = MQAR(vocabulary=64, n_pairs=4, length=32, seq_len=32)
    gaps = []
    for example in islice(source.drawn("train", 10_000), 300):
        first, *rest = example[::2]
        keys = first[:8:2]
        asked = [part[-1] for part in example[::2]]
        assert sorted(asked) == sorted(keys) and len(set(first[1:8:2])) == 4
        assert {symbol for part in [first[8:], *rest] for symbol in part[:-1]} <= {"_"}
        place = 0
        for part in [first[8:], *rest]:
            place += len(part)
            gaps.append((place - 1) // 2)
            assert place % 2 == 1
    assert np.mean(np.array(gaps) == 0) > np.mean(np.array(gaps) == 1) > np.mean(np.array(gaps) == 6)


def test_mad_hides_what_was_answered():
    """Neither values of facts nor copied letters are among the inputs after the mark."""
    facts = Memorization(facts=64, values=16, length=16, seq_len=16)
    for example in islice(facts.drawn("train", 100), 20):
        read = [symbol for part in example[::2] for symbol in part]
        assert not any(symbol.startswith("v") for symbol in read)
        assert len({*read} - {"_"}) == 8, "a key occurs once"
    copying = SelectiveCopying(vocabulary=8, n_letters=4, length=32, seq_len=32)
    for example in islice(copying.drawn("train", 100), 20):
        read = [symbol for part in example[::2] for symbol in part]
        assert len(read) == 31 and set(read[read.index("|") + 1 :]) == {"_"}
        assert [symbol for symbol in read if symbol.startswith("x")] == [part[0] for part in example[1::2]]


def test_noise_has_its_share():
    source = NoisyRecall(length=128, seq_len=128, noise_share=0.3)
    symbols = [s for e in islice(source.drawn("train", 1000), 60) for part in e for s in part]
    assert sum(s.startswith("n") for s in symbols) / len(symbols) == pytest.approx(0.3, abs=0.04)


def test_recall_learns_all_symbols_and_validates_answers():
    source = FuzzyRecall(train_examples=5, val_examples=5, seq_len=128)
    assert all(len(parts) == 2 and parts[0] == "" for parts in source.parts("train"))
    assert all(len(parts) > 2 for parts in source.parts("val"))
    answers_only = FuzzyRecall(train_examples=5, val_examples=5, seq_len=128, learn="answers")
    assert all(len(parts) > 2 for parts in answers_only.parts("train"))


def test_words_are_products_and_the_states_are_all_of_the_group():
    for group, order in {"S5": 120, "A5": 60}.items():
        source = Words(group=group, seq_len=64)
        assert len(source.steps) == order
        found = {part[0] for example in islice(source.drawn("train", 400), 100) for part in example[1::2]}
        assert len(found) == order
    swaps = Words(only_swaps=True, seq_len=64)
    assert len(swaps.steps) == 11
    assert swaps.answer(["10234", "02134"]) == ["=20134"], (
        "the first thing goes to place 1, and from there to 2"
    )
    with pytest.raises(UserError, match="needs data.group=S5"):
        Words(group="A5", only_swaps=True, seq_len=64)


def test_validation_may_be_longer_than_training():
    for source in (
        Copying(max_length=5, val_length=9, seq_len=19, val_examples=5),
        Parity(min_length=3, max_length=5, val_length=9, seq_len=10, val_examples=5, train_examples=9),
    ):
        lengths = {split: {len(source.key(e)) for e in source.examples(split)} for split in ("train", "val")}
        assert len(lengths["val"]) == 1 and max(lengths["train"]) < max(lengths["val"])
    with pytest.raises(UserError, match="data.seq_len=18 is too short for examples of up to 19 tokens"):
        Copying(max_length=5, val_length=9, seq_len=18)


def test_depo_goes_k_steps():
    source = Depo(nodes=8, letters=16, max_name=1, hops=4, seq_len=64)
    before = ["e1", "e2", "e3", "e1", "e2", "e3", "hop1", "e1", "=", "e2", "hop2", "e1", "="]
    assert list(source.answer(before)) == ["e3"]
    assert {part[-3] for e in islice(source.drawn("val", 500), 40) for part in e[::2]} == {
        "hop1",
        "hop2",
        "hop4",
    }


def test_brevo_takes_every_order_that_is_right():
    source = Brevo(nodes=6, letters=12, seq_len=64, max_name=1)
    before = [
        "e4",
        "e3",
        "e1",
        "e3",
        "e3",
        "e2",
        "e1",
        "e9",
        "?",
        "e2",
        "=",
    ]  # 2 needs 3, which needs 4 and 1
    assert source.answer(before) == ["e4", "e1", "e3", "e2"]
    assert source.is_right(before, ["e1", "e4", "e3", "e2"])
    for wrong in ("e4 e3 e1 e2", "e4 e1 e3", "e4 e1 e3 e2 e9", "e1 e4 e4 e3 e2", "e4 e1 e3 e2 n1"):
        assert not source.is_right(before, wrong.split())


def test_mano_computes_prefix_expressions():
    source = Mano(operations=3, modulus=7, seq_len=16)
    assert source.answer(["length3", "-", "2", "*", "3", "+", "4", "6", "="]) == [
        "0"
    ]  # 2 - 3 * (4 + 6) = -28
    assert source.answer(["length1", "-", "5", "6", "="]) == ["6"]


def test_lano_knows_the_grammars_probabilities():
    """Frequencies in many sentences are those of the dynamic programme, and its sentences are the valid ones."""
    source, draw = Lano(grammar="small", seq_len=64), Draw("sentences")
    sentences = [[*source.sentence(draw), "."] for _ in range(4000)]
    for beginning in ([], ["a"], ["b", "c"], sentences[0][:4], sentences[1][:9]):
        following = [s[len(beginning)] for s in sentences if s[: len(beginning)] == beginning]
        expected = source.following(beginning)[-1]
        for symbol, share in zip(source.symbols, expected):
            tolerance = 4.5 * math.sqrt(share * (1 - share) / len(following)) + 1e-9
            assert following.count(symbol) / len(following) == pytest.approx(share, abs=tolerance)
    whole = sentences[0]
    steps = source.following(whole[:-1])
    bits = -sum(math.log2(steps[n, source.symbols.index(symbol)]) for n, symbol in enumerate(whole))
    count = sum(sentence == whole for sentence in sentences)
    assert count / len(sentences) == pytest.approx(2**-bits, abs=5 * math.sqrt(2**-bits / len(sentences)))
    assert not source.is_right(whole[:-2], ["."]) or whole[:-2] in [s[:-1] for s in sentences]
    assert not source.is_right(whole, ["a"])
