"""Describes the space of a search without running anything."""

from __future__ import annotations

import itertools
import shlex

from minllm.sweep.spec import SearchSpec

SHOWN = 10


def dry_run(spec: SearchSpec) -> str:
    """Return the search space, the number of combinations under its conditions, and the first ten of them."""
    space = spec.space
    lines = [f"{name}  {kind}" for name, kind in space.distributions.items()]
    if space.continuous:
        lines += [
            "",
            f"{space.continuous[0]} is sampled from a continuous range, so the combinations can't be counted.",
        ]
        return "\n".join(lines)
    count = space.size()
    lines += [
        "",
        f"{count:,} combinations satisfy the conditions, out of {space.size_without_conditions():,}.",
        *[
            f"{name} is the first of {values} that fits in memory."
            for name, values in space.first_that_fits.items()
        ],
        "",
        f"The first {SHOWN} that can be built:" if count > SHOWN else "Those that can be built:",
    ]
    buildable = (values for values in space.grid() if spec.refusal(values) is None)
    for values in itertools.islice(buildable, SHOWN):
        lines.append(
            shlex.join(
                override for override in space.overrides(values) if override.partition("=")[0] in values
            )
        )
    return "\n".join(lines)
