"""A chain of swaps that ends with the very thing which was needed at the beginning."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def trade(tell: Teller) -> None:
    tell("""
        [
            {elder}, who lived in <a size> {house} in {village}, needed {a trait} {charm}
        |   "If only I had {a trait} {charm}!" <said> {elder} in <a size> {house} one <sky> {weekday}
        |   All {village} knew that {elder} was looking for {a trait} {charm}
        ]. {hero}, {a temper} child in <a tint> <garment>, had only {a colour} {prize}.
        {Hero.he} put it in {hero.his} [bag|basket|rucksack|barrow|cart|suitcase] and <went> <quickly> to the
        {place}.
    """)
    tell("""
        There, {spot}, sat {friend} with <a taste> <food>.
        "What <a look> {prize}!" {friend.he} <said> <kindly>. "Swap it for my {shade} {swap}?" "[Yes|Very
        well|All right|Done|Why not]," <answered> {hero}.
    """)
    tell("""
        <Soon>, [near|under|beside] <a size> <tree> full of <mien> <creatures>, {hero.he} met {rival} and
        <child>. {rival} felt <sad>, for {rival.his} {swap} was
        [gone|broken|lost|stolen], so {hero} gave {rival.him} the {shade} one.
    """)
    tell.one_of(swapped, given)


def swapped(tell: Teller) -> None:
    tell("""
        {Rival.he} [laughed|smiled|bowed|blushed] and <quickly> [handed over|put down|brought out] {a trait}
        {charm} that smelled of <smell>.
        {Hero.he} <went> home <quickly>, over <a size> [bridge|wall|field|stream|fence|hill].
    """)
    tell("""
        {elder} was as <glad> as <number> <revellers>. Over <a taste> <food>, {hero} told of {friend}, the
        {swap} and {rival}.
    """)


def given(tell: Teller) -> None:
    tell("""
        {hero} <went> home <quickly>, over <a size> [bridge|wall|field|stream|fence|hill], <sad>, with no
        {charm} for {elder}.
    """)
    tell("""
        <Moment>, <a look> <tint> [box|bag|parcel|basket] stood [at the gate|on the step|by the door]. In it
        lay {a trait} {charm} and a note: "For the {swap}.
        Love, {rival}." {elder}, <glad> at last, [boiled|made|cooked|baked] <a taste> <food>.
    """)
