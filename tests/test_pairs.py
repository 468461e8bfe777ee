"""Documents with a given part: stored, packed, trained on and evaluated, with only their targets counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import minllm
from minllm.data import encoding
from minllm.data.batches import IGNORED, Batch, open_data
from minllm.data.encoding import encode
from minllm.data.source import Pair, PairSource, Split
from minllm.data.store import open_store
from minllm.errors import UserError
from minllm.runs.documents import DOCUMENTS, DocumentLosses
from minllm.schema.building import build
from minllm.study.reading import Guess, Reading, read_text
from minllm.study.report.texts import texts_html
from minllm.tokenizer import Tokenizer
from minllm.tokenizer.bytes import Bytes
from minllm.training import checkpoints
from tests.letters import Letters

FIRST = 0x100
COUNT = 3000  # different characters


class Characters(Tokenizer):
    """A token for each of many characters, so that a token tells which one of all documents' it is."""

    bos_id, eos_id, pad_id = 0, 0, 2
    vocab_size = 3 + COUNT
    table = [b"", b"", b"", *(chr(FIRST + number).encode() for number in range(COUNT))]
    fingerprint = "characters"

    def encode_texts(self, texts):
        return [[3 + ord(character) - FIRST for character in text] for text in texts]


class TwoEnds(Characters):
    eos_id = 1
    fingerprint = "two ends"


@dataclass(frozen=True, kw_only=True)
class Distinct(PairSource):
    """Pairs of random lengths in which no character occurs twice."""

    seed: int = 0
    longest: int = 30

    @property
    def fingerprint(self) -> str:
        return f"distinct {self.seed} {self.longest}"

    def pairs(self, split: Split) -> Iterator[Pair]:
        random = np.random.default_rng([self.seed, split == "val"])
        at = FIRST
        for _ in range(40):
            given, target = random.integers(0, self.longest), random.integers(1, self.longest)
            text = "".join(map(chr, range(at, at + given + target)))
            at += given + target
            yield Pair(text[:given], text[given:])


@dataclass
class Expected:
    """What the documents of a split are made of, told by their texts alone."""

    source: Distinct
    tokenizer: Tokenizer
    split: Split

    def __post_init__(self) -> None:
        pairs = list(self.source.pairs(self.split))
        self.given, self.targets = ([self.tokenizer.encode(part) for part in parts] for parts in zip(*pairs))
        self.counted = Counter({self.tokenizer.eos_id: len(pairs)})
        self.counted.update(token for target in self.targets for token in target)
        self.next = {}
        for given, target in zip(self.given, self.targets):
            ids = [*given, *target, self.tokenizer.eos_id]
            self.next.update(zip(ids, ids[1:]))
        self.known = {token for given in self.given for token in given}


def counted(batches: list[Batch]) -> Counter[int]:
    return Counter(int(token) for batch in batches for token in batch.targets_BT[batch.targets_BT != IGNORED])


def hold(batch: Batch, expected: Expected) -> None:
    """Check every position of a batch against the texts."""
    assert batch.given_BT.dtype == torch.bool and batch.given_BT.shape == batch.targets_BT.shape
    assert (batch.targets_BT[batch.given_BT] == IGNORED).all()
    for tokens, targets, text, given in zip(
        batch.tokens_BT.tolist(), batch.targets_BT.tolist(), batch.text_BT.tolist(), batch.given_BT.tolist()
    ):
        for at, (token, target, after, is_given) in enumerate(zip(tokens, targets, text, given)):
            if token > 2:  # a character
                right = expected.next[token]
                assert is_given == (right in expected.known)
                assert target == (IGNORED if is_given else right)
                is_cut = is_given and at == len(tokens) - 1
                assert after == (expected.tokenizer.pad_id if is_cut else right)
            elif token == expected.tokenizer.bos_id and (is_given or target != IGNORED):
                assert is_given == (after in expected.known) or at == len(tokens) - 1
            else:
                assert not is_given or at == len(tokens) - 1


