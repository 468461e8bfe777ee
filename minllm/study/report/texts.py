"""The report's samples, side by side, and its held-out texts, coloured by loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from minllm.page import html as page
from minllm.page import markdown
from minllm.page.html import escape
from minllm.study.reading import Guess, Reading, accuracy, bits_per_byte
from minllm.tokenizer.show import visible

DARKEST = 6.0
"""The loss in nats above which colours stay the same: a probability of 1 in 400."""

FARTHEST = 3.0
"""The difference in nats above which colours stay the same."""
NOTICED = 0.1
"""The difference in nats above which a token is marked."""

STYLE_TEXTS = """
.samples, .stories { display: grid; gap: 1rem 2rem; }
.samples, .stories { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.sample p, .story p { margin: .25rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample h4, .story h4 { margin: 0; font-size: .85rem; font-weight: 600; opacity: .75; overflow-wrap: anywhere; }
.story p { line-height: 1.9; }
.token { --surprise: 0; background: rgb(222 92 24 / calc(var(--surprise) * .72)); padding: .15em 0;
  border-bottom: 2px none color-mix(in srgb, currentColor 65%, transparent); }
.token.first { border-bottom-style: solid; }
.token.among-five { border-bottom-style: dotted; }
.token.lower { background: rgb(0 114 178 / calc(var(--surprise) * .6)); border-top: 2px solid #0072b2; }
.token.higher { border-top: 2px dashed #d55e00; }
@media (prefers-color-scheme: dark) {
  .token.lower { background: rgb(60 160 225 / calc(var(--surprise) * .5)); border-top-color: #5bb5ec; }
  .token.higher { border-top-color: #f28a3c; }
}
.white { opacity: .4; }
.legend { font-size: .85rem; line-height: 2; }
.legend .token { padding: .15em .5em; }
"""
"""One hue whose strength grows with the loss. Mixed in sRGB, equal steps look equal on a white and a black page."""


def texts_html(readings: Sequence[Reading]) -> str:
    """Return the samples and held-out texts of one run of each arm, as part of a page with STYLE_TEXTS."""
    return "\n".join(
        [
            f"<p>{escape(which_runs(readings))}</p>",
            *missing_html(readings),
            *samples_html(readings),
            *held_out_html(readings),
        ]
    )


def texts_markdown(readings: Sequence[Reading]) -> str:
    """Return the samples as quotations, and the accuracy of each arm's run on the held-out texts as a table."""
    lines = [markdown.plain(which_runs(readings))]
    for arms, why in not_shown(readings):
        lines.append(f"{', '.join(map(markdown.code, arms))}: {markdown.plain(why)}")
    for place, prompt in enumerate(prompts_of(readings)):
        lines.append(f"**{markdown.plain(title_of(prompt))}**")
        for reading in readings:
            if reading.samples:
                lines += [markdown.code(reading.arm), quotation(f"…{reading.samples[place][1]}")]
    if rows := [[markdown.code(reading.arm), *metrics(reading)] for reading in readers(readings)]:
        lines.append(markdown.table(HEADINGS, rows, "lrrr"))
    return "\n\n".join(lines) + "\n"


# ---- shared by both -------------------------------------------------------------------------------

HEADINGS = ("arm", "top-1", "top-5", "bits per byte")


def which_runs(readings: Sequence[Reading]) -> str:
    seeds = {reading.seed for reading in readings}
    if len(seeds) == 1:
        which = f"seed {seeds.pop()}"
    else:
        which = "; ".join(f"{reading.arm}: seed {reading.seed}" for reading in readings)
    return (
        f"One run of each arm ({which}), not selected by its result. All use the same prompts, texts and"
        " sampling seed."
    )


def prompts_of(readings: Sequence[Reading]) -> list[str]:
    return [prompt for prompt, _ in max((reading.samples for reading in readings), key=len, default=[])]


def title_of(prompt: str) -> str:
    return f"After “{prompt}”" if prompt.strip() else "Without a prompt"


def not_shown(readings: Sequence[Reading]) -> Iterator[tuple[list[str], str]]:
    """Yield the arms for which something isn't shown, grouped by reason, with the reason."""
    for why in dict.fromkeys(reading.why_not for reading in readings if reading.why_not):
        yield [reading.arm for reading in readings if reading.why_not == why], why


def readers(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings with at least one token; the others have no accuracy."""
    return [reading for reading in readings if any(reading.stories)]


def metrics(reading: Reading) -> list[str]:
    """Return an arm's accuracy and loss, for the columns of HEADINGS."""
    return [f"{accuracy(reading, 1):.1%}", f"{accuracy(reading, 5):.1%}", f"{bits_per_byte(reading):.3f}"]


# ---- as HTML -------------------------------------------------------------------------------------


def missing_html(readings: Sequence[Reading]) -> Iterator[str]:
    for arms, why in not_shown(readings):
        yield f'<p class="why-not"><b>{escape(", ".join(arms))}</b>: {escape(why)}</p>'


def samples_html(readings: Sequence[Reading]) -> Iterator[str]:
    """Yield a block for each prompt, with the arms side by side."""
    for place, prompt in enumerate(prompts_of(readings)):
        yield f"<h3>{escape(title_of(prompt))}</h3>"
        yield '<div class="samples">'
        for reading in readings:
            if reading.samples:
                yield block(
                    "sample", reading.arm, f"<b>{escape(prompt)}</b>{escape(reading.samples[place][1])}"
                )
        yield "</div>"


def held_out_html(readings: Sequence[Reading]) -> Iterator[str]:
    """Yield a block for each held-out text: each arm's losses, and how they differ from the first arm's."""
    shown = readers(readings)
    if not shown:
        return
    yield f"<h3>Reading held-out text</h3>\n{LEGEND}{LEGEND_OF_DIFFERENCES if len(shown) > 1 else ''}"
    yield page.table(HEADINGS, [[escape(reading.arm), *metrics(reading)] for reading in shown], "lrrr")
    first, *others = shown
    for place in range(len(first.stories)):
        yield f"<h3>Held-out text {place + 1}</h3>"
        yield '<div class="stories">'
        if first.givens:
            yield block("story", "given", escape(first.givens[place]))
        yield block("story", first.arm, "".join(map(coloured, first.stories[place])))
        for reading in others:
            yield block("story", reading.arm, "".join(map(coloured, reading.stories[place])))
            apart = differences(reading.stories[place], first.stories[place])
            text = "".join(compared(guess, more) for guess, more in zip(reading.stories[place], apart))
            yield block("story", f"{reading.arm} minus {first.arm}: {sum(apart):+.2f} nats", text)
        yield "</div>"


def differences(story: Sequence[Guess], against: Sequence[Guess]) -> list[float]:
    """Return the difference in nats between each token's loss and another arm's loss over the same bytes.

    If the arms' tokens differ, each of the other arm's losses is spread evenly over the bytes of its token.
    """
    if [guess.text for guess in story] == [guess.text for guess in against]:
        return [guess.nats - other.nats for guess, other in zip(story, against)]
    ends, lost = (
        np.cumsum([0, *values]) for values in zip(*((guess.bytes, guess.nats) for guess in against))
    )
    own = np.cumsum([0, *(guess.bytes for guess in story)])
    losses = np.diff(np.interp(own, ends, lost))
    return [guess.nats - float(loss) for guess, loss in zip(story, losses)]


def block(name: str, heading: str, text: str) -> str:
    return f'<article class="{name}"><h4>{escape(heading)}</h4><p>{text}</p></article>'


def coloured(guess: Guess) -> str:
    """Return a token in the colour of its loss, underlined if it was among the top five guesses."""
    line = " first" if guess.rank == 1 else " among-five" if guess.rank <= 5 else ""
    title = f"{guess.nats:.2f} nats, {ordinal(guess.rank)} guess"
    return token(guess.nats, line, f' title="{title}"', "".join(map(char_html, guess.text)))


def compared(guess: Guess, more: float) -> str:
    """Return a token coloured by how its loss differs from another arm's, with a line above if it is marked."""
    side = "" if abs(more) < NOTICED else " lower" if more < 0 else " higher"
    share = min(abs(more) / FARTHEST, 1) * DARKEST * bool(side)
    return token(
        share, side, f' title="{more:+.2f} nats: {guess.nats:.2f} here"', "".join(map(char_html, guess.text))
    )


def token(nats: float, line: str, title: str, text: str) -> str:
    surprise = min(nats / DARKEST, 1)
    return f'<span class="token{line}" style="--surprise:{surprise:.3f}"{title}>{text}</span>'


def char_html(char: str) -> str:
    """Return a character as HTML. Spaces show only their token's colour, and other white space has a pale mark."""
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
    + ". At 2.3 nats the model gave it a probability of 1 in 10, at 4.6 nats 1 in 100. Below it, "
    + token(0, " first", "", "a line")
    + " marks the model’s first guess (top-1), and "
    + token(0, " among-five", "", "dots")
    + " one of its first five (top-5).</p>"
)

LEGEND_OF_DIFFERENCES = (
    '<p class="legend">Beside it, each token is coloured by how its loss differs from that of the first arm: '
    + token(DARKEST / 2, " lower", "", "a solid line above, blue")
    + " where it is lower, and "
    + token(DARKEST / 2, " higher", "", "a dashed line above, orange")
    + f" where it is higher, by at least {NOTICED} nats.</p>"
)


# ---- as Markdown ---------------------------------------------------------------------------------


def quotation(text: str) -> str:
    """Return a text as a blockquote that keeps its lines."""
    return "\\\n".join(f"> {markdown.plain(line)}" for line in text.split("\n"))
