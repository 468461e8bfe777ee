"""A gift is made in secret, nearly found out, and given on the day that was named at the start."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def gift(tell: Teller) -> None:
    tell("""
        [
            {elder} would be a year older on {weekday}
        |   {weekday} was the birthday of {elder}
        |   All {village} knew that {elder} had a birthday on {weekday}
        ], and {hero}, {a temper} child in <a tint> <garment>, wanted to sew {elder.him} {a cut} {colour}
        {dress}. "[Let us|We could|We can|I will|Quick,] hide it {corner}," <said> {friend} <kindly>.
    """)
    tell("""
        {hero} swapped <a look> <tint> <find> for {colour} [wool|cotton|linen|silk|felt|velvet], and {friend}
        begged <a look> needle from {helper}.
        <Moment> they sewed <quickly> [beside|under|behind] <a size> <tree>, singing <song>, with <a taste>
        <food> to share and <a mien> <bird> for company.
    """)
    tell("""
        On <day>, {elder} <went> in. "[What|Who] is [that|there|hiding]?" {elder.he} <asked>. {hero} felt
        <sad>. {friend} <answered>, "[Only <a look> <find>|Just <number> <creatures>|<A mien> <insect>]!"
    """)
    tell.one_of(given_in_time, given_torn)


def given_in_time(tell: Teller) -> None:
    tell("""
        {weekday} was <sky>. {hero} <quickly> looked {corner}, and <child> and <child> brought <tint>
        <flowers> that smelled of <smell>.
        "[{A colour} {dress}|My own {dress}|What {a colour} {dress}]!" <said> {elder}, as <glad> as <number>
        <revellers>.
    """)


def given_torn(tell: Teller) -> None:
    tell("""
        {weekday} was <sky>. They looked {corner}: <a mien> <insect> had [eaten|nibbled] <number> holes in the
        {dress}! {helper} <quickly> covered them with <tint> patches like <a look> <shape>.
        "[{A colour} {dress}|My own {dress}|What {a colour} {dress}]!" <said> {elder}, as <glad> as <number>
        <revellers>.
    """)
