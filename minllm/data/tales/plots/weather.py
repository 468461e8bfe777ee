"""The weather is the cause, and everything that follows from it agrees with it."""

from __future__ import annotations

from minllm.data.tales.language import Teller


def weather(tell: Teller) -> None:
    tell("""
        [
            One <sky> {weekday}, {hero}, {friend} and <child> took {a trait} {colour} {toy} to the {place}
        |   {hero}, {a temper} child from {village}, took {a trait} {colour} {toy} to the {place} with
            {friend}
        |   All <season>, {hero}, {friend} and <child> had longed to take {a trait} {colour} {toy} to the
            {place}
        ]. {hero} packed <a taste> <food>, and {friend} put on {a dye} {dress}. "[Mind,|Look out,|Careful,|I
        fear] {storm.sign}," <said> {elder} <kindly>.
    """)
    tell("""
        They <went> <quickly> past <a size> <tree>, <number> <mien> <creatures> and <a size> <house>. <Soon>
        {storm.comes}. The {dress} was {storm.state}, and {friend} was <sad>.
    """)
    tell.one_of(shelter, guide)


def shelter(tell: Teller) -> None:
    tell("""
        They <went> {spot}, met <a mien> {animal} in <a tint> <garment>, and [played <game>|sang <song>] with
        {animal.him}, until {storm.over}.
    """)
    tell("""
        At home {elder} {storm.cure}. The {toy} {toy.hurt}, so {elder.he} <quickly> {toy.mend}, while the
        {dye} {dress} dried by <a look> [stove|window|lamp]. All ate <a taste> <food> and were <glad>.
    """)


def guide(tell: Teller) -> None:
    tell("""
        <Soon> {elder} <went> up with <a look> <tint> [lamp|lantern|flag|candle], led them {spot}, shared
        <a taste> <food> and [played <game>|sang <song>] until {storm.over}.
    """)
    tell("""
        At home {elder.he} {storm.cure} and brushed the {dye} {dress}. <Moment>, {hero}, {friend} and <child>
        <went> <quickly> to the {place} to {toy.use}, as <glad> as <number> <revellers>.
    """)
