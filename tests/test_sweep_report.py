"""What a search says of itself: its table while it goes on, its summary and its page."""

from __future__ import annotations

import io
import random
import re
import shlex
import sys
import time
import warnings

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from minllm.page.units import MIB
from minllm.schema.overrides import short_names
from minllm.sweep.report import write_report
from minllm.sweep.report.figures import search_plots
from minllm.sweep.report.importance import importances
from minllm.sweep.report.summary import describe_memory, summary
from minllm.sweep.report.table import Table
from minllm.sweep.report.trials import best_of, counted, shown, state_of

SPACE = {
    "model.dim": IntDistribution(64, 1024, step=64),
    "optim.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "model.act": CategoricalDistribution(["gelu", None, True]),
    "model.window": IntDistribution(8, 512, log=True),
}
COMMAND = "python sweep.py search=size 'data.text=<a>'"
REASONS = ("pruner", "predicted", "memory", "killed", "diverged", "time")


def trial(chosen: dict, value: float | None = None, state: str | None = None, **attrs) -> FrozenTrial:
    return create_trial(
        state=TrialState[state or ("PRUNED" if value is None else "COMPLETE")],
        value=value,
        params=chosen,
        distributions={name: SPACE[name] for name in chosen},
        user_attrs=attrs,
    )


def study_of(*trials: FrozenTrial) -> optuna.Study:
    study = optuna.create_study(study_name="size")
    study.add_trials(trials)
    return study


def settings(dim: int, **more) -> dict:
    return {"model.dim": dim, "optim.lr": 0.003} | {f"model.{name}": value for name, value in more.items()}


def everything() -> optuna.Study:
    """Return a study with a trial of each kind; number 1 is the best."""
    words = ["data=tales", "model.dim=128", "note=a b<c"]
    return study_of(
        trial(settings(64), 3.0, predicted_bytes=90 * MIB, peak_bytes=100 * MIB, seconds=10.0, params=1000),
        trial(
            settings(128, act=None, window=16),
            2.5,
            **{"overrides": words, "run": "runs/size/1", "seconds": 200.0, "params": 12345},
            **{"predicted_bytes": 400 * MIB, "peak_bytes": 390 * MIB, "note": None},
        ),
        trial(settings(128, act=None, window=16), 2.5, same_as=1),
        trial(settings(64, act=True), 0.5, violation=1.0, reason="killed", predicted_bytes=2000 * MIB),
        *(
            trial(
                settings(512), reason=reason, predicted_bytes=(3000 if reason in REASONS[1:4] else 800) * MIB
            )
            for reason in REASONS
        ),
        trial(settings(64), state="FAIL", reason="crash", text="It stopped at\n<window> & more."),
        trial(settings(192, act="gelu"), state="RUNNING"),
        trial({}, state="WAITING"),
    )


