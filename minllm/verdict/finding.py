"""`python sweep.py search=finding finding=pre_norm_no_warmup`: what becomes of published findings here.

Each finding is a command of another search with a prediction of its outcome. That search runs in a folder of its own
below this one's, so an interrupted test continues with the same command. Its report is read, compared with the
prediction, and entered in the ledger of findings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from minllm.config.explain import explained
from minllm.errors import UserError, printable, suggest
from minllm.files.atomic import refuse_links_at_top, write_text
from minllm.files.names import short
from minllm.page.terminal import answer, without_answers
from minllm.schema.building import build
from minllm.schema.checking import allowed_packages, check_node
from minllm.schema.overrides import key_of, quoted
from minllm.study import recorded
from minllm.study.findings import rows
from minllm.study.findings.outcomes import (
    Outcome,
    Report,
    at_scale,
    at_smallest,
    change,
    decision,
    of_contest,
)
from minllm.study.findings.page import Entry, in_a_terminal, to_html, to_markdown
from minllm.study.findings.rows import Row
from minllm.sweep.plugin import NotSettled, PruningSweeper, RepeatedCrashes
from minllm.sweep.spec import command_line, composing
from minllm.verdict.finding_protocol import AT_SCALE, CHANGE, Finding, FindingProtocol
from minllm.verdict.phases import checked_settings

OWN = ("finding", "search")
"""Sections of the command line that concern the test of findings, and not the searches that it runs."""
WITHOUT_EFFECT = ("sweep", "memory", "extensions")
"""Sections of the command line that don't change what is trained, apart from sweep.trial and sweep.trial_minutes."""
REPORT, STATE = "report.json", "finding.json"
Parts = Mapping[str, Report | None]


def put_to_the_test(sweeper: PruningSweeper, overrides: Sequence[str]) -> Tested | None:
    """Test each finding, enter it in the ledger and write the page; return what became of them, or None if dry.

    Args:
        sweeper: the sweeper that Hydra instantiated; it holds the rest of the configuration.
        overrides: the command line's overrides, without Hydra's own.

    Raises:
        UserError: there is no such finding, or a search can't be run; the others are run first.
        RepeatedCrashes: too many trials of a search crashed in a row; the same.
    """
    search = FindingSearch(sweeper, overrides)
    if search.config.sweep.dry_run:
        for test in search.tests:
            search.show(test)
        return None
    rows.read()  # a damaged ledger is reported before anything is trained
    tested, refusals = [], []
    for place, test in enumerate(search.tests):
        if not search.is_time_left:
            names = ", ".join(left.name for left in search.tests[place:])
            print(
                f"The time was up before these findings: {names}. Run the same command to continue.",
                flush=True,
            )
            break
        try:
            row = search.run(test, search.share_of(search.tests[place:]))
        except (UserError, RepeatedCrashes) as error:  # the others don't depend on it
            refusals.append(error)
            print(printable(f"{error}\n"), flush=True)
            continue
        rows.append(row)
        tested.append(row)
    search.write_pages(tested)
    if refusals:
        raise refusals[0]
    return search.answer(tested)


@dataclass(frozen=True)
class Tested:
    """What became of the findings that were chosen.

    rows: of those that were tested before the time was up
    chosen: the number of findings that were chosen
    """

    __test__ = False  # pytest

    rows: Sequence[Row]
    chosen: int

    @property
    def is_settled(self) -> bool:
        return len(self.rows) == self.chosen and all(row.decision != "undecided" for row in self.rows)


@dataclass(frozen=True)
class Test:
    """A finding with the composed configuration and the overrides of each of its parts."""

    __test__ = False  # pytest

    name: str
    finding: Finding
    parts: Mapping[str, tuple[DictConfig, list[str]]]
    folder: Path

    @property
    def config(self) -> DictConfig:
        """The configuration of the first part."""
        return next(iter(self.parts.values()))[0]

    def part_folder(self, part: str) -> Path:
        return self.folder / part if part else self.folder


