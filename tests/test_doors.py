"""run.py as a person meets it: what it prints, its exit code, and what it leaves on the disk."""

from __future__ import annotations

import ast
import importlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import minllm
import run as door
from minllm.cli.help import help_text, is_search_group, sweep_help_text
from minllm.cli.main import run_command
from minllm.config.compose import compose
from minllm.page.terminal import escape_unencodable
from minllm.schema.groups import CONF, find_groups
from minllm.schema.overrides import quoted
from tests.test_config import MINE, OPTIONS, REFUSED, idea  # noqa: F401  (idea is a fixture)

ROOT = Path(door.__file__).resolve().parent


@pytest.fixture
def go(idea: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Iterator[Callable]:  # noqa: F811
    """Call the door in this process: `go("seed=1")` gives (exit code, stdout, stderr)."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers = logging.getLogger().handlers[:]

    def call(*words: str) -> tuple[int, str, str]:
        words = ("--config-dir", "conf", *MINE, *words)
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        code = door.main(words)
        out, err = capfd.readouterr()
        return code, out, err

    yield call
    logging.getLogger().handlers[:] = handlers  # Hydra's write to a stream that this test is about to close


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=1800)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_a_mistake_costs_one_line_and_leaves_nothing(go: Callable, case: tuple[str, ...]):
    typed, *expected = case
    code, out, err = go(typed)
    assert code == 2 and out == "" and err.count("\n") == 1
    for word in expected:
        assert any(one in err for one in word.split("|")), err
    assert not Path("outputs").exists()


def test_a_mistake_by_another_process_too(idea: Path):  # noqa: F811
    done = python(str(ROOT / "run.py"), "--config-dir", "conf", *MINE, "model.attn.heads=four", cwd=idea)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert not (idea / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--foo"], "no flag --foo"),
        (["--config-dri", "x"], "'--config-dir'"),
        (["-x"], "no flag -x"),
        (["--config-name", "nope"], "nope"),
        (["hydra.run.dir=/dev/null/x"], "Can't write at /dev/null/x"),
        (["word=full"], "disk is full"),
    ],
)
def test_flags_and_places(go: Callable, words: list[str], expected: str):
    code, _, err = go(*words)
    assert code == 2 and expected in err and err.count("\n") == 1
    assert not Path("outputs").exists()


def test_missing_config_dir_is_reported(go: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--config-dir", "nowhere"])
    assert door.main(["--config-dir", "nowhere"]) == 2


def test_outputs_that_cannot_be_written(go: Callable):
    Path("outputs").write_text("a file where a folder should be", encoding="utf-8")
    code, _, err = go()
    assert code == 2 and "Can't write" in err and "hydra.run.dir=" in err and err.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc, where no folder can be made")
def test_a_place_where_no_folder_can_be(go: Callable):
    code, _, err = go("hydra.run.dir=/proc/x", "word=write")
    assert code == 2 and err.count("\n") == 1 and "/proc/x" in err and "hydra.run.dir=<folder>" in err


def test_a_bug_keeps_its_traceback(go: Callable):
    code, _, err = go("word=bug")
    assert code == 1 and "Traceback" in err and "ValueError: a bug of ours" in err and "hydra/" not in err


@pytest.mark.parametrize(
    ("end", "code", "said"), [("enough", 1, "enough\n"), (None, 0, ""), (3, 3, ""), (0, 0, "")]
)
def test_an_ideas_own_code_may_end_the_program(capsys, end: object, code: int, said: str):
    assert run_command(["seed=1"], lambda folders: "", lambda: sys.exit(end)) == code
    assert capsys.readouterr().err == said


def test_a_run_is_where_it_says(go: Callable):
    assert go("word=write", "model/attn=yours")[0] == 0
    (config,) = Path("outputs").rglob("config.yaml")
    assert "yours" in config.parent.name and config.parent.parent.parent == Path("outputs")
    assert go("word=write", "hydra.run.dir=there/it/is")[0] == 0
    assert Path("there/it/is/config.yaml").is_file() and {
        file.name for file in Path("there/it/is").iterdir()
    } == {"checkpoints", "config.yaml"}


def test_one_impossible_combination_does_not_cost_the_grid(go: Callable):
    code, _, err = go("-m", "word=write", "seed=-1,1", "model/attn=mine,yours")
    assert code == 2 and err.count("\n") == 2 and err.count("seed=-1: seed must be") == 2
    runs = [config.parent.name for config in Path("outputs").rglob("config.yaml")]
    assert len(runs) == 2 and all("seed1" in name for name in runs) and "mine" in "".join(runs)
    assert len(list(Path("outputs").glob("*/*"))) == 1, "one folder for the grid"


def test_a_typo_in_a_grid_is_refused_before_anything_runs(go: Callable):
    code, _, err = go("-m", "word=write", "model/attn=mine,yuors")
    assert code == 2 and "'yours'" in err and not Path("outputs").exists()


def test_a_grid_in_which_nothing_is_written_leaves_nothing(go: Callable):
    assert go("-m", "seed=0,1")[0] == 0
    assert not Path("outputs").exists()


# ---- lists of words ------------------------------------------------------------------------------


def read_by_hydra(word: str) -> object:
    (read,) = OverridesParser.create().parse_overrides([word])
    return list(read.sweep_string_iterator()) if read.is_sweep_override() else read.value()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("choice=[norm=pre]", ["norm=pre"]),
        ("choice=[norm=pre, model/attn=gqa]", ["norm=pre", "model/attn=gqa"]),
        ("+arms.a=[optim.lr=1e-3,plain]", ["optim.lr=1e-3", "plain"]),
        ("arms.a=[model.layout=[attn mlp,rec mlp],seed=1]", ["model.layout=[attn mlp,rec mlp]", "seed=1"]),
        ("arms.a=[train={steps: 1,evals: 2}]", ["train={steps: 1,evals: 2}"]),
        ("arms.a=[model.layout=['attn mlp','mlp']]", ["model.layout=['attn mlp','mlp']"]),
        ("arms.a=[data.path=it's]", ["data.path=it's"]),
        ("arms.a=[data.path=C:\\]", ["data.path=C:\\"]),
        (r"arms.a=[data.path=a\'b]", [r"data.path=a\'b"]),
        ("arms.a=[size.params=${seed}]", ["size.params=${seed}"]),
        ("baseline=norm=pre", "norm=pre"),
        ("baseline=attn=gqa norm=pre", "attn=gqa norm=pre"),
        ("baseline=norm=pre,norm=post", ["'norm=pre'", "'norm=post'"]),
        ("choice=[norm=pre],[norm=post]", ["['norm=pre']", "['norm=post']"]),
    ],
)
def test_nested_overrides_need_no_quotes(typed: str, words: str | list[str]):
    assert read_by_hydra(quoted(typed)) == words


@pytest.mark.parametrize(
    "typed",
    [
        "norm=pre",
        "seed=0,1",
        "tags=[a, b]",
        "tags=[]",
        "model.layout=[attn mlp],[mlp attn]",
        "runs=[outputs/2026-11-25/x,y]",
        "choice=['norm=pre',\"norm=post\"]",
        r"arms.a=['data.path=it\'s, or not','norm=post']",
        "train={steps: 5}",
        "optim.lr=tag(log,interval(1e-4,1e-2))",
        "seed=range(start=0,stop=4)",
        "data.path=${oc.env:A,b=c}",
        "data.path='a=b'",
        "~logger",
        "--config-dir=x=y",
        "x=",
    ],
)
def test_valid_overrides_are_unchanged(typed: str):
    assert quoted(typed) == typed


def test_overrides_in_a_list_need_no_quotes_in_python():
    assert compose(["task=compare", "choice=[norm=pre, model/attn=gqa]"]).choice == [
        "norm=pre",
        "model/attn=gqa",
    ]


# ---- answers that come at once -------------------------------------------------------------------


def test_help_names_every_option_with_its_line(idea: Path):  # noqa: F811
    text, of_sweeps = help_text([str(idea / "conf")]), sweep_help_text([str(idea / "conf")])
    for group, options in find_groups([idea / "conf"]).items():
        assert (f"{group}=" in text) != is_search_group(group) and f"{group}=" in of_sweeps
        for name, option in options.items():
            assert option.comment, f"{group}/{name}.yaml doesn't begin with a line of comment"
            assert f"{name} " in of_sweeps and option.comment in of_sweeps
            assert is_search_group(group) or (f"{name} " in text and option.comment in text)
    assert "My idea" in text and "seed=0" in text and "train.steps=" in text
    assert "memory.limit=" in of_sweeps and "memory.limit=" not in text


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_answers_do_not_wait_for_torch(idea: Path, words: list[str]):  # noqa: F811
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['run.py', '--config-dir', 'conf', *{MINE!r}, *{words!r}]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules, 'hydra' in sys.modules, file=sys.stderr)\n"
    )
    done = python("-c", script, cwd=idea)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split()[-2:] == ["False", str("--help" not in words)]
    assert done.stdout


def test_the_door_opens_from_anywhere_and_through_a_link(idea: Path):  # noqa: F811
    (idea / "link.py").symlink_to(ROOT / "run.py")
    done = python("link.py", "--config-dir", "conf", *MINE, "--cfg", "job", cwd=idea)
    assert done.returncode == 0 and "my_idea.Mixer" in done.stdout


def test_the_tab_key_completes(idea: Path):  # noqa: F811
    environment = {**os.environ, "COMP_LINE": "python run.py model/attn=m", "COMP_POINT": "26"}
    words = [sys.executable, str(ROOT / "run.py"), "-sc", "query=bash"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert {"model/attn=mha", "model/attn=mqa"} <= set(done.stdout.split())


# ---- the package ---------------------------------------------------------------------------------


def test_the_public_names_stay_functions_when_folders_of_their_name_are_imported():
    importlib.import_module("minllm.generation.sampler")
    importlib.import_module("minllm.training.settings")
    for name in minllm.__all__:
        assert callable(getattr(minllm, name)), name
    assert (
        "torch"
        not in python(
            "-c", "import minllm, sys; minllm.compose; print(*sys.modules)", cwd=ROOT
        ).stdout.split()
    )
    with pytest.raises(AttributeError):
        minllm.nothing  # noqa: B018


def test_every_option_file_begins_with_its_line():
    for file in CONF.rglob("*.yaml"):
        lines = [
            line
            for line in file.read_text(encoding="utf-8").splitlines()
            if not line.startswith("# @package")
        ]
        assert lines and lines[0].startswith("# "), file
    assert OPTIONS


def test_a_file_cannot_set_environment_variables(tmp_path):
    """They could make git, or a compiler, run a program of the file's choice."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "bad.yaml").write_text(
        "# @package _global_\n# bad\nhydra: {job: {env_set: {GIT_CONFIG_COUNT: '1'}}}\n"
    )
    words = ["--config-dir", str(tmp_path / "conf"), "experiment=bad", "task=trace"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "sets hydra.job.env_set.GIT_CONFIG_COUNT" in done.stderr, done.stderr


# ---- encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "cp1252"])
def test_a_terminal_without_utf_8_shows_escapes(idea: Path, encoding: str, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert door.main(["task=从"]) == 2
    escape_unencodable()
    print("Once — 从前 😀", file=out)
    err.flush(), out.flush()
    assert rb"task=\u4ece" in err.buffer.getvalue() and rb"\U0001f600" in out.buffer.getvalue()


def test_bytes_that_are_no_text_are_refused(go: Callable):
    code, _, err = go("tags=[\udcc3]")
    assert code == 2 and err.count("\n") == 1 and "PYTHONUTF8=1" in err


def test_no_file_is_opened_in_the_machines_own_encoding():
    """Beside ruff's PLW1514, which can't tell a path from the variable that holds it."""
    for file in [ROOT / "run.py", ROOT / "sweep.py", *(ROOT / "minllm").rglob("*.py")]:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                read, written = call.func.attr == "read_text", call.func.attr == "write_text"
                given = len(call.args) > written or any(one.arg == "encoding" for one in call.keywords)
                assert not (read or written) or given, f"{file}:{call.lineno} names no encoding"


def test_control_characters_never_reach_the_terminal(go: Callable):
    for word in ("task=\x1b[31mred", "\x1b]0;title\x07=1", "run=\x9b2J", "sede=\u202eevil", "-\x1b[2J"):
        code, out, err = go(word)
        assert code == 2 and not set("\x1b\x07\x9b\u202e") & set(out + err), repr(err)
