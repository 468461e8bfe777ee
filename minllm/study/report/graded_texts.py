"""Samples with their grades: what was given, what was written, and where it breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minllm.grading.grades import Break, Measure
from minllm.page import markdown
from minllm.page.html import escape
from minllm.study.grade_contests import format_of
from minllm.study.graded_samples import Shown
from minllm.study.report.texts import char_html, quotation

MOST_EXPECTED = 6
"""How many of the texts that were expected at a break are shown."""

STYLE_GRADED = """
.switch { flex-wrap: wrap; }
.graded .given { opacity: .65; }
.graded .broken { background: rgb(222 92 24 / .16); }
.graded .expected { font: 600 .8em/1.4 system-ui, sans-serif; color: #b84f00; white-space: normal; padding: 0 .3em;
  border: 1px solid currentColor; border-radius: 4px; }
.graded .remark { font-style: italic; }
@media (prefers-color-scheme: dark) {
  .graded .broken { background: rgb(242 138 60 / .2); }
  .graded .expected { color: #f28a3c; }
}
"""
LEGEND = (
    'What was given is <span class="graded"><span class="given">pale</span></span>. From where a text breaks it is'
    ' <span class="graded"><span class="broken">marked</span></span>, after'
    ' <span class="graded"><span class="expected">what was expected</span></span> there.'
)


def shown_html(arm: str, sample: Shown, measures: Sequence[Measure]) -> str:
    """Return a sample as an article, with everything in it escaped."""
    heading = f"{arm}: {sample.which} sample, number {sample.index + 1}"
    about = escape(grades_of(sample, measures))
    remark = f'<p class="remark">{escape(sample.remark)}</p>' if sample.remark else ""
    return (
        f'<article class="sample graded"><h4>{escape(heading)}</h4><p class="soft">{about}</p>'
        f"<p>{''.join(pieces(sample))}</p>{remark}</article>"
    )


def pieces(sample: Shown) -> Iterator[str]:
    """Yield the parts of a sample as HTML: given, right, what was expected where it breaks, and the rest."""
    whole, given = sample.beginning + sample.text, len(sample.beginning)
    end = sample.break_.offset if sample.break_ else len(whole)
    if given:
        yield f'<span class="given">{chars(whole[: min(given, end)])}</span>'
    yield chars(whole[given:end])
    if sample.break_:
        yield f'<span class="expected">{escape(expected(sample.break_))}</span>'
        yield f'<span class="broken">{chars(whole[end:])}</span>'


def chars(text: str) -> str:
    return "".join(map(char_html, text))


def expected(at: Break) -> str:
    """Return what could have come at a break, in words."""
    texts = [f"“{text}”" if text else "the end" for text in at.expected[:MOST_EXPECTED]]
    more = len(at.expected) - len(texts)
    role = f" ({at.recalled})" if at.recalled else ""
    if not texts:
        return f"it breaks here{role}"
    others = f" or {more} others" if more > 0 else ""
    return f"expected{role}: {' or '.join(texts)}{others}"


def grades_of(sample: Shown, measures: Sequence[Measure]) -> str:
    return ", ".join(
        f"{measure.title} {format_of(measure).value(sample.values[measure.name])}"
        for measure in measures
        if measure.name in sample.values
    )


def shown_markdown(arm: str, sample: Shown, measures: Sequence[Measure]) -> list[str]:
    """Return a sample as a quotation, with what was expected where it breaks in bold."""
    heading = (
        f"{markdown.code(arm)}: {sample.which} sample, number {sample.index + 1}."
        f" {markdown.plain(grades_of(sample, measures))}"
    )
    whole = sample.beginning + sample.text
    if sample.break_ is None:
        return [heading, quotation(whole)]
    end = sample.break_.offset
    parts = [heading, quotation(whole[:end]), f"**{markdown.plain(expected(sample.break_))}**"]
    return [*parts, quotation(whole[end:])] if whole[end:] else parts