class FindingSearch:
    """The findings of a command line, and the searches that test them."""

    def __init__(self, sweeper: PruningSweeper, overrides: Sequence[str]):
        self.sweeper, self.config = sweeper, sweeper.config
        self.protocol: FindingProtocol = build(self.config.search)
        settings = checked_settings(self.config)
        self.name, self.folder = settings.name, Path(str(self.config.hydra.sweep.dir))
        self.typed = [word for word in overrides if section_of(word) not in OWN]
        self.deadline = time.monotonic() + (settings.minutes or math.inf) * 60
        self.tests = [self.test(name) for name in self.chosen(overrides)]

    @property
    def is_time_left(self) -> bool:
        return time.monotonic() < self.deadline

    def share_of(self, tests: Sequence[Test]) -> float:
        """Return the seconds for the first of the tests, which share the time that is left."""
        minutes = [test.finding.minutes for test in tests]
        return (self.deadline - time.monotonic()) * minutes[0] / sum(minutes)

    # ---- what is tested

    def chosen(self, overrides: Sequence[str]) -> list[str]:
        """Return the names of the findings on the command line. UserError if there are none, or one doesn't exist."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        for word in overrides:
            if section_of(word) == "finding" and key_of(word) != "finding":
                raise UserError(
                    f"{word} has no effect: a finding is what its file says. Change a copy of it."
                )
        loader = self.sweeper.hydra_context.config_loader
        known = loader.get_group_options("finding")
        words = [word for word in overrides if key_of(word) == "finding"]
        names: list[str] = []
        if words:
            with explained():
                override = OverridesParser.create(config_loader=loader).parse_overrides(words[-1:])[0]
                values = (
                    override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
                )
                names = [str(value) for value in values if value is not None]
        if not names:
            raise UserError(
                f"Choose a finding, several with commas, or 'finding=glob(*)' for all: {', '.join(known)}."
            )
        for name in names:
            if name not in known:
                raise UserError(f"There is no finding '{name}'.{suggest(name, known)}")
        return list(dict.fromkeys(names))

    def test(self, name: str) -> Test:
        """Return a finding with its composed searches. UserError if it can't be composed."""
        config = self.composed(["search=finding", f"finding={name}", *self.typed])
        check_node(config.finding, "finding", allowed_packages(config))
        finding: Finding = build(config.finding)
        if self.protocol.first_seed and finding.search != "verdict":
            raise UserError(
                f"search.first_seed repeats verdicts with other seeds, but finding={name} is tested by"
                f" search={finding.search}: leave one of them out."
            )
        folder = self.folder / self.folder_name(name)
        parts = {}
        for part, words in finding.words(self.protocol.preset).items():
            words = [quoted(word) for word in [*words, *self.of_verdicts(finding), *self.typed]]
            parts[part] = self.composed(words), words
            if finding.change and len(parts[part][0].search.looks) > 1:
                raise UserError(
                    f"finding={name} predicts a change, so it needs a single look: search.looks=[7]."
                )
        return Test(name, finding, parts, folder)

    def composed(self, words: Sequence[str]) -> DictConfig:
        with composing, explained():
            return self.sweeper.hydra_context.config_loader.load_sweep_config(self.config, list(words))

    def of_verdicts(self, finding: Finding) -> list[str]:
        """Return the options that every finding tested by a verdict has: it is no idea that is tried here."""
        if finding.search != "verdict":
            return []
        return ["search.ledger=false", f"search.first_seed={self.protocol.first_seed}"]

    def folder_name(self, name: str) -> str:
        seeds = f"-from-{self.protocol.first_seed}" if self.protocol.first_seed else ""
        return f"{name}{'' if self.protocol.preset == 'laptop' else '-' + self.protocol.preset}{seeds}"

    # ---- one finding

    def show(self, test: Test) -> None:
        """Print what would be run."""
        print(printable(f"{test.name}: {test.finding.claim}"), flush=True)
        print(f"It is refuted if {test.finding.refuted_by}", flush=True)
        for part in test.parts:
            self.run_part(test, part, math.inf)
        print(flush=True)

    def run(self, test: Test, share: float) -> Row:
        """Test a finding for so many seconds at most, and return its row."""
        print(printable(f"{test.name}: {test.finding.claim}"), flush=True)
        refuse_links_at_top(test.folder, appended=())
        seconds = self.begun(test)
        self.save(test, seconds)
        began = time.monotonic()
        try:
            for place, part in enumerate(test.parts):
                spent = time.monotonic() - began
                self.run_part(test, part, max(share - spent, 1e-9) / (len(test.parts) - place))
        finally:
            seconds += time.monotonic() - began
            self.save(test, seconds)
        found = outcomes(test)
        row = Row(
            finding=test.name,
            digest=digest(test.finding, self.protocol.preset),
            preset=self.protocol.preset,
            first_seed=self.protocol.first_seed,
            typed=[word for word in self.typed if has_effect(word)],
            decision=decision(found),
            outcomes=[asdict(outcome) for outcome in found],
            minutes=round(seconds / 60, 1),
            command=self.command(test.name),
            time=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        )
        print(f"{test.name}: {row.decision}.\n", flush=True)
        return row

    def run_part(self, test: Test, part: str, seconds: float) -> None:
        """Run the search of a part for so long at most."""
        config, words = test.parts[part]
        with read_write(config.hydra), open_dict(config):
            config.sweep.name = short("-".join(filter(None, [self.name, self.folder_name(test.name), part])))
            config.sweep.minutes = None if math.isinf(seconds) else seconds / 60
            config.hydra.sweep.dir = str(test.part_folder(part))
        sampler, n_trials = config.hydra.sweeper.sampler, config.hydra.sweeper.n_trials
        jobs = None if self.sweeper.chooses_jobs else self.sweeper.n_jobs
        own = PruningSweeper(OmegaConf.create(sampler), n_trials, jobs)
        context, function = self.sweeper.hydra_context, self.sweeper.task_function
        own.setup(hydra_context=context, task_function=function, config=config)
        try:
            with contextlib.suppress(NotSettled), without_answers():
                own.sweep(words)
        except UserError as error:
            raise UserError(f"finding={test.name}: {error}") from error

    def begun(self, test: Test) -> float:
        """Return the seconds that were spent on a finding in earlier calls. UserError if it has changed since."""
        if not recorded.is_there(test.folder, STATE):
            return 0.0
        try:
            state = recorded.read_object(test.folder, STATE)
            recorded.check(state, {"digest": str, "seconds": recorded.Amount}, STATE)
        except recorded.Damaged as error:
            raise UserError(f"In {test.folder}: {error} Remove the folder to begin again.") from error
        if state["digest"] != digest(test.finding, self.protocol.preset):
            raise UserError(
                f"finding={test.name} has changed since its test in {test.folder} began, and a choice made after seeing"
                " results proves nothing. Start another test: sweep.name=<name>."
            )
        return state["seconds"]

    def save(self, test: Test, seconds: float) -> None:
        test.folder.mkdir(parents=True, exist_ok=True)
        state = {"digest": digest(test.finding, self.protocol.preset), "seconds": round(seconds, 1)}
        write_text(test.folder / STATE, json.dumps(state) + "\n")

    def command(self, name: str) -> str:
        """Return the command that tests a finding, with secrets removed."""
        own = [f"search.{key}={getattr(self.protocol, key)}" for key in self.not_default()]
        typed = [word for word in self.typed if has_effect(word) or section_of(word) == "extensions"]
        words = ["search=finding", f"finding={name}", *own, *typed]
        return command_line(self.config.hydra, words)

    def not_default(self) -> list[str]:
        defaults = {"preset": "laptop", "first_seed": 0}
        return [key for key, value in defaults.items() if getattr(self.protocol, key) != value]

    # ---- all of them

    def write_pages(self, tested: Sequence[Row]) -> None:
        """Write the pages of the findings that were tested, and print the table."""
        entries = [entry(test.name, test.finding, self.protocol.preset) for test in self.tests]
        self.folder.mkdir(parents=True, exist_ok=True)
        pages = {"findings.html": to_html(entries, tested), "findings.md": to_markdown(entries, tested)}
        for name, text in pages.items():
            write_text(self.folder / name, text)
        print(printable("\n".join(in_a_terminal(entries, tested))))
        print(f"The pages are {' and '.join(str(self.folder / name) for name in pages)}", flush=True)

    def answer(self, rows: Sequence[Row]) -> Tested:
        """Answer --json, and return what became of the findings."""
        tested = Tested(rows, len(self.tests))
        status = "settled" if tested.is_settled else "not settled"
        content = [asdict(row) for row in rows]
        answer({"status": status, "findings": content, "report": str(self.folder / "findings.html")})
        return tested


