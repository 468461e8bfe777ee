"""Options and runs from elsewhere: nothing of theirs runs, reads or writes but what belongs where it stands."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

import run as door
import sweep
from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.runs.find import read_run
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.foreign import files_checked, is_harmless
from minllm.schema.foreign_runs import FOREIGN
from minllm.schema.kinds import SECTION_KINDS

HARMFUL = [
    "minllm.runs.folder._git",
    "minllm.tasks.prepare.remove_store",
    "minllm.sweep.store.truncate_partial_line",
    "minllm.config.tokenizers.load_tokenizer",
    "minllm.config.compose.perform",
    "minllm.runs.find.remove_if_empty",
    "minllm.data.store.Store",
    "minllm.bench.references.their_model",
]
TASK = "# @package _global_\n# x\ntask: {_target_: TARGET}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def go(here: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> Iterator[Callable]:
    """Call a door with `evil/` as a folder of options: `go("experiment=x")` gives (exit code, stderr)."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers = logging.getLogger().handlers[:]

    def call(*words: str, through=door) -> tuple[int, str]:
        Path("evil").mkdir(exist_ok=True)
        words = ("--config-dir", "evil", *words)
        monkeypatch.setattr(sys, "argv", [f"{through.__name__}.py", *words])
        return through.main(words), capfd.readouterr().err

    yield call
    logging.getLogger().handlers[:] = handlers


