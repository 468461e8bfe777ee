"""A verdict's entry in the ledger: its question, and the numbers and test levels of its ideas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minllm.errors import UserError, without_passwords
from minllm.schema.checking import fits
from minllm.study import recorded
from minllm.study.arms import identity
from minllm.study.comparison import ALL, Comparison, Contest, Noise
from minllm.study.metric import BITS, Name
from minllm.study.report.data import plain
from minllm.study.selection import VERDICT
from minllm.study.standing import Standing
from minllm.sweep.spec import without_storage
from minllm.verdict.ledger import PLACE, Contents, Ledger, Line, fault_in, next_places, refuse_damage

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from minllm.verdict.sequential import VerdictSearch

BUDGET = ("steps", "tokens", "minutes", "flops", "batch_size")
QUESTION = ("equal", "metric", "margin", "looks", "baseline", "aa", "champion")
"""Options of the protocol that are recorded with a question."""


@dataclass(frozen=True)
class Question:
    """A verdict's question, as the ledger records it.

    cfgs: the configuration of each arm, sized but not tuned, by the arm's name
    names: what each arm is called in the report, by its name
    arms, overrides, size: overrides of each arm, of all arms, and those that set their size
    contests: each arm that is judged and its baseline, in the order of the comparison
    """

    name: str
    folder: Path
    cfgs: Mapping[str, DictConfig]
    names: Mapping[str, str]
    arms: Mapping[str, Sequence[str]]
    overrides: Sequence[str]
    size: Sequence[str]
    protocol: Mapping[str, Any]
    contests: Sequence[tuple[str, str]]

    @property
    def key(self) -> str:
        """A hash of the arms' configurations and the metric, whatever the verdict's name and how they were typed."""
        return of_metric(
            [[name, idea_of(self.cfgs, (name, name))] for name in self.cfgs], self.protocol["metric"]
        )

    @property
    def content(self) -> dict[str, Any]:
        """The recorded content, without secrets."""
        first = next(iter(self.cfgs.values()))
        return {
            "arms": {name: shown(overrides) for name, overrides in self.arms.items()},
            "overrides": shown(self.overrides),
            "size": list(self.size),
            "budget": {key: first.train.get(key) for key in BUDGET},
            "data": first.choices.get("data"),
            "tokenizer": first.choices.get("tokenizer"),
            **{key: self.protocol[key] for key in QUESTION},
        }


@dataclass(frozen=True)
class Entry:
    """The entry of a verdict that was started.

    places: of its ideas, each with its number and level; none if errors aren't controlled over all ideas
    kind: the kind of question that it competes in for a championship, if it does
    """

    identifier: str
    question: str
    places: Sequence[Line]
    kind: str | None = None

    @property
    def saved(self) -> dict[str, Any]:
        """Its content for verdict.json, so that the levels stay the same whenever the verdict is continued."""
        return {
            "id": self.identifier,
            "question": self.question,
            "places": list(self.places),
            "kind": self.kind,
        }

    @property
    def announcement(self) -> str:
        """A sentence on what is needed; "" if errors aren't controlled over all ideas."""
        if not self.places:
            return ""
        needed = ", ".join(f"idea {place['number']} needs p ≤ {place['level']:.2g}" for place in self.places)
        return f"Among all ideas tried here, {needed}."


def entry_for_search(search: VerdictSearch) -> Entry:
    """Return the entry of a verdict that is about to train; see `entry_for_question`."""
    names = {name: search.display_name(name) for name in search.arms}
    question = Question(
        name=search.name,
        folder=search.folder,
        cfgs=search.cfgs,
        names=names,
        arms=search.arms,
        overrides=search.overrides,
        size=search.size,
        protocol=search.protocol_data(),
        contests=contests_of(list(search.arms), search.protocol.baseline),
    )
    saved = search.saved_protocol().get("ledger") if recorded.is_there(search.folder, VERDICT) else None
    return entry_for_question(question, search.ledger, saved, search.kind)


