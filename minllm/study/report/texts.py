"""What the arms write and read, as a part of the report: samples side by side, and held-out texts coloured by loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from minllm import markdown as marked
from minllm.study.reading import Guess, Reading, accuracy, bits_a_byte
from minllm.tokenizer.show import visible

DARKEST = 6.0
"""The loss in nats from which on colours are the same: the model gave the token one chance in 400."""

STYLE_TEXTS = """
.samples, .stories { display: grid; gap: 1rem 2rem; }
.samples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.sample p, .story p { margin: .25rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample h4, .story h4 { margin: 0; font-size: .85rem; font-weight: 600; opacity: .75; overflow-wrap: anywhere; }
.story p { line-height: 1.9; }
.token { --surprise: 0; background: rgb(222 92 24 / calc(var(--surprise) * .72)); padding: .15em 0;
  border-bottom: 2px none color-mix(in srgb, currentColor 65%, transparent); }
.token.first { border-bottom-style: solid; }
.token.among-five { border-bottom-style: dotted; }
.white { opacity: .4; }
.legend { font-size: .85rem; line-height: 2; }
.legend .token { padding: .15em .5em; }
.accuracy { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
.accuracy th { font-weight: 600; vertical-align: bottom; }
.accuracy th, .accuracy td { padding: .25rem 0 .25rem 1rem; text-align: right; }
.accuracy th:first-child, .accuracy td:first-child { padding-left: 0; text-align: left; overflow-wrap: anywhere; }
"""
"""One hue whose strength grows with the loss: mixed in sRGB, even steps look even, on white paper and on black."""


def texts_html(readings: Sequence[Reading]) -> str:
    """Return what one run of each arm writes and reads, as a part of a page that has STYLE_TEXTS."""
    return "\n".join(
        [f"<p>{escape(whose(readings))}</p>", *missing(readings), *written(readings), *read(readings)]
    )


def texts_markdown(readings: Sequence[Reading]) -> str:
    """Return the samples as quotations, and how well each arm's run guesses the held-out texts as a table."""
    lines = [whose(readings), *(f"{marked.code(one.arm)}: {one.why_not}" for one in readings if one.why_not)]
    for place, prompt in enumerate(prompts_of(readings)):
        lines.append(f"**{marked.plain(title_of(prompt))}**")
        for one in readings:
            if one.samples:
                lines += [marked.code(one.arm), quotation(f"…{one.samples[place][1]}")]
    if rows := [[marked.code(arm), *cells] for arm, *cells in figures(readings)]:
        lines.append(marked.table(HEADINGS, rows, "lrrr"))
    return "\n\n".join(lines) + "\n"


# ---- what both say -------------------------------------------------------------------------------

HEADINGS = ("arm", "top-1", "top-5", "bits a byte")


def whose(readings: Sequence[Reading]) -> str:
    seeds = {reading.seed for reading in readings}
    if len(seeds) == 1:
        which = f"seed {seeds.pop()}"
    else:
        which = "; ".join(f"{reading.arm}: seed {reading.seed}" for reading in readings)
    same = "All have the same prompts, texts and sampling seed."
    return f"One run of each arm ({which}), not chosen for its result. {same}"


def prompts_of(readings: Sequence[Reading]) -> list[str]:
    return [prompt for prompt, _ in max((reading.samples for reading in readings), key=len, default=[])]


def title_of(prompt: str) -> str:
    return f"After “{prompt}”" if prompt.strip() else "From nothing"


def figures(readings: Sequence[Reading]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each arm that has read the texts."""
    for one in readings:
        if one.stories:
            yield one.arm, f"{accuracy(one, 1):.1%}", f"{accuracy(one, 5):.1%}", f"{bits_a_byte(one):.3f}"


# ---- as HTML -------------------------------------------------------------------------------------


def missing(readings: Sequence[Reading]) -> Iterator[str]:
    """Yield a line for each reason why something isn't shown, with the arms that it holds for."""
    for why in dict.fromkeys(reading.why_not for reading in readings if reading.why_not):
        arms = ", ".join(reading.arm for reading in readings if reading.why_not == why)
        yield f'<p class="why-not"><b>{escape(arms)}</b>: {escape(why)}</p>'


def written(readings: Sequence[Reading]) -> Iterator[str]:
    """Yield a block for each prompt, in which the arms stand side by side."""
    for place, prompt in enumerate(prompts_of(readings)):
        yield f"<h3>{escape(title_of(prompt))}</h3>"
        yield '<div class="samples">'
        for one in readings:
            if one.samples:
                yield block("sample", one, f"<b>{escape(prompt)}</b>{escape(one.samples[place][1])}")
        yield "</div>"


def read(readings: Sequence[Reading]) -> Iterator[str]:
    """Yield a block for each held-out text, in which the arms stand one beneath the other."""
    readers = [reading for reading in readings if reading.stories]
    if not readers:
        return
    yield f"<h3>Reading held-out text</h3>\n{LEGEND}"
    yield from table(HEADINGS, figures(readers))
    for place in range(len(readers[0].stories)):
        yield f"<h3>Held-out text {place + 1}</h3>"
        yield '<div class="stories">'
        for one in readers:
            yield block("story", one, "".join(map(coloured, one.stories[place])))
        yield "</div>"


def block(name: str, reading: Reading, text: str) -> str:
    return f'<article class="{name}"><h4>{escape(reading.arm)}</h4><p>{text}</p></article>'


def table(headings: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield '<table class="accuracy">'
    yield "<tr>" + "".join(f"<th>{escape(heading)}</th>" for heading in headings) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table>"


def coloured(guess: Guess) -> str:
    """Return a token in the colour of its loss, with a line beneath if it was among the first guesses."""
    line = " first" if guess.rank == 1 else " among-five" if guess.rank <= 5 else ""
    said = f"{guess.nats:.2f} nats, {ordinal(guess.rank)} guess"
    return token(guess.nats, line, f' title="{said}"', "".join(map(calm, guess.text)))


def token(nats: float, line: str, title: str, text: str) -> str:
    surprise = min(nats / DARKEST, 1)
    return f'<span class="token{line}" style="--surprise:{surprise:.3f}"{title}>{text}</span>'


def calm(char: str) -> str:
    """Return a character as it is shown: a space by its token's colour alone, other white space by a pale mark."""
    if char.isprintable():
        return escape(char)
    mark = f'<span class="white">{escape(visible(char.encode()))}</span>'
    return mark + "\n" if char == "\n" else mark


def ordinal(number: int) -> str:
    teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


LEGEND = (
    '<p class="legend">Each token is coloured by its loss in nats: '
    + "".join(token(nats, "", "", f"{nats}" if nats < DARKEST else f"{nats} or more") for nats in range(7))
    + ". At 2.3 nats the model had given it 1 chance in 10, at 4.6 nats 1 in 100. Beneath it, "
    + token(0, " first", "", "a line")
    + " says that it was the model’s first guess (top-1), and "
    + token(0, " among-five", "", "dots")
    + " that it was among its first five (top-5).</p>"
)


# ---- as Markdown ---------------------------------------------------------------------------------


def quotation(text: str) -> str:
    """Return a text as a blockquote that keeps its lines."""
    return "\\\n".join(f"> {marked.plain(line)}" for line in text.split("\n"))
