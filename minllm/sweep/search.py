"""The search loop: ask the sampler for a trial, run it, report its outcome, and repeat until there are enough trials.

All state lives in the study on disk. However a search or a trial was interrupted, the same command continues from the
study: finished trials are kept, and interrupted ones are queued again.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, read_write
from optuna.trial import FrozenTrial, TrialState

from minllm.config.compose import refuse_unnamed_code
from minllm.data.batches import check_data, open_data
from minllm.errors import is_full
from minllm.files.atomic import refuse_links_at_top
from minllm.runs import outcome
from minllm.runs.find import named_keys
from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, check_node
from minllm.schema.foreign import SECTIONS_OF_SEARCH
from minllm.sweep import limits
from minllm.sweep.dry_run import dry_run
from minllm.sweep.ends import no_room, without_outcome
from minllm.sweep.history import History
from minllm.sweep.launchers import fresh, prepare, refuse_password, runs_here
from minllm.sweep.metric import minimized
from minllm.sweep.plugin import Processes, is_search_key
from minllm.sweep.report import conclusion, write_report
from minllm.sweep.report.table import Table
from minllm.sweep.reporter import Reporter, folder_of
from minllm.sweep.sampling import Grid, ask, make_sampler, queued_values, refuse_hopeless
from minllm.sweep.settings import Memory, SweepSettings
from minllm.sweep.spec import SearchSpec, resolved
from minllm.sweep.store import APPENDED, Leader, folder_lock, open_study, requeue_interrupted, storage_errors
from minllm.sweep.trial import Assignment
from minllm.training import machine

if TYPE_CHECKING:
    from minllm.sweep.plugin import PruningSweeper

T = TypeVar("T")

REFRESH_SECONDS = 0.5
SAMPLERS = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")


def search(sweeper: PruningSweeper, overrides: Sequence[str]) -> None:
    """Run trials until the study has as many as requested, then write the report.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.

    Raises:
        UserError: there is nothing to search, the study was started with other settings, or the disk is full.
        RepeatedCrashes: too many trials crashed in a row, or every trial of the study crashed.
    """
    search = Search(sweeper, overrides)
    if search.settings.dry_run:
        print(dry_run(search.spec))
        return
    with search.opened():
        try:
            search.run()
            if not search.n_started:
                print(search.completion_message())
        finally:
            written = search.report()
        print(conclusion(search.study, metric=minimized(search.settings.metric), written=written))
    search.reporter.refuse_only_crashes()


def encode_corpus(spec: SearchSpec) -> None:
    """Check and encode the corpus before the first trial, if all trials share it."""
    if {re.split("[./]", name)[0] for name in spec.space.distributions} & {"data", "tokenizer"}:
        return
    cfg = spec.space.base
    source, tokenizer = build(cfg.data), build(cfg.tokenizer)
    check_data(source, tokenizer)
    open_data(source, tokenizer)


class Search:
    """A new search, or one that continues an existing study."""

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweeper = sweeper
        self.config, self.n_trials, self.n_jobs = sweeper.config, sweeper.n_trials, sweeper.n_jobs
        refuse_unnamed_code(self.config, named_keys(overrides))  # before any of it is imported
        for section in SECTIONS_OF_SEARCH:
            if section in self.config:
                check_node(self.config[section], section, allowed_packages(self.config))
        self.settings: SweepSettings = build(self.config.sweep)
        self.memory: Memory = build(self.config.memory)
        refuse_password(self.config)
        self.spec = SearchSpec(self.config, overrides, sweeper.hydra_context)
        self.space = self.spec.space
        chosen = instantiate(sweeper.sampler, _execution_whitelist_=SAMPLERS)
        self.sampler = make_sampler(chosen, self.space, self.spec.refusal)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Create or load the study, and lock it against other searches."""
        settings = self.settings
        with read_write(
            self.config.hydra
        ):  # resolved here, because other machines may resolve it differently
            self.config.hydra.sweep.dir = str(self.config.hydra.sweep.dir)
        refuse_hopeless(self.space, self.sampler)
        self.folder = Path(self.config.hydra.sweep.dir)
        refuse_links_at_top(self.folder, appended=APPENDED)
        encode_corpus(self.spec)
        pruner = settings.pruner()
        try:
            # before the folder is created, in case the database can't be used
            self.study = open_study(
                settings.name, settings.storage, self.folder, sampler=self.sampler, pruner=pruner
            )
            with folder_lock(self.folder), storage_errors(settings.storage):
                self.spec.refuse_another(self.study)
                self.leader = Leader(self.study, self.folder) if settings.storage else None
                if self.study.get_trials(deepcopy=False):
                    self.sampler.reseed_rng()  # or it would repeat the draws already tried
                self.set_up()
                yield
        except OSError as error:
            if not is_full(error):
                raise
            raise no_room(self.folder) from error

    def set_up(self) -> None:
        """Set up the launcher, and determine the memory, threads and precision of each trial."""
        sweeper, settings = self.sweeper, self.settings
        self.history = History(self.study, self.spec)
        self.table = Table(settings.name, minimized(settings.metric), self.n_trials, self.n_jobs)
        self.reporter = Reporter(self.study, settings, self.table, self.folder)
        self.launcher = Plugins.instance().instantiate_launcher(
            config=self.config, hydra_context=sweeper.hydra_context, task_function=sweeper.task_function
        )
        processes = settings.processes_per_trial
        prepare(self.launcher, processes)
        if isinstance(self.launcher, Processes):
            self.launcher.start(self.n_jobs, sweeper.server)
        here = runs_here(self.launcher)
        device = machine.choose_device(self.space.base.train.device)
        if here:
            limits.refuse_too_few_gpus(device, processes)
        free = limits.free_bytes(device, self.n_jobs * processes) if here else None
        self.limit_bytes = self.memory.limit_bytes or free
        self.threads = limits.threads_for(self.n_jobs * processes) if here else None
        # measured once, before other trials load the machine, so that all trials use the same
        self.precision = machine.choose_precision("auto", device)[0] if here else "auto"
        self.deadline = time.monotonic() + (settings.minutes or math.inf) * 60
        self.running: dict[Future[JobReturn], optuna.Trial] = {}
        self.followers: dict[int, list[optuna.Trial]] = {}
        """Trials that wait for a running trial with the same configuration, keyed by its number."""
        self.n_started = 0  # trials of this call

    def run(self) -> None:
        """Run trials until there are enough, and leave the study in a state that can be continued."""
        with self.leading(), self.table:
            self.table.update(self.trials())
            run_together([self], self.n_jobs)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Hold the lead of the study within the context, and leave it in a state that can be continued."""
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            self.recover()
            yield
        except (KeyboardInterrupt, SystemExit):
            print("Stopped. Run the same command to continue.", file=sys.stderr)
            raise
        finally:
            if isinstance(self.launcher, Processes):
                self.launcher.close(interrupted=bool(self.running))
            self.recover()
            if self.leader:
                self.leader.leave()
            signal.signal(signal.SIGTERM, before)

    def queue(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        """Queue the combinations that the study doesn't have yet, whatever the sampler."""
        known = [queued_values(trial) for trial in self.trials()]
        for values in combinations:
            if values not in known:
                self.study.enqueue_trial(dict(values))
        self.n_trials = len(self.trials())  # the sampler adds none

    def report(self) -> list[Path]:
        """Write the report of the study so far, and return the paths of its files."""
        command = shlex.join(["python", "sweep.py", *self.spec.shown_overrides()])
        return write_report(self.study, self.folder, metric=minimized(self.settings.metric), command=command)

    def recover(self) -> None:
        """Record outcomes left on disk by an earlier search, and queue interrupted trials again."""
        for trial in self.trials():
            attempt, run_dir = trial.user_attrs.get("attempt"), folder_of(trial, self.folder)
            if trial.state == TrialState.RUNNING and attempt and run_dir:
                recorded = outcome.read(run_dir, attempt)
                if recorded is not None:
                    self.reporter.tell(optuna.Trial(self.study, trial._trial_id), recorded)
        requeue_interrupted(self.study)

    def start_next(self) -> None:
        self.start(*ask(self.study, self.space))

    def end_all(self, done: Iterable[Future[JobReturn]]) -> None:
        """Record the outcomes of those of this search's trials that are `done`, and show the progress."""
        for future in self.running.keys() & set(done):
            self.end(self.running.pop(future), future)
        if self.leader:
            self.leader.beat()
        self.table.update(self.trials())

    def has_more(self) -> bool:
        """Whether there is another trial to start, queued or new."""
        if time.monotonic() > self.deadline:
            return False
        trials = self.trials()
        if any(trial.state == TrialState.WAITING for trial in trials):
            return True
        if len(trials) >= self.n_trials:
            return False
        if smaller := self.history.smaller_to_try():
            self.study.enqueue_trial(smaller)
            return True
        return not self.grid_is_done()

    def grid_is_done(self) -> bool:
        sampler = self.study.sampler
        return isinstance(sampler, Grid) and sampler.next(self.study) is None

    def completion_message(self) -> str:
        if self.grid_is_done():
            return "All combinations of the grid have been tried."
        n = len(self.trials())
        return f"The study already has {n} trials. To continue it, set hydra.sweeper.n_trials={2 * n}"

    def start(self, trial: optuna.Trial, values: dict[str, Any]) -> None:
        """Launch a trial, unless another with the same configuration has run or is running."""
        self.n_started += 1
        overrides, cfg = self.history.first_that_fits(values)
        identity = self.history.identity(overrides)
        trial.set_user_attr(
            "overrides",
            [*self.spec.flags, *(override for override in overrides if not is_search_key(override))],
        )
        trial.set_user_attr("fingerprint", identity)
        duplicate = self.history.duplicate_of(
            trial, identity, {active.number for active in self.running.values()}
        )
        if duplicate is None:
            self.launch(trial, overrides, cfg)
        elif duplicate.state.is_finished():
            self.reporter.copy_outcome(trial, duplicate)
        else:
            self.followers.setdefault(duplicate.number, []).append(trial)

    def launch(self, trial: optuna.Trial, overrides: list[str], cfg: DictConfig) -> None:
        run_dir, attempt = self.run_dir(trial.number), uuid.uuid4().hex
        # Local processes are dead by the time a trial is queued again, so its folder can be reused. A folder that
        # the study doesn't know of, because its journal was lost, is kept.
        if not isinstance(self.launcher, Processes) or "run" not in trial.user_attrs:
            run_dir = fresh(run_dir)
        trial.set_user_attr("run", str(run_dir))
        trial.set_user_attr("attempt", attempt)  # lets an abandoned process detect that it was replaced
        if "group" in cfg.logger and cfg.logger.group is None:
            cfg.logger.group = self.settings.name
        if cfg.train.precision == "auto":
            cfg.train.precision = self.precision
        Assignment(
            number=trial.number,
            trial_id=trial._trial_id,
            attempt=attempt,
            run_dir=str(run_dir),
            config=resolved(cfg),
            study=self.settings.name,
            pruner=OmegaConf.to_container(self.config.sweep.pruner, resolve=True),
            metric=self.settings.metric,
            limit_bytes=self.limit_bytes,
            predict=self.memory.predict,
            minutes=self.settings.trial_minutes,
            threads=self.threads,
        ).write(self.folder)
        overrides = [*overrides, f"+sweep.attempt='{attempt}'"]
        future = in_a_thread(lambda: self.launcher.launch([overrides], trial.number)[0])
        self.running[future] = trial

    def end(self, trial: optuna.Trial, future: Future[JobReturn]) -> None:
        """Record the outcome of a trial, and of those waiting for the same configuration."""
        if self.trials()[trial.number].state != TrialState.RUNNING:
            return  # another process has queued it again or recorded its outcome
        run_dir = Path(trial.user_attrs["run"])
        recorded = outcome.read(run_dir, trial.user_attrs["attempt"])
        result = recorded or without_outcome(future, run_dir)
        frozen = self.reporter.tell(trial, result)
        for follower in self.followers.pop(trial.number, []):
            self.reporter.copy_outcome(follower, frozen)
        self.reporter.stop_if_all_crash()

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def run_dir(self, number: int) -> Path:
        with read_write(self.config.hydra):
            self.config.hydra.job.num = number
        return self.folder / str(self.config.hydra.sweep.subdir)


def run_together(searches: Sequence[Search], n_jobs: int) -> None:
    """Run the trials of several searches, at most `n_jobs` at a time, until none has another. All must be `leading`."""
    while True:
        for search in searches:
            while sum(len(each.running) for each in searches) < n_jobs and search.has_more():
                search.start_next()
        running = [future for search in searches for future in search.running]
        if not running:
            return
        done, _ = wait(running, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
        for search in searches:
            search.end_all(done)


def run_all_until(searches: Sequence[Search], n_trials: int, n_jobs: int) -> None:
    """Run trials of several searches, at most `n_jobs` at a time, until each has `n_trials`. All must be `leading`."""
    for search in searches:
        search.n_trials = n_trials
    run_together(searches, n_jobs)


def in_a_thread(act: Callable[[], T]) -> Future[T]:
    """Call `act` in a daemon thread, which never keeps the process alive."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future
