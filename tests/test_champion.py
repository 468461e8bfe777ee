"""Champions, a verdict from beginning to end, and what is shown of the ledger."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.page.terminal import json_output
from minllm.study.comparison import Comparison
from minllm.sweep.plugin import NotSettled
from minllm.verdict import sequential
from minllm.verdict.champion import kind_of, refuse_unsafe
from minllm.verdict.entry import entry_for_question
from minllm.verdict.ledger import Ledger
from minllm.verdict.sequential import VerdictSearch, reach_verdict
from tests.comparisons import composed, finished, run_all_until
from tests.instant import complete, inquiry
from tests.pages import ROOT, commands
from tests.test_ledger import COMMAND, better, compared, question, told
from tests.test_report_schema import validate_answer, validate_report
from tests.verdicts import PROTOCOL

PAGE = (ROOT / "docs/ledger.md").read_text(encoding="utf-8")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "outputs" / "ledger.jsonl")


# ---- champions -----------------------------------------------------------------------------------


def test_only_discoveries_become_champion(ledger, tmp_path):
    asked = question(tmp_path, "first")
    entry = entry_for_question(asked, ledger, None, "kind")
    alone = told(asked, entry, compared(asked, entry, {"b": better(7)}), ledger)
    assert alone["outcomes"][0]["outcome"] == "better" and alone["crowned"] is None
    line = told(asked, entry, compared(asked, entry, {"b": better(9)}), ledger)
    assert line["crowned"] == {"kind": "kind", "arm": "norm=b", "overrides": ["norm=b"], "command": COMMAND}
    assert ledger.read().champion("kind")["arm"] == "norm=b" and ledger.read().champion("other") is None


def test_beating_a_former_champion_does_not_crown(ledger, tmp_path):
    """Two start against the same champion: the one that ends later hasn't met the new one."""
    one, two = question(tmp_path, "one", "1"), question(tmp_path, "two", "2")
    entries = [entry_for_question(asked, ledger, None, "kind") for asked in (one, two)]
    for asked, entry in zip((one, two), entries):
        line = told(asked, entry, compared(asked, entry, {"b": better(16)}), ledger)
        assert line["outcomes"][0]["holds"] and bool(line["crowned"]) == (asked is one)
    assert ledger.read().champion("kind")["arm"] == "norm=b1"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"ledger": False, "champion": True}, "needs search.ledger=true"),
        ({"champion": True, "baseline": "b"}, "leave search.baseline=b out"),
        ({"champion": True, "baseline": "all"}, "leave search.baseline=all out"),
    ],
)
def test_a_protocol_that_contradicts_a_champion_is_refused(changed, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(PROTOCOL, **changed)


@pytest.mark.parametrize("words", [["arms.a=[norm=post]"], ["arms.a=[]"]])
def test_an_arm_a_beside_the_champion_is_refused(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(UserError, match="leave arms.a out, or search.champion"),
        inquiry("search.champion=true", "arms.b=[norm=none]", *words),
    ):
        pass


def test_the_champion_takes_the_place_of_arm_a(tmp_path, monkeypatch):
    """The command of docs/ledger.md."""
    monkeypatch.chdir(tmp_path)
    (words,) = (typed for _, door, *typed in commands(PAGE) if door == "sweep.py")
    words = [*words, "train.check=false"]
    with inquiry(*words) as asked:
        assert asked.arms == {"a": [], "b": ["model/mlp=relu2"]}
        kind, size = asked.kind, asked.size
        crown(asked, ["norm=sandwich"])
    with inquiry(*words) as asked:
        assert asked.arms["a"] == ["norm=sandwich"] and (asked.kind, asked.size) == (kind, size)
        command = asked.command()
        assert "arms.a=[norm=sandwich]" in command and "champion" not in command
        crown(asked, ["model/attn=mine"])
    with (
        pytest.raises(UserError, match=rf"The champion, norm=b, can't be built .* crowned by: {COMMAND}"),
        inquiry(*words),
    ):
        pass


@pytest.mark.parametrize("word", ["extensions=[evil]", "+extensions=[evil]", "hydra.launcher.setup=[x]"])
def test_a_ledger_can_not_allow_code(tmp_path, word):
    with pytest.raises(UserError, match="which only the command line may have"):
        refuse_unsafe(["norm=none", word], tmp_path / "ledger.jsonl")


def crown(asked: VerdictSearch, overrides: list[str]) -> None:
    crowned = {"kind": asked.kind, "arm": "norm=b", "overrides": overrides, "command": COMMAND}
    with asked.ledger.locked():
        asked.ledger.append("reached", "x", {"headline": "", "outcomes": [], "noise": [], "crowned": crowned})


def test_kind_of_question_depends_only_on_training_settings():
    first = composed("model.dim=16")
    assert kind_of(first, "params") == kind_of(
        composed("model.dim=16", "tags=[mine]", "train.evals=7"), "params"
    )
    others = [composed("model.dim=32"), composed("model.dim=16", "train.steps=7"), first]
    assert len({kind_of(cfg, equal) for cfg, equal in zip(others, ("params", "params", None))}) == 3
    assert kind_of(first, "params") not in {kind_of(cfg, "params") for cfg in others[:2]}


# ---- a verdict from beginning to end, and the task -----------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    """Reach verdicts in an empty folder with runs made up by hand, and return what was said of each."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(VerdictSearch, "opened", made_up(lambda seed: -0.1 - seed / 1000))
        patch.setattr(sequential, "run_all_until", run_all_until)
        yield folder


def made_up(difference: Callable[[int], float]):
    """Return what stands in for the search of an arm: runs by hand, of which those of arm b differ by seed."""

    def opened(search: VerdictSearch, phase: str, name: str, words, n_trials: int, keep: str):
        def run_until(n_trials: int):
            for seed in range(n_trials):
                run = search.folder / phase / f"trial-{seed}"
                if not run.exists():
                    bpb = 2 + (difference(seed) if name == "b" else 0)
                    finished(run, *search.arms[name], seed=seed, bpb=bpb)
            return complete(n_trials, 2.0)

        def trials():
            return complete(len(list((search.folder / phase).glob("trial-*"))), 2.0)

        return contextlib.nullcontext(SimpleNamespace(run_until=run_until, trials=trials))

    return opened


LITTLE = (
    "train.check=false",
    "search.rates=[]",
    "search.prompts=[]",
    "search.stories=0",
    "search.equal=null",
    "arms.b=[norm=none]",
)


def verdict(*words: str) -> Comparison:
    with inquiry(*LITTLE, "search.champion=true", *words) as asked:
        return reach_verdict(asked.sweeper, [*asked.overrides, "arms.b=[norm=none]"])


def test_verdict_continues_until_it_is_a_discovery_and_is_recorded_once(done, capfd):
    """Seven pairs of one sign are better alone (p 0.016), but the first level is 0.011; five further pairs help."""
    comparison = verdict("search.looks=[7,12,13]", "sweep.name=one")
    out = capfd.readouterr().out
    assert (
        "After 7 pairs: norm=none is better than a on its own, not yet among 1 idea: needs p ≤ 0.011, has"
        in out
    )
    assert "After 12 pairs: norm=none is better than a, also among 1 idea: needs p ≤ 0.011, has 0.0" in out
    assert "After 13" not in out and comparison.is_answered
    found = comparison.contests[0].verdict
    assert found.pairs == 7 and found.p_difference > 0.011 >= found.p_overall, (
        "only the ledger counts all twelve"
    )
    assert "norm=none is the new champion." in out
    lines = (done / "outputs/ledger.jsonl").read_text().splitlines()
    line = json.loads(lines[-1])
    assert (line["runs"], line["seconds"], line["commit"]) == (24, 48.0, "0123456789abcdef")
    assert Path(line["report"]).is_file() and line["seeds"] == list(range(12))
    report = json.loads((done / "outputs/sweeps/one/report.json").read_text())
    validate_report(report)
    assert report["contests"][0]["standing"]["holds"] and report["ledger"]["crowned"] == "norm=none"
    kept = json.loads((done / "outputs/sweeps/one/verdict.json").read_text())
    assert kept["ledger"]["places"][0]["level"] == line["outcomes"][0]["level"]
    assert verdict("search.looks=[7,12,13]", "sweep.name=one").headline == comparison.headline
    assert (done / "outputs/ledger.jsonl").read_text().splitlines() == lines


def test_without_the_ledgers_control_the_first_look_that_settles_it_is_the_last(here_with_runs, capfd):
    here_with_runs(lambda seed: -0.1 - seed / 1000)
    with inquiry(*LITTLE, "search.ledger=false", "search.looks=[7,12,13]") as asked:
        asked.protocol.run(asked.sweeper, [*asked.overrides, "arms.b=[norm=none]"])
    out = capfd.readouterr().out
    assert (
        "After 7 pairs: norm=none is better than a.\n" in out and "After 12" not in out and "idea" not in out
    )
    (line,) = Ledger().read().of("reached")
    assert (line["outcomes"][0]["outcome"], line["outcomes"][0]["number"]) == ("better", None)


def test_a_verdict_that_is_given_up_is_not_settled_and_recorded(here_with_runs, capfd):
    """sweep.py exits with 3 then."""
    here_with_runs(lambda seed: (0.1 + seed / 1000) * (-1) ** seed)
    with inquiry(*LITTLE, "search.looks=[6,7,8]") as asked, pytest.raises(NotSettled):
        asked.protocol.run(asked.sweeper, [*asked.overrides, "arms.b=[norm=none]"])
    out = capfd.readouterr().out
    assert "are unlikely to settle it" in out and "After 7" not in out
    (line,) = Ledger().read().of("reached")
    assert line["outcomes"][0]["outcome"] == "inconclusive" and line["outcomes"][0]["holds"] is False


@pytest.fixture
def here_with_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[int], float]], None]:
    """An empty working directory, and what makes runs up by hand; see `made_up`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sequential, "run_all_until", run_all_until)
    return lambda difference: monkeypatch.setattr(VerdictSearch, "opened", made_up(difference))


def test_the_task_shows_every_verdict_and_its_champion(done, capfd, monkeypatch):
    rows = shown("task=ledger")
    out = capfd.readouterr().out
    (row,) = rows
    assert (row.arm, row.outcome, row.among_all, row.pairs) == ("norm=none", "better", "yes, crowned", 7)
    assert "1 idea tried, 1 hold among all; the next one needs p ≤ 0.015." in out
    for page in ("pages/ledger.html", "pages/ledger.md"):
        text = (done / page).read_text(encoding="utf-8")
        assert "norm=none against a" in text and "yes, crowned" in text and row.report in text
    assert shown("task=ledger", f"date={row.time[:10]}", "name=none") == rows
    capfd.readouterr()
    for word in ("date=2020-01-01", "name=sandwich"):
        with json_output(), pytest.raises(UserError, match="No verdict in the ledger matches"):
            shown("task=ledger", word)
        assert capfd.readouterr().out == "", "the only line of JSON is that of the refusal"


def test_the_task_names_damage_and_verdicts_that_were_not_reached(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert shown("task=ledger") == [] and capfd.readouterr().out.startswith("The ledger is empty: no verdict")
    assert list(tmp_path.iterdir()) == []
    entry_for_question(question(tmp_path, "dropped"), Ledger(), None, None)
    entry_for_question(question(tmp_path, "uncounted", ledger=False), Ledger(), None, None)
    with Ledger().path.open("a") as file:
        file.write("{}\n")
    with json_output():
        rows = shown("task=ledger")
    line, err = capfd.readouterr()
    assert [(row.outcome, row.number) for row in rows] == [("not reached", 1), ("not reached", None)]
    assert "ledger.jsonl, line 3, is damaged: it has no version." in err
    validate_answer(json.loads(line))
    assert json.loads(line)["ideas"] == 1 and len(json.loads(line)["damaged"]) == 1


def shown(*words: str):
    return perform(compose(words), Path("pages"))


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    """Those that show the ledger; a verdict against the champion is begun above."""
    monkeypatch.chdir(tmp_path)
    shows = [words for _, door, *words in commands(PAGE) if door == "run.py"]
    assert [shown(*words) for words in shows] == [[], []]
