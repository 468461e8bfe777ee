"""`grader=grammar`: exact grades of stories whose grammar is known."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from random import Random

import pytest

from minllm.config.tokenizers import load_tokenizer
from minllm.data.tales import VALIDATION_SEED, Tales, read, story
from minllm.data.tales.cast import CAST
from minllm.data.tales.cast import KINDS as WORDS
from minllm.data.tales.language import Teller
from minllm.data.tales.plots import tell_a_tale
from minllm.data.tales.thing import Kind
from minllm.data.tales_pairs import TalesPairs
from minllm.data.tales_pairs.beginnings import probability_of_beginning
from minllm.data.text import TextFiles
from minllm.errors import UserError
from minllm.grading.grades import Grades, Values
from minllm.grading.grammar import DISTANCES, RECALL, Grammar
from minllm.grading.recall import KIND_OF, KINDS, ROLES, Recall, analyse
from minllm.grading.samples import Sample, Written

NAMES = {measure.name: measure for measure in Grammar.measures}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tales_512")


@pytest.fixture(scope="module")
def grade(tokenizer, tmp_path_factory):
    source = Tales(train_stories=12, val_stories=2, num_proc=1, cache=str(tmp_path_factory.mktemp("stores")))

    def grade_samples(*samples: Sample | str) -> Grades:
        samples = [
            Sample("", sample, number) if isinstance(sample, str) else sample
            for number, sample in enumerate(samples)
        ]
        return Grammar().grade(Written("run", samples, source, tokenizer))

    return grade_samples


@pytest.fixture(scope="module")
def told() -> list[str]:
    return [story(VALIDATION_SEED + number).text for number in range(30)]


def of(grades: Grades, name: str) -> Values:
    return grades.values[NAMES[name]]


def mean(grades: Grades, name: str) -> float:
    values = of(grades, name)
    return sum(values.amounts) / sum(values.counts)


def test_the_grammars_own_stories_are_perfect(grade, told):
    grades = grade(*told)
    assert list(grades.values) == list(Grammar.measures)
    assert mean(grades, "stories") == 1 and mean(grades, "unfinished") == 0 and mean(grades, "distinct") == 1
    assert list(of(grades, "unbroken").amounts) == [len(text) for text in told]
    assert all(mean(grades, f"recall_{kind}") == 1 for kind in KINDS)
    assert set(grades.breaks) == {None}
    bits = [story(VALIDATION_SEED + number).bits for number in range(30)]
    assert list(of(grades, "surprisal").amounts) == pytest.approx(bits)
    assert list(of(grades, "surprisal").counts) == [len(text) for text in told]
    assert grades.facts["surprisal"]["result"] == "as the grammar"
    assert mean(grades, "copied") == 0 and 20 < mean(grades, "longest_copy") < 200


def skewed(seed: int, power: float) -> str:
    """Tell a story that draws likely options more often than the grammar, or with a power below 1, less often."""
    random = Random(seed)
    teller = Teller(lambda: random.random() ** power)
    tell_a_tale(teller)
    return "".join(teller.pieces)


@pytest.mark.parametrize("power, result", [(1.3, "too timid"), (0.75, "too bold")])
def test_unlikely_draws_are_too_bold_and_likely_ones_too_timid(grade, power, result):
    grades = grade(*(skewed(seed, power) for seed in range(20)))
    assert mean(grades, "stories") == 1
    assert grades.facts["surprisal"]["result"] == result and result in grades.notes[0]


def test_stories_cut_anywhere_have_the_expected_surprisal():
    """The difference from what is expected has a mean of 0, also where the cut hides what was drawn."""
    draw = Random(0)
    excess = []
    for seed in range(100):
        text = story(seed).text
        analysis = analyse(text[: draw.randrange(1, len(text))])
        assert analysis.reading.status == "prefix"
        excess.append(analysis.bits - analysis.expected_bits)
    assert abs(statistics.mean(excess)) < 3 * statistics.stdev(excess) / math.sqrt(len(excess)) < 2
    short = story(5).text[:60]
    assert analyse(short).bits == pytest.approx(-math.log2(probability_of_beginning(tell_a_tale, short)))


def test_an_unfinished_story_is_neither_whole_nor_broken(grade, told):
    grades = grade(*(text[:100] for text in told[:4]))
    assert mean(grades, "unfinished") == 1 and mean(grades, "stories") == 0
    assert mean(grades, "unbroken") == 100 and set(grades.breaks) == {None}


def test_only_what_the_model_wrote_is_measured(grade, told):
    text = told[0]
    whole, continued = grade(text), grade(Sample(text[:400], text[400:], 0))
    assert mean(continued, "unbroken") == len(text) - 400
    for kind in RECALL:
        recalls = [recall for recall in analyse(text).recalls if recall.kind == kind]
        assert of(whole, f"recall_{kind}").counts[0] == len(recalls)
        late = [recall for recall in recalls if recall.offset >= 400]
        assert of(continued, f"recall_{kind}").counts[0] == len(late)
    begun = -math.log2(probability_of_beginning(tell_a_tale, text[:400]))
    assert of(continued, "surprisal").amounts[0] == pytest.approx(story(VALIDATION_SEED).bits - begun)


def test_a_beginning_that_begins_no_story_is_not_the_models_fault(grade, told):
    grades = grade(Sample("Once upon a time there was", " a queen.", 0), told[1])
    assert of(grades, "stories").counts == [0, 1] and of(grades, "surprisal").counts[0] == 0
    assert "Once upon a time" in grades.notes[0]
    assert grades.breaks[0].offset <= len("Once upon a time")


def test_copied_and_repeated_stories_are_counted(grade, told):
    grades = grade(story(3).text, told[0], told[1], told[1])
    assert list(of(grades, "copied").amounts) == [1, 0, 0, 0]
    assert list(of(grades, "distinct").amounts) == [1, 1, 0, 0]
    assert grades.facts["copying"]["passage"] == story(3).text and grades.facts["copying"]["sample"] == 0


# ---- memory --------------------------------------------------------------------------------------


class Mentions(Teller):
    """Tells a story, and keeps where it recalls something."""

    def __init__(self, seed: int) -> None:
        super().__init__(Random(seed).random)
        self.spans: set[tuple[int, int]] = set()
        tell_a_tale(self)

    def say(self, piece: str, recalled: str | None = None) -> None:
        at = sum(map(len, self.pieces))
        super().say(piece)
        if recalled:
            self.spans.add((at, at + len(piece)))


def test_a_recall_counts_where_the_grammar_allows_nothing_else():
    """The probability of what was told stays the same there; at other mentions it gets smaller."""
    other = 0
    for seed in range(4):
        mentions = Mentions(seed)
        text = "".join(mentions.pieces)
        recalled = {recall.offset for recall in analyse(text).recalls}
        assert recalled <= {start for start, _ in mentions.spans}
        for start, end in mentions.spans:
            before, after = (
                math.log2(probability_of_beginning(tell_a_tale, text[:at])) for at in (start, end)
            )
            assert (start in recalled) == (after > before - 1e-9), text[start:end]
            other += start not in recalled
    assert other


@functools.cache
def tale(seed: int) -> tuple[str, tuple[Recall, ...]]:
    """Return a story and what it recalls."""
    text = story(seed).text
    return text, analyse(text).recalls


def slipped(text: str, recall: Recall) -> tuple[str, str, str]:
    """Return the text with another surface where it recalls something, what it had there, and what it has now."""
    right = next(
        surface
        for surface in sorted(surfaces(recall), key=len, reverse=True)
        if text.startswith(surface, recall.offset)
    )
    wrong = next(s for s in surfaces(recall) if s[0] != right[0] and s[0].isupper() == right[0].isupper())
    return text[: recall.offset] + wrong + text[recall.offset + len(right) :], right, wrong


def surfaces(recall: Recall) -> list[str]:
    return [thing.forms[""] for kind in kinds_of(recall.role) for thing in kind]


def kinds_of(role: str) -> list[Kind]:
    """Return what may fill a role: a kind, or what belongs to any thing of another role's kind."""
    owner, _, part = CAST[role].partition(".")
    return [thing.parts[part] for kind in kinds_of(owner) for thing in kind] if part else [WORDS[owner]]


