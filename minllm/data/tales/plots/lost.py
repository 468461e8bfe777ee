"""Something dear is lost in one place, looked for at home, and given back to its owner."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def lost(tell: Teller) -> None:
    tell("""
        [
            {hero}, {a temper} child from {village}, had {a trait} {colour} {toy}, a gift from {elder}
        |   Nobody in {village} but {hero} had {a trait} {colour} {toy}. It came from {elder}
        |   {elder} once gave {a temper} child called {hero} {a trait} {colour} {toy}
        |   In {village}, in <a size> {house}, {hero} kept {a trait} {colour} {toy} that {elder} had
            [made|bought|won|found|painted]
        ]. On <sky> [mornings|evenings|afternoons|days|weekends] {hero.he} <went> out to {toy.use}.
    """)
    tell("""
        One <sky> {weekday} {hero} took the {toy} to the {place}, ate <a taste> <food>, [
            [picked|smelled|counted|drew] <tint> <flowers> and <went> <quickly> after <a mien> <insect>
        |   <went> <quickly> round <a size> <tree> and played <game> with <child> and <child>
        |   stopped to watch {view}, and <went> <quickly> past <a mien> <bird>
        ]. <Soon> {hero.he} felt <sad>: it was [gone|missing|lost|not there]!
    """)
    tell("""
        [
            They searched <corner> and <corner>, but found only <number> <mien> <creatures> and <a look>
            <tint> <find>
        |   {elder} looked <corner>, {friend} <corner> and {hero} <corner>, but there was only <a look> <tint>
            <find>
        |   "[Look|Search] <corner>, and I will look <corner>," <said> {elder}, but they found nothing but
            <a look> <tint> <find>
        ].
    """)
    tell.one_of(friend_finds_it, hero_finds_it, animal_finds_it)


def friend_finds_it(tell: Teller) -> None:
    tell("""
        <Moment>, {friend} <went> <quickly> up the <size> [stairs|path|street|steps] in <a tint> <garment>.
        "[Guess|Look|See] what lay {spot}!" {friend.he} <said>. It was the {toy}! It {toy.hurt}, but {elder}
        <quickly> {toy.mend}.
    """)
    tell("""
        {hero}, <glad> again, gave {friend} <a taste> <food>. [
            "<Virtue> [beats|outlasts|outshines|is better than|is worth more than|is stronger than] <riches>,"
            <said> {elder} <kindly>
        |   <Soon> they <went> out to {toy.use} with <child>, as <glad> as <number> <revellers>
        |   That night the {toy} slept beside {hero}, under <a look> <tint> blanket
        ].
    """)


def hero_finds_it(tell: Teller) -> None:
    tell("""
        <Moment>, {hero} <went> to the {place} in <a tint> <garment>. {Hero.he} asked <a mien> <bird>
        and <a size> <tree>, and <soon> looked {spot}. There lay the {toy}! It {toy.hurt}.
    """)
    tell("""
        "[Never mind|Don't cry|It is nothing|Leave it to me]," <said> {elder} <kindly>, and <quickly>
        {toy.mend}.
        {hero}, {friend} and <child>, all <glad>, <went> out to {toy.use}.
    """)


def animal_finds_it(tell: Teller) -> None:
    tell("""
        <Moment>, {hero} <went> back in <a tint> <garment>. <A mien> {animal} {animal.cry} <kindly> {spot}.
        "Here is your <look> {toy}," {animal.he} <said>. "I can {animal.gift}."
    """)
    tell("""
        {hero}, <glad> again, gave the {animal} <a taste> <food>. <Soon> {hero}, {friend} and <child> <went>
        out with it.
    """)
