"""What a search would try, before it tries anything."""

from __future__ import annotations

import itertools
import shlex

from minllm.sweep.spec import SearchSpec

SHOWN = 10


def dry_run(spec: SearchSpec) -> str:
    """Return how many combinations there are after the conditions, and the first ten; or what is drawn from."""
    space = spec.space
    lines = [f"{name}  {kind}" for name, kind in space.distributions.items()]
    if space.continuous:
        lines += [
            "",
            f"{space.continuous[0]} is drawn from a range, so that there's no number of combinations.",
        ]
        return "\n".join(lines)
    count = space.size()
    lines += [
        "",
        f"{count:,} combinations after the conditions, of {space.size_without_conditions():,} without.",
        *[
            f"{name} is the first of {values} that memory allows."
            for name, values in space.first_that_fits.items()
        ],
        "",
        f"The first {SHOWN} that can be built:" if count > SHOWN else "Those that can be built:",
    ]
    buildable = (one for one in space.grid() if spec.refusal(one) is None)
    for values in itertools.islice(buildable, SHOWN):
        lines.append(shlex.join(word for word in space.words(values) if word.partition("=")[0] in values))
    return "\n".join(lines)
