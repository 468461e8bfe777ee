"""A run's folder may be damaged in any way, or made to do harm: it's left out, and the rest is compared."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from minllm.errors import UserError, printable
from minllm.page.html import escape
from minllm.page.markdown import code, plain, sh
from minllm.study.comparison import compare
from minllm.study.reading import Guess, Reading
from minllm.study.recorded import Damaged, read_text
from minllm.study.report import summary, write_report
from tests.comparisons import ENVIRONMENT, figures

SEED = 7
CONFIG = {
    **{"seed": SEED, "tags": ["mine"], "typed": ["norm=pre"], "extensions": []},
    **{"choices": {"norm": "pre", "data": "tales"}, "norm": {"kind": "pre"}, "tokenizer": {}},
    **{"model": {"dim": 8}, "data": {"seq_len": 8}, "optim": {"lr": 0.1}, "train": {"compile": "auto"}},
    "logger": {"project": "p", "group": None, "mode": "offline"},
}
EVENT = {"step": 1, "tokens": 100, "seconds": 1.0, "val_bpb": 3.0}


def write(
    folder: Path,
    config: Mapping[str, Any] = CONFIG,
    summary: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] = ENVIRONMENT,
    event: Any = EVENT,
) -> Path:
    """Write the four files of a run of seed 7; the configuration as JSON, which YAML reads too."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(summary or figures(9.0, SEED)))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two arms that are as they should be, and room for others."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for norm in ("pre", "post"):
        config = {**CONFIG, "norm": {"kind": norm}, "choices": {**CONFIG["choices"], "norm": norm}, "seed": 0}
        write(folder / norm, config, figures(2.0, 0))
    return folder


# ---- files ---------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": pipe,
    "a folder": Path.mkdir,
    "a link to itself": loop,
    "a device": device,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "UTF-16": lambda path: path.write_bytes('{"a": 1}\n'.encode("utf-16")),
    "torn": lambda path: path.write_text('{"step": 1, "val_b\n'),
    "nested": lambda path: path.write_text('{"a":' * 50_000 + "1" + "}" * 50_000 + "\n"),
    "a number of 6,000 digits": lambda path: path.write_text(f'{{"seed": {"1" * 6000}}}\n'),
    "another file's": lambda path: path.write_text("[1, 2]\n"),
    "NaN": lambda path: path.write_text("NaN\n"),
}


@pytest.mark.parametrize(
    "name", ["config.yaml", "summary.json", "environment.json", "metrics.jsonl", "trial.json"]
)
def test_what_is_no_such_file_leaves_a_run_out_with_its_reason(runs, name):
    for kind, make in NO_FILES.items():
        folder = write(runs / kind)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
    comparison = compare([runs])
    reasons = {one.folder.name: one.why for one in comparison.left_out}
    assert list(reasons) == sorted(NO_FILES) and all(name in why for why in reasons.values()), reasons
    assert [list(arm.runs) for arm in comparison.arms] == [[0], [0]]


@pytest.mark.parametrize("name", ["log.txt", ".lock"])
def test_what_only_says_how_a_run_stands_may_be_anything(runs, name):
    for make in (pipe, Path.mkdir, loop, device):
        folder = write(runs / make.__name__)
        make(folder / name)
        (folder / "summary.json").unlink()
    left_out = compare([runs]).left_out
    reasons = ("It crashed or was killed", f"{name} is not a regular file")
    assert len(left_out) == 4 and all(any(why in one.why for why in reasons) for one in left_out)


def test_links_that_lead_back_are_followed_once(runs):
    for name in ("back", "again"):
        (runs / name).symlink_to(runs)
        (runs / "empty" / name).parent.mkdir(exist_ok=True)
        (runs / "empty" / name).symlink_to(runs)
    assert [list(arm.runs) for arm in compare([runs]).arms] == [[0], [0]]


def test_a_folder_that_cannot_be_looked_into_is_named(runs, monkeypatch):
    """By everybody's rights; root may look into any folder."""
    locked, iterdir = runs / "locked", Path.iterdir
    locked.mkdir()

    def forbidden(folder: Path) -> Iterator[Path]:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    (left_out,) = compare([runs]).left_out
    assert left_out.folder == locked and "can't be read" in left_out.why


