"""Training of sentencepiece tokenizers: byte-pair encoding in several sizes at once, or unigram models one by one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from minllm.errors import UserError
from minllm.tokenizer.lossless import SPACE

Algorithm = Literal["bpe", "unigram"]

END_OF_TEXT = "<|endoftext|>"
COVERAGE = 0.9999  # share of the text's characters that get tokens; rarer ones are encoded as bytes
LONGEST_TOKEN = 32  # characters
# with more, the pieces of a unigram model depend on the number (the order of summation changes), and byte-pair encoding
# is no faster
THREADS = 1
RESERVED = "\u2585"  # sentencepiece's mark for unknown characters: it skips every text that contains it

# The expression of nanochat's tokenizer, for Python's `re`, which lacks \p{L}. Every character is in exactly one chunk.
# Python's \w is letters, numerals and _, so a letter is \w other than a digit or _. Three things differ: numerals that
# aren't \d (½, Ⅷ) count as letters, a word doesn't include a _ before it, and U+001C to U+001F count as spaces.
PATTERN = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",  # the end of it's, don't, I'll
        r"[^\r\n\w]?[^\W\d_]+",  # a word, with the space or punctuation mark before it
        r"\d{1,2}",  # digits, two at a time
        r" ?(?:[^\s\w]|_)+[\r\n]*",  # punctuation, with the space before it and the line ends after it
        r"\s*[\r\n]+",  # line ends
        r"\s+(?!\S)",  # spaces, except the last, which belongs to the next word
        r"\s+",
    )
)


def train(texts: Iterable[str], sizes: Sequence[int], algorithm: Algorithm = "bpe") -> dict[int, bytes]:
    """Return a serialised sentencepiece model for each vocabulary size.

    Byte-pair encoding learns its merges one after another, so the first n merges of a large vocabulary are those that
    training a small one would find. Token ids are in the order end of text, unknown (never used: every byte has a
    token), 256 bytes, characters, merges: a token has the same id in every size that includes it.

    A unigram model starts with too many pieces and drops the least useful, so each size is trained separately.

    Raises:
        UserError: there is too little text for the largest size, or the smallest has no room for its characters.
    """
    sizes = sorted(sizes)
    if algorithm == "bpe":
        largest = train_size(texts, sizes[-1], algorithm)
        return {size: first_pieces(largest, size) for size in sizes}
    texts = list(texts)
    return {size: checked_size(train_size(texts, size, algorithm), size) for size in sizes}


def pattern_of(algorithm: Algorithm) -> str | None:
    """Return the expression that splits texts into chunks; None if a text is encoded as a whole.

    sentencepiece 0.2.3 can also train a unigram model within chunks, but that costs a quarter of its compression.
    """
    return PATTERN if algorithm == "bpe" else None


def train_size(texts: Iterable[str], size: int, algorithm: Algorithm) -> bytes:
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    chunks = {"pretokenizer": split_marked} if pattern_of(algorithm) else {}
    try:
        SentencePieceTrainer.train(
            sentence_iterator=(text.replace(RESERVED, " ") for text in texts),
            model_writer=written,
            model_type=algorithm,
            vocab_size=size,
            hard_vocab_limit=False,  # if there is too little text, the error below gives the largest size
            **chunks,
            # nothing is normalised, dropped or added
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=COVERAGE,
            max_sentence_length=1 << 30,  # bytes; longer texts are skipped (by default above 4,192)
            # only the regular expression splits texts, or spaces if there is none
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
    """Return an error message for a failure that sentencepiece reports."""
    if fewest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return too_small(size, int(fewest[1]))
    if re.search(r"sentences_\.empty\(\)|all_chars_count", message):
        return "There is no text to learn tokens from."
    if "no pieces are loaded" in message:
        return "The text is too uniform to learn tokens from. Use different text, or choose tokenizer=bytes."
    reason = message.strip().rpartition("] ")[2]  # without the location in the library's source
    return f"sentencepiece can't train {size:,} tokens on this text: {reason}"


def too_small(size: int, fewest: int) -> str:
    return (
        f"A vocabulary of {size:,} tokens is too small: the bytes and this text's characters need at least {fewest:,}."
        " Change tokenizer.sizes=[…]."
    )


def too_large(size: int, most: int) -> str:
    return (
        f"A vocabulary of {size:,} tokens is too large for this text, which allows at most {most:,}. Change"
        " tokenizer.sizes=[…], or use more text."
    )


def split_marked(text: str) -> list[str]:
    """Split a text in which sentencepiece has replaced each space by ▁."""
    return [chunk.replace(" ", SPACE) for chunk in re.findall(PATTERN, text.replace(SPACE, " "))]


def first_pieces(model: bytes, size: int) -> bytes:
    """Return the model with its first `size` tokens, after moving the characters before the merges.

    sentencepiece lists characters last. The order doesn't matter: merges are chosen by their score.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # its protobuf comes with wandb

    proto = ModelProto.FromString(model)
    is_merge = [is_merged(piece) for piece in proto.pieces]
    order = sorted(range(len(proto.pieces)), key=lambda token: is_merge[token])
    if is_merge.count(False) > size:
        raise UserError(too_small(size, is_merge.count(False)))
    if len(order) < size:
        raise UserError(too_large(size, len(order)))
    pieces = [proto.pieces[token] for token in order[:size]]
    for piece in pieces:
        if not is_merged(piece):  # this score is unused and depends on the largest size
            piece.score = 0.0
    smaller = ModelProto()
    smaller.CopyFrom(proto)
    del smaller.pieces[:]
    smaller.pieces.extend(pieces)
    smaller.trainer_spec.vocab_size = size
    return smaller.SerializeToString(deterministic=True)


def is_merged(piece: Any) -> bool:
    return piece.type == piece.NORMAL and len(piece.piece) > 1


def checked_size(model: bytes, size: int) -> bytes:
    """Return the model. UserError if it has fewer than `size` tokens."""
    from sentencepiece import SentencePieceProcessor

    trained_size = SentencePieceProcessor(model_proto=model).vocab_size()
    if trained_size < size:
        raise UserError(too_large(size, trained_size))
    return model