TOKENIZERS = pytest.mark.parametrize("tokenizer", [Characters(), TwoEnds()], ids=["shared", "two"])


@TOKENIZERS
@pytest.mark.parametrize("packing", ["pad", "pack"])
@pytest.mark.parametrize(("seq_len", "longest"), [(16, 40), (64, 20), (7, 9)])
def test_each_target_is_learned_once_and_no_given_token(tmp_path, tokenizer, packing, seq_len, longest):
    source = Distinct(seed=seq_len, longest=longest, seq_len=seq_len, packing=packing, cache=str(tmp_path))
    train = open_data(source, tokenizer).train(3, seed=1)
    expected, rows = Expected(source, tokenizer, "train"), train.rows_per_epoch
    singles = open_data(source, tokenizer).train(1, seed=1)
    for epoch in range(2):
        batches = [singles.batch(step) for step in range(epoch * rows, (epoch + 1) * rows)]
        assert counted(batches) == expected.counted
        for batch in batches:
            hold(batch, expected)
            assert (batch.targets_BT != IGNORED).any(), "each row has something to learn"
    whole, part = train.batch(4), train.batch(4, slice(1, 3))
    assert torch.equal(whole.given_BT[1:3], part.given_BT) and torch.equal(whole.text_BT[1:3], part.text_BT)


@TOKENIZERS
@pytest.mark.parametrize("seq_len", [5, 16, 64, 5000])
def test_a_stream_of_pairs_cut_anywhere(tmp_path, tokenizer, seq_len):
    source = Distinct(seq_len=seq_len, packing="concat", cache=str(tmp_path))
    train = open_data(source, tokenizer).train(1, seed=0)
    expected = Expected(source, tokenizer, "train")
    if tokenizer.bos_id != tokenizer.eos_id:
        expected.counted[tokenizer.bos_id] = expected.counted[tokenizer.eos_id]  # a stream predicts it, too
    for epoch in range(3):
        batches = [train.batch(epoch * train.rows_per_epoch + row) for row in range(train.rows_per_epoch)]
        for batch in batches:
            hold(batch, expected)
        found = counted(batches)
        if seq_len < 5000:
            assert found <= expected.counted and (expected.counted - found).total() < seq_len
        else:
            assert set(found) == set(expected.counted)


@pytest.mark.parametrize("packing", ["pad", "pack"])
def test_truncation_keeps_the_targets_that_begin_in_a_row(tmp_path, packing):
    source = Distinct(seq_len=16, packing=packing, truncate=True, cache=str(tmp_path))
    train = open_data(source, Characters()).train(1, seed=0)
    expected = Expected(source, Characters(), "train")
    batches = [train.batch(step) for step in range(train.rows_per_epoch)]
    for batch in batches:
        hold(batch, expected)
    kept = [
        [*given, *target, 0][:16][len(given) :] for given, target in zip(expected.given, expected.targets)
    ]
    assert counted(batches) == Counter(token for ids in kept for token in ids)
    assert any(not ids for ids in kept), "some targets begin after the row"


