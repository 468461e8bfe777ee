"""The built-in corpus: its English, its agreements, and the exactness of its entropy."""

from __future__ import annotations

import hashlib
import math
import re
from random import Random

import pytest

from minllm.data.tales import VALIDATION_SEED, Tales, derivations, read, story
from minllm.data.tales.cast import CAST, KINDS
from minllm.data.tales.language import Teller, odds, parse
from minllm.data.tales.plots import tell_a_tale
from minllm.data.tales.thing import people, words
from minllm.errors import UserError


@pytest.fixture(scope="module")
def stories():
    return [story(seed) for seed in range(3000)]


def test_the_vocabulary_has_1500_words_or_more(stories):
    assert len({word for tale in stories for word in re.findall(r"[a-z]+", tale.text.lower())}) >= 1500


def test_stories_have_600_to_900_bytes(stories):
    sizes = [len(tale.text.encode()) for tale in stories]
    assert sum(600 <= size <= 900 for size in sizes) >= 0.99 * len(sizes)


def test_the_floor_is_0_30_to_0_45_bits_per_byte(stories):
    bits, size = sum(tale.bits for tale in stories), sum(len(tale.text.encode()) for tale in stories)
    assert 0.30 <= bits / size <= 0.45
    assert Tales(val_stories=500).floor_bits_per_byte() == pytest.approx(bits / size, rel=0.01)


def test_no_story_is_told_twice(stories):
    assert len({tale.text for tale in stories}) == len(stories)
    # A collision of two among n has a probability of n² / 2 · Σ p², and no p here is above 2 ** -150.
    assert min(tale.bits for tale in stories) > 150


def test_a_seed_tells_the_same_story_everywhere(stories):
    """A pinned hash: it changes with the grammar, and must not with Python's version or the machine."""
    text = "\0".join(f"{tale.text}{tale.bits:.6f}" for tale in stories[:64])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f5adb4969196e3b4"


def test_the_english_is_tidy(stories):
    faults = re.compile(
        r"  |[^.!?\"\n]\n|\b[Aa] (?:[aeio]|honest|hour)|\b[Aa]n (?!honest|hour)[^aeiou]"  # spaces and articles
        r"|\b(\w+) \1\b| [,.!?]|[.,!?][.,]|[.,]\w|[<>{}\[\]|_]"  # doubled words, punctuation, our own signs
        r"|(?:^|[.!?] |\n)[a-z]|\.\" [a-z]"  # a sentence without its capital
    )
    for tale in stories:
        fault = faults.search(tale.text)
        assert not fault, tale.text[max(0, fault.start() - 40) : fault.end() + 20]
        assert tale.text.isascii() and tale.text.count('"') % 2 == 0 and tale.text.endswith((".", '."', '!"'))


def test_a_story_has_one_derivation_with_the_same_bits(stories):
    for tale in stories[:60]:
        assert derivations(tale.text) == [tale.bits]
        assert derivations(tale.text[:-1]) == derivations(tale.text + " ") == []


def test_the_reader_tells_whole_stories_prefixes_and_breaks_apart(stories):
    for tale in stories[:8]:
        assert read(tale.text).status == "complete"
        for end in range(0, len(tale.text), 50):
            assert read(tale.text[:end]).status == "prefix"
        broken = read(tale.text + " And then?")
        assert (broken.status, broken.offset) == ("broken", len(tale.text))


def told(seed: int) -> Teller:
    """A teller that has told the story of a seed, with its world."""
    teller = Teller(Random(seed).random)
    tell_a_tale(teller)
    return teller


@pytest.mark.parametrize(
    "role", ["hero", "friend", "rival", "elder", "toy", "colour", "place", "spot", "animal", "weekday"]
)
def test_the_reader_finds_what_the_story_forgot(role):
    """A late mention of another name, owner, place or thing than before is a break, and is named as such."""
    found = 0
    for seed in range(60):
        teller = told(seed)
        text = "".join(teller.pieces)
        name = teller.world[role].forms[""] if role in teller.world else "?"
        mentions = [match.start() for match in re.finditer(rf"\b{re.escape(name)}\b", text)]
        if len(mentions) < 2:
            continue
        wrong = next(
            thing.forms[""] for thing in reversed(_rivals(teller, role)) if thing.forms[""][0] != name[0]
        )
        reading = read(text[: mentions[-1]] + wrong + text[mentions[-1] + len(name) :])
        assert reading.status == "broken" and reading.offset >= mentions[-1] - 2
        found += reading.recalled == role and reading.offset == mentions[-1] and name in reading.expected
    assert found


def _rivals(teller: Teller, role: str):
    owner, _, part = CAST[role].partition(".")
    return teller.world[owner].parts[part] if part else KINDS[owner]


def test_a_wrong_pronoun_is_found():
    for seed in range(60):
        text = told(seed).pieces
        at = next((i for i, piece in enumerate(text) if i > 20 and piece in ("he", "she")), None)
        if at is not None:
            swapped = {"he": "she", "she": "he"}[text[at]]
            reading = read("".join([*text[:at], swapped, *text[at + 1 :]]))
            assert reading.status == "broken" and reading.recalled is not None
            return
    raise AssertionError("no pronoun in sixty stories")


def test_the_splits_are_disjoint_and_as_large_as_asked():
    tales = Tales(train_stories=5, val_stories=3, first_seed=2)
    assert list(tales.seeds("train")) == [2, 3, 4, 5, 6]
    assert list(tales.documents("train")) == [story(seed).text for seed in range(2, 7)]
    assert list(tales.documents("val")) == [story(VALIDATION_SEED + i).text for i in range(3)]
    assert not set(Tales().seeds("train")) & set(Tales().seeds("val"))
    with pytest.raises(UserError, match="data.first_seed of 999999999 or less"):
        Tales(train_stories=1, first_seed=VALIDATION_SEED)


def test_the_fingerprint_follows_the_text_and_nothing_else():
    assert Tales().fingerprint == Tales(seq_len=64, packing="pad", cache="elsewhere").fingerprint
    prints = {
        Tales(**options).fingerprint
        for options in ({}, {"train_stories": 9}, {"val_stories": 9}, {"first_seed": 9})
    }
    assert len(prints) == 4


@pytest.mark.parametrize("n", [1, 2, 7, 90])
def test_odds_are_probabilities_and_their_bits(n):
    cumulative, bits = odds(n)
    shares = [high - low for low, high in zip((0.0, *cumulative), cumulative)]
    assert cumulative[-1] == 1.0 and shares == sorted(shares, reverse=True)
    assert bits == pytest.approx([-math.log2(share) for share in shares])


def test_a_choice_cannot_hold_the_same_phrase_twice():
    with pytest.raises(AssertionError, match="one twice"):
        parse("[ran|walked|ran]")
    with pytest.raises(AssertionError, match="named twice"):
        words("red, blue, red")
    with pytest.raises(AssertionError, match="named twice"):
        people(she="Robin, Ann", he="Robin")
    with pytest.raises(AssertionError, match="nothing is named"):
        parse("{heroine} ran.")


def test_a_role_is_drawn_once_and_no_word_twice():
    draws = iter([0.0] * 9)
    teller = Teller(lambda: next(draws))
    teller("{hero} and {friend} saw {hero.himself} with <a tint> and <a tint>.")
    assert len({teller.world["hero"], teller.world["friend"]}) == 2
    assert len(list(draws)) == 5