ROLE_CASES = [
    "hero",
    "friend",
    "rival",
    "elder",
    "animal",
    "toy",
    "place",
    "weekday",
    "sound",
    "hindrance",
    "treat",
]


@pytest.mark.parametrize("role", ROLE_CASES)
def test_a_wrong_recall_is_found_and_the_text_is_read_on(grade, tokenizer, role):
    for seed in range(150):
        text, right = tale(seed)
        named = [
            r for r in right if r.role == role and any(text.startswith(s, r.offset) for s in surfaces(r))
        ]
        if not named:
            continue
        asked = named[-1]
        wrong, had, has = slipped(text, asked)
        analysis = analyse(wrong)
        reading = read(wrong)
        assert analysis.reading.status == reading.status == "broken"
        assert analysis.reading.offset == reading.offset == asked.offset
        assert analysis.reading.recalled == role == reading.recalled and analysis.reading.expected == (had,)
        (miss,) = [recall for recall in analysis.recalls if not recall.is_right]
        assert (miss.kind, miss.role) == (KIND_OF[role], role)
        assert (miss.offset, miss.previous) == (asked.offset, asked.previous)
        # the same recalls as before the change, apart from those of what was forgotten
        moved = len(has) - len(had)
        later = [(r.kind, r.offset + moved) for r in right if r.offset > asked.offset and r.role != role]
        assert [(r.kind, r.offset) for r in analysis.recalls if r.offset > asked.offset] == later
        grades = grade(wrong)
        assert grades.breaks[0].offset == asked.offset and grades.breaks[0].recalled == role
        values = of(grades, f"recall_{KIND_OF[role]}")
        assert values.counts[0] - values.amounts[0] == 1
        assert_distances(grades, analysis.recalls, wrong, tokenizer)
        return
    raise AssertionError(f"no story recalls its {role}")


