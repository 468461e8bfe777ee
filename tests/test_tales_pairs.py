"""Pairs from tales: what is given, and the exactness of the conditional entropy."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from itertools import accumulate
from math import fsum, log2, sqrt
from random import Random

import pytest

from minllm.data.source import Pair
from minllm.data.tales import VALIDATION_SEED, Tales, story
from minllm.data.tales.cast import KINDS
from minllm.data.tales.language import Teller, odds
from minllm.data.tales.plots import tell_a_tale
from minllm.data.tales.thing import words
from minllm.data.tales_pairs import TalesPairs
from minllm.data.tales_pairs.beginnings import (
    CUTS,
    SENTENCE_END,
    bits_of_rest,
    cut,
    probability_of_beginning,
)
from minllm.data.tales_pairs.facts import facts_of, lines, probability_of_facts, told


@pytest.fixture
def few_words(monkeypatch):
    """Kinds that are small enough to enumerate all stories."""
    small = {
        "child": "Ann, Bo, Cy, Di, Ed",
        "where": "park, mill, lake",
        "tint": "red, blue",
        "elder": "Mum, Dad",
    }
    for kind, names in small.items():
        monkeypatch.setitem(KINDS, kind, words(names))


class Fork(Exception):
    pass


class Every(Teller):
    """Takes the turns that it is given."""

    def __init__(self, turns):
        super().__init__(random=None)
        self.turns = iter(turns)

    def choose(self, options, surface):
        rank = next(self.turns, None)
        if rank is None:
            raise Fork(len(options))
        self.bits += odds(len(options))[1][rank]
        return options[rank]


def every_story(plot):
    """Yield a teller for each way to tell a story, by brute force."""
    paths = [()]
    while paths:
        teller = Every(path := paths.pop())
        try:
            plot(teller)
        except Fork as fork:
            paths += [(*path, rank) for rank in range(fork.args[0])]
        else:
            yield teller


def test_the_enumeration_is_complete(few_words):
    assert fsum(2**-teller.bits for teller in every_story(met)) == pytest.approx(1)


def met(tell):
    tell("[{hero}|Old {hero}] saw {friend}. [It was <tint>.|<Tint> and <tint>.|It rained!] [They went.|So]")
    tell.one_of(lambda tell: tell("They sat. {friend} slept."), lambda tell: tell("They ran. <Child> won."))


def ambiguous(tell):
    """Stories that several derivations tell alike, up to their end or for a sentence or two."""
    tell("[<child> sat. <child> ran|{hero} sat. {hero} ran|<child> sat. <Tint> sky]. [They|They both] slept.")
    tell("[It rained. Then {hero} sang|It rained. Then <child> sang|It rained. Then]. The end.")


@pytest.mark.parametrize("plot", [met, ambiguous])
def test_the_surprisal_of_the_rest_is_that_of_the_enumeration(few_words, plot):
    stories = defaultdict(float)
    for teller in every_story(plot):
        stories["".join(teller.pieces)] += 2**-teller.bits
    for n in range(2):
        pairs = {text: cut_at(text, n) for text in stories}
        begun = defaultdict(float)
        for text, share in stories.items():
            begun[pairs[text][0]] += share
        checked = list(stories)[:: max(1, len(stories) // 60)]
        for text in checked:
            expected = log2(begun[pairs[text][0]]) - log2(stories[text])
            assert bits_of_rest(plot, pairs[text]) == pytest.approx(expected, abs=1e-9)
        assert len({begun[pairs[text][0]] for text in stories}) > 1


def cut_at(text: str, n: int):
    at = [match.end() for match in SENTENCE_END.finditer(text)][n]
    return Pair(text[:at], text[at:])


def branching(tell):
    """Roles in either order, roles that only some stories have, and draws of the same kinds in between."""
    tell("[{hero} met {friend}|{friend} met {hero}|<child> met {hero}] [near the <where>, |]at {a place}.")
    tell.one_of(with_rival, lambda tell: tell("<Child> came from the <where> in <tint>."))


def with_rival(tell):
    tell("[<Child>|<Child> and {friend}|{friend}] beat {rival}. [{elder} said|<Elder>, {elder}] so.")


def test_the_probability_of_facts_is_that_of_the_enumeration(few_words):
    roles = ("hero", "friend", "rival", "place", "elder")
    expected = defaultdict(float)
    for teller in every_story(branching):
        facts = {role: teller.world[role].forms[""] for role in roles if role in teller.world}
        expected[tuple(facts.items())] += 2**-teller.bits
    assert fsum(expected.values()) == pytest.approx(1), "no kind may run out"
    assert len(expected) > 100 and {len(facts) for facts in expected} == {2, 3, 4, 5}
    # with every name and every set of roles
    for facts, share in itertools.islice(expected.items(), 0, None, 3):
        assert probability_of_facts(branching, dict(facts), roles) == pytest.approx(share, rel=1e-9)
    assert probability_of_facts(branching, {"hero": "Ann", "friend": "Ann", "place": "park"}, roles) == 0
    assert probability_of_facts(branching, {"hero": "Zoe", "place": "park"}, roles) == 0


@pytest.mark.parametrize("roles", [("friend",), ("place", "animal"), ("rival", "elder")])
def test_facts_are_as_frequent_as_their_probability(roles):
    count, found = 3000, defaultdict(int)
    for world in worlds(count):
        found[tuple((role, world[role].forms[""]) for role in roles if role in world)] += 1
    common = sorted(found, key=found.get)[-12:]
    for facts in common:
        share = probability_of_facts(tell_a_tale, dict(facts), roles)
        assert found[facts] / count == pytest.approx(share, abs=4.5 * sqrt(share / count))


@functools.cache
def worlds(count):
    return [told(tell_a_tale, seed).world for seed in range(count)]


def test_beginnings_are_as_frequent_as_their_probability():
    texts = [story(seed).text for seed in range(3000)]
    for beginning in ("Near", "All", "Every", "One sunny", "Behind the ", "L"):
        share = probability_of_beginning(tell_a_tale, beginning)
        found = sum(text.startswith(beginning) for text in texts) / len(texts)
        assert 0 < share < 0.3 and found == pytest.approx(share, abs=4.5 * sqrt(share / len(texts)))
    assert probability_of_beginning(tell_a_tale, "") == 1
    assert probability_of_beginning(tell_a_tale, "Never") == 0


class Watched(Teller):
    """Keeps the bits after each piece."""

    def say(self, piece, recalled=None):
        super().say(piece, recalled)
        self.after = [*getattr(self, "after", []), self.bits]


def test_the_bits_of_the_rest_are_the_bits_drawn_after_the_cut():
    """Nothing has been drawn by then that doesn't show."""
    for seed in range(40):
        teller = Watched(Random(seed).random)
        tell_a_tale(teller)
        pair = cut("".join(teller.pieces), seed)
        ends = accumulate(map(len, teller.pieces))
        drawn = next(bits for end, bits in zip(ends, teller.after) if end >= len(pair.given))
        assert bits_of_rest(tell_a_tale, pair) == pytest.approx(teller.bits - drawn, abs=1e-6)