def test_a_file_that_is_too_large_to_be_a_runs_is_not_read(runs):
    (write(runs / "large") / "summary.json").write_text(json.dumps({"a": "x" * 2**20}))
    assert "it is larger than 1 MiB" in compare([runs]).left_out[0].why


def test_a_configuration_runs_no_code_and_refers_to_nothing(runs, tmp_path):
    harmful = [
        f'a: !!python/object/apply:os.system ["touch {tmp_path}/harm"]',
        json.dumps({**CONFIG, "tags": ["${oc.env:HOME}"]}),
        "model: &m {a: *m}\nnorm: {}\ntokenizer: {}\nchoices: {}\nseed: 7\n",
    ]
    for number, text in enumerate(harmful):
        (write(runs / f"x{number}") / "config.yaml").write_text(text)
    assert len(compare([runs]).left_out) == 3 and not (tmp_path / "harm").exists()


# ---- fields --------------------------------------------------------------------------------------

MISSING = object()
WRONG: dict[tuple[str, ...], list[Any]] = {
    ("summary", "val_bpb"): [None, True, "2", [2.0], {}, 1e308, -1, MISSING],
    ("summary", "params"): ["x", True, 1.5, None, math.nan, 10**400, MISSING],
    ("summary", "seed"): [[0], "7", 8, True, MISSING],
    ("summary", "tokens_per_second"): [math.inf, "fast", None],
    ("summary", "state_bytes_per_sequence"): ["none", -1, math.nan],
    ("summary", "floor_bpb"): ["x", math.nan],
    ("summary", "validation_text"): [5, None],
    ("summary", "decisions"): [[], "bf16", MISSING],
    ("summary", "decisions", "precision"): [16, {}],
    ("environment", "versions"): [None, "2.13", MISSING],
    ("environment", "versions", "torch"): [2.13, MISSING],
    ("environment", "threads"): ["two", 1e400],
    ("environment", "git", "dirty"): ["no", MISSING],
    ("config", "choices"): [5, "x", ["norm"], None, MISSING],
    ("config", "choices", "norm"): [5, True, {}],
    ("config", "seed"): [None, "7", 7.5, MISSING],
    ("config", "tags"): ["mine", [1], {}],
    ("config", "typed"): [1, [None]],
    ("config", "optim"): [5, "adamw"],
    ("config", "optim", "lr"): ["fast", math.nan, -1],
    ("config", "logger", "group"): [["a"], 1],
    ("event", "val_bpb"): ["3.0", True, [3.0], -1, 1e308],
    ("event", "tokens"): ["x", math.nan, MISSING],
    ("event", "seconds"): [None, -1, math.inf],
}


