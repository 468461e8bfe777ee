"""`python sweep.py search=ranking 'datasets=[tales,…]'`: whether one dataset ranks models as another does.

Dataset after dataset, all models side by side:

1. Tuning: each model tries the same multiples of its learning rate, on seeds that aren't used later.
2. Seeds: each trains at its best rate with new seeds.
3. Report, from everything that was trained so far.

A model on a dataset is a search with its own folder, so an interrupted ranking continues with the same command.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from minllm.data.store import open_store
from minllm.errors import UserError, printable
from minllm.schema.building import build
from minllm.study import recorded
from minllm.study.measures import METRIC
from minllm.study.ranking.cells import Cell, Ranking
from minllm.study.ranking.report import write_and_print
from minllm.study.selection import RANKING
from minllm.study.tuning import RATE
from minllm.sweep.launchers import shared_server
from minllm.sweep.plugin import PruningSweeper
from minllm.sweep.report.trials import counted_noun
from minllm.verdict.arms_search import TUNING_EVALUATIONS
from minllm.verdict.cells_search import CellsSearch, rest_of
from minllm.verdict.metric import refuse_early_ends
from minllm.verdict.ranking_protocol import RankingProtocol, datasets_in, models_in
from minllm.verdict.rate_search import RateSearch, rates_of
from minllm.verdict.results import value_of
from minllm.verdict.tuning import configured, space_of

ABOVE_FLOOR = "bpb_above_floor"


def rank(sweeper: PruningSweeper, overrides: Sequence[str]) -> Ranking | None:
    """Train each model on each dataset, and write the report; return the ranking, or None if dry.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.

    Raises:
        UserError: a model can't be built, or its runs fail.
        RepeatedCrashes: too many trials crashed in a row.
    """
    search = RankingSearch(sweeper, overrides)
    if not search.begin():
        return None
    search.encode()
    began = time.monotonic()
    with shared_server(search.config, sweeper.n_jobs) as search.server:
        for done, dataset in enumerate(search.rungs, 1):
            if not search.train(dataset):
                break
            rest = rest_of("dataset", done, len(search.rungs), time.monotonic() - began)
            print(printable(f"All models were trained on {dataset}.{rest}"), flush=True)
    ranking = search.ranking()
    print()
    write_and_print(ranking, search.folder)
    return ranking


class RankingSearch(CellsSearch):
    """The models and datasets of a ranking, and the searches that train them."""

    file = RANKING
    evaluations = TUNING_EVALUATIONS
    protocol: RankingProtocol

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        self.rungs = datasets_in(sweeper.config.datasets)
        super().__init__(sweeper, overrides)
        self.precision = self.precision_override()
        self.compose_cells(sized=False)
        refuse_early_ends(self.metric, self.cfgs.values())
        protocol = self.protocol
        self.plans = {
            key: RateSearch(
                rates_of(configured(key[0], cfg, RATE), protocol.rates),
                tuple(protocol.tuning_seeds),
                protocol.tuning_runs,
            )
            for key, cfg in self.cfgs.items()
        }
        self.cells = {
            (model, dataset): Cell(model, dataset, protocol.seeds, {})
            for dataset in self.rungs
            for model in self.names.values()
        }
        self.floors = dict.fromkeys(self.rungs, False)
        """Whether the floor of each dataset is known, from the first run on."""

    def read_arms(self) -> dict[str, list[str]]:
        return self.named_arms(models_in(self.config.models), "models")

    def plan(self) -> str:
        """Return a description of what will be run."""
        first = next(iter(self.plans.values()))
        runs = len(self.cells) * (len(first.planned_values) + self.protocol.seeds)
        return "\n".join(
            [
                *(f"{self.names[arm]}: {' '.join(words)}" for arm, words in self.arms.items()),
                *(f"{dataset}: {' '.join(words)}" for dataset, words in self.rungs.items()),
                f"Each model tries multiples of its learning rate, such as {first.description}, on each dataset; then"
                f" it trains with {counted_noun(self.protocol.seeds, 'new seed')}.",
                f"{counted_noun(len(self.arms), 'model')} on {counted_noun(len(self.rungs), 'dataset')}: {runs} runs or"
                f" more, {self.sweeper.n_jobs} at a time.",
            ]
        )

    def encode(self) -> None:
        """Encode the datasets. UserError if one can't be read: the first is trained on long before the last is read."""
        model = next(iter(self.arms))
        for dataset in self.rungs:
            cfg = self.cfgs[model, dataset]
            open_store(build(cfg.data), build(cfg.tokenizer))

    def sweeps(self, plan: RateSearch) -> list[str]:
        return space_of(plan, seeds=self.protocol.seeds)

    def train(self, dataset: str) -> bool:
        """Tune and train all models on a dataset; return whether there was time for all."""
        for arm, (tuning, trials) in self.trained_on(dataset).items():
            key = self.names[arm], dataset
            losses = {trial.params["seed"]: self.loss(trial, *key) for trial in trials}
            is_bound = any(trial.user_attrs.get("val_bound") == "upper" for trial in trials)
            self.cells[key] = replace(self.cells[key], losses=losses, tuning=tuning, is_bound=is_bound)
        return all(self.cells[model, dataset].is_complete for model in self.names.values())

    def loss(self, trial: FrozenTrial, model: str, dataset: str) -> float:
        """Return a run's bits per byte, above the floor of the corpus if it is known; infinite if training diverged.

        Raises:
            UserError: the run failed in another way, or its summary is damaged.
        """
        if value_of(trial, f"{model} on {dataset}") is None:
            return math.inf
        folder = Path(trial.user_attrs["run"])
        try:
            summary = recorded.read_object(folder, "summary.json")
            self.floors[dataset] = ABOVE_FLOOR in summary
            key = ABOVE_FLOOR if self.floors[dataset] else METRIC
            recorded.check(summary, {key: float}, "summary.json")
        except recorded.Damaged as error:
            raise UserError(f"In {folder}: {error} Start another ranking: sweep.name=<name>.") from error
        return summary[key]

    def ranking(self) -> Ranking:
        """Return everything that was trained so far."""
        return Ranking(
            list(self.names.values()),
            list(self.rungs),
            self.cells,
            self.floors,
            self.protocol.alike,
            self.command(),
        )

    def protocol_data(self) -> dict[str, Any]:
        return {
            **asdict(self.protocol),
            "models": list(self.config.models),
            "datasets": list(self.config.datasets),
        }
