"""Any tokenizer.json becomes lossless, or is refused in a sentence."""

from __future__ import annotations

import json

import pytest

from minllm.config.tokenizers import load_tokenizer
from minllm.errors import UserError
from minllm.tokenizer.huggingface import HuggingFace
from tests.vocabularies import AWKWARD, assert_survives, byte_fallback, byte_level

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
QQ = {"type": "Replace", "pattern": {"String": "qq"}, "content": "q"}
NO_Z = {"type": "Split", "pattern": {"String": "z"}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(normalizer={"type": "Lowercase"}), "is lossy"),
        (dict(pre_tokenizer={"type": "Whitespace"}), "is lossy"),
        (dict(normalizer=QQ), "its step Replace changes"),
        (dict(normalizer={"type": "Sequence", "normalizers": [SPACES, QQ]}), "Replace changes"),
        (dict(pre_tokenizer=NO_Z), "its step Split changes"),
        (dict(model={"type": "Unheard"}), "can't be read"),
        (dict(model=None), "describes no model"),
        (dict(added_tokens=[]), "The end-of-text token of"),
    ],
)
def test_tokenizers_that_lose_something(tmp_path, change, words):
    source = json.loads(byte_level().to_str()) | change
    if not change.get("added_tokens", True):
        source["model"]["vocab"] = {
            token: n for token, n in source["model"]["vocab"].items() if token != "<|endoftext|>"
        }
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(UserError, match=words):
        HuggingFace(name=str(tmp_path))


def test_the_end_of_a_text_is_what_the_files_say(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert HuggingFace(name=str(tmp_path)).eos_id == 1
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|pad|>"}}')
    assert HuggingFace(name=str(tmp_path)).eos_id == 0
    assert HuggingFace(name=str(tmp_path), eos="<|endoftext|>").eos_id == 1
    with pytest.raises(UserError, match="no token '<end>'"):
        HuggingFace(name=str(tmp_path), eos="<end>")
    with pytest.raises(UserError, match="leaves out ordinary tokens"):
        HuggingFace(name=str(tmp_path), vocab_size=300)


@pytest.mark.parametrize("said", [["<|endoftext|>"], 1.5, -1, True, {"content": [1]}])
@pytest.mark.parametrize("key", ["bos_token", "eos_token"])
def test_ends_that_are_none_are_refused(tmp_path, key, said):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", key: said}))
    with pytest.raises(UserError, match=f"tokenizer_config.json has {key}=.* neither a token nor its id"):
        HuggingFace(name=str(tmp_path))


def test_texts_begin_as_the_files_say(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    assert HuggingFace(name=str(tmp_path)).bos_id == HuggingFace(name=str(tmp_path)).eos_id == 1
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|pad|>", "eos_token": "<|endoftext|>"}')
    tokenizer = HuggingFace(name=str(tmp_path))
    assert tokenizer.encode("a", bos=True, eos=True)[::2] == [0, 1]
    assert HuggingFace(name=str(tmp_path), bos="<|endoftext|>").bos_id == 1
    with pytest.raises(UserError, match="tokenizer.bos=70 is the token of .*, which can occur in texts"):
        HuggingFace(name=str(tmp_path), bos=70)


@pytest.mark.parametrize("damage", [{"added_tokens": [1]}, {"normalizer": {}}, {"pre_tokenizer": "Split"}])
def test_a_damaged_file_is_said(tmp_path, damage):
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(byte_level().to_str()) | damage))
    with pytest.raises(UserError, match="can't be read"):
        HuggingFace(name=str(tmp_path))


def test_chance_takes_no_part(tmp_path):
    source = json.loads(byte_level().to_str())
    source["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    tokenizer = HuggingFace(name=str(tmp_path))
    assert len({tuple(tokenizer.encode("the cat sat on the mat")) for _ in range(20)}) == 1


def test_a_token_that_looks_like_a_byte_is_its_letters(tmp_path):
    tokenizer = byte_fallback()
    tokenizer.add_tokens(["<0x0A>", "<0xGG>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for text in [*AWKWARD, "a<0x0A>b", "<0xGG>\n"]:
        assert_survives(HuggingFace(name=str(tmp_path)), text)


def test_a_padded_vocabulary_is_kept_with_it(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    padded = HuggingFace(name=str(tmp_path), vocab_size=500)
    padded.save(tmp_path / "kept")
    assert load_tokenizer(tmp_path / "kept").vocab_size == 500
    assert load_tokenizer(tmp_path / "kept").fingerprint == padded.fingerprint
