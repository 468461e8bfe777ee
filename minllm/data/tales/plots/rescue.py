"""An animal is helped out of trouble, and later helps in its turn with what it does best."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def rescue(tell: Teller) -> None:
    tell("""
        [
            One <sky> <season> day, {hero}, {a temper} child, <went> to the {place} with <a taste> <food>
        |   {hero} from {village}, {a temper} child, often <went> to the {place} in <season>
        |   <Number> steps from the {place}, {hero} stopped to [smell|pick|draw|count] <tint> <flowers>
        ]. {Hero.he} had <a tint> <garment> and {a trait} {colour} {toy}. <Soon> {hero.he} heard a
        [faint|sad|strange|soft] <noise>.
    """)
    tell("""
        It was <a mien> {animal}, caught {spot} [by the tail|by one foot|between <number> stones|in a net]!
        {hero} [pulled|tugged|pushed|dug|worked] <quickly> with <a look> <tint> <tool>, and freed
        {animal.him}.
        "I can {animal.gift}," {animal.he} {animal.cry} <kindly>, and <went> past <a size> <tree> and <number>
        <mien> <creatures> to {home}.
    """)
    tell.one_of(toy_in_trouble, stranger_in_trouble)


def toy_in_trouble(tell: Teller) -> None:
    tell("""
        <Moment>, {hero}, {friend} and <child> <went> <quickly> to the {second} with the {toy}, but it
        {animal.need}!
        {hero}, <sad>, called the {animal}, who {animal.deed} and brought it back.
    """)
    tell("""
        {friend}, <glad> again, gave {animal.him} <a taste> <food> and <a tint> <garment>. [
            "<Virtue> [beats|outlasts|outshines|is better than|is worth more than|is stronger than] <riches>,"
            {friend.he} <said>
        |   They <went> home past <number> <mien> <creatures>, singing <song>
        |   Then they played <game> with <child>, as <glad> as <number> <revellers>
        ].
    """)


def stranger_in_trouble(tell: Teller) -> None:
    tell("""
        <Moment>, {hero} met {friend} and <child> at the {second}, {nook}, both <sad>. Their <look> <tint>
        {swap} {animal.need}!
        {hero} called the {animal}, who {animal.deed} and brought it back.
    """)
    tell("""
        They were as <glad> as <number> <revellers>, ate <a taste> <food>, sang <song> and <went> off
        <quickly> to {toy.use}.
    """)
