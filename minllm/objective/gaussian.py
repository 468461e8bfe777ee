"""The noise of a continuous diffusion process, and its steps backwards.

A token's embedding e becomes the sequence x_0, x_1, …, x_T, of which the last is nearly pure noise:

    x_0 = e + σ₀ ε                        σ₀² = 1 − ᾱ_1
    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε
        = √ᾱ_t e + √v_t ε                 v_t = 1 − ᾱ_t + ᾱ_t σ₀²

x_0 is itself noised, so x_t is a Gaussian around the embedding for t = 0 too, with ᾱ_0 = 1 and v_0 = σ₀². The
signal-to-noise ratio ᾱ_t / v_t falls with t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OFFSET = 1e-4
"""Makes the square-root schedule begin with some noise (Diffusion-LM, 2205.14217)."""
MOST = 0.999
"""The largest variance added in a step."""


class Chain:
    """The process with the square-root schedule ᾱ_t = 1 − √(t/T + 1e-4), relative to its value at t = 0.

    Args:
        steps: their number, T.
    """

    def __init__(self, steps: int):
        self.steps = steps
        kept, alpha_bars = 1.0, [1.0]
        for step in range(steps):
            kept *= 1 - min(MOST, 1 - _kept(step + 1, steps) / _kept(step, steps))
            alpha_bars.append(kept)
        first = 1 - alpha_bars[1]
        variances = [1 - kept + kept * first for kept in alpha_bars]
        ratios = [kept / variance for kept, variance in zip(alpha_bars, variances)]
        self.first_std, self.last_alpha_bar = math.sqrt(first), kept
        self.alpha_bar_L = torch.tensor(alpha_bars, dtype=torch.float64)
        self.variance_L = torch.tensor(variances, dtype=torch.float64)
        # 0 at t = 0, which no step leads to
        gained = [0.0, *(before - after for before, after in zip(ratios, ratios[1:]))]
        self.weight_L = torch.tensor(gained, dtype=torch.float64) / 2

    def from_start(self, start_BTW: Tensor, noise_BTW: Tensor, t_B: Tensor) -> Tensor:
        """Return x_t, given x_0 and standard normal noise."""
        alpha_bar_B11 = self._at(self.alpha_bar_L, t_B)
        return _mixed(alpha_bar_B11.sqrt(), start_BTW, (1 - alpha_bar_B11).sqrt(), noise_BTW)

    def from_clean(self, clean_BTW: Tensor, noise_BTW: Tensor, t_B: Tensor) -> Tensor:
        """Return x_t, given the embeddings and standard normal noise."""
        signal_B11, variance_B11 = self._at(self.alpha_bar_L, t_B).sqrt(), self._at(self.variance_L, t_B)
        return _mixed(signal_B11, clean_BTW, variance_B11.sqrt(), noise_BTW)

    def clean(self, start_BTW: Tensor, x_BTW: Tensor, t_B: Tensor) -> Tensor:
        """Return the mean of the embeddings, given x_t and the mean of x_0.

        Of x_t's deviation from the embedding's mean, x_0 has the fraction k = √ᾱ_t σ₀² / v_t:

            x_0 = e + k (x_t − √ᾱ_t e),   so   e = (x_0 − k x_t) / (1 − k √ᾱ_t)

        At t = 1 models predict the embedding itself.
        """
        alpha_bar_B11, variance_B11 = self._at(self.alpha_bar_L, t_B), self._at(self.variance_L, t_B)
        k_B11 = alpha_bar_B11.sqrt() * self.first_std**2 / variance_B11
        k_B11 = torch.where(t_B.view(-1, 1, 1) == 1, 0, k_B11)
        rest_B11 = 1 - k_B11 * alpha_bar_B11.sqrt()
        return _mixed(1 / rest_B11, start_BTW, -k_B11 / rest_B11, x_BTW)

    def evidence(self, x_BTW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_t / v_t · x_t and ᾱ_t / v_t, (B, 1, 1): the density of x_t is ∝ exp(first · e − second/2 ‖e‖²)."""
        alpha_bar_B11, variance_B11 = self._at(self.alpha_bar_L, t_B), self._at(self.variance_L, t_B)
        return (alpha_bar_B11.sqrt() / variance_B11).float() * x_BTW, (alpha_bar_B11 / variance_B11).float()

    def back(self, x_BTW: Tensor, clean_BTW: Tensor, noise_BTW: Tensor | None, t: int, s: int) -> Tensor:
        """Return x_s for s < t, given x_t and predicted embeddings.

        It is drawn from q(x_s | x_t, e) with this standard normal noise (DDPM, 2006.11239). Without noise it has the
        deviation of x_t from its mean, scaled (DDIM, 2010.02502).
        """
        signal_t, signal_s = (math.sqrt(self.alpha_bar_L[i].item()) for i in (t, s))
        v_t, v_s = (self.variance_L[i].item() for i in (t, s))
        if noise_BTW is None:
            return signal_s * clean_BTW + math.sqrt(v_s / v_t) * (x_BTW - signal_t * clean_BTW)
        from_s = signal_t / signal_s
        added = v_t - from_s**2 * v_s
        mean_BTW = from_s * v_s / v_t * x_BTW + signal_s * added / v_t * clean_BTW
        return mean_BTW + math.sqrt(added * v_s / v_t) * noise_BTW

    def loss(self, squared_B: Tensor, t_B: Tensor) -> Tensor:
        """Return KL(q(x_{t-1} | x_t, e) ‖ q(x_{t-1} | x_t, ê)) in nats, given ‖e − ê‖²."""
        return self.weight_L.to(t_B.device)[t_B].float() * squared_B

    def prior_loss(self, squared: Tensor, width: int) -> Tensor:
        """Return KL(q(x_T | e) ‖ N(0, I)) in nats, given ‖e‖²."""
        kept, variance = self.last_alpha_bar, self.variance_L[-1].item()
        return (kept * squared + width * (variance - 1 - math.log(variance))) / 2

    def _at(self, values_L: Tensor, t_B: Tensor) -> Tensor:
        return values_L.to(t_B.device)[t_B].view(-1, 1, 1)


def _kept(step: int, steps: int) -> float:
    return 1 - math.sqrt(step / steps + OFFSET)


def _mixed(a_B11: Tensor, x_BTW: Tensor, b_B11: Tensor, y_BTW: Tensor) -> Tensor:
    return a_B11.float() * x_BTW + b_B11.float() * y_BTW