def write(name: str, text: str) -> None:
    file = Path("evil", f"{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


# ---- each place takes its own kind ---------------------------------------------------------------

PLACES_IN_A_RUN = [
    *(place for place in SECTION_KINDS if place not in ("search", "sweep", "sweep.pruner", "memory")),
    "model.attn",
    "model.attn.mask",
    "model.pos",
    "model.mlp",
    "model.residual",
    "+model.rec",
    "+model.whatever",
    "+model.attn.pos",
    "+tokenizer.data",
    "tokenizer.folder",
    "seed",
    "model.layout",
]


# each place with one of them, and each of them at one place
PAIRS = [(place, HARMFUL[i % len(HARMFUL)]) for i, place in enumerate(PLACES_IN_A_RUN)]
PAIRS += [("tokenizer", target) for target in HARMFUL]


@pytest.mark.parametrize(("place", "target"), PAIRS, ids=lambda value: value.split(".")[-1])
def test_no_place_takes_what_is_not_of_its_kind(here: Path, place: str, target: str):
    node = f"{{_target_: {target}}}"
    with pytest.raises(UserError) as refusal:
        validate(compose([f"{place}={node}" if place.startswith("+") else f"++{place}={node}"]))
    sentence = str(refusal.value)
    assert "\n" not in sentence and place.lstrip("+").split(".")[0] in sentence


WRONG_KINDS = [
    ("model.attn", "minllm.model.residual.Plain", "a mixer or an MLP"),
    ("model.attn", "minllm.model.norm.RMSNorm", "a mixer or an MLP"),
    ("model.attn", "minllm.model.recurrent.timestep_norm.TimestepNorm", "a mixer or an MLP"),
    ("model.attn", "minllm.model.parameter.Linear", "its n_out is int"),
    ("model.attn", "minllm.model.lm.LM", "a mixer or an MLP"),
    ("model.mlp", "minllm.model.mlp.router.Softmax", "a mixer or an MLP"),
    ("model.pos", "minllm.model.residual.ReZero", "a Position"),
    ("model.residual", "minllm.model.position.bias.Alibi", "a Plain"),
    ("model.attn.mask", "minllm.model.context.Position", "a Full"),
    ("tokenizer", "minllm.data.tales.Tales", "a tokenizer"),
    ("data", "minllm.tokenizer.bytes.Bytes", "a source"),
    ("optim", "minllm.training.schedules.Cosine", "an optimizer"),
    ("schedule", "minllm.training.optimizers.SGD", "a schedule"),
    ("logger", "minllm.data.tales.Tales", "a logger"),
    ("objective", "minllm.training.loggers.Silent", "an objective"),
    ("norm", "minllm.model.norm.RMSNorm", "the norms"),
    ("task", "minllm.tasks.prepare.shares", "a task"),
    ("task", "minllm.training.train.carry_out", "a task"),
]


@pytest.mark.parametrize(("place", "target", "takes"), WRONG_KINDS, ids=lambda value: str(value)[-24:])
def test_what_is_of_another_kind(here: Path, place: str, target: str, takes: str):
    with pytest.raises(UserError) as refusal:
        validate(compose([f"{place}._target_={target}"]))
    assert f"{place} takes" in str(refusal.value) and takes in str(refusal.value)
    assert f", not {target}" in str(refusal.value)


def test_building_checks_what_validation_would(here: Path):
    cfg = compose(["tokenizer=bytes"])
    cfg.tokenizer._target_ = "minllm.sweep.store.truncate_partial_line"
    cfg.model.attn.mask._target_ = "minllm.tasks.prepare.remove_store"
    for node in (cfg.tokenizer, cfg.model.attn.mask, cfg.model, cfg.model.attn):
        with pytest.raises(UserError, match="takes .*, not "):
            build(node)
    with pytest.raises(UserError, match="sweep.pruner takes a pruner"):
        build(OmegaConf.create({"_target_": "minllm.sweep.store.requeue_interrupted"}), place="sweep.pruner")


@pytest.mark.parametrize("section", ["search", "sweep", "sweep.pruner", "memory"])
@pytest.mark.parametrize("target", HARMFUL[1:2])
def test_a_search_takes_its_own_kinds(go: Callable, section: str, target: str):
    code, err = go(
        f"++{section}._target_={target}", "optim.lr=choice(1,2)", "sweep.dry_run=true", through=sweep
    )
    assert code == 2 and f"{section} takes" in err and err.count("\n") == 1, err


# ---- what a file may not say ---------------------------------------------------------------------

CALLBACK = "{x: {_target_: minllm.runs.folder._git, _args_: [-c, 'alias.x=!touch PWNED', x]}}"
OF_HYDRA = [
    f"hydra: {{callbacks: {CALLBACK}}}",
    "hydra: {output_subdir: ../../away}",
    "hydra: {run: {dir: away}}",
    "hydra: {sweep: {dir: away, subdir: x}}",
    "hydra: {searchpath: [file://away]}",
    "hydra: {job: {chdir: true}}",
    "hydra: {job: {env_copy: [HOME]}}",
    "hydra: {job: {env_set: {PATH: x}}}",
    "hydra: {job_logging: {handlers: {f: {class: logging.FileHandler, filename: PWNED}}, root: {handlers: [f]}}}",
    "hydra: {hydra_logging: {handlers: {f: {class: logging.FileHandler, filename: PWNED}}, root: {handlers: [f]}}}",
    "hydra: {job_logging: {formatters: {f: {(): minllm.tasks.prepare.remove_store}}}}",
    "hydra: {sweeper: {_target_: minllm.tasks.prepare.remove_store}}",
    "hydra: {launcher: {_target_: minllm.tasks.prepare.remove_store}}",
    "hydra: {verbose: true}",
    "hydra: {mode: MULTIRUN}",
    "hydra: ${data}",
    "defaults: [override /hydra/launcher: basic]",
    "defaults: [override /hydra/job_logging: none]",
    "defaults: [/data@hydra.callbacks.x: tales]",
    "defaults: [/hydra/launcher/basic]",
    "defaults: ['../hydra/launcher@foo: basic']",
    "defaults: [override /task: prepare]",
    "task: {_target_: minllm.tasks.prepare.prepare}",
    "remove: others",
    "task: {_target_: minllm.tasks.prepare.prepare}\nremove: others\ndata: {cache: /}",
    "tokenizer: {into: /away}",
    "extensions: [os]",
    "resume: latest",
    "run: latest",
    "init_from: latest",
    "typed: [x]",
    "choices: {a: b}",
    "prompts: [x]",
    "data: {cache: '${oc.env:HOME}'}",
    "tags: ['a${oc.env:HOME}b']",
    "tags: ['${oc.decode:\"${oc.env:HOME}\"}']",
    "model: {attn: {x: '${${seed}.env:HOME}'}}",
    "tags: ['\\${oc.env:HOME}']",
    "search: {fixed: {extensions: '[os]'}}",
    "search: {params: {hydra.run.dir: 'choice(a,b)'}}",
    "search: {fixed: {hydra: {run: {dir: x}}}}",
    "search: {when: {+task: {seed: [0]}}}",
    "sweep: {trial: {extensions: '[os]'}}",
    "sweep: {trial: {'++resume': latest}}",
    "arms: {a: ['extensions=[os]'], b: ['model/attn=mqa']}",
    "arms: {a: ['+hydra.callbacks.x._target_=os.system'], b: []}",
    "arms: {a: ['hydra/launcher=x'], b: []}",
    "data: {cache: /away}",
    "data: {cache: ~/away}",
    "data: {cache: ../away}",
    "data: {cache: '${tags.0}'}\ntags: [/away]",
    "tokenizer: {data: {cache: /away}}",
    "sweep: {storage: sqlite:////away.db}",
    "sweep: {trial: {data.cache: /away}}",
    "search: {fixed: {data: {cache: /away}}}",
    "search: {fixed: {+data@hydra.callbacks.x: tales}}",
    "arms: {a: ['data.cache=/away'], b: []}",
    'arms: {a: ["\\thydra.run.dir=away"], b: []}',
    "arms: {a: ['+x@_global_.hydra.y=z'], b: []}",
    "tags: ['hydra.run.dir=away']\narms: {a: ['${tags.0}'], b: []}",
]


MODES = [["task=describe"], ["-m", "seed=0,1"], ["--cfg", "job"]]


@pytest.mark.parametrize(
    ("lines", "mode"),
    [*((lines, MODES[i % 3]) for i, lines in enumerate(OF_HYDRA)), *((OF_HYDRA[0], m) for m in MODES)],
)
def test_a_file_gives_no_orders(go: Callable, lines: str, mode: list[str]):
    write("experiment/x", f"# @package _global_\n# x\n{lines}\n")
    code, err = go("experiment=x", *mode)
    assert code == 2 and err.count("\n") == 1 and ("experiment/x" in err or "${data}" in lines), err
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "evil"]


