"""Tokenizers lose nothing, take no text for a control token, and are refused when damaged."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minllm.config import build
from minllm.errors import UserError
from minllm.tokenizer.bytes import Bytes
from minllm.tokenizer.sentencepiece import REPOSITORY, SentencePiece
from minllm.tokenizer.training import END_OF_TEXT, train

SHIPPED = sorted(path.parent.name for path in (REPOSITORY / "tokenizers").glob("*/metadata.json"))
AWKWARD = [
    "",
    " ",
    "   two  spaces   ",
    "\u2581",
    "a\u2581b \u2581 c",
    "\x00\x01\x1f\x7f",
    "\u0301 alone, e\u0301",
    "tabs\tand\r\nlines\n\n\n",
    END_OF_TEXT,
    "<unk></s><0x41>",
    "\ufeffmark \ufffd \u2028",
    "日本語 𝔘𝔫𝔦 👩‍👩‍👧 ٣٤٥ ½",
    "it's 'sun, I'LL 1234567",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer of 400 tokens, trained on made-up text."""
    place = tmp_path_factory.mktemp("tokenizers") / "small"
    model = train(made_up_texts(), [400])[400]
    write(place, model)
    return place


def made_up_texts() -> list[str]:
    draw = random.Random(0)
    text = "the cat's hat sat on a mat and it's 1234 5123 times, isn't it?\n\nOh! So be it."
    words = re.split(" ", text)
    words += ["".join(draw.choices("abdegilmnorstu", k=6)) for _ in range(60)]
    return [" ".join(draw.choices(words, k=60)) for _ in range(60)]


def write(place: Path, model: bytes) -> None:
    from minllm.tokenizer.training import PATTERN

    place.mkdir()
    (place / "tokenizer.model").write_bytes(model)
    metadata = {"pattern": PATTERN, "sha256": hashlib.sha256(model).hexdigest()}
    (place / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture(scope="module", params=["bytes", "sentencepiece", *SHIPPED])
def tokenizer(request, folder):
    if request.param == "bytes":
        return Bytes()
    return SentencePiece(
        folder=str(folder) if request.param == "sentencepiece" else f"tokenizers/{request.param}"
    )


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


def assert_survives(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot not in ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_a_batch_is_its_texts(tokenizer):
    assert tokenizer.encode_batch(AWKWARD) == [tokenizer.encode(text) for text in AWKWARD]


def test_the_end_of_text_decodes_to_nothing(tokenizer):
    assert tokenizer.decode([tokenizer.eot, *tokenizer.encode("so"), tokenizer.eot]) == "so"
    assert tokenizer.token_bytes(tokenizer.eot) == b""


def test_every_token_decodes_by_itself(tokenizer):
    for token in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.decode([token]), str)


def test_a_run_keeps_its_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    options = {"folder": "gone"} if isinstance(tokenizer, SentencePiece) else {}
    again = type(tokenizer)(tmp_path, **options)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode("The cat's hat.\n") == tokenizer.encode("The cat's hat.\n")


def test_no_token_reaches_across_chunks(folder):
    tokenizer = SentencePiece(folder=str(folder))
    assert tokenizer.processor.piece_to_id("'s") != tokenizer.processor.unk_id(), "the text should teach 's"
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("a 'sat 1234")]
    assert "".join(pieces) == "a 'sat 1234"
    assert "'s" not in pieces
    assert not any("234" in piece and "123" not in piece or "1234" in piece for piece in pieces)


def test_sizes_are_nested_and_are_what_training_for_each_would_give():
    texts = made_up_texts()
    nested = {size: pieces(model) for size, model in train(texts, [320, 380]).items()}
    assert nested[380][:320] == nested[320]
    assert nested[320] == pieces(train(texts, [320])[320])


def pieces(model: bytes) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(token) for token in range(processor.vocab_size())]


@pytest.mark.parametrize("sizes", [[100], [260, 400], [100_000]])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(UserError, match="token"):
        train(["abc def ghi jkl"] * 3, sizes)


def test_a_missing_tokenizer_names_those_there_are():
    with pytest.raises(UserError, match="There is no tokenizer in 'nowhere'.*bytes"):
        SentencePiece(folder="nowhere")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.model", b"other", "sha256"),
        ("metadata.json", b"{", "isn't valid JSON"),
        ("metadata.json", b"{}", "lacks"),
        ("metadata.json", None, "metadata.json is missing"),
    ],
)
def test_a_damaged_tokenizer_is_refused(folder, tmp_path, name, content, says):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / name).unlink() if content is None else (damaged / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        SentencePiece(folder=str(damaged))


def test_the_task_trains_what_the_tokenizer_reads(tmp_path, capsys):
    from omegaconf import OmegaConf

    from minllm.tasks.tokenize import tokenize

    lines = [json.dumps({"text": text}) for text in made_up_texts()]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    data = {"_target_": "minllm.data.text.TextFiles", "path": str(tmp_path / "texts.jsonl")}
    cfg = OmegaConf.create({"data": data})
    measured = tokenize(
        cfg, tmp_path, name="made", sizes=[330, 360], documents=50, folder=str(tmp_path / "kept")
    )
    assert measured["made_360"] > measured["made_330"] > 1
    node = {
        "_target_": "minllm.tokenizer.sentencepiece.SentencePiece",
        "folder": str(tmp_path / "kept" / "made_360"),
    }
    assert build(node).vocab_size == 360
    metadata = json.loads((tmp_path / "kept" / "made_360" / "metadata.json").read_text())
    assert metadata["held_out_bytes_per_token"] == measured["made_360"]
    assert 40 <= metadata["documents"] <= 50
    assert "tokenizer.folder=" in capsys.readouterr().out


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tokenizers_are_small_and_described(name):
    place = REPOSITORY / "tokenizers" / name
    metadata = json.loads((place / "metadata.json").read_text())
    assert (metadata["name"], metadata["vocab_size"]) == (
        name,
        SentencePiece(folder=f"tokenizers/{name}").vocab_size,
    )
    assert (place / "tokenizer.model").stat().st_size < 100_000
    assert (REPOSITORY / "conf" / "tokenizer" / f"{name}.yaml").is_file()
