"""Tokenizers lose nothing, take no text for a control token, and are refused when damaged."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from minllm.config.compose import compose
from minllm.config.tokenizers import load_tokenizer
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.groups import CONF
from minllm.tokenizer import Tokenizer, training
from minllm.tokenizer.bytes import Bytes
from minllm.tokenizer.chars import Chars
from minllm.tokenizer.huggingface import HuggingFace
from minllm.tokenizer.sentencepiece import REPOSITORY, SentencePiece
from minllm.tokenizer.training import pattern_of, train
from tests.vocabularies import AWKWARD, assert_survives, byte_level, made_up_texts

OPTIONS = sorted(path.stem for path in (CONF / "tokenizer").glob("*.yaml") if path.stem != "symbols")
"""All but `symbols`, which takes no texts but those of probes; tests/test_probes.py has it."""
SHIPPED = sorted(path.parent.name for path in (REPOSITORY / "tokenizers").glob("*/metadata.json"))
ALGORITHMS = ["bpe", "unigram"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder for each algorithm, of 400 tokens trained on made-up text, and one with a tokenizer.json."""
    place = tmp_path_factory.mktemp("tokenizers")
    for algorithm in ALGORITHMS:
        write(place / algorithm, train(made_up_texts(), [400], algorithm)[400], pattern_of(algorithm))
    (place / "hf").mkdir()
    byte_level().save(str(place / "hf" / "tokenizer.json"))
    return {name: place / name for name in (*ALGORITHMS, "hf")}


@pytest.fixture(scope="module")
def folder(folders) -> Path:
    return folders["bpe"]


@pytest.fixture(scope="module", params=[*OPTIONS, *ALGORITHMS])
def tokenizer(request, folders) -> Tokenizer:
    """Every option there is, and what is trained."""
    if request.param == "chars":
        return Chars(data=Corpus, documents=40)
    return load_tokenizer(folders.get(request.param, request.param))


class Corpus(Source):
    """What a tokenizer may learn from."""

    def documents(self, split):
        return iter(made_up_texts())


def write(place: Path, model: bytes, pattern: str | None) -> None:
    place.mkdir()
    (place / "tokenizer.model").write_bytes(model)
    metadata = {"pattern": pattern, "sha256": hashlib.sha256(model).hexdigest()}
    (place / "metadata.json").write_text(json.dumps(metadata))


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives(tokenizer, text):
    assert_survives(tokenizer, text)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from(" \n\t\r\u2581'aéts1_.<|>\u0301\x00\u00a0"), max_size=40))
def test_any_mixture_of_spaces_and_marks_survives(tokenizer, text):
    assert_survives(tokenizer, text)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_survives(tokenizer, text):
    assert_survives(tokenizer, text)


def test_a_batch_is_its_texts(tokenizer):
    assert tokenizer.encode_batch(AWKWARD) == [tokenizer.encode(text) for text in AWKWARD]


def test_the_ends_of_a_text_decode_to_nothing(tokenizer):
    begin, end, ids = tokenizer.bos_id, tokenizer.eos_id, tokenizer.encode("so")
    assert tokenizer.encode("so", bos=True) == [begin, *ids]
    assert tokenizer.encode("so", eos=True) == [*ids, end]
    assert tokenizer.encode("", bos=True, eos=True) == [begin, end]
    assert tokenizer.decode([begin, *ids, end]) == "so"
    assert tokenizer.token_bytes(begin) == tokenizer.token_bytes(end) == b""


def test_rows_are_filled_up_and_cut(tokenizer):
    long, short = tokenizer.encode("the cat's hat", bos=True), tokenizer.encode("so", bos=True)
    rows = tokenizer.encode_rows(["the cat's hat", "so"], bos=True)
    assert rows.dtype == np.int64 and rows.shape == (2, len(long))
    assert rows[0].tolist() == long
    assert rows[1].tolist() == short + [tokenizer.pad_id] * (len(long) - len(short))
    assert tokenizer.encode_rows(["the cat's hat"], 3, bos=True).tolist() == [long[:3]]
    assert tokenizer.encode_rows([], 3).shape == (0, 3)