@pytest.mark.parametrize("lines", OF_HYDRA[:1] + OF_HYDRA[38:47:2])
def test_nor_does_the_file_of_a_search(go: Callable, lines: str):
    write("search/x", f"# @package _global_\n# x\n{lines}\n")
    code, err = go("search=x", "optim.lr=choice(1,2)", "sweep.dry_run=true", through=sweep)
    assert code == 2 and err.count("\n") == 1 and "search/x.yaml" in err, err
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "evil"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("hydra/callbacks/x", f"# x\nx: {CALLBACK}\n", ["hydra/callbacks=x"]),
        (
            "hydra/launcher/x",
            "# x\n_target_: minllm.tasks.prepare.remove_store\n",
            ["-m", "seed=0", "hydra/launcher=x"],
        ),
        ("data/x", f"# @package hydra.callbacks\n# x\n{CALLBACK[1:-1]}\n", ["+data@y=x"]),
        ("experiment/x", f"# x\n{CALLBACK[1:-1]}\n", ["+experiment@hydra.callbacks=x"]),
        ("mine", f"defaults: [config, _self_]\nhydra: {{callbacks: {CALLBACK}}}\n", ["--config-name", "mine"]),
        ("norm/x", "# @package _global_\n# x\ntask: {_target_: minllm.tasks.prepare.prepare}\n", ["norm=x"]),
        ("task/x", "# @package _global_\n# x\ntask: {_target_: minllm.config.compose.perform}\n", ["task=x"]),
        ("task/x", TASK.replace("TARGET", "minllm.tasks.prepare.remove_store"), ["task=x"]),
        ("task/x", TASK.replace("TARGET", "minllm.tasks.prepare.prepare") + "extensions: [a]\n", ["task=x"]),
        ("task/x", TASK.replace("TARGET", "minllm.tasks.train.train") + "resume: x\n", ["task=x"]),
        ("task/x", TASK.replace("TARGET", "minllm.tasks.prepare.prepare") + "remove: others\n", ["task=x"]),
        ("mine", "defaults: [config, override /task: prepare, _self_]\nremove: others\n", ["--config-name", "mine"]),
        (
            "mine",
            "defaults: [config, override /task: tokenizer, _self_]\ntokenizer: {sizes: [400], into: /away}\n",
            ["--config-name", "mine"],
        ),
    ],
)  # fmt: skip
def test_wherever_the_file_stands(go: Callable, name: str, text: str, words: list[str]):
    write(name, text)
    code, err = go(*words)
    assert code == 2 and err.count("\n") == 1, err
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "evil"]


def test_files_are_checked_as_long_as_anyone_composes():
    """Two threads may compose at once, and the first to begin may be the first to end."""
    own = ConfigLoaderImpl._load_single_config
    one, other = files_checked(), files_checked()
    one.__enter__(), other.__enter__()
    one.__exit__(None, None, None)
    assert ConfigLoaderImpl._load_single_config is not own
    other.__exit__(None, None, None)
    assert ConfigLoaderImpl._load_single_config is own
    with files_checked(), files_checked():
        pass
    assert ConfigLoaderImpl._load_single_config is own


