"""Trains sentencepiece tokenizers: several sizes from one training, each vocabulary the beginning of the next."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence

from minllm.errors import UserError
from minllm.tokenizer.sentencepiece import SPACE

END_OF_TEXT = "<|endoftext|>"
COVERAGE = 0.9999  # of the characters in the text; those that are rarer are spelled in bytes
LONGEST_TOKEN = 32  # characters

# Every character falls in exactly one chunk. Python's \w is letters, numerals and _, so a letter is \w that is
# neither a digit nor _.
PATTERN = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",  # the end of it's, don't, I'll
        r"[^\r\n\w]?[^\W\d_]+",  # a word, with the space or the mark before it
        r"\d{1,3}",  # digits, three at a time
        r" ?(?:[^\s\w]|_)+[\r\n]*",  # marks, with the space before them and the line's end after them
        r"\s*[\r\n]+",  # the ends of lines
        r"\s+(?!\S)",  # spaces, but for the last, which belongs to the word that follows
        r"\s+",
    )
)


def train(texts: Iterable[str], sizes: Sequence[int]) -> dict[int, bytes]:
    """Return, for each vocabulary size, a sentencepiece model in the bytes of its file.

    Byte-pair encoding learns its merges one after the other, so the first n merges of a large vocabulary are what
    training for the small one would find. Tokens are numbered end of text, unknown (never used: every byte has a
    token), 256 bytes, characters, merges: a token's number is the same in all the sizes that have it.

    Raises:
        UserError: the texts are too few for the largest size, or the smallest can't hold their characters.
    """
    largest = train_one(texts, max(sizes))
    return {size: first_pieces(largest, size) for size in sorted(sizes)}


def train_one(texts: Iterable[str], size: int) -> bytes:
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,  # `first_pieces` says what is missing
            pretokenizer=split_marked,
            # nothing is normalised, dropped or added
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=COVERAGE,
            # the regular expression says where tokens end, and no other rule does
            split_by_unicode_script=False,
            split_by_number=False,
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=LONGEST_TOKEN,
            max_sentence_length=1 << 30,
            eos_id=0,
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_TEXT,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().rpartition("] ")[2]  # without the place in the library's code
        raise UserError(f"sentencepiece can't make {size} tokens of this text: {reason}") from error
    return written.getvalue()


def split_marked(text: str) -> list[str]:
    """Split a text in which sentencepiece has put its own mark for each space."""
    return [chunk.replace(" ", SPACE) for chunk in re.findall(PATTERN, text.replace(SPACE, " "))]


def first_pieces(model: bytes, size: int) -> bytes:
    """Return the model with only the first `size` tokens: the characters are put before the merges they're made by.

    sentencepiece lists characters last. Their place doesn't matter to it: a merge is chosen by its score.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # its protobuf comes with wandb

    proto = ModelProto.FromString(model)
    is_merge = [piece.type == piece.NORMAL and len(piece.piece) > 1 for piece in proto.pieces]
    order = sorted(range(len(proto.pieces)), key=lambda token: is_merge[token])
    if len(order) < size or is_merge.count(False) > size:
        raise UserError(
            f"A vocabulary of {size} tokens can't be had from this text: it needs {is_merge.count(False)} for bytes and"
            f" characters, and {len(order)} are all it has. Change sizes=[…]."
        )
    kept = [proto.pieces[token] for token in order[:size]]
    smaller = ModelProto()
    smaller.CopyFrom(proto)
    del smaller.pieces[:]
    smaller.pieces.extend(kept)
    smaller.trainer_spec.vocab_size = size
    return smaller.SerializeToString(deterministic=True)
