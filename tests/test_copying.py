"""What samples copy from the training set: compared with a search that is obviously right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest

from minllm.config.tokenizers import load_tokenizer
from minllm.data.source import Source
from minllm.grading import copying
from minllm.grading.copying import COPIED, COPYING_MEASURES, DISTINCT, LONGEST_COPY, copies
from minllm.grading.samples import Sample
from minllm.tokenizer.bytes import Bytes

LETTERS = "aabbbcé日😀\n"


@dataclass(frozen=True, kw_only=True)
class Given(Source):
    """The documents that a test gives."""

    texts: tuple[str, ...]
    streaming: bool = False
    num_proc: int = 1

    @property
    def fingerprint(self) -> str:
        return repr(self.texts)

    def documents(self, split) -> Iterator[str]:
        return iter(self.texts)


def written(*texts: str) -> list[Sample]:
    return [Sample("", text, number) for number, text in enumerate(texts)]


def longest_by_hand(text: str, documents: tuple[str, ...]) -> int:
    spans = ((start, end) for start in range(len(text)) for end in range(start + 1, len(text) + 1))
    return max(
        (end - start for start, end in spans if any(text[start:end] in document for document in documents)),
        default=0,
    )


@pytest.mark.parametrize(
    "tokenizer, chunk", [("bytes", 60), ("bytes", 1), ("tales_512", copying.CHUNK), ("tales_512", 90)]
)
def test_the_longest_passage_is_that_of_an_exhaustive_search(tmp_path, monkeypatch, chunk, tokenizer):
    monkeypatch.setattr(copying, "CHUNK", chunk)
    draw = Random(3)

    def text(low: int, high: int) -> str:
        return "".join(draw.choices(LETTERS, k=draw.randint(low, high)))

    documents = tuple(text(1, 60) for _ in range(25))
    texts = [text(0, 30) for _ in range(25)]
    texts += [documents[n][-9:] + documents[n + 1][:9] for n in range(5)]  # no passage crosses a border
    texts += [documents[6], documents[7][3:20], "x", "xé"]
    source = Given(texts=documents, cache=str(tmp_path))
    found = copies(written(*texts), source, load_tokenizer(tokenizer))
    by_hand = [longest_by_hand(text, documents) for text in texts]
    assert list(found.values[LONGEST_COPY].amounts) == by_hand
    whole = [text != "" and length == len(text) for text, length in zip(texts, by_hand)]
    assert list(found.values[COPIED].amounts) == whole and sum(whole) >= 2
    facts = found.facts["copying"]
    assert facts["longest"] == len(facts["passage"]) == max(by_hand)
    assert facts["passage"] in texts[facts["sample"]]
    assert any(facts["passage"] in document for document in documents)


def test_an_empty_text_copies_nothing_and_has_no_value(tmp_path):
    source = Given(texts=("abc",), cache=str(tmp_path))
    found = copies(written("", "abc"), source, Bytes())
    assert [found.values[measure].value(0) for measure in COPYING_MEASURES] == [1.0, None, None]
    assert [found.values[measure].value(1) for measure in COPYING_MEASURES] == [1.0, 1.0, 3.0]
    assert copies([], source, Bytes()).facts == {}


def test_a_text_is_distinct_if_no_other_sample_has_it(tmp_path):
    samples = [Sample("a", "bc", 0), Sample("ab", "c", 1), Sample("a", "b", 0), Sample("", "abcd", 2)]
    found = copies(samples, Given(texts=("xyz",), cache=str(tmp_path)), Bytes())
    assert list(found.values[DISTINCT].amounts) == [0, 0, 1, 1]


def test_a_beginning_was_not_written_by_the_model(tmp_path):
    """It counts for a copy of the whole, but not for the longest passage."""
    samples = [Sample("one two ", "three", 0), Sample("one ", "three", 1)]
    found = copies(samples, Given(texts=("one two three four",), cache=str(tmp_path)), Bytes())
    assert list(found.values[LONGEST_COPY].amounts) == [5, 5]
    assert list(found.values[COPIED].amounts) == [1, 0]


def test_a_training_set_that_is_too_large_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "LARGEST", 199_999)
    source = Given(texts=("ab" * 100_000,), cache=str(tmp_path))
    found = copies(written("ab", "ab"), source, Bytes())
    (note,) = found.notes
    assert "weren't searched" in note and "0 MB" in note
    assert found.facts == {} and found.values[COPIED].value(0) is None is found.values[LONGEST_COPY].value(1)
    assert found.values[DISTINCT].value(0) == 0


def test_a_streamed_training_set_is_searched_only_if_its_tokens_are_kept(tmp_path):
    streamed = Given(texts=("ab",), cache=str(tmp_path), streaming=True)
    (note,) = copies(written("ab"), streamed, Bytes()).notes
    assert "over the network" in note and not any(tmp_path.iterdir())
    copies(written("ab"), Given(texts=("ab",), cache=str(tmp_path)), Bytes())
    assert copies(written("ab"), streamed, Bytes()).values[COPIED].value(0) == 1
