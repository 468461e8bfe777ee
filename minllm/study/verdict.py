"""`python sweep.py search=verdict 'arms.a=[model/attn=gqa]' 'arms.b=[model/attn=differential]'`: an answer in one line.

1. Size: each arm gets as many parameters as the first.
2. Tuning: each arm tries the same learning rates, or multiples of its own, on seeds that the verdict never sees.
3. Pairs: the arms train with the same fresh seeds, until a look at them settles the verdict or the time is up.
4. The report.

Each arm's tuning and its seeds are a search of their own, in a folder of their own, so that whatever is cut off goes on
with the same command. How often the seeds are looked at is fixed beforehand, and each look must be so much surer.
"""

from __future__ import annotations

import copy
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from optuna.trial import FrozenTrial

from minllm.config import build, refuse_unnamed_code
from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.model.cost import cost
from minllm.runs import named_keys
from minllm.study.arms import Arm, arms_of
from minllm.study.comparison import METRIC, Comparison, Tuning, of_arms
from minllm.study.protocol import SEEDS, Protocol, arms_in, refuse_changes, refuse_own_seeds
from minllm.study.reading import read_arms
from minllm.study.report import summary, write_report
from minllm.study.runs import LeftOut, Wanted, find, runs_in
from minllm.study.size import TARGETS
from minllm.sweep.plugin import LauncherOptions, PruningSweeper, key_of
from minllm.sweep.question import Question
from minllm.sweep.report.trials import is_complete, seconds_of
from minllm.sweep.search import Search
from minllm.training import machine
from minllm.training.rundir import to_json, write_text
from minllm.validation import allowed_packages, check_node

WORDS_ALONE = {
    "_target_": "minllm.sweep.space.Plan",
    **{name: {} for name in ("params", "fixed", "when", "multiples", "first_that_fits")},
}
"""A search for what its words say and nothing else."""

EACH_ONCE = {"_target_": "optuna.samplers.GridSampler", "_partial_": True, "search_space": {}}
TO_THE_END = {"_target_": "minllm.sweep.pruners.none"}

NOTES = "verdict.json"


def verdict(sweeper: PruningSweeper, typed: Sequence[str]) -> None:
    """Size the arms, tune them, train them in pairs, and write the report.

    Args:
        sweeper: what Hydra made of `hydra.sweeper`, and of the rest of the configuration.
        typed: the command line's words, but for Hydra's own.

    Raises:
        UserError: the arms can't be built, or one of them has no learning rate that works.
        TooManyFailures: crashes in a row.
    """
    inquiry = Inquiry(sweeper, typed)
    print(inquiry.plan(), flush=True)
    if inquiry.config.sweep.dry_run:
        return
    inquiry.note()
    comparison = inquiry.settle(inquiry.tune())
    readings = read_arms(comparison, inquiry.config, inquiry.protocol.prompts, inquiry.protocol.stories)
    written = write_report(comparison, inquiry.folder, readings)
    print(f"\n{summary(comparison)}\n\nThe report is {' and '.join(map(str, written))}")


