"""A noise in the night has a cause, and the cause turns out to need a home."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def noise(tell: Teller) -> None:
    tell("""
        [
            [Three|Two|Four|Five|Six|Seven|Ten|Twelve] nights running, {hero} heard {a sound}
        |   One <sky> <season> night in {village}, {a sound} woke {hero}
        |   "Did you hear that {sound}?" <asked> {hero} one <sky> night
        ]. {friend}, {a temper} child in <a tint> <garment>, who was staying until {weekday}, felt <sad>.
        "It is [|surely |perhaps |no doubt ]<a mien> <fright>," {friend.he} <said>. "[No|Never|Hardly],
        <a mien> <insect>," <answered> {hero} <kindly>.
    """)
    tell("""
        With <a look> <tint> <tool> they <went> <quickly> past <a size> <tree>. [On the way|In the dark|There]
        they found <a look> <tint> <find>. <Soon> the {sound} came again, and out <went> {a mien} {animal}! "I
        live in {home}, near the {place}," {animal.he} {animal.cry} <kindly>, "and I am [lost|cold|hungry]."
    """)
    tell.one_of(home_again, stays)


def home_again(tell: Teller) -> None:
    tell("""
        <Moment>, they and {elder} <went> <quickly> to the {place} with the {animal}, and found {home}. As
        thanks, {animal.he} [gave|brought] them <a taste> <food>.
    """)
    tell("""
        On {weekday} {friend} left, <glad> but <sad>. That night {hero} heard {a sound} again: the {mien}
        {animal} and <number> <mien> <creatures> were singing <song>.
    """)


def stays(tell: Teller) -> None:
    tell("""
        {elder} [made|spread] a bed of <tint> <flowers>, brought <a taste> <food>, and <soon> the {animal}
        slept.
    """)
    tell("""
        On {weekday}, all three, <glad> but <sad>, <went> <quickly> to the {place} and found {home}. The
        {mien} {animal} gave them <a tint> <garment>, and the {sound} was heard no more.
    """)