def record_verdict(search: VerdictSearch, comparison: Comparison) -> dict[str, Any]:
    """Enter a verdict into the ledger, and return what the report says about it; see `record_reached`."""
    spent = {
        "report": str(search.folder / "report.html"),
        "seconds": round(sum(map(sum, search.seconds.values())), 1),
        "runs": sum(map(len, search.seconds.values())),
    }
    arms = {search.display_name(name): overrides for name, overrides in search.arms.items()}
    overrides = {"arms": arms, "command": without_passwords(search.command())}
    line = record_reached(comparison, search.entry, search.ledger, spent, overrides)
    champion = line["crowned"]["arm"] if line["crowned"] else None
    sentence = f"The verdict is in {search.ledger.path}, which python run.py task=ledger shows."
    return {
        "file": str(search.ledger.path),
        "id": line["id"],
        "crowned": champion,
        "sentence": f"{champion} is the new champion. {sentence}" if champion else sentence,
    }


def unreached_entry(search: VerdictSearch) -> dict[str, Any]:
    """Return what --json says about the entry of a verdict that ends without a comparison."""
    sentence = f"The verdict was started, but not reached, according to {search.ledger.path}."
    return {
        "file": str(search.ledger.path),
        "id": search.entry.identifier,
        "crowned": None,
        "sentence": sentence,
    }


def entry_for_question(question: Question, ledger: Ledger, saved: object, kind: str | None) -> Entry:
    """Return the entry of a verdict: a new one before its first run, or the one made when it began.

    Args:
        saved: the entry's content in verdict.json, if the verdict has begun.
        kind: the kind of question that it competes in for a championship, if it does.

    Raises:
        UserError: the ledger or the kept entry is damaged, or the ledger can't be locked.
    """
    if saved is not None:
        entry = entry_of(saved)
        if entry.question == question.key:
            restore(entry, question, ledger)
            return entry
    ideas = [
        (question.names[arm], question.names[baseline], idea_of(question.cfgs, (arm, baseline)))
        for arm, baseline in question.contests
    ]
    with ledger.locked() as contents:
        if question.protocol["ledger"]:
            refuse_damage(contents)
        identifier, started = unfinished_entry(contents, question)
        if started is None:
            places = next_places(contents, ideas) if question.protocol["ledger"] else []
            started = started_content(question, places)
            ledger.append("started", identifier, started)
    return Entry(identifier, question.key, started["places"], kind)


def started_content(question: Question, places: Sequence[Line]) -> Line:
    """Return the content of the line of a verdict that is started."""
    return {
        "name": question.name,
        "folder": str(question.folder),
        "question": plain(question.content),
        "places": list(places),
    }


def restore(entry: Entry, question: Question, ledger: Ledger) -> None:
    """Append the line of a verdict that was started, if the ledger has been removed since."""
    with ledger.locked() as contents:
        if not contents.damaged and not contents.of("started", entry.identifier):
            ledger.append("started", entry.identifier, started_content(question, entry.places))


def unfinished_entry(contents: Contents, question: Question) -> tuple[str, Line | None]:
    """Return the verdict's identifier, and its line if it was interrupted before verdict.json was written."""
    key = hashed([str(question.folder.resolve()), question.key, question.protocol["ledger"]])[:12]
    reached = {line["id"] for line in contents.of("reached")}
    earlier = [line for line in contents.of("started") if line["id"].partition("-")[0] == key]
    if earlier and earlier[-1]["id"] not in reached:
        return earlier[-1]["id"], earlier[-1]
    return key if not earlier else f"{key}-{len(earlier) + 1}", None


def with_standings(comparison: Comparison, entry: Entry | None, every: bool) -> Comparison:
    """Return the comparison with the place of each contest among all ideas, if it was entered.

    Args:
        every: whether every arm is compared with every other, so that none is the idea: then worse is a claim, too.
    """
    claims = ("better", "worse") if every else ("better",)
    entries = entry.places if entry else ()
    places = {(place["arm"], place["baseline"]): place for place in entries}
    contests = []
    for contest in comparison.contests:
        place = places.get((contest.arm.name, contest.baseline.name))
        stands = place and Standing(place["number"], place["level"], claims)
        contests.append(replace(contest, standing=stands))
    return replace(comparison, contests=contests)


