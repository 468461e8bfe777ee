"""What a tokenizer.json does to a text besides cutting it is left out, and refused if it would be missed.

`decode(encode(text))` must be `text`. So no space is put before a text, Unicode's normal form C isn't made, no token
is added at its ends, and chance takes no part. What can't be left out, such as writing all in lower case, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minllm.errors import UserError

SPACE = "\u2581"  # what many vocabularies write in place of a space
CUTS = ("ByteLevel", "Digits", "FixedLength", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
"""Steps that part a text and keep all of it."""
DROPPED = ("Prepend", "NFC")
PROBE = " A  b\n\t Éé e\u0301 日本 \U0001f409 \u00a0\x00 I'LL 0123 <0x41></s><eos><s><|x|>  "
"""A text with much that a lossy tokenizer loses."""


def spaces_restored(tokens: list[int], byte_tokens: Sequence[int]) -> list[int]:
    """Return the tokens of a text that has no ▁, where a vocabulary without ▁ has spelled each space as one in bytes.

    UTF-8 makes sure that three such bytes in a row are one character, and in this text only a space becomes it.

    Args:
        byte_tokens: the token of each byte.
    """
    mark, space = [byte_tokens[byte] for byte in SPACE.encode()], byte_tokens[ord(" ")]
    restored: list[int] = []
    for token in tokens:
        restored.append(token)
        if restored[-len(mark) :] == mark:
            restored[-len(mark) :] = [space]
    return restored


def without_additions(source: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a tokenizer.json that takes a text as it is.

    Raises:
        UserError: `file`, from which it was read, is damaged, or has a step that changes texts.
    """
    # the library aborts the whole process when it reads merges with such a prefix, and none keeps every character
    if source["model"].get("continuing_subword_prefix") and "merges" in source["model"]:
        raise UserError(
            f"{file} marks the pieces inside a word (continuing_subword_prefix), so it doesn't keep every character of"
            " a text. minllm counts bits for each byte, so it needs a tokenizer that does."
        )
    try:
        return {
            **source,
            "model": {**source["model"], "dropout": None},
            "normalizer": kept(source.get("normalizer"), "normalizers", file),
            "pre_tokenizer": kept(source.get("pre_tokenizer"), "pretokenizers", file),
            "post_processor": None,
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {**token, "lstrip": False, "rstrip": False} for token in source.get("added_tokens") or []
            ],
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} can't be read: it isn't what the library tokenizers writes.") from error


def kept(step: dict[str, Any] | None, inner: str, file: Path) -> dict[str, Any] | None:
    """Return a step of normalising or cutting without what adds to a text; None where nothing is left."""
    if step is None or step["type"] in DROPPED:
        return None
    if step["type"] == "Sequence":
        steps = [one for one in (kept(one, inner, file) for one in step[inner]) if one is not None]
        return {**step, inner: steps} if steps else None
    if not keeps_everything(step):
        raise UserError(
            f"{file} doesn't keep every character of a text: its step {step['type']} changes some. minllm counts bits"
            " for each byte, so it needs a tokenizer that does."
        )
    quiet = {"add_prefix_space": False, "prepend_scheme": "never"}
    return {**step, **{key: value for key, value in quiet.items() if key in step}}


def keeps_everything(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": " "}, SPACE)
    return step["type"] in CUTS and step.get("behavior") != "Removed"
