"""The exact p-value of a sign-flip test agrees with enumeration, also where p-values are tiny."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minllm.study.sign_flips import sign_flip_p


def test_the_p_value_is_exact_up_to_32_pairs_and_bounded_beyond():
    random = np.random.default_rng(0)
    for pairs in (1, 5, 12):
        values = random.normal(0.3, 1, pairs)
        flips = np.array([*itertools.product((1, -1), repeat=pairs)]) @ np.abs(values)
        exact = np.mean(np.abs(flips) >= abs(values.sum()) - 1e-9)
        assert sign_flip_p(values) == pytest.approx(exact)
    signed_ranks = [*[math.inf] * 4, -math.inf, 0.1, -0.2]  # ranks 5, 5, 5, 5, −5, 1, −2
    flips = np.array([*itertools.product((1, -1), repeat=7)]) @ np.array([5, 5, 5, 5, 5, 1, 2])
    assert sign_flip_p(signed_ranks) == pytest.approx(np.mean(np.abs(flips) >= 14))
    same = np.ones(28)
    assert sign_flip_p(same) == pytest.approx(2 / 2**28) and sign_flip_p(np.zeros(3)) == 1
    values = random.normal(0.5, 1, 30)
    exact, bound = sign_flip_p(values), sign_flip_p([*values, 1e-9, 1e-9, 1e-9])
    assert exact < bound < 100 * exact
