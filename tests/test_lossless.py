"""Whatever a tokenizer was trained on, every text comes back from it, and its bytes are counted once."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minllm.config.tokenizers import load_tokenizer
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.tokenizer import Tokenizer
from minllm.tokenizer.bytes import Bytes
from minllm.tokenizer.chars import Chars
from minllm.tokenizer.huggingface import HuggingFace
from minllm.tokenizer.sentencepiece import SentencePiece
from minllm.tokenizer.training import pattern_of, train
from tests.vocabularies import AWKWARD, assert_survives, byte_fallback, byte_level

TRAINED = ["bpe", "unigram"]
CORPORA = {
    "no space": ["ACGTTGCA\nGATTACA\n" * 40, "TTTT\n" * 20],
    "one letter": ["aaaa" * 40],
    "one space in many letters": ["ab" * 6_000 + " "],
    "spaces only": ["   " * 40],
    "the mark of a space": ["a\u2581b\u2581\u2581c" * 40],
    "what sentencepiece reserves": ["a\u2585b\u2585\u2585" * 40],
    "names of tokens": ["<unk><0x20><0x41><|endoftext|></s>" * 40],
    "NUL and tabs": ["a\x00b\t\tc\x01" * 40],
    "ends of lines": ["a\r\nb\r\r\n\n\u2028\x85" * 40],
    "marks on letters": ["e\u0301o\u0302\u0301" * 40],
    "emoji": ["👩‍👩‍👧🐉🏽" * 40],
    "ideographs": ["从前有座山山里有座庙" * 40],
    "other spaces": ["a\u00a0b\u2003c\u3000\ufeff" * 40],
}
TEXTS = [*AWKWARD, "AC GT", " a ", "\r", "\u2584", "q\u0301", "\U0010ffff", "\ufffe", " \u2585 \u2581 \x00 "]
SOME = st.text(st.sampled_from(" \n\t\r\u2581\u2585'aAé1_<|>0x2\u0301\x00\u00a0从🐉"), max_size=30)


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("algorithm", TRAINED)
def test_what_the_corpus_lacks_comes_back(algorithm, corpus):
    if tokenizer := trained_on(tuple(CORPORA[corpus]), algorithm):
        for text in [*TEXTS, *CORPORA[corpus]]:
            assert_survives(tokenizer, text)


@settings(max_examples=40, deadline=None)
@given(corpus=st.lists(SOME.filter(bool), min_size=1, max_size=4), texts=st.lists(SOME, max_size=4))
@pytest.mark.parametrize("algorithm", TRAINED)
def test_any_text_comes_back_whatever_the_corpus_was(algorithm, corpus, texts):
    tokenizer = trained_on(tuple(one * 20 for one in corpus), algorithm)
    assume(tokenizer)
    for text in [*texts, *corpus, " ", "AC GT"]:
        assert_survives(tokenizer, text)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("corpus", ["no space", "one letter", "names of tokens", "NUL and tabs"])
def test_a_tokenizer_of_hugging_faces_gives_back_what_its_corpus_lacks(tmp_path, make, corpus):
    make(CORPORA[corpus]).save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFace(name=str(tmp_path))
    for text in [*TEXTS, *CORPORA[corpus]]:
        assert_survives(tokenizer, text)
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("corpus", CORPORA)
def test_characters_that_the_corpus_lacks_come_back(corpus):
    class Corpus(Source):
        def documents(self, split):
            return iter(CORPORA[corpus])

    for text in [*TEXTS, *CORPORA[corpus]]:
        assert_survives(Chars(data=Corpus, documents=9), text)


def test_a_space_that_has_no_token_is_one_byte():
    tokenizer = trained_on(tuple(CORPORA["no space"]), "bpe")
    ids = tokenizer.encode("AC GT")
    assert [tokenizer.token_bytes(token) for token in ids].count(b" ") == 1


@pytest.mark.parametrize("name", ["bytes", "tales_512"])
@pytest.mark.parametrize("text", ["\ud800", "so\udc80"])
def test_half_a_character_is_refused(name, text):
    with pytest.raises(UserError, match="an unpaired surrogate"):
        load_tokenizer(name).encode(text)
    with pytest.raises(UserError, match="an unpaired surrogate"):
        load_tokenizer(name).encode_batch(["whole", text])


def test_half_a_character_is_refused_by_other_tokenizers(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (HuggingFace(name=str(tmp_path)), trained_on(("aa ab",) * 9, "unigram"), Bytes()):
        with pytest.raises(UserError, match="an unpaired surrogate"):
            tokenizer.encode("a\udfff")


@pytest.mark.parametrize(
    ("options", "pattern", "says"),
    [
        ({}, None, "is lossy"),
        ({"byte_fallback": True}, None, "is lossy"),
        ({"byte_fallback": True, "remove_extra_whitespaces": False}, None, "is lossy"),
        ({"byte_fallback": True, "eos_id": -1}, None, "no end-of-text token"),
        (None, r"\w+", "is lossy"),
        (None, r"(a|[^a])", "without groups"),
        (b"", None, "isn't a sentencepiece model"),
        (b"words", None, "isn't a sentencepiece model"),
    ],
)
def test_a_model_that_loses_something_is_refused(tmp_path, options, pattern, says):
    if options is None:
        model = (Path(__file__).parents[1] / "tokenizers/tales-bpe-512/tokenizer.model").read_bytes()
    else:
        model = options if isinstance(options, bytes) else by_others(**options)
    metadata = {"pattern": pattern, "sha256": hashlib.sha256(model).hexdigest()}
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=says):
        SentencePiece(folder=str(tmp_path))


@functools.cache
def trained_on(texts: tuple[str, ...], algorithm: str) -> Tokenizer | None:
    """Return a tokenizer of as many tokens as the texts allow, 300 at most; None where they allow none."""
    size = 300
    while True:
        try:
            model = train(texts, [size], algorithm)[size]
        except UserError as refusal:
            if re.search("too uniform|no text to learn", str(refusal)):
                return None
            found = re.search(r"at (?:least|most) ([\d,]*\d)", str(refusal))
            assert found, refusal
            size = int(found[1].replace(",", ""))
        else:
            return SentencePiece.of({"pattern": pattern_of(algorithm)}, model)


def by_others(**options: object) -> bytes:
    """Return a model as sentencepiece makes it unless told otherwise."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["so it is and so it was"] * 50),
        model_writer=written,
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return written.getvalue()