def record_reached(
    comparison: Comparison,
    entry: Entry,
    ledger: Ledger,
    spent: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> Line:
    """Append a line for the verdict, unless the same one is there already, and return it.

    Args:
        spent: the report's path, the seconds and the number of runs.
        overrides: of each arm, by the name it has in the comparison, for a championship; and the whole command.
    """
    results = {
        "headline": comparison.headline,
        "outcomes": [outcome(contest) for contest in comparison.contests],
        "noise": [noise(noise_of_arm) for noise_of_arm in comparison.noise],
    }
    content = plain(results)
    with ledger.locked() as contents:
        before = contents.of("reached", entry.identifier)
        if before and {key: before[-1][key] for key in content} == content:
            return before[-1]
        content["crowned"] = new_champion(comparison, entry, contents, overrides)
        content["updates"] = before[-1]["time"] if before else None
        content |= {"seeds": seeds_of(comparison), **commit_of(comparison), **plain(spent)}
        return ledger.append("reached", entry.identifier, content)


def new_champion(
    comparison: Comparison, entry: Entry, contents: Contents, overrides: Mapping[str, Any]
) -> Line | None:
    """Return the new champion: the best arm that is better than the present one, also among all ideas."""
    if entry.kind is None:
        return None
    present = contents.champion(entry.kind)
    current = shown(overrides["arms"][comparison.baseline.name])
    if current != (present["overrides"] if present else []):
        return None  # another one has been crowned in the meantime
    better = [
        contest
        for contest in comparison.contests
        if contest.standing and contest.verdict.word == "better" and contest.standing.holds(contest.verdict)
    ]
    if not better:
        return None
    best = min(better, key=lambda contest: contest.verdict.difference or 0.0)
    return {
        "kind": entry.kind,
        "arm": best.arm.name,
        "overrides": shown(overrides["arms"][best.arm.name]),
        "command": overrides["command"],
    }


def outcome(contest: Contest) -> dict[str, Any]:
    verdict, stands = contest.verdict, contest.standing
    return {
        "arm": contest.arm.name,
        "baseline": contest.baseline.name,
        "outcome": contest.outcome,
        "pairs": verdict.pairs,
        "difference": verdict.difference,
        "interval": verdict.interval,
        "confidence": verdict.confidence,
        "p": verdict.p_overall,
        "number": stands.number if stands else None,
        "level": stands.level if stands else None,
        "holds": stands.holds(verdict) if stands else None,
        "open": stands.is_open(verdict) if stands else None,
    }


def noise(result: Noise) -> dict[str, Any]:
    return {
        "arm": result.arm.name,
        "outcome": result.verdict.word,
        "pairs": result.verdict.pairs,
        "floor": result.floor,
    }


def seeds_of(comparison: Comparison) -> list[int]:
    return sorted({seed for arm in comparison.arms for seed in arm.runs})


def commit_of(comparison: Comparison) -> dict[str, Any]:
    """Return the commit that the runs were made with; a list if there are several."""
    git = [run.environment["git"] for arm in comparison.arms for run in arm.runs.values()]
    commits = list(dict.fromkeys(state["commit"] for state in git))
    return {
        "commit": commits[0] if len(commits) == 1 else commits,
        "dirty": any(state["dirty"] for state in git),
    }


def contests_of(arms: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Return each arm and the baseline it is compared with, as `minllm.study.comparison` pairs them."""
    if baseline == ALL:
        return [(arm, against) for i, against in enumerate(arms) for arm in arms[i + 1 :]]
    first = baseline or arms[0]
    return [(arm, first) for arm in arms if arm != first]


def entry_of(saved: object) -> Entry:
    """Return the entry stored in verdict.json. UserError if it is damaged."""
    kinds = {"id": str, "question": str, "places": list[dict[str, Any]], "kind": str | None}
    fault = fault_in(saved, kinds, "")
    for place in () if fault else saved["places"]:
        fault = fault or fault_in(place, PLACE, "places.")
    if fault or not fits(saved, dict[str, Any]):
        raise UserError(
            f"The ledger section of verdict.json is damaged: {fault}. Restore the file, or start another verdict:"
            " sweep.name=<name>."
        )
    return Entry(saved["id"], saved["question"], saved["places"], saved["kind"])


def idea_of(cfgs: Mapping[str, DictConfig], pair: tuple[str, str]) -> str:
    return hashed([identity(cfgs[name]) for name in pair])[:16]


def shown(overrides: Sequence[str]) -> list[str]:
    """Return overrides without secrets."""
    return [without_passwords(override) for override in without_storage(overrides)]


def of_metric(question: list[Any], metric: Name) -> str:
    """Return a hash of what is asked, by a metric; of bits per byte it is the one of versions without other metrics."""
    return hashed(question if metric == BITS.name else [*question, metric])


def hashed(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
