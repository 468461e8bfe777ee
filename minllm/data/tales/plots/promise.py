"""A promise is made in the first scene, and kept or broken in the last."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def promise(tell: Teller) -> None:
    tell("""
        [
            {A mien} {animal} lived in {home}, [near|past|behind|beside] the {place}
        |   [Near|Past|Behind|Beside] the {place} lived {a mien} {animal}, in {home}
        |   By the {place} there was {a mien} {animal}, and {animal.his} [home|house|bed] was {home}
        ]. One <sky> {season} [morning|afternoon|day|evening] {animal.he} [met|greeted|stopped|woke] {hero} in
        <a tint> <garment>.
        "[Could|Would|Can] you bring me {a taste} {treat}?" {animal.he} {animal.cry}.
    """)
    tell("""
        "On {weekday}, {spot}. I promise," <said> {hero} <kindly>, and <went> [home|back] to {village}, past
        <a size> <house>, <a mien> <bird> and <number> <mien> <creatures>.
    """)
    tell("""
        {weekday} was <sky>. "[Come|Let us go|Hurry] to the {second}!" <said> {friend}, in <a tint> <garment>.
        "We will play <game> with <child> and <child>!" {hero} felt <sad>.
    """)
    tell.one_of(kept, broken)


def kept(tell: Teller) -> None:
    tell("""
        "First my promise," {hero} <answered>. They bought {a taste} {treat} from <elder>, <went> <quickly> to
        the {place}, and
        there, {spot}, by <a size> <tree>, was the {animal}.
    """)
    tell("""
        "<Virtue> [beats|outlasts|outshines|is better than|is worth more than|is stronger than] <riches>,"
        {animal.he} {animal.cry}, eating <quickly>.
        <Soon> all three <went> to the {second}, as <glad> as <number> <revellers>.
    """)


def broken(tell: Teller) -> None:
    tell("""
        {Hero.he} <went> along <quickly>, ate <a taste> <food> and [followed <a mien> <insect>|sang
        <song>|picked <tint> <flowers>].
        Only at <a size> <tree> did {hero.he} think of the {animal}.
    """)
    tell("""
        <Moment>, {hero.he} <went> <quickly> to the {place} with {a taste} {treat} and looked {spot}. "I broke
        my promise," {hero.he} <said>, <sad>.
        [
            "<Virtue> [beats|outlasts|outshines|is better than|is worth more than|is stronger than] <riches>,"
            the {animal} {animal.cry} <kindly>
        |   The {animal} {animal.cry} <kindly>, and they shared it under <a size> <tree>
        |   "Next <day>, bring <number>," the {animal} {animal.cry} <kindly>
        ].
    """)
