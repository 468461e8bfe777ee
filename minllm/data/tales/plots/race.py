"""Two children race for a prize from one place to another, and the prize goes to the one who earned it."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def race(tell: Teller) -> None:
    tell("""
        [
            Every {season}, {village} held a race
        |   There was a race in {village} one <sky> {season}
        |   "Come to the race!" <said> {helper} from {village} one <sky> {season} [day|morning|evening]
        |   In {season}, on <a sky> {weekday}, {village} held a race
        ]. It went to the {place}, and the prize was {a trait} {colour} {toy} [made|painted|given|chosen] by
        {elder}. {hero}, {a temper} child in {a dye} {wrap},
        longed to {toy.use}. So did {rival} in <a tint> <garment>, and {friend}, who had eaten <a taste>
        <food>.
    """)
    tell("""
        They <raced> <quickly> past <number> <mien> <creatures>, <a size> <tree> and <a size> <house>. {hero}
        was [in front|ahead|first] when <soon> {hero.he} heard <a noise>:
        {rival} had [tripped over|run into|fallen over] <a look> {hindrance}.
    """)
    tell.one_of(stops, runs_on)


def stops(tell: Teller) -> None:
    tell("""
        {hero}, <sad>, <raced> back <quickly> and tied {hero.his} {dye} {wrap} round {rival}'s
        [knee|ankle|elbow|toe|foot]. So {friend} came first.
    """)
    tell("""
        "I saw you at the {hindrance}," <said> {elder} <kindly>. "<Virtue> [beats|outlasts|outshines|is better
        than|is worth more than|is stronger than] <riches>." {Elder.he} gave the {toy} to {hero}, and all
        three, as <glad> as <number> <revellers>, <went> off with it.
    """)


def runs_on(tell: Teller) -> None:
    tell("""
        {hero} <raced> on <quickly> and won the {colour} {toy}. But when {rival} came, <sad>, with a sore
        [knee|ankle|elbow|toe|foot], {hero} felt <sad>.
    """)
    tell("""
        <Moment>, {hero.he} <went> to {rival} with <a taste> <food>. "Shall we {toy.use}?" {hero.he} <asked>
        <kindly>. "[Yes|Gladly|With pleasure]," <answered> {rival}, <glad> again.
    """)
