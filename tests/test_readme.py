"""The README keeps its word: its commands run, its grid is what conf/ holds, its example works as it stands."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tests.test_every_option as laws
from minllm.schema.groups import CONF
from tests import check_option
from tests.commands import python
from tests.pages import ROOT, blocks, commands, page
from tests.pairs import is_refused
from tests.tiny import completed, groups_of_model, is_listed, options

OPTIONS = page("options")
IDEAS = page("ideas")
PYTHON = page("python")
DATA = page("data")
SEARCH = page("search")
COMPARE = page("compare")
OBJECTIVES = page("objectives")
MIXERS = page("mixers")
TRANSFER = page("transfer")
BOUNDS = {"masked", "blocks", "diffuseq", "evaluate"}
"""What is in a command of docs/objectives.md whose losses are upper bounds; the evaluated run is of a masked model."""
TINY = [
    "model.dim=16",
    "model.n_layers=1",
    "tokenizer=tales_512",
    "data.train_stories=40",
    "data.val_stories=2",
    "data.seq_len=32",
    "train.batch_size=8",
    "train.check=false",  # each idea's laws have tests of their own
    "sample.max_new_tokens=4",
]
GROUPS = [
    *groups_of_model(),
    "objective",
    "optim",
    "schedule",
    "data",
    "tokenizer",
    "logger",
    "experiment",
    "grader",
    "judge",
    "task",
    "search",
    "finding",
    "sweep/pruner",
]


def test_every_command_runs(tmp_path):
    """In the README's order, in an empty folder with the example's two files, each at a tiny size."""
    write_idea(tmp_path)
    write_texts(tmp_path)
    for command in [*commands(), *commands(IDEAS), *commands(MIXERS)[-1:]]:
        if command[0] == "make":
            done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        else:
            done = run_tiny(command, tmp_path)
        assert done.returncode == expected(command), f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert len(list(tmp_path.glob("outputs/*/*/summary.json"))) == 4 + 2
    assert len(list(tmp_path.glob("outputs/*/*-grid-*/*/summary.json"))) == 6 + 4 + 3 + 4
    assert len(list(tmp_path.glob("outputs/*/*/report.html"))) == 1 + 1


def test_every_command_of_the_page_on_data_runs(tmp_path):
    write_texts(tmp_path)
    for command in commands(DATA):
        done = run_tiny(command, tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert len(list(tmp_path.glob("outputs/*/*/summary.json"))) == 5


def test_every_command_of_the_page_on_options_runs(tmp_path):
    for command in commands(OPTIONS):
        done = run_tiny(command, tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert len(list(tmp_path.glob("outputs/*/*/summary.json"))) == len(commands(OPTIONS))


def test_every_command_of_the_page_on_transfer_runs(tmp_path):
    for command in commands(TRANSFER):
        done = run_tiny(command, tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert len(list(tmp_path.glob("outputs/*/*/coordcheck.html"))) == 2
    assert len(list(tmp_path.glob("outputs/*/*-grid-*/*/summary.json"))) == 2 * 2


@pytest.mark.slow  # each command is a process
def test_every_command_of_the_page_on_objectives_runs(tmp_path):
    for command in commands(OBJECTIVES):
        done = run_tiny(command, tmp_path)
        assert done.returncode == expected(command), f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        is_exact = "+objective.chain_rule=true" in command or not BOUNDS & values(command)
        if "task=generate" not in command:
            assert ("≤ " in done.stdout) != is_exact, f"{shlex.join(command)}\n{done.stdout}"


@pytest.mark.slow  # each command is a search, whose trials are processes
def test_every_command_of_the_page_on_searching_runs(tmp_path):
    write_files(blocks("yaml", SEARCH), tmp_path)
    for command in commands(SEARCH):
        done = run_tiny(command, tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        trains = not {"sweep.dry_run=true", "search=finding", "task=findings"} & set(command)
        assert not trains or "reached the lowest val_loss" in done.stdout


@pytest.mark.slow  # each command is a process, or a search with processes of its own
def test_every_command_of_the_page_on_comparing_runs(tmp_path):
    of_its_own = [command for command in commands(COMPARE) if command not in commands() or "-m" in command]
    for command in of_its_own:
        done = run_tiny(command, tmp_path)
        assert done.returncode == expected(command), f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        if "sweep.dry_run=true" not in command and "-m" not in command:
            assert "The report is " in done.stdout
    lines = blocks("python", COMPARE)[0]
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "differential" in done.stdout, done.stderr


def test_the_python_example_of_the_page_on_data_runs():
    (lines,) = blocks("python", DATA)
    names: dict[str, Any] = {}
    exec(compile(lines, "docs/data.md", "exec"), names)
    assert names["rows"].shape == (2, 8) and names["ids"][-1] == names["tokenizer"].eos_id


def values(command: list[str]) -> set[str]:
    """Return what is chosen in a command, also in its arms."""
    return {part.strip("[]").rpartition("=")[2] for part in command}


def write_texts(folder: Path) -> None:
    """Write a text of one's own, and what stands for a data set of the hub's."""
    text = "Once upon a time there was a little hedgehog who lived under the old apple tree by the mill"
    draw = random.Random(0)
    texts = [" ".join(draw.choices(text.split(), k=40)).capitalize() + ".\n" for _ in range(60)]
    texts += [" ".join("".join(draw.choices("aeioulmnrst", k=6)) for _ in range(40)) for _ in range(20)]
    (folder / "notes.txt").write_text("".join(texts))
    (folder / "stories.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "faq.csv").write_text("question,answer\n" + "".join(f"{n}?,{2 * n}\n" for n in range(60)))


def write_idea(folder: Path) -> None:
    """Write the files of "Add your idea" where the README says that they are."""
    write_files(blocks("python")[:1] + blocks("yaml"), folder)


def write_files(blocks: list[str], folder: Path) -> None:
    """Write files whose first line is a comment with their path."""
    for block in blocks:
        path = folder / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)


@check_option.each_case
def test_make_check_holds_the_idea_to_the_laws_of_every_option(
    law, values, request, tmp_path_factory, monkeypatch
):
    folder = tmp_path_factory.getbasetemp() / "idea"
    write_idea(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("OPTION", re.search('make check option="(.+)"', IDEAS)[1])
    check_option.test_it_obeys(law, values, request)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("model/attn=mqa", None),
        ("model.attn.softcap=2.0", None),
        ("model.attn.softcap=much", "must be a number above 0"),
        ("model/attn=mqq", "There is no model/attn=mqq. Did you mean 'mqa'?"),
        ("mqa", "Did you mean model/attn=mqa"),
        ("optim=lion", "optim=lion isn't one"),
        (
            "model/attn=decay --config-dir=nowhere/conf",
            "--config-dir nowhere/conf can't be read: No such file",
        ),
        ("model/attn=decay --config-dir", "--config-dir needs a value"),
        ("model/attn=mqa --config-folder=conf", "There is no flag --config-folder"),
        ("'model/attn=mqa", "No closing quotation"),
        (" ", "make check option=model/attn=mqa"),
    ],
)
def test_make_check_refuses_what_it_can_not_check(option, sentence, monkeypatch):
    monkeypatch.setenv("OPTION", option)
    refusal = check_option.refusal()
    assert refusal is None if sentence is None else sentence in refusal


def test_make_check_stops_with_exit_code_2():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/check_option.py"]
    environment = {**os.environ, "OPTION": "optim=lion"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "optim=lion isn't one" in done.stdout


@pytest.fixture
def inside(tmp_path, monkeypatch) -> str:
    """Put the example's two files into (a copy of) conf/ and into minllm, as the README says, and return the choice."""
    code, node = blocks("python")[0], blocks("yaml")[0].replace("my_idea.decay", "minllm.decay")
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/options.md", tmp_path / "docs")
    (tmp_path / "conf/model/attn/decay.yaml").write_text(node)
    module = types.ModuleType("minllm.decay")
    monkeypatch.setitem(sys.modules, "minllm.decay", module)
    exec(compile(code, "minllm/decay.py", "exec"), vars(module))
    for module in ("config.compose", "schema.foreign"):
        monkeypatch.setattr(f"minllm.{module}.CONF", tmp_path / "conf")
    monkeypatch.setattr("tests.tiny.CONF", str(tmp_path / "conf"))
    return "model/attn=decay"


