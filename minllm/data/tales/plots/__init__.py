"""The plots. A plot is a function that tells its story to a `Teller`; a new one needs its name in `PLOTS`."""

from __future__ import annotations

from minllm.data.tales.language import Teller
from minllm.data.tales.plots.gift import gift
from minllm.data.tales.plots.lost import lost
from minllm.data.tales.plots.noise import noise
from minllm.data.tales.plots.promise import promise
from minllm.data.tales.plots.race import race
from minllm.data.tales.plots.rescue import rescue
from minllm.data.tales.plots.trade import trade
from minllm.data.tales.plots.weather import weather

PLOTS = (lost, promise, trade, rescue, weather, gift, race, noise)


def tell_a_tale(tell: Teller) -> None:
    """Tell one whole story."""
    tell.one_of(*PLOTS)
