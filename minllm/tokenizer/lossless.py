"""Remove every step that changes a text from a tokenizer.json, or reject those that can't be removed.

`decode(encode(text))` must be `text`. So no space is prepended, the text stays unnormalised, no tokens are added at
its ends, and there's no BPE dropout. Steps that can't be left out, such as lower-casing, raise a UserError.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minllm.errors import UserError

SPACE = "\u2581"  # many vocabularies use it in place of a space
CUTS = ("ByteLevel", "Digits", "FixedLength", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
"""Steps that split a text without losing any of it."""
DROPPED = ("Prepend", "NFC")
PROBE = " A  b\n\t Éé e\u0301 日本 \U0001f409 \u00a0\x00 I'LL 0123 <0x41></s><eos><s><|x|>  "
"""A text with many characters and sequences that lossy tokenizers change."""


def restore_spaces(tokens: list[int], byte_tokens: Sequence[int]) -> list[int]:
    """Replace each ▁ encoded as bytes by a space, in the tokens of a text that has no ▁ itself.

    For vocabularies without a token for ▁. In UTF-8, these three bytes in a row are always that character.

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
    """Return a tokenizer.json that doesn't change texts.

    Raises:
        UserError: `file`, from which it was read, is damaged, or has a step that changes texts and is needed.
    """
    # the library aborts the process when it reads merges with such a prefix; such tokenizers are lossy anyway
    if source["model"].get("continuing_subword_prefix") and "merges" in source["model"]:
        raise UserError(
            f"{file} marks pieces inside a word (continuing_subword_prefix), so it is lossy. minllm measures bits per"
            " byte and needs a lossless tokenizer."
        )
    try:
        return {
            **source,
            "model": {**source["model"], "dropout": None},
            "normalizer": lossless_step(source.get("normalizer"), "normalizers", file),
            "pre_tokenizer": lossless_step(source.get("pre_tokenizer"), "pretokenizers", file),
            "post_processor": None,
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {**token, "lstrip": False, "rstrip": False} for token in source.get("added_tokens") or []
            ],
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} can't be read: it wasn't written by the library tokenizers.") from error


def lossless_step(step: dict[str, Any] | None, inner: str, file: Path) -> dict[str, Any] | None:
    """Return a normalizer or pre-tokenizer without the steps that add to a text; None if nothing is left."""
    if step is None or step["type"] in DROPPED:
        return None
    if step["type"] == "Sequence":
        steps = [
            part for part in (lossless_step(part, inner, file) for part in step[inner]) if part is not None
        ]
        return {**step, inner: steps} if steps else None
    if not keeps_everything(step):
        raise UserError(
            f"{file} is lossy: its step {step['type']} changes characters. minllm measures bits per byte and needs a"
            " lossless tokenizer."
        )
    quiet = {"add_prefix_space": False, "prepend_scheme": "never"}
    return {**step, **{key: value for key, value in quiet.items() if key in step}}


def keeps_everything(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return (step["pattern"], step["content"]) == ({"String": " "}, SPACE)
    return step["type"] in CUTS and step.get("behavior") != "Removed"
