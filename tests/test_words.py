"""Ordinary text on the command line: it arrives as typed, or is refused with the line to type."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from minllm.errors import UserError
from minllm.schema.overrides import comma_note, quoted

ORDINARY = [
    "Don't stop",
    "été",
    "从前",
    "Hello! Who?",
    "def f(x):",
    "one; two",
    "a = b",
    "#@%&$",
    "{a}",
    "{a: b}",
    "[x] y",
    "she said 'no'",
    'a "b" c',
    "— and –",
    "😀",
    "tab\there",
    "line\nbreak",
    "f(x)",
    "range(3)",
    "1984",
    "1e3",
    "1_000",
    "true",
    "null",
    "nan",
    "C:\\été",
    "~/x",
    "notes (1).txt",
    "<|endoftext|>",
    "{{name}}",
    "x != y ? a : b",
    "100% *sure*",
    "`ls` | wc > out",
    "Hello :)",
]


def arrived(word: str) -> object:
    """Return the value that a configuration has after a word."""
    (override,) = OverridesParser.create().parse_overrides([quoted(word)])
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
    return OmegaConf.to_container(cfg, resolve=True)[override.key_or_group]


def suggested(sentence: str) -> str:
    """Return the word that a sentence says to type for one text."""
    typed = sentence[sentence.index("For one text, type ") + len("For one text, type ") :]
    return shlex.split(typed)[0].rstrip(",")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_arrives_as_it_is_typed(text: str):
    assert arrived(f"prompts=[{text}]") == [text]


TEXTS = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30)
CODE_LIKE = st.text("ab1 ,'\"\\$%{}[]()=:;#@~|<>!?-.\t\n", min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXTS, CODE_LIKE))
@example("costs ${5}")
@example("\\${")
@example("Don't, won't")
@example('"quoted" and more')
@example("it\\'s")
@example("ends with \\")
@example("see (a, b)")
@example(": ")  # Hydra keeps the space after a colon
def test_any_text_arrives_or_its_line_is_printed(text: str):
    bare = text.strip(" \t")
    if bare in ("", "???"):  # nothing at all, and OmegaConf's mark of a missing value
        return
    word = f"prompts=[{text}]"
    try:
        is_read = arrived(word)
    except UserError as error:
        assert arrived(suggested(str(error))) == [text]
        return
    if is_read not in ([bare], [text]):
        # the grammar's own syntax keeps its meaning: quotes, backslashes, references, and commas
        assert any(mark in text for mark in ("'", '"', "\\", ",", "${", "("))
        if note := comma_note(word):
            assert arrived(suggested(note)) == [text]


@settings(max_examples=150, deadline=None)
@given(st.one_of(TEXTS, CODE_LIKE))
@example("[#]")
@example("[']")
def test_any_text_of_one_value(text: str):
    """Of an option that is one text, such as data.path. In brackets, it is a list of one text."""
    is_list = text.strip(" \t")[:1] == "[" and text.strip(" \t")[-1:] == "]"
    try:
        value = quoted(f"path={text}")
    except UserError as error:
        sentence = str(error).replace("For text, type", "For one text, type")
        assert arrived(suggested(sentence)) == ([text.strip(" \t")[1:-1]] if is_list else text)
        return
    (override,) = OverridesParser.create().parse_overrides([value])
    if value != f"path={text}" and not override.is_sweep_override():
        items = [item.strip() for item in text.strip()[1:-1].split(",")]
        assert override.value() in (text.strip(" \t"), text.strip(), *[items] * is_list)