def outcomes(test: Test) -> list[Outcome]:
    """Return what the reports of a finding's parts say about its predictions."""
    finding, parts = test.finding, list(test.parts)
    reports = {part: report_in(test.part_folder(part)) for part in parts}
    found = []
    for of, name, predicted in finding.expected():
        arm = " ".join(finding.arms.get(name, [])) or name
        needed = [parts[0], parts[-1]] if of == CHANGE else [parts[0]]
        read = [report for report in (reports[part] for part in needed) if report is not None]
        if len(read) < len(needed):
            found.append(Outcome(of, arm, "", predicted, "inconclusive"))
        elif of == CHANGE:
            found.append(change(*read, arm, of, predicted, pairs=test.config.search.looks[-1]))
        elif of == AT_SCALE:
            found.append(at_scale(read[0], arm, of, predicted, planned_pairs(test.config.ladder)))
        elif finding.search == "ladder":
            found.append(at_smallest(read[0], arm, of, predicted, planned_pairs(test.config.ladder)))
        else:
            found.append(of_contest(read[0], arm, of, predicted, bounds=finding.bounds))
    return found


def planned_pairs(ladder: DictConfig) -> list[int]:
    """Return the number of pairs that are planned at each rung."""
    return [ladder.pairs] * len(ladder.params or ladder.flops)


def report_in(folder: Path) -> Report | None:
    """Return the report of a search; None if it ended before there was anything to report."""
    if not recorded.is_there(folder, REPORT):
        return None
    try:
        report = recorded.read_object(folder, REPORT)
        recorded.check(report, {"contests": list[dict[str, Any]]}, REPORT)
    except recorded.Damaged as error:
        raise UserError(f"In {folder}: {error} Run the same command again to write it anew.") from error
    return report


def entry(name: str, finding: Finding, preset: str) -> Entry:
    """Return what the page says about a finding besides its rows."""
    return Entry(
        name=name,
        preset=preset,
        number=finding.number,
        claim=finding.claim,
        papers=list(finding.papers),
        refuted_by=finding.refuted_by,
        found=finding.found,
        digest=digest(finding, preset),
    )


def digest(finding: Finding, preset: str) -> str:
    """Return a hash of what a finding's file runs and predicts. The defaults of conf/ aren't part of it."""
    decides = [finding.words(preset), list(finding.expected()), finding.bounds]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


def has_effect(override: str) -> bool:
    """Whether an override of the command line changes what is trained."""
    return section_of(override) not in WITHOUT_EFFECT or key_of(override).startswith("sweep.trial")


def section_of(override: str) -> str:
    return key_of(override).replace("/", ".").partition(".")[0]