def test_every_token_decodes_by_itself(tokenizer):
    for token in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.decode([token]), str)


def test_another_process_can_have_it(tokenizer):
    tokenizer.encode("so that words are remembered")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_batch(AWKWARD) == tokenizer.encode_batch(AWKWARD)
    assert again.fingerprint == tokenizer.fingerprint


def test_a_run_keeps_its_tokenizer(tokenizer, tmp_path):
    """Whatever became of what its options name."""
    gone = {SentencePiece: {"folder": "gone"}, HuggingFace: {"name": "gone"}, Chars: {"data": None}}
    tokenizer.save(tmp_path)
    again = type(tokenizer)(tmp_path, **gone.get(type(tokenizer), {}))
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.vocab_size, again.bos_id) == (tokenizer.vocab_size, tokenizer.bos_id)
    assert again.encode("The cat's hat.\n日") == tokenizer.encode("The cat's hat.\n日")


# ---- by name -------------------------------------------------------------------------------------


def test_names_of_tokenizers(folders, monkeypatch, tmp_path):
    assert isinstance(load_tokenizer("bytes"), Bytes)
    assert load_tokenizer("tales_512").vocab_size == 512
    assert load_tokenizer(folders["unigram"]).vocab_size == 400
    assert isinstance(load_tokenizer(str(folders["hf"])), HuggingFace)
    load_tokenizer("tales_512").save(tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "config.yaml").write_text(
        "model: {}\nnorm: {}\nchoices: {}\n"
        "tokenizer: {_target_: minllm.tokenizer.sentencepiece.SentencePiece, folder: gone}\n"
    )
    assert load_tokenizer(tmp_path / "run").fingerprint == load_tokenizer("tales_512").fingerprint
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nonsense"):
        load_tokenizer("nonsense")
    with pytest.raises(UserError, match="no run with a checkpoint"):
        load_tokenizer("latest")
    with pytest.raises(UserError, match="tokenizer.name has no value yet"):
        load_tokenizer("hf")


# ---- characters ----------------------------------------------------------------------------------


def test_characters_of_the_corpus_have_tokens_and_others_are_bytes():
    tokenizer = Chars(data=Corpus, documents=40)
    assert tokenizer.characters == "".join(sorted(set("".join(made_up_texts()[:40]))))
    assert len(tokenizer.encode("it's the cat")) == 12
    assert tokenizer.encode("é") == [1 + byte for byte in "é".encode()]
    again, fewer = Chars(data=Corpus, documents=40), Chars(data=Corpus, documents=1)
    assert again.fingerprint == tokenizer.fingerprint != fewer.fingerprint


def test_characters_are_those_of_the_data_that_is_chosen(tmp_path):
    (tmp_path / "abc.txt").write_text("abc cab\n" * 60)
    cfg = compose(["tokenizer=chars", "data=text", f"data.path={tmp_path / 'abc.txt'}"])
    validate(cfg)
    assert build(cfg.tokenizer).characters == "\n abc"


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"characters": "ba"}', '{"characters": 3}'])
def test_damaged_characters_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "characters.json").write_text(content)
    with pytest.raises(UserError, match="characters.json"):
        Chars(tmp_path, data=None)


# ---- training ------------------------------------------------------------------------------------


def test_no_token_reaches_across_chunks(folder):
    tokenizer = SentencePiece(folder=str(folder))
    assert tokenizer.processor.piece_to_id("'s") != tokenizer.processor.unk_id(), "the text should teach 's"
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("a 'sat 1234")]
    assert "".join(pieces) == "a 'sat 1234"
    assert "'s" not in pieces
    assert not any("23" in piece for piece in pieces)


@pytest.mark.parametrize("text", AWKWARD)
def test_every_character_is_in_one_chunk(text):
    assert "".join(re.findall(pattern_of("bpe"), text)) == text