def written(study: optuna.Study, folder) -> tuple[str, str]:
    """Return the summary, and what the page has besides plotly's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = write_report(study, folder / "report", metric="val_bpb", command=COMMAND)
    assert [path.name for path in paths] == ["summary.md", "report.html"]
    assert sorted(paths) == sorted((folder / "report").iterdir())
    page = paths[1].read_text(encoding="utf-8")
    assert page.count("<script>/**\n* plotly.js") == 1 and "<script src" not in page
    before, after = page.split("<script>/**", 1)
    text, body = paths[0].read_text(encoding="utf-8"), before + after.split("</head>", 1)[1]
    assert not re.search(r"\b(NaN|nan|inf|Infinity)\b", text + body)
    return text, body


def test_each_trial_has_a_word():
    states = [state_of(one) for one in everything().trials]
    pruned = [f"pruned: {reason}" for reason in REASONS]
    assert states == [
        "complete",
        "complete",
        "reused",
        "pruned: killed",
        *pruned,
        "failed",
        "running",
        "waiting",
    ]
    assert state_of(trial(settings(64))) == "pruned"
    assert state_of(trial(settings(64), float("inf"), reason="diverged")) == "pruned: diverged"
    assert state_of(trial(settings(64), 2.0, same_as=0)) == "reused"
    assert counted(everything().trials)["pruned: killed"] == 2
    assert counted([]) == {"complete": 0}


def test_a_value_that_stands_in_for_none_is_never_the_best():
    assert best_of(everything()).number == 1
    assert (
        best_of(study_of(trial(settings(64), 0.5, violation=1.0), trial(settings(64), float("inf")))) is None
    )
    assert best_of(study_of()) is None


def test_names_are_as_short_as_they_may_be():
    names = ["model.attn.n_heads", "model.dim", "optim.lr", "warmup.lr", "lr", "model/ffn", "seed"]
    assert list(short_names(names).values()) == [
        "n_heads",
        "dim",
        "optim.lr",
        "warmup.lr",
        "lr",
        "ffn",
        "seed",
    ]
    assert short_names([]) == {}


def test_values_are_shown_as_they_are_typed():
    assert [shown(value) for value in (None, True, False, 64, 0.00123456, "gelu")] == [
        *("null", "true", "false", "64", "0.001235", "gelu")
    ]


def test_the_summary_has_the_facts(tmp_path):
    text, _ = written(everything(), tmp_path)
    assert COMMAND in text
    assert (
        "Trial 1 reached the lowest val_bpb: 2.5000 (12,345 parameters, 390 MiB peak memory, 3 min)." in text
    )
    line = next(line for line in text.splitlines() if line.startswith("python run.py"))
    assert shlex.split(line)[2:] == ["data=tales", "model.dim=128", "note=a b<c"]
    assert "`runs/size/1`" in text and "- `model.act`: null" in text
    cells = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")
    ]
    assert ["pruned: killed", "was killed because the machine ran out of memory", "2"] in cells
    assert ["reused", "had the same configuration as an earlier trial, whose value was reused", "1"] in cells
    assert ["all", "", "13"] in cells
    assert ["trial", "val_bpb", "params", "peak", "`dim`", "`lr`", "`act`", "`window`"] in cells
    ten = [row for row in cells if len(row) == 8 and row[0].isdigit()]
    assert ten == [
        ["1", "2.5000", "12,345", "390 MiB", "128", "0.003", "null", "16"],
        ["0", "3.0000", "1,000", "100 MiB", "64", "0.003", "", ""],
    ]
    assert any(row[:3] == ["`optim.lr`", "0.0001 to 0.1, log", "0.003"] for row in cells)
    assert any(row[:3] == ["`model.dim`", "64 to 1024 in steps of 64", "128"] for row in cells)
    assert any(row[:3] == ["`model.act`", "gelu, null, true", "null"] for row in cells)
    assert "- Trial 10 failed. It stopped at <window> & more." in text
    assert "0.5000" not in text


def test_the_story_of_memory():
    story = " ".join(describe_memory(everything().trials))
    assert "The largest trial that fit was trial 4: 800 MiB predicted." in story
    assert "The smallest that didn't fit was trial 3: 2,000 MiB predicted; it was killed because" in story
    assert (
        "In the 2 trials with both values, the median of measured / predicted was 1.04 (0.97 to 1.11)."
        in story
    )
    assert "overlap" not in story
    overlapping = [*everything().trials, trial(settings(64), reason="memory", peak_bytes=700 * MIB)]
    assert "overlap" in " ".join(describe_memory(overlapping))
    assert describe_memory([trial(settings(64), 1.0)]) == ["The trials recorded no memory use."]


def test_the_page_has_the_facts_and_escapes_them(tmp_path):
    _, page = written(everything(), tmp_path)
    assert "python sweep.py search=size &#x27;data.text=&lt;a&gt;&#x27;" in page
    assert "<pre>python run.py data=tales model.dim=128 &#x27;note=a b&lt;c&#x27;</pre>" in page
    assert "Trial 1 reached the lowest val_bpb: 2.5000" in page
    assert '<td>was killed because the machine ran out of memory</td><td class="n">2</td>' in page
    assert "<window>" not in page and "b<c" not in page
    assert page.count('<div class="figure">') == 4
    assert "trial 3: pruned: killed" in page and "predicted 2,000 MiB" in page


def test_a_value_that_stands_in_for_none_is_not_drawn():
    history = search_plots(everything(), "val_bpb")["Search history"]
    assert {value for line in history.data for value in line.y} == {2.5, 3.0}


def test_a_search_without_a_best_trial_says_so(tmp_path):
    for name, study, sentence in [
        ("empty", study_of(), "No trial has ended yet."),
        ("begun", study_of(trial(settings(64), state="RUNNING")), "No trial has ended yet."),
        (
            "pruned",
            study_of(*(trial(settings(64 * n), reason="pruner") for n in (1, 2))),
            "No trial has completed, so there is no best trial.",
        ),
    ]:
        text, page = written(study, tmp_path / name)
        assert sentence in text and sentence in page
        assert "This needs two complete trials; there is none." in page
        assert "reached the lowest" not in text + page and "No trial has completed." in text


def test_one_trial_is_enough_for_a_report(tmp_path):
    text, page = written(study_of(trial(settings(64), 2.0)), tmp_path)
    assert "Trial 0 reached the lowest val_bpb: 2.0000" in text
    assert (
        "Its overrides weren't recorded." in text
        and "Importances need two complete trials with different values." in text
    )
    assert "This needs two complete trials; there is only one." in page
    assert "No two trials differ in a parameter yet." in page


def test_a_search_of_one_parameter_is_mapped_against_memory(tmp_path):
    trials = [trial({"model.dim": 64 * n}, 3 - n / 9, predicted_bytes=n * MIB) for n in range(1, 5)]
    _, page = written(study_of(*trials, trial({"model.dim": 640}, reason="predicted")), tmp_path)
    assert "memory, MiB" in page and "1 trial without values on both axes" in page
    _, page = written(study_of(*(trial(one.params, one.value) for one in trials)), tmp_path)
    assert "The trials recorded no memory use." in page


def test_memory_map_uses_parameters_correlated_with_memory(tmp_path):
    trials = [
        trial(
            {"optim.lr": lr, "model.act": act, "model.dim": dim, "model.window": 8 + n},
            reason="predicted",
            predicted_bytes=dim * 2**20,
        )
        for n, (lr, act, dim) in enumerate(
            [(0.1, None, 64), (0.001, True, 128), (0.03, "gelu", 512), (0.01, None, 960)]
        )
    ]
    _, page = written(study_of(*trials), tmp_path)
    assert {"dim", "window"} == set(re.findall(r'"title":\{"text":"(dim|window|lr|act)"\}', page))


def test_only_choices_of_words_are_drawn_too(tmp_path):
    choices = [None, True, "gelu"] * 3
    study = study_of(
        *(trial({"model.act": one}, n / 3, predicted_bytes=MIB) for n, one in enumerate(choices))
    )
    text, page = written(study, tmp_path)
    assert '"type":"category"' in page and "| `model.act`" in text and page.count('<div class="figure">') == 4


def test_importances_exclude_trials_without_values():
    generator = random.Random(0)
    found = [(64 * generator.randint(1, 16), 10 ** generator.uniform(-4, -1)) for _ in range(60)]
    trials = [trial({"model.dim": dim, "optim.lr": lr}, abs(dim - 512) + lr) for dim, lr in found]
    shares = importances(study_of(*trials))
    assert list(shares) == ["model.dim", "optim.lr"] and sum(shares.values()) == pytest.approx(1)
    others = [trial({"model.dim": 64, "optim.lr": 1e-4}, -1.0, violation=1.0) for _ in range(40)]
    assert importances(study_of(*trials, *others)) == shares


def test_reports_of_all_sorts_of_searches(tmp_path):
    generator = random.Random(1)
    for number in range(6):
        trials = []
        for _ in range(generator.choice([2, 3, 5, 12, 40])):
            params = {name: sample(generator, name) for name in SPACE if generator.random() < 0.8}
            attrs = {"reason": generator.choice(REASONS), "peak_bytes": generator.choice([None, 1, 2**30])}
            value = generator.choice([None, 2.0, generator.random()])
            trials.append(trial(params, value, **(attrs if value is None else {})))
        written(study_of(*trials), tmp_path / str(number))


def sample(generator: random.Random, name: str) -> object:
    space = SPACE[name]
    if isinstance(space, CategoricalDistribution):
        return generator.choice(space.choices)
    return generator.choice([space.low, space.high])


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_keeps_to_the_terminal(width):
    trials = everything().trials
    table = Table("size", "val_bpb", 20, 2)
    table.console = Console(file=io.StringIO(), width=width, height=40)
    table.update(trials)
    table.console.print(table.drawn(trials, time.time()))
    lines = table.console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    drawn = " ".join(" ".join(lines).split())
    assert "11/20 ended" in drawn and "best 2.5000 (trial 1)" in drawn
    assert "2 pruned: killed" in drawn and "1 running" in drawn
    if width >= 80:
        assert "running" in next(line for line in lines if line.split()[:1] == ["11"])
        assert re.search(r"pruned: killed +64 +0.003 ", "\n".join(lines)) and " lr " in drawn
        assert not any("0.5000" in line for line in lines)
    assert ("window" in drawn) == (width >= 80)


def test_long_names_and_values_are_cut_and_brackets_are_no_markup():
    space = {"model.a_name_of_many_many_letters": CategoricalDistribution(["[red]", "x" * 50])}
    trials = study_of(
        *(
            create_trial(value=1.0, params=dict.fromkeys(space, choice), distributions=space)
            for choice in ["[red]", "x" * 50]
        )
    ).trials
    table = Table("[bold]", "val_bpb", 2, 1)
    table.console = Console(file=io.StringIO(), width=80)
    table.console.print(table.drawn(trials, time.time()))
    drawn = table.console.file.getvalue()
    assert "[bold]" in drawn and "[red]" in drawn and "a_name_of_man…" in drawn and "xxxxxxxxxxxxx…" in drawn


def test_running_trials_and_the_best_are_always_in_the_table():
    ended = [trial(settings(64), 1.0 if n == 3 else 2.0) for n in range(100)]
    running = [trial(settings(64), state="RUNNING") for _ in range(4)]
    trials = study_of(*ended[:50], *running, *ended[50:]).trials
    table = Table("size", "val_bpb", 200, 4)
    table.console = Console(file=io.StringIO(), width=80, height=60)
    table.update(trials)
    table.console.print(table.drawn(trials, time.time()))
    numbers = [int(found) for found in re.findall(r"^ +(\d+) ", table.console.file.getvalue(), re.MULTILINE)]
    assert numbers == [3, 50, 51, 52, 53, *range(93, 104)]


def test_the_time_left():
    ended = [trial(settings(64), 1.0, seconds=100.0), trial(settings(64), reason="predicted", seconds=0.0)]
    table = Table("size", "val_bpb", 10, 2)
    assert "? left" in drawn_caption(table, [])
    assert "3 min left" in drawn_caption(table, ended)  # eight of 50 s, two at once
    assert "0 s left" in drawn_caption(Table("size", "val_bpb", 2, 2), ended)


def drawn_caption(table: Table, trials: list[FrozenTrial]) -> str:
    return str(table.drawn(study_of(*trials).trials, time.time()).caption)


def test_a_log_has_one_line_for_each_trial_that_ends(capsys):
    trials = everything().trials
    with Table("size", "val_bpb", 20, 2) as table:
        table.update([])
        for one in trials[:4] + trials[10:11]:
            table.ended(one)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "[1/20] trial 0: complete, val_bpb 3.0000, the best so far, dim 64, lr 0.003, 100 MiB, 10 s",
        "[2/20] trial 1: complete, val_bpb 2.5000, the best so far, dim 128, lr 0.003, act null, window 16,"
        " 390 MiB, 3 min",
        "[3/20] trial 2: reused, val_bpb 2.5000, best 2.5000 (trial 1), dim 128, lr 0.003, act null, window 16, 0 s",
        "[4/20] trial 3: pruned: killed, best 2.5000 (trial 1), dim 64, lr 0.003, act true, 0 s",
        "[5/20] trial 10: failed, best 2.5000 (trial 1), dim 64, lr 0.003, 0 s, It stopped at <window> & more.",
    ]


def test_a_terminal_has_the_table_alone(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Table("size", "val_bpb", 20, 2) as table:
        table.update(everything().trials)
        table.ended(everything().trials[0])
    assert "11/20 ended" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_the_table_is_cheap():
    trials = [trial(settings(64), 2.0) for _ in range(500)]
    table = Table("size", "val_bpb", 500, 2)
    began = time.process_time()
    table.update(trials)
    table.drawn(trials, time.time())
    assert time.process_time() - began < 1  # hundredths were measured; it's drawn twice a second


def test_a_pipe_in_a_value_keeps_the_tables_columns():
    space = {"x": CategoricalDistribution(["a|b", "c`d"])}
    study = study_of(
        *(create_trial(value=1.0, params={"x": choice}, distributions=space) for choice in space["x"].choices)
    )
    rows = [
        line for line in summary(study, metric="val_bpb", command="c").splitlines() if line.startswith("| ")
    ]
    assert "a\\|b" in rows[2] and len(re.findall(r"(?<!\\)\|", rows[2])) == 5