def test_the_suite_discovers_the_idea_and_what_it_can_not_do(inside):
    assert inside in options("model/attn") and not is_listed(inside)
    assert is_refused(inside, "model/pos=t5") and is_refused("model/attn/mask=window", inside)
    assert not is_refused(inside, "model/pos=rope") and not is_refused("model/residual=hyper", inside)
    pairs = [(inside, *row) for row in (["model/residual=hyper", "norm=post"], ["model/mlp=moe"])]
    for choices in [completed(inside), *pairs]:
        assert laws.compatible(list(choices))
        laws.test_it_learns(choices, "objective=causal")
        laws.test_it_does_not_look_ahead(choices)
        laws.test_evaluation_is_the_same_in_any_batch(choices)
        laws.test_it_passes_the_check_before_training(choices)


def expected(command: list[str]) -> int:
    """Return the exit code of a command: at a tiny size, no comparison is settled."""
    compares = {"task=compare", "search=verdict"} & set(command)
    return 3 if compares and "sweep.dry_run=true" not in command else 0


def run_tiny(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    assert command[0] == "python" and command[1] in ("run.py", "sweep.py")
    words = command[2:]
    continues = any(word.startswith(("run=", "resume=")) for word in words)
    smaller = {
        "size.params=1e6": "size.params=2e4",
        "size.params=5e5": "size.params=2e4",
        "seed=0,1,2": "seed=0,1",
        "seed=0,1,2,3,4,5": "seed=0,1",
        "experiment=glob(small_*)": "experiment=glob(small_g*)",
        "finding=glob(*)": "finding=glob(w*)",
        "search.trials=24": "search.trials=3",
        "model.dim=64,128,256,512": "model.dim=16,32",
        "depths=[4,8,16]": "depths=[2,3,4]",
        "ladder.params=[2e5,4e5,8e5,1.6e6]": "ladder.params=[2e5,4e5,8e5]",
    }
    words = [re.sub(r"^(optim.lr=[\d.]+),.*", r"\1", smaller.get(word, word)) for word in words]
    if {"task=grade", "grader=grammar"} & set(words):
        words += ["grader.stories=2", "grader.beginnings=2", "grader.max_new_tokens=8"]
    of_probe = "search=profile" in words or any(word.startswith("data=probe/") for word in words)
    tiny = [word for word in TINY if not (of_probe and word.startswith(("data.", "model.", "tokenizer=")))]
    # each of these searches has a file of tests that trains
    if {"search=ladder", "search=profile", "search=rates", "search=ranking"} & set(words):
        words += [*tiny, "sweep.dry_run=true"]
        words += ["probes=[mqar_small]"] if "search=profile" in words else []
    elif "search=finding" in words:
        words.append("sweep.dry_run=true")
    elif "task=findings" in words:
        words.append(f"ledger={ROOT}/docs/findings.jsonl")
    elif "search=verdict" in words:
        words += [*tiny, "train.evals=1", "search.rates=[]", "search.tuning_seeds=[1000]", "search.looks=[1]"]
        words.append("memory.predict=false")
        words.append("train.steps=10" if "search.trials=3" in words else "train.steps=2")
    elif command[1] == "sweep.py":
        words = [word for word in words if not word.startswith("hydra.sweeper.n_trials")]
        words += [*TINY, "train.minutes=null", "train.evals=1", "hydra.sweeper.n_trials=1"]
        words.append("train.steps=2")
    elif "resume=latest" in words:
        words = [word for word in words if not word.startswith("train.steps")] + ["train.steps=4"]
    elif any("small_" in word for word in words):  # models of their own sizes
        words = [word for word in words if not word.startswith("seed=")]
        words += [word for word in TINY if not word.startswith(("model", "tokenizer"))] + ["train.steps=2"]
    elif not continues and not {"--help", "task=compare", "task=ledger"} & set(words):
        chosen = {word.partition("=")[0] for word in words}
        read = sections_read(words)
        added = [word for word in [*TINY, "train.steps=2"] if word.startswith(read) and is_free(word, chosen)]
        words = [*words, *added]
        if "task=coordcheck" in words and "widths=null" not in words:
            words.append("widths=[16,32,64]")
        if "data=reverse" in words:
            words += ["data.train_pairs=200", "data.val_pairs=10"]
        if "data=tales_pairs" in words:
            words += ["data.train_stories=40", "data.val_stories=2"]
        if any(word.startswith("data=tinystories") for word in words):
            words.append("data.path=stories.jsonl")  # there may be no network
        if any(word.startswith("model.layout") for word in words):
            words.append("model.n_layers=2")
    return python(command[1], *words, cwd=folder)


def sections_read(words: list[str]) -> tuple[str, ...]:
    """Return how the settings begin that the task of a command reads."""
    of_data = ("data", "tokenizer")
    if "task=coordcheck" in words:
        return (*of_data, "train.batch_size")
    if {"task=prepare", "task=tokenizer"} & set(words):
        return of_data
    only_of_a_model = {"task=describe", "task=trace"} & set(words)
    return (*of_data, "model") if only_of_a_model else (*of_data, "model", "train", "sample")


def is_free(word: str, chosen: set[str]) -> bool:
    """Whether a setting goes with what is chosen: not another choice, nor an option that another choice hasn't."""
    is_of_tales = word.startswith(("data.train_stories", "data.val_stories"))
    return not (word.partition("=")[0] in chosen or (is_of_tales and "data" in chosen))


def grid() -> str:
    """The table of groups and options of docs/options.md, made from conf/."""
    rows = []
    for group in GROUPS:
        committed = [option for option in options(group) if option not in new_options()]
        names = ", ".join(f"`{option.split('=')[1]}`" for option in committed)
        rows.append(f"| `{group}` | {names} |")
    return "\n".join(rows)


@functools.cache
def new_options() -> list[str]:
    """Return the options in conf/ that aren't committed yet: an idea that is tried out needs no row there."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "conf"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    paths = [Path(line).relative_to("conf") for line in done.stdout.splitlines()]
    return [f"{path.parent.as_posix()}={path.stem}" for path in paths]


def test_the_grid_is_what_conf_holds():
    assert grid() in OPTIONS, f"Put this table into docs/options.md:\n{grid()}"


def test_the_pictures_and_files_it_names_are_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [
        page.parent / link for page in pages for link in re.findall(r"\]\(([^):#]+)[)#]", page.read_text())
    ]
    code = r"`((?:minllm|conf|tests|notebooks)/[\w/.]+\.\w+)`"
    named = [ROOT / path for page in pages for path in re.findall(code, page.read_text())]
    assert len(links) >= 10 and len(named) >= 10
    for path in links + named:
        assert path.is_file(), path