def test_digits_come_in_twos():
    assert re.findall(pattern_of("bpe"), "in 12345, 7") == ["in", " ", "12", "34", "5", ",", " ", "7"]


def test_sizes_are_nested_and_are_what_training_for_each_would_give():
    texts = made_up_texts()
    nested = {size: pieces(model) for size, model in train(texts, [320, 380]).items()}
    assert nested[380][:320] == nested[320]
    assert nested[320] == pieces(train(texts, [320])[320])


def test_unigram_models_are_trained_one_by_one():
    texts = made_up_texts()
    several = train(iter(texts), [380, 320], "unigram")
    assert several == {size: train(texts, [size], "unigram")[size] for size in (320, 380)}
    assert [len(pieces(model)) for model in several.values()] == [320, 380]


def test_more_threads_find_the_same_merges(monkeypatch):
    """Of a unigram model they needn't, so there is one."""
    one = train(made_up_texts(), [400])[400]
    monkeypatch.setattr(training, "THREADS", 4)
    assert pieces(train(made_up_texts(), [400])[400]) == pieces(one)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mark", ["", "\u2585", "\x00"], ids=["long", "reserved", "null"])
def test_no_text_is_skipped(algorithm, mark):
    """sentencepiece would skip what is longer than 4,192 bytes, or has its own mark in it."""
    text = "zyzzyva " * 600 + mark
    assert len(text) > 4_192
    found = pieces(train([*made_up_texts(), text], [400], algorithm)[400])
    assert any("zy" in piece for piece in found)  # letters that no other text has


def pieces(model: bytes) -> list[str]:
    processor = SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(token) for token in range(processor.vocab_size())]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sizes_that_cannot_be_are_refused_with_those_that_can(algorithm):
    texts = made_up_texts()
    for size, says in (
        (9_000, r"9,000 tokens .* allows at most (\d+)\."),
        (100, r"need at least (\d+)\."),
    ):
        with pytest.raises(UserError, match=says) as refusal:
            train(texts, [size], algorithm)
        allowed = int(re.search(says, str(refusal.value))[1])
        assert len(pieces(train(texts, [allowed], algorithm)[allowed])) == allowed
        with pytest.raises(UserError):
            train(texts, [allowed + (1 if size > allowed else -1)], algorithm)
    with pytest.raises(UserError, match="need"):
        train(texts, [260, 400], algorithm)
    with pytest.raises(UserError, match="no text"):
        train([], [400], algorithm)


def test_a_missing_tokenizer_names_those_there_are():
    with pytest.raises(UserError, match="There is no tokenizer in 'nowhere'.*bytes or chars .*tales_512"):
        SentencePiece(folder="nowhere")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.model", b"other", "sha256"),
        ("metadata.json", b"{", "isn't valid JSON"),
        ("metadata.json", b"{}", "has no sha256"),
        ("metadata.json", b'{"pattern": "(", "sha256": ""}', "must be null or a regular expression"),
        ("metadata.json", b'{"pattern": 3, "sha256": ""}', "must be null or a regular expression"),
        ("metadata.json", None, "metadata.json is missing"),
    ],
)
def test_a_damaged_tokenizer_is_refused(folder, tmp_path, name, content, says):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / name).unlink() if content is None else (damaged / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        SentencePiece(folder=str(damaged))


# ---- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tokenizers_are_small_and_described(name):
    place = REPOSITORY / "tokenizers" / name
    metadata = json.loads((place / "metadata.json").read_text())
    assert metadata["name"] == name and metadata["pattern"] == pattern_of("bpe")
    assert load_tokenizer(name.replace("-bpe-", "_")).vocab_size == metadata["vocab_size"]
    assert metadata["corpus"]["name"] == name.partition("-")[0] and metadata["corpus"]["terms"] != "not said"
    assert metadata["held_out_bytes_per_token"] > 1.9
    assert (place / "tokenizer.model").stat().st_size < 150_000
