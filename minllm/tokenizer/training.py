"""Trains sentencepiece tokenizers: byte-pair encoding in several sizes at once, or unigram models one by one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from minllm.errors import UserError
from minllm.tokenizer.lossless import SPACE

Algorithm = Literal["bpe", "unigram"]

END_OF_TEXT = "<|endoftext|>"
COVERAGE = 0.9999  # of the characters in the text; those that are rarer are spelled in bytes
LONGEST_TOKEN = 32  # characters
# with more, a unigram model's pieces depend on how many (its sums are taken in another order), and byte-pair encoding,
# whose pieces don't, is no faster
THREADS = 1
RESERVED = "\u2585"  # sentencepiece's own mark for what it doesn't know: it skips every text that has one

# The expression of nanochat's tokenizer, in Python's `re`, which knows no \p{L}. Every character falls in exactly one
# chunk. Python's \w is letters, numerals and _, so a letter is \w that is neither a digit nor _. Three things differ: a
# numeral that is no \d (½, Ⅷ) counts as a letter, a word takes no _ before it, and U+001C to U+001F count as spaces.
PATTERN = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",  # the end of it's, don't, I'll
        r"[^\r\n\w]?[^\W\d_]+",  # a word, with the space or the mark before it
        r"\d{1,2}",  # digits, two at a time
        r" ?(?:[^\s\w]|_)+[\r\n]*",  # marks, with the space before them and the line's end after them
        r"\s*[\r\n]+",  # the ends of lines
        r"\s+(?!\S)",  # spaces, but for the last, which belongs to the word that follows
        r"\s+",
    )
)


def train(texts: Iterable[str], sizes: Sequence[int], algorithm: Algorithm = "bpe") -> dict[int, bytes]:
    """Return, for each vocabulary size, a sentencepiece model in the bytes of its file.

    Byte-pair encoding learns its merges one after the other, so the first n merges of a large vocabulary are what
    training for the small one would find. Tokens are numbered end of text, unknown (never used: every byte has a
    token), 256 bytes, characters, merges: a token's number is the same in all the sizes that have it.

    A unigram model begins with too many pieces and loses the least useful, so each size is trained by itself.

    Raises:
        UserError: the texts are too few for the largest size, or the smallest can't hold their characters.
    """
    sizes = sorted(sizes)
    if algorithm == "bpe":
        largest = train_one(texts, sizes[-1], algorithm)
        return {size: first_pieces(largest, size) for size in sizes}
    texts = list(texts)
    return {size: whole(train_one(texts, size, algorithm), size) for size in sizes}


def pattern_of(algorithm: Algorithm) -> str | None:
    """Return the expression whose chunks are encoded one by one; None where a text is encoded as a whole.

    sentencepiece 0.2.3 can train a unigram model within chunks, too, which costs it a quarter of its compression.
    """
    return PATTERN if algorithm == "bpe" else None


def train_one(texts: Iterable[str], size: int, algorithm: Algorithm) -> bytes:
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    chunks = {"pretokenizer": split_marked} if pattern_of(algorithm) else {}
    try:
        SentencePieceTrainer.train(
            sentence_iterator=(text.replace(RESERVED, " ") for text in texts),
            model_writer=written,
            model_type=algorithm,
            vocab_size=size,
            hard_vocab_limit=False,  # where the text is too small, we say so, and what it allows
            **chunks,
            # nothing is normalised, dropped or added
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=COVERAGE,
            max_sentence_length=1 << 30,  # bytes; longer texts are skipped, from 4,192 on unless told
            # the regular expression says where tokens end, and no other rule does; without it, spaces do
            split_by_unicode_script=False,
            split_by_number=False,
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=LONGEST_TOKEN,
            eos_id=0,
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_TEXT,
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(training_sentence(str(error), size)) from error
    return written.getvalue()


def training_sentence(message: str, size: int) -> str:
    """Say what sentencepiece says of a training that can't be."""
    if fewest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return too_small(size, int(fewest[1]))
    if re.search(r"sentences_\.empty\(\)|all_chars_count", message):
        return "There is no text to learn tokens from."
    if "no pieces are loaded" in message:
        return "The text is too uniform to learn tokens from. Give other text, or choose tokenizer=bytes."
    reason = message.strip().rpartition("] ")[2]  # without the place in the library's code
    return f"sentencepiece can't make {size:,} tokens of this text: {reason}"


def too_small(size: int, fewest: int) -> str:
    return (
        f"A vocabulary of {size:,} tokens is too small: the bytes and this text's characters need {fewest:,}, which is"
        " the smallest size. Change tokenizer.sizes=[…]."
    )


def too_large(size: int, most: int) -> str:
    return (
        f"A vocabulary of {size:,} tokens can't be had from this text: the largest this text allows is {most:,}. Change"
        " tokenizer.sizes=[…], or give more text."
    )


def split_marked(text: str) -> list[str]:
    """Split a text in which sentencepiece has put its own mark for each space."""
    return [chunk.replace(" ", SPACE) for chunk in re.findall(PATTERN, text.replace(SPACE, " "))]


def first_pieces(model: bytes, size: int) -> bytes:
    """Return the model with only the first `size` tokens: the characters are put before the merges they're made by.

    sentencepiece lists characters last. Their place doesn't matter to it: a merge is chosen by its score.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # its protobuf comes with wandb

    proto = ModelProto.FromString(model)
    is_merge = [is_merged(piece) for piece in proto.pieces]
    order = sorted(range(len(proto.pieces)), key=lambda token: is_merge[token])
    if is_merge.count(False) > size:
        raise UserError(too_small(size, is_merge.count(False)))
    if len(order) < size:
        raise UserError(too_large(size, len(order)))
    kept = [proto.pieces[token] for token in order[:size]]
    for piece in kept:
        if not is_merged(piece):  # a score that nothing reads, and that depends on the largest size
            piece.score = 0.0
    smaller = ModelProto()
    smaller.CopyFrom(proto)
    del smaller.pieces[:]
    smaller.pieces.extend(kept)
    smaller.trainer_spec.vocab_size = size
    return smaller.SerializeToString(deterministic=True)


def is_merged(piece: Any) -> bool:
    return piece.type == piece.NORMAL and len(piece.piece) > 1


def whole(model: bytes, size: int) -> bytes:
    """Return the model if it has all of its tokens."""
    from sentencepiece import SentencePieceProcessor

    found = SentencePieceProcessor(model_proto=model).vocab_size()
    if found < size:
        raise UserError(too_large(size, found))
    return model