def test_truncation_that_leaves_no_target_is_rejected(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Late(Distinct):
        def pairs(self, split):
            yield Pair("".join(map(chr, range(FIRST, FIRST + 20))), chr(FIRST + 20))

    source = Late(seq_len=16, packing="pack", truncate=True, seed=9, cache=str(tmp_path))
    with pytest.raises(UserError, match="No target begins in the first data.seq_len=16 tokens"):
        open_data(source, Characters()).train(1, seed=0)


@TOKENIZERS
@pytest.mark.parametrize("stride", [None, 3, 16])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_evaluation_predicts_each_target_once_and_no_given_token(tmp_path, tokenizer, stride, batch_size):
    source = Distinct(seed=5, seq_len=16, stride=stride, cache=str(tmp_path))
    validation = open_data(source, tokenizer).validation(batch_size)
    expected = Expected(source, tokenizer, "val")
    batches = list(validation)
    assert counted(batches) == expected.counted
    assert validation.tokens == expected.counted.total()
    sizes = [len(target.encode()) for _, target in source.pairs("val")]
    assert validation.bytes == sum(sizes)
    assert validation.documents.sizes(tokenizer.byte_lengths).tolist() == sizes
    document_of = {token: number for number, target in enumerate(expected.targets) for token in target}
    numbers = iter(validation.documents_of_windows.tolist())
    for batch in batches:
        real_BT = (batch.targets_BT != IGNORED) | batch.given_BT
        for tokens, targets, text, real in zip(batch.tokens_BT, batch.targets_BT, batch.text_BT, real_BT):
            length, number = int(real.sum()), next(numbers)
            assert real[:length].all(), "all before the padding is given, known or counted"
            assert (
                torch.equal(text[: length - 1], tokens[1:length])
                and (text[length:] == tokenizer.pad_id).all()
            )
            assert {document_of[token] for token in targets.tolist() if token > 2} <= {number}


def test_sizes_of_many_documents_are_computed_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("minllm.data.store.AT_ONCE", 7)
    for tokenizer in (Characters(), TwoEnds()):
        source = Distinct(seed=3, cache=str(tmp_path))
        documents = open_store(source, tokenizer).split("train")
        expected = [len(target.encode()) for _, target in source.pairs("train")]
        assert documents.sizes(tokenizer.byte_lengths).tolist() == expected


def test_other_corpora_stay_as_they_are(tmp_path):
    source = Letters(cache=str(tmp_path))
    corpus = open_data(source, Bytes())
    assert not list(corpus.store.folder.glob("*.given"))
    assert set(corpus.store.metadata["splits"]["val"]) == {"documents", "tokens", "bytes", "sha256"}
    assert corpus.documents.given is None
    batches = [corpus.train(2, seed=0).batch(0), *corpus.validation(4)]
    assert all(batch.given_BT is None for batch in batches)
    batch = batches[0]
    real = batch.targets_BT != IGNORED
    assert (
        torch.equal(batch.text_BT[real], batch.targets_BT[real])
        and (batch.text_BT[~real] == batch.pad_id).all()
    )


def test_a_limit_on_tokens_keeps_whole_pairs(tmp_path):
    source = Distinct(max_tokens=200, cache=str(tmp_path))
    documents = open_store(source, Characters()).split("train")
    expected = [len(given) for given, _ in source.pairs("train")]
    assert documents.given.tolist() == expected[: len(documents.given)] and 1 < len(documents.given) < 40


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove"])
def test_damaged_given_parts_are_rejected(tmp_path, damage):
    store = open_store(Distinct(cache=str(tmp_path)), Characters())
    path = store.folder / "val.given"
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.unlink()
    if damage != "remove":
        path.write_bytes(content if damage == "flip" else content[:-8])
    with pytest.raises(UserError, match="is damaged. Delete that folder"):
        store.split("val")


def test_where_the_given_part_ends_is_part_of_the_validation_text(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class One(PairSource):
        given: str
        target: str

        @property
        def fingerprint(self) -> str:
            return f"{self.given}|{self.target}"

        def pairs(self, split):
            yield Pair(self.given, self.target)

    cuts = [("", "abc"), ("a", "bc"), ("ab", "c"), ("ab", "d"), ("", "ab")]
    stores = [open_store(One(given=a, target=b, cache=str(tmp_path)), Bytes()).metadata for a, b in cuts]
    assert len({store["validation_text"] for store in stores}) == len(cuts)
    assert stores[0]["splits"] != stores[1]["splits"], "a resumed run would notice"


def test_other_processes_encode_pairs_alike(tmp_path):
    pairs = [Pair("", "a"), Pair("naïve\n", "b c"), Pair("x", "日")]
    expected = encode(Bytes(), pairs)
    Bytes().save(tmp_path)
    (found,) = encoding.encoded_with(Bytes, str(tmp_path), 1, [pairs])
    for name in ("tokens", "lengths", "bytes", "given"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert expected.given.tolist() == [0, 7, 1] and expected.bytes.tolist() == [1, 3, 3]
    assert encode(Bytes(), ["ab", "c"]).given.tolist() == [0, 0]


def test_a_tokenizer_that_loses_a_part_is_named(tmp_path):
    class Lossy(Characters):
        fingerprint = "lossy"

        def encode_texts(self, texts):
            return [
                [] if chr(FIRST + 5) in text else ids for text, ids in zip(texts, super().encode_texts(texts))
            ]

    with pytest.raises(UserError, match="The tokenizer is lossy"):
        open_store(Distinct(cache=str(tmp_path)), Lossy())


# ---- training and evaluation -----------------------------------------------------------------------------------------

TINY = [
    *("data=reverse", "data.alphabet=abc", "data.train_pairs=200", "data.val_pairs=12", "data.max_length=5"),
    *("model.dim=16", "model.n_layers=1", "train.batch_size=4", "train.device=cpu", "train.precision=fp32"),
    *(
        "train.compile=false",
        "train.check=false",
        "sample.max_new_tokens=4",
        "schedule=constant",
        "tokenizer=bytes",
    ),
]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(*more):
        words = [*TINY, f"data.cache={tmp_path / 'stores'}", *more]
        return minllm.train(minllm.compose(words), tmp_path / "run")

    return train


def test_bits_per_byte_are_those_of_the_targets_given_what_is_given(trained, tmp_path):
    summary = trained("train.steps=6", "data.seq_len=16")
    model, tokenizer, cfg = checkpoints.load(tmp_path / "run", which="last")
    source = build(cfg.data)
    losses = [nats_of(model, tokenizer, *pair) for pair in source.pairs("val")]
    nats, sizes = [sum(each) for each in losses], [len(target) for _, target in source.pairs("val")]
    assert summary["floor_bpb"] == 0
    assert summary["val_bpb"] == pytest.approx(sum(nats) / math.log(2) / sum(sizes), rel=1e-5)
    recorded = DocumentLosses.from_bytes((tmp_path / "run" / DOCUMENTS).read_bytes())
    assert recorded.bytes.tolist() == sizes and recorded.nats.tolist() == pytest.approx(nats, rel=1e-4)
    pair = next(source.pairs("val"))
    guesses = read_text(model, build(cfg.objective), tokenizer, source, pair)
    assert "".join(guess.text for guess in guesses) == pair.target
    assert [guess.nats for guess in guesses] == pytest.approx(losses[0][:-1], rel=1e-4)


@torch.no_grad()
def nats_of(model, tokenizer, given: str, target: str) -> list[float]:
    """Return the loss of each token of a target and of its end."""
    known, ids = tokenizer.encode(given, bos=True), tokenizer.encode(target, eos=True)
    logits_TV = model.logits(model.hidden(torch.tensor([known + ids[:-1]])))[0, len(known) - 1 :]
    return torch.nn.functional.cross_entropy(logits_TV, torch.tensor(ids), reduction="none").tolist()


@pytest.mark.parametrize("packing", ["concat", "pad"])
def test_batches_without_a_target_leave_the_loss_finite(trained, packing):
    options = ("data.seq_len=2", "train.batch_size=1", "train.steps=30", "data.min_length=5")
    summary = trained(*options, f"data.packing={packing}")
    assert math.isfinite(summary["val_loss"])


def test_a_tokenizer_is_made_of_both_parts(trained, tmp_path):
    trained("tokenizer=chars", "train.steps=1")
    _, tokenizer, _ = checkpoints.load(tmp_path / "run", which="last")
    assert tokenizer.characters == ":abc"


def test_a_report_shows_what_was_given():
    story = [Guess("olleh", 0.1, 1, 5)]
    page = texts_html([Reading("a", 0, [], [story], None, ["<hello>:"]), Reading("b", 0, [], [story], None)])
    assert page.count("&lt;hello&gt;:") == 1 and "given" in page