def test_files_choose_and_set_options_as_ever(here: Path):
    write(
        "experiment/x",
        "# @package _global_\n# x\ndefaults: [override /model/attn: mqa, override /norm: post]\nseed: 3\n"
        "model: {dim: '${oc.select:data.seq_len,8}', attn: {n_heads: 2}}\n",
    )
    cfg = compose(["experiment=x", "tags=['${oc.env:HOME}']"], config_dir="evil")
    validate(cfg)
    assert (cfg.seed, cfg.model.dim, cfg.choices.norm) == (3, 256, "post")
    assert "${" not in OmegaConf.to_yaml(cfg.tags), "what is typed stands as what it came to"


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("plain", True),
        ("${a.b}", True),
        ("x${a}${oc.select:b,3}y", True),
        ("${now:%Y}", True),
        ("${oc.env:A}", False),
        ("${oc.select:'${oc.env:A}'}", False),
        ("${oc.select:a,${oc.env:A}}", False),
        ("\\${oc.env:A}", False),
        ("\\\\${oc.env:A}", False),
        ("${oc.${a}:A}", False),
        ("${oc.create:{a: b}}", False),
        ("${hydra:runtime.cwd}", False),
        ("${broken", False),
    ],
)
def test_what_an_interpolation_may_call(text: str, harmless: bool):
    assert is_harmless(text) == harmless


# ---- runs from elsewhere -------------------------------------------------------------------------


def a_run(folder: Path, *words: str, **sections: object) -> Path:
    cfg = OmegaConf.merge(resolved("tokenizer=bytes", *words), sections)
    folder.mkdir(parents=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


@functools.cache
def resolved(*words: str) -> DictConfig:
    return OmegaConf.create(OmegaConf.to_container(compose(words), resolve=True))


@pytest.fixture
def other(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("other")


def test_a_foreign_run_names_no_place_outside(here: Path, other: Path):
    (other / "secret.txt").write_text("secret\n" * 100)
    words = ["data=text", f"data.path={other}/*.txt", f"data.cache={other}/stores"]
    cfg = read_run(a_run(other / "run", *words))
    assert cfg.data.cache == ".cache/stores"
    with pytest.raises(UserError, match="If you trust it, type data.path="):
        build(cfg.data).fingerprint  # noqa: B018
    named = compose(["task=evaluate", f"run={other}/run", f"data.path={other}/secret.txt"])
    assert build(named.data).size("train") > 0
    copied = read_run(a_run(here / "outputs" / "run", *words))
    assert copied.data == cfg.data, "a folder that was copied below outputs/ is still from elsewhere"
    inside = read_run(a_run(here / "elsewhere", "data=text", "data.path=notes.txt"))
    assert inside.data.path == "notes.txt"


@pytest.mark.parametrize("path", ["../x.txt", "~/x.txt", "/etc/passwd", "link/x.txt", ["a.txt", "../b.txt"]])
def test_ways_out(here: Path, other: Path, path):
    (here / "link").symlink_to(other)
    cfg = read_run(a_run(here / "run", data={"path": path}))
    assert FOREIGN in str(cfg.data.path)


@pytest.mark.parametrize(
    "lines",
    [
        {"tags": ["${oc.env:HOME}"]},
        {"data": {"cache": "x/${oc.env:HOME}"}},
        {"model": {"attn": {"n_heads": "${oc.decode:'1'}"}}},
        {"typed": "x"},
        {"extensions": 5},
        {"choices": 5},
    ],
)
def test_a_foreign_run_that_is_refused(here: Path, lines: dict):
    folder = a_run(here / "run")
    text = OmegaConf.load(folder / "config.yaml")
    for name, value in lines.items():
        text[name] = OmegaConf.merge(text[name], value) if isinstance(value, dict) else value
    OmegaConf.save(text, folder / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_run(folder)


def test_a_foreign_run_with_what_is_no_tokenizer(here: Path):
    folder = a_run(here / "run")
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.tokenizer._target_ = "minllm.sweep.store.truncate_partial_line"
    OmegaConf.save(cfg, folder / "config.yaml")
    (folder / "tokenizer").symlink_to(here / "precious")
    (here / "precious").write_text("whole\nhalf")
    from minllm.tokenizer import of_run

    with pytest.raises(UserError, match="tokenizer takes a tokenizer"):
        of_run(folder, read_run(folder))
    with pytest.raises(UserError, match="tokenizer takes a tokenizer"):
        validate(compose(["task=generate", f"run={folder}"]))
    assert (here / "precious").read_text() == "whole\nhalf"
