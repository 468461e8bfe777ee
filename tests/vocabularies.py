"""Texts that a tokenizer may stumble over, and small tokenizers such as others have."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minllm.tokenizer.training import END_OF_TEXT

AWKWARD = [
    "",
    " ",
    "   two  spaces   ",
    "\u2581",
    "\u2581 \u2581\u2581 leading",
    "what sentencepiece reserves: \u2585",
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


def made_up_texts() -> list[str]:
    draw = random.Random(0)
    text = "the cat's hat sat on a mat and it's 1234 5123 times, isn't it?\n\nOh! So be it."
    words = re.split(" ", text)
    words += ["".join(draw.choices("abdegilmnorstu", k=6)) for _ in range(60)]
    return [" ".join(draw.choices(words, k=60)) for _ in range(60)]


TEXTS = [*made_up_texts(), "naïve café 日本 👩‍👩‍👧"]


def byte_level(texts: Sequence[str] = TEXTS) -> Tokenizer:
    """A tokenizer such as GPT-NeoX's: bytes as letters, NFC, a token for several spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(["   "])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 1)]
    )
    return tokenizer


def byte_fallback(texts: Sequence[str] = TEXTS) -> Tokenizer:
    """A tokenizer such as Llama 2's: ▁ for a space and one put before each text, bytes for what it doesn't know."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *spelled], show_progress=False
    )
    trained.train_from_iterator([text for text in texts if text.isascii()], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens(["▁▁", "<h1>"])  # as in Gemma
    return tokenizer


def assert_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos_id, tokenizer.eos_id} & {*ids}
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