def test_every_story_has_more_sentences_than_cuts():
    for seed in range(1500):
        assert len(SENTENCE_END.findall(story(seed).text)) > CUTS
    begun = [cut(story(7).text, seed) for seed in range(100)]
    assert len(set(begun)) == CUTS
    for pair in begun:
        assert "".join(pair) == story(7).text
        assert pair.given.endswith((".", "!", "?", '."')) and pair.target[0] in " \n"


def test_pairs_are_stories_with_what_is_given():
    beginnings, facts = (
        TalesPairs(train_stories=3, val_stories=2, given=given) for given in ("beginning", "facts")
    )
    assert ["".join(pair) for pair in beginnings.pairs("val")] == list(Tales(val_stories=2).documents("val"))
    assert list(beginnings.documents("train")) == [story(seed).text for seed in range(3)]
    pair = next(facts.pairs("val"))
    world = told(tell_a_tale, VALIDATION_SEED).world
    assert pair.target == story(VALIDATION_SEED).text
    assert pair.given == lines(facts_of(told(tell_a_tale, VALIDATION_SEED)))
    assert pair.given.endswith("\n\n") and f"hero: {world['hero'].forms['']}\n" in pair.given
    assert all(line.split(": ")[1] in pair.target for line in pair.given.split("\n") if line)


@pytest.mark.parametrize("given", ["beginning", "facts"])
def test_the_floor_is_below_that_of_whole_stories(given):
    source = TalesPairs(val_stories=40, given=given)
    stories = [story(seed) for seed in source.seeds("val")]
    pairs = list(source.pairs("val"))
    size = sum(len(pair.target.encode()) for pair in pairs)
    bits = [source.bits(seed) for seed in source.seeds("val")]
    assert source.floor_bits_per_byte() == pytest.approx(sum(bits) / size)
    assert all(0 < left < tale.bits for left, tale in zip(bits, stories, strict=True))


def test_the_fingerprint_follows_what_is_given_and_leaves_that_of_tales_alone():
    prints = {TalesPairs(given=given).fingerprint for given in ("beginning", "facts")} | {Tales().fingerprint}
    assert len(prints) == 3 and len({TalesPairs(val_stories=n).fingerprint for n in (1, 2)}) == 2