def assert_distances(grades: Grades, recalls: Sequence[Recall], text: str, tokenizer) -> None:
    """Compare the table of distances with tokens that are counted one by one."""
    rows = grades.facts["recall_by_distance"]
    expected = {kind: [[0, 0] for _ in DISTANCES] for kind in (*KINDS, "any")}
    tokens = [tokenizer.token_bytes(token).decode() for token in tokenizer.encode(text)]
    assert "".join(tokens) == text

    def token_of(offset: int) -> int:
        at = 0
        for number, token in enumerate(tokens):
            at += len(token)
            if offset < at:
                return number
        raise AssertionError

    for recall in recalls:
        distance = token_of(recall.offset) - token_of(recall.previous - 1)
        for kind in (recall.kind, "any"):
            for cell, (least, most) in zip(expected[kind], DISTANCES):
                if least <= distance <= (most or distance):
                    cell[0] += recall.is_right
                    cell[1] += 1
    assert {kind: [[row["right"], row["of"]] for row in rows[kind]] for kind in rows} == expected


def test_what_was_forgotten_once_is_not_asked_for_again():
    for seed in range(40):
        text, recalls = tale(seed)
        recalls = [r for r in recalls if r.role == "hero" and r.kind == "names"]
        if len(recalls) < 3:
            continue
        name = next(s for s in surfaces(recalls[0]) if text.startswith(s, recalls[0].offset))
        other = "Kurt" if name != "Kurt" else "Farid"
        first = recalls[0].offset
        analysis = analyse(text[:first] + text[first:].replace(name, other))
        assert [r.is_right for r in analysis.recalls if r.role == "hero" and r.offset >= first] == [False]
        assert [r for r in analysis.recalls if r.offset > first]
        return
    raise AssertionError("no story names its hero so often")


def test_damaged_texts_break_where_the_reader_says():
    draw = Random(1)
    for seed in range(60):
        text = story(seed).text
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(text))
            other = story(draw.randrange(1000)).text
            start = draw.randrange(len(other))
            text = text[:at] + other[start : start + draw.randint(0, 9)] + text[at + draw.randint(0, 9) :]
        reading, analysis = read(text), analyse(text)
        assert (analysis.reading.status, analysis.reading.offset) == (reading.status, reading.offset)
        assert {*reading.expected} <= {*analysis.reading.expected}
        assert analysis.reading.recalled in (None, reading.recalled)
    for text in ("", "x", "One", "Samib, a kind child"):
        assert analyse(text).reading.offset == read(text).offset


def test_a_longer_name_is_wrong():
    for seed in range(2000):
        text = story(seed).text
        for recall in analyse(text).recalls if "Sam " in text else ():
            if recall.kind == "names" and text.startswith("Sam ", recall.offset):
                analysis = analyse(text[: recall.offset] + "Samir" + text[recall.offset + 3 :])
                (last,) = [one for one in analysis.recalls if one.offset == recall.offset]
                assert not last.is_right and analysis.reading.recalled == recall.role
                return
    raise AssertionError("no story is about Sam")


def test_a_pronoun_tells_no_name():
    """A name follows from the last mention that tells it, and a pronoun from any."""
    pronouns = 0
    for seed in range(30):
        text, recalls = tale(seed)
        for recall in recalls:
            assert recall.previous <= recall.offset
            before = text[: recall.previous].split()[-1].strip('",.').lower()
            pronouns += recall.kind == "pronouns" and before in ("he", "she", "they")
            assert recall.kind == "pronouns" or before not in ("he", "she", "they", "him", "her", "his")
    assert pronouns


def test_every_role_has_one_kind_of_memory():
    roles = [role for roles in ROLES.values() for role in roles]
    assert sorted(roles) == sorted(CAST)
    tested = {recall.kind for seed in range(60) for recall in tale(seed)[1]}
    assert tested == set(KINDS)


# ---- what can't be graded ------------------------------------------------------------------------


@pytest.mark.parametrize("source", [TalesPairs(), TextFiles(path="notes.txt")], ids=["pairs", "text"])
def test_other_texts_are_refused(source):
    with pytest.raises(UserError, match="data=tales only.*grader=judge"):
        Grammar().check(source)
    Grammar().check(Tales())


def test_grading_leaves_the_corpus_as_it_is():
    """A pinned fingerprint: if it changes, runs can't be compared with older ones, and stores are built anew."""
    assert Tales().fingerprint == "tales-97a30c0bafc754a2"