def changed(documents: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    documents = copy.deepcopy(dict(documents))
    inner = documents
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return documents


def documents() -> dict[str, Any]:
    return {"config": CONFIG, "summary": figures(9.0, SEED), "environment": ENVIRONMENT, "event": EVENT}


FILES = {"config": "config.yaml", "summary": "summary.json", "environment": "environment.json"}


def test_a_field_of_another_type_leaves_a_run_out_and_is_named(runs):
    made = {}
    for path, values in WRONG.items():
        for number, value in enumerate(values):
            made[f"{'.'.join(path)}-{number}"] = path
            write(runs / f"{'.'.join(path)}-{number}", **changed(documents(), path, value))
    comparison = compare([runs])
    reasons = {one.folder.name: one.why for one in comparison.left_out}
    assert made.keys() == reasons.keys()
    unnamed = {
        name: reasons[name]
        for name, (file, *_, key) in made.items()
        if FILES.get(file, "metrics.jsonl") not in reasons[name] or key not in reasons[name]
    }
    assert unnamed == {}
    write_report(comparison, runs.parent / "report", [])


VALUES = [None, True, "x", [0], {}, -1, 3.5, math.nan, 10**400, "\ud800", MISSING]


def paths(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key in node if isinstance(node, dict) else ():
        yield (*above, key)
        yield from paths(node[key], (*above, key))


def test_whatever_a_field_holds_the_others_are_compared(runs):
    """Each field of each file takes each value: a run may still be one, and then it's compared too."""
    for number, path in enumerate(path for path in paths(documents()) if len(path) > 1):
        for value in VALUES:
            if path != ("summary", "validation_text") or not isinstance(
                value, str
            ):  # which says a text of its own
                name = f"{number}-{VALUES.index(value)}"
                write(runs / name, **changed(documents(), path, value))
    comparison = compare([runs], aa=True)
    assert {0} <= set.intersection(*(set(arm.runs) for arm in comparison.arms if arm.runs.keys() != {SEED}))
    assert len(comparison.left_out) > 100
    write_report(comparison, runs.parent / "report", [])
    assert comparison.headline in summary(comparison)


def test_a_number_that_no_float_can_hold_sets_arms_apart(runs):
    """Beyond 2^53 neighbours are the same float."""
    for number in (0, 1):
        write(runs / str(number), {**CONFIG, "norm": {"kind": 2**53 + number}})
    assert len(compare([runs]).arms) == 4


# ---- what would be obeyed ------------------------------------------------------------------------

EVIL = (
    "\x1b]0;title\x07\x9b31m a|b`c\n# heading\n- item\n```\n<script>harm()</script><img src=x onerror=harm()>"
    "![](http://e.vil/x)[l](javascript:harm()) \u202etxt\u2066 \r **bold** $x$ &lt; \"'>"
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_nothing_in_a_run_reaches_a_page_or_a_terminal_as_anything_but_text(runs):
    for arm in ("one", "other"):
        config = changed(CONFIG, ("choices", "norm"), EVIL + arm)
        config = {**config, "norm": {"kind": EVIL + arm}, "typed": [EVIL], "tags": [EVIL]}
        environment = {**ENVIRONMENT, "cpu": EVIL, "git": {"commit": EVIL, "dirty": False}}
        write(runs / f"{arm}<script>harm()<x>\x1b[31m`|", config, None, environment)
    shutil.copytree(runs / "pre", os.fsdecode(os.fsencode(runs / "pre") + b"\xff"))
    comparison = compare([runs])
    guesses = [[Guess(EVIL, 1.0, 2, 3)]]
    readings = [Reading(arm.name, SEED, [(EVIL, EVIL)], guesses, EVIL) for arm in comparison.arms]
    page, text, data = (
        file.read_text() for file in write_report(comparison, runs.parent / "report", readings)
    )
    body = page[page.index("</head>") :]
    said = summary(comparison)
    for shown in (said, text, data, body):
        assert not OBEYED.search(shown)
    assert "<script>harm" not in body and "<img" not in body
    outside = re.sub(r"````sh\n.*?\n````\n", "", text, flags=re.DOTALL)  # what is typed stands as it is
    assert re.findall(r"!\[\]\(|\[l\]\(|(?<!\\)<(?:img|script)|\n# h\w+|\n- item", outside) == []
    assert "\n- item" not in said and len(json.loads(data)["arms"]) == 4


def test_a_text_keeps_its_letters_and_loses_its_power():
    assert printable("é\tà\n…") == "é\tà\n…" and printable("\x1b[0m\u202e\x85") == "\\x1b[0m\\u202e\\x85"
    assert escape("<b>\x07") == "&lt;b&gt;\\x07"
    assert (
        code("a|b\nc") == "`a\\|b\\nc`"
        and code("`c` <b>") == "\\`c\\` \\<b\\>"
        and plain("# a\n# b") == "\\# a\\\\n\\# b"
    )
    assert sh("echo '\n```\n'").startswith("````sh\n") and sh("x") == "```sh\nx\n```"


def test_where_nothing_is_left_each_has_its_reason(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    write(folder / "a", event={**EVENT, "val_bpb": "low"})
    with pytest.raises(UserError, match='line 1: val_bpb is "low", not a number from 0 to 1e6'):
        compare([folder])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to count descriptors in")
@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.write_text("x"), lambda path: None]
)
def test_no_file_stays_open_whatever_it_is(tmp_path: Path, make: Callable[[Path], object]):
    make(tmp_path / "log.txt")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with contextlib.suppress(Damaged):
            read_text(tmp_path, "log.txt")
    assert len(os.listdir("/proc/self/fd")) == before
