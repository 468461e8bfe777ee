"""The protocol of a ranking, its models and its datasets, all of which is fixed before the first run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minllm.errors import UserError
from minllm.schema.options import Share
from minllm.study.ranking.cells import LEAST_MODELS
from minllm.verdict.cells_protocol import CellsProtocol, options_named
from minllm.verdict.protocol import SET_BY_RATES

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper


@dataclass(frozen=True, kw_only=True)
class RankingProtocol(CellsProtocol):
    """The `search:` section of a ranking; see `CellsProtocol` for what isn't explained here.

    alike: the rank correlation above which two datasets count as ranking alike
    """

    alike: Share

    noun = "ranking"
    section = "models"
    sets = SET_BY_RATES

    def run(self, sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
        """Train each model on each dataset, and write the report.

        Args:
            sweeper: has the configuration.
            overrides: the command line's, without Hydra's own.
        """
        from minllm.sweep.plugin import NotSettled
        from minllm.verdict.ranking import rank

        ranking = rank(sweeper, overrides)
        if ranking is not None and not ranking.is_answered:
            raise NotSettled


def models_in(section: object) -> dict[str, list[str]]:
    """Return the overrides of each model, by its name. UserError if there are too few to be ranked."""
    models = options_named(section, "models", "experiment=", "[small_transformer,small_mamba]")
    if len(models) < LEAST_MODELS:
        raise UserError(
            f"A ranking needs {LEAST_MODELS} models or more, because a rank correlation of fewer has no interval:"
            f" models has {len(models)}."
        )
    return models


def datasets_in(section: object) -> dict[str, list[str]]:
    """Return the overrides of each dataset, by its name. UserError if there are fewer than two."""
    example = "[tales,text data.path=stories.jsonl tokenizer=tinystories_1024]"
    datasets = options_named(section, "datasets", "data=", example)
    if len(datasets) < 2:
        raise UserError(f"A ranking compares two datasets or more, such as 'datasets={example}'.")
    return datasets
