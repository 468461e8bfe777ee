"""How often the interval of a rank correlation contains the true one: `python -m tests.simulate_rankings`.

Models have normal losses on two datasets, with a known correlation, and seeds add noise to both. docs/scale.md has the
table.
"""

from __future__ import annotations

import math

import numpy as np

from minllm.study.ranking.correlation import correlations

ROWS = ((12, 0.8, 0.1), (12, 0.95, 0.05), (12, 0.99, 0.01), (12, 0.99, 0.1), (6, 0.9, 0.1), (20, 0.9, 0.1))
"""Models, correlation of their losses, and the noise of a seed, as a share of the spread between models."""
SEEDS, RANKINGS = 3, 300


def shares(models: int, correlation: float, noise: float, rankings: int) -> tuple[float, float, float]:
    """Return how often the intervals of ρ and τ contain the true value, and the median of the lower ends of ρ's."""
    random = np.random.default_rng(0)
    true = (6 / math.pi * math.asin(correlation / 2), 2 / math.pi * math.asin(correlation))
    hits, lows = np.zeros(2), []
    for _ in range(rankings):
        losses = random.multivariate_normal(np.zeros(2), [[1, correlation], [correlation, 1]], size=models)
        runs = losses[:, :, None] + noise * random.standard_normal((models, 2, SEEDS))
        found = correlations(runs[:, 0].tolist(), runs[:, 1].tolist())
        hits += [one.interval[0] <= value <= one.interval[1] for one, value in zip(found, true)]
        lows.append(found[0].interval[0])
    return (*(hits / rankings), float(np.median(lows)))


if __name__ == "__main__":
    print("| models | correlation | noise of a seed | ρ | τ | lower end of ρ's interval (median) |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        of_rho, of_tau, low = shares(*row, RANKINGS)
        print(f"| {row[0]} | {row[1]} | {row[2]} | {of_rho:.1%} | {of_tau:.1%} | {low:.2f} |", flush=True)