class Inquiry:
    """A question about arms, and the searches that answer it."""

    def __init__(self, sweeper: PruningSweeper, typed: Sequence[str]):
        self.sweeper, self.config = sweeper, sweeper.config
        refuse_unnamed_code(self.config, named_keys(typed))
        check_node(self.config.search, "search", allowed_packages(self.config))
        self.protocol: Protocol = build(self.config.search)
        self.arms = arms_in(self.config.arms, self.protocol)
        refuse_own_seeds(typed)
        self.name, self.folder = self.config.sweep.name, Path(str(self.config.hydra.sweep.dir))
        self.typed = [word for word in typed if key_of(word).partition(".")[0] != "arms"]
        self.ends = time.monotonic() + (self.config.sweep.minutes or math.inf) * 60
        self.precision = self.same_precision()
        self.shared = [*self.logged_together(), *self.precision]
        self.bases = {name: self.composed(name) for name in self.arms}
        if size := self.same_size():
            self.shared += size
            for name in self.arms:
                self.composed(name)  # what can't be sized is refused before anything is run
        self.rates = {name: rates_of(cfg, self.protocol) for name, cfg in self.bases.items()}

    def plan(self) -> str:
        """Say what will be run."""
        protocol, arms = self.protocol, len(self.arms)
        lines = [f"{name}: {' '.join(words) or 'as it is'}" for name, words in self.arms.items()]
        size = next((word for word in self.shared if word.startswith("size.")), None)
        if size:
            lines.append(f"Each has the size of the first: {size}.")
        if protocol.rates:
            tuned = arms * len(protocol.rates) * len(protocol.tuning_seeds)
            lines += [f"{name} tries optim.lr={', '.join(map(str, self.rates[name]))}." for name in self.arms]
            lines.append(f"Tuning: {tuned} runs, of seed {', '.join(map(str, protocol.tuning_seeds))}.")
        looks = " or ".join(map(str, protocol.looks))
        lines.append(f"Pairs: seeds 0, 1, 2, …; the verdict is looked at after {looks} of them.")
        return "\n".join(lines)

    # ---- the steps -------------------------------------------------------------------------------

    def tune(self) -> dict[str, Tuning]:
        """Try each arm's learning rates on the tuning seeds, and choose the one with the lowest mean."""
        seeds = self.protocol.tuning_seeds
        found = {}
        for name, rates in self.rates.items() if self.protocol.rates else ():
            words = [
                f"optim.lr=choice({','.join(map(repr, rates))})",
                f"seed=choice({','.join(map(str, seeds))})",
            ]
            trials = self.trials(
                f"tune-{name}", [*self.arms[name], *words], len(rates) * len(seeds), keep="none"
            )
            found[name] = tuning(name, rates, trials, len(seeds))
            print(
                f"{name}: optim.lr={found[name].chosen:g}{', at an edge of what was tried' * found[name].at_edge}."
            )
        return found

    def settle(self, tuning: Mapping[str, Tuning]) -> Comparison:
        """Train pairs of seeds until a look at them settles every contest, or looks or time run out."""
        comparison, done, seconds = None, 0, math.nan
        for look in self.protocol.looks:
            pairs = min(look, done + self.pairs_in_time(seconds))
            if pairs == done:
                break
            took = []
            for name, words in self.arms.items():
                rate = [f"optim.lr={tuning[name].chosen!r}"] if name in tuning else []
                words = [*words, *rate, f"seed=range(0,{SEEDS})", "train.keep_checkpoints=1"]
                trials = self.trials(f"seeds-{name}", words, pairs * self.protocol.runs_of_a_pair, keep="all")
                took += [seconds_of(trial) or 0.0 for trial in trials if is_complete(trial)]
            comparison = self.compared(tuning)
            done, seconds = pairs, sum(took) / len(took)
            print(f"After {pairs} pairs: {comparison.headline}", flush=True)
            if is_settled(comparison):
                break
        return comparison

    def pairs_in_time(self, seconds: float) -> float:
        """Return how many more pairs there is time for, if a run takes so many seconds."""
        if math.isinf(self.ends) or math.isnan(seconds):
            return math.inf
        seconds_of_a_pair = seconds * len(self.arms) * self.protocol.runs_of_a_pair / self.sweeper.n_jobs
        return max(0, int((self.ends - time.monotonic()) / seconds_of_a_pair))

    def compared(self, tuning: Mapping[str, Tuning]) -> Comparison:
        """Compare what has been trained so far. UserError where an arm has no run that came to its end."""
        arms: list[Arm] = []
        left_out: list[LeftOut] = []
        for name in self.arms:
            folder = self.folder / f"seeds-{name}"
            if not any(runs_in(folder)):
                raise UserError(TIME_WAS_UP.format("before every arm had a run"))
            runs, others = find(Wanted([str(folder)]), self.config.extensions)
            if not runs:
                raise UserError(f"No run of arm {name} came to its end. {others[0].folder}: {others[0].why}")
            found, repeated = arms_of(runs)
            left_out += [*others, *repeated]
            arms += [replace(arm, name=self.called(name)) for arm in found]
        comparison = of_arms(
            arms,
            left_out,
            self.protocol.baseline,
            self.protocol.margin,
            self.protocol.aa,
            looks=len(self.protocol.looks),
        )
        return replace(
            comparison,
            tuning={self.called(name): found for name, found in tuning.items()},
            commands=[self.command()],
        )

    # ---- what all searches share -----------------------------------------------------------------

    def trials(self, phase: str, words: Sequence[str], n_trials: int, keep: str) -> list[FrozenTrial]:
        """Run a search with these words besides the command line's until it has so many trials, and return them."""
        config = self.without_arms()
        with read_write(config.hydra):
            config.sweep.name, config.sweep.keep_checkpoints = f"{self.name}-{phase}", keep
            config.sweep.metric = METRIC
            config.sweep.minutes = (
                None if math.isinf(self.ends) else max(self.ends - time.monotonic(), 1e-3) / 60
            )
            config.hydra.sweep.dir = str(self.folder / phase)
        own = PruningSweeper(OmegaConf.create(EACH_ONCE), n_trials, self.sweeper.n_jobs)
        own.setup(
            hydra_context=self.sweeper.hydra_context,
            task_function=self.sweeper.task_function,
            config=config,
        )
        search = Search(own, [*self.typed, *self.shared, *words])
        with search.opened():
            search.run()
            return search.trials()

    def composed(self, name: str) -> DictConfig:
        """Return what an arm is configured as by the words so far."""
        words = [*self.typed, *self.shared, *self.arms[name], f"seed=range(0,{SEEDS})"]
        question = Question(self.without_arms(), words, self.sweeper.hydra_context)
        if others := set(question.space.distributions) - {"seed"}:
            raise UserError(
                f"{min(others)} has several values, and a verdict is between arms: give each its own in arms."
            )
        return question.space.base

    def same_size(self) -> list[str]:
        """Return the word that gives each arm as much as the first has, unless a size is typed."""
        cfg, equal = next(iter(self.bases.values())), self.protocol.equal
        if equal is None or any(cfg.size[name] is not None for name in TARGETS):
            return []
        figures = cost(build_shapes(cfg, build(cfg.tokenizer).vocab_size), cfg.data.seq_len)
        had = getattr(figures, "state_bytes_per_sequence" if equal == "state_bytes" else equal)
        if had is None:
            raise UserError("search.equal=state_bytes needs a first arm that can generate.")
        return [f"size.{equal}={had:.12g}"]

    def same_precision(self) -> list[str]:
        """Return the word that has all runs compute alike, which is measured once, when the verdict begins."""
        file = self.folder / NOTES
        if file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            refuse_changes(kept["protocol"], asdict(self.protocol), self.name)
            return kept["words"]
        if (
            self.config.train.precision == "auto"
            and self.config.hydra.launcher._target_ == LauncherOptions._target_
        ):
            device = machine.choose_device(self.config.train.device)
            return [f"train.precision={machine.choose_precision('auto', device)[0]}"]
        return []

    def note(self) -> None:
        """Write down the protocol, and how all runs compute: a later call goes on with both, and changes neither."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / NOTES, to_json({"protocol": asdict(self.protocol), "words": self.precision}))

    def logged_together(self) -> list[str]:
        """Return the word by which Weights & Biases knows the runs of this verdict as one group."""
        unnamed = "group" in self.config.logger and self.config.logger.group is None
        return [f"logger.group='{self.name}'"] if unnamed else []

    def without_arms(self) -> DictConfig:
        """Return the configuration of a search for what its words say, each combination once and to its end."""
        config = copy.deepcopy(self.config)
        with open_dict(config):
            config.pop("arms")
            config.search, config.sweep.pruner = WORDS_ALONE, TO_THE_END
        return config

    def called(self, name: str) -> str:
        return " ".join(self.arms[name]) or name

    def command(self) -> str:
        arms = [f"arms.{name}=[{','.join(words)}]" for name, words in self.arms.items()]
        return shlex.join(["python", "sweep.py", *self.typed, *arms, *self.config.hydra.overrides.hydra])


TIME_WAS_UP = "The time was up {}. The same command goes on; give it more with sweep.minutes=<minutes>."


def rates_of(cfg: DictConfig, protocol: Protocol) -> list[float]:
    """Return the learning rates that an arm tries, lowest first, to three digits."""
    return [float(f"{cfg.optim.lr * rate:.3g}") for rate in sorted(protocol.rates)]


def tuning(name: str, rates: Sequence[float], trials: Sequence[FrozenTrial], seeds: int) -> Tuning:
    """Choose the rate with the lowest mean over the seeds, of those that came to their end with each seed."""
    if sum(trial.state.is_finished() for trial in trials) < len(rates) * seeds:
        raise UserError(TIME_WAS_UP.format(f"while learning rates of arm {name} were tried"))
    found = {
        rate: [one.value for one in trials if is_complete(one) and one.params["optim.lr"] == rate]
        for rate in rates
    }
    means = {rate: sum(values) / seeds if len(values) == seeds else None for rate, values in found.items()}
    known = {rate: mean for rate, mean in means.items() if mean is not None}
    if not known:
        raise UserError(
            f"No learning rate of arm {name} came to its end. Try others: search.rates=[0.03,0.1]."
        )
    return Tuning(means, min(known, key=known.__getitem__))


def is_settled(comparison: Comparison) -> bool:
    judged = comparison.contests or comparison.noise
    return all(one.verdict.word != "inconclusive" for one in judged)
