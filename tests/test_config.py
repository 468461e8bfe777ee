"""Composing, validating and building, with an extension that stands outside the repository."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf

from minllm.config.compose import compose, perform
from minllm.errors import UserError, suggest
from minllm.runs.find import find_run, named_keys, read_run, remove_if_empty, short_folder_name
from minllm.schema.building import build
from minllm.schema.checking import describe, fits, validate
from minllm.schema.options import Count, Fraction, In, Natural, NonNegative, Positive

IDEA = """
from __future__ import annotations

from typing import Annotated, Literal

from omegaconf import OmegaConf
from torch import nn

from minllm.schema.building import build
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.model.lm import LM
from minllm.schema.options import Count, In
from minllm.tokenizer import Tokenizer


class Corpus(Source):
    def __init__(self, *, seq_len: Count, path: str | None = None, kind: Literal["long", "short"] = "long"):
        pass


class Letters(Tokenizer):
    def __init__(self, *, tags: list[str]):
        self.tags = tags


class Mixer(nn.Module):
    def __init__(self, dim: int, layer, *, heads: Count, groups: Count):
        super().__init__()
        if heads % groups:
            raise UserError(f"heads={heads} can't share groups={groups}.")
        self.dim, self.layer, self.heads = dim, layer, heads

    def forward(self, x_BTD, ctx, state=None):
        return x_BTD


class Model(LM):
    def __init__(self, vocab_size: int, branches, *, dim: Count):
        nn.Module.__init__(self)
        self.vocab_size, self.branches, self.dim = vocab_size, branches, dim


def look(cfg, run_dir, *, word: str = "", resume: str | None = None, run: str | None = None,
         init_from: str | None = None):
    if word == "bug":
        raise ValueError("a bug of ours")
    if word == "full":
        raise OSError(28, "No space left on device", "metrics.jsonl")
    if word == "write":
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "checkpoints" / "step-000001").mkdir()
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return {"run_dir": str(run_dir), "word": word, "attn": cfg.choices["model/attn"], "dim": cfg.model.dim}


def spell(cfg, run_dir, *, times: Annotated[Count | None, In("tokenizer")] = None,
          case: Annotated[Literal["upper", "lower"], In("tokenizer")] = "lower",
          from_: Annotated[str, In("data")] = ""):
    return times, case, from_, build(cfg.tokenizer).tags
"""

OPTIONS = {
    "data/tiny.yaml": "# A tiny corpus\n_target_: my_idea.Corpus\nseq_len: 8\npath: null\nkind: long\n",
    "tokenizer/letters.yaml": "# Letters\n_target_: my_idea.Letters\ntags: [a]\n",
    "model/attn/mine.yaml": "# My idea\n_target_: my_idea.Mixer\nheads: 4\ngroups: 2\n",
    "model/attn/yours.yaml": "# Your idea\n_target_: my_idea.Mixer\nheads: 4\ngroups: 4\n",
    "task/look.yaml": "# @package _global_\n# Look at the configuration\ntask:\n  _target_: my_idea.look\nword: ''\n"
    "resume: null\nrun: null\ninit_from: null\n",
    "task/spell.yaml": "# @package _global_\n# Spell\ntask:\n  _target_: my_idea.spell\n"
    "tokenizer:\n  times: null\n  case: lower\ndata:\n  from: here\n",
}
MINE = ["extensions=[my_idea]", "task=look", "data=tiny", "tokenizer=letters", "model/attn=mine"]


@pytest.fixture
def idea(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package and its options, which is also the current folder."""
    (tmp_path / "my_idea.py").write_text(IDEA)
    for name, text in OPTIONS.items():
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def composed(*overrides: str, config_dir: str = "conf"):
    cfg = compose([*MINE, *overrides], config_dir=config_dir)
    validate(cfg)
    return cfg


def test_a_configuration_knows_its_choices(idea: Path):
    cfg = composed("norm=post")
    assert cfg.choices["model/attn"] == "mine" and cfg.choices["norm"] == "post"
    assert "hydra" not in cfg and composed("norm=pre").choices["norm"] == "pre"


REFUSED = [
    # what is typed, and the words that the one sentence must hold
    ("model/attn=minee", "model/attn=minee", "'mine'"),
    ("attn=mine", "model/attn=mine"),
    ("model.attn=mine", "model/attn=mine"),
    ("model/atn=mine", "model/attn"),
    ("model.attn.head=4", "model.attn has no option 'head'", "'heads'"),
    ("+model.attn.head=4", "model.attn has no option 'head'", "'heads'"),
    ("model.attn.heads=four", "model.attn.heads", "whole number of 1 or more", "'four'"),
    ("model.attn.heads=???", "model.attn.heads", "no value"),
    ("model.attn.heads=${nowhere}", "model.attn.heads", "nowhere"),
    ("model.attn.heads=[", "model.attn.heads=["),
    ("model.attn.heads=", "model.attn.heads", "whole number"),
    ("optim.lr=-1", "optim.lr", "above 0", "-1"),
    ("optim.beta1=1.0", "optim.beta1", "below 1"),
    ("optim.lr=nan", "optim.lr", "above 0"),
    ("train.steps=0", "train.steps", "1 or more", "0"),
    ("train.steps=1e3", "train.steps=1000"),
    ("train.device=cudda", "train.device", "'cuda'"),
    ("train=5", "train.<option>"),
    ("data.seq_len=0", "data.seq_len", "1 or more"),
    ("data.seq_len=true", "data.seq_len", "True"),
    ("data.path=1984", "data.path", "text", "Quote"),
    ("data.kind=lang", "data.kind", "one of long, short", "'long'"),
    ("tokenizer.tags=a", "[a]"),
    ("sede=1", "'sede'", "'seed'"),
    ("seed=0,1", "-m", "seed=[0,1]"),
    ("task=trian", "task=trian", "'train'"),
    ("prompts=[x]", "'prompts'", "task=generate"),
    ("word", "Can't parse 'word'"),
    ("tokenizer.times=2", "This task has no option 'tokenizer.times'", "task=spell"),
    ("+tokenizer.times=2", "tokenizer has no option 'times'", "tags"),
    ("run=nowhere", "no folder 'nowhere'"),
    ("run=conf", "'conf' is not a run", "config.yaml"),
    ("resume=latest", "no run with a checkpoint"),
    ("experiment=gpt22", "experiment=gpt22"),
    ("model.attn._target_=os.system", "os.system", "refused", "extensions=[os]"),
    ("model.attn._target_=minllm.config.compose.os.system", "refused|no module"),
    ("model.attn._target_=minllm.config.compose.Path", "refused"),
    ("model.attn._target_=minllm.config.compose.OmegaConf", "refused"),
    ("model.attn._target_=my_idea.Mixxer", "my_idea has no 'Mixxer'"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_invalid_configuration_is_rejected_in_one_sentence(idea: Path, case: tuple[str, ...]):
    typed, *expected = case
    with pytest.raises(UserError) as refusal:
        composed(typed)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    for word in expected:
        assert any(one in sentence for one in word.split("|")), sentence


def test_a_tasks_option_may_stand_in_a_section(idea: Path):
    cfg = composed("task=spell", "tokenizer.times=2", "data.from=there")
    assert perform(cfg, Path("unused")) == (2, "lower", "there", ["a"])
    assert perform(composed("task=spell"), Path("unused")) == (None, "lower", "here", ["a"])


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("tokenizer.tmies=2", "tokenizer has no option 'tmies'. Did you mean 'times'?"),
        ("+tokenizer.tmies=2", "tokenizer has no option 'tmies'. Did you mean 'times'?"),
        ("+tokenizer.tag=2", "tokenizer has no option 'tag'. Did you mean 'tags'?"),
        ("tokenizer.times=0", "tokenizer.times must be a whole number of 1 or more, or null, not 0."),
        (
            "tokenizer.case=uper",
            "tokenizer.case must be one of upper, lower, not 'uper'. Did you mean 'upper'?",
        ),
        ("tokenizer.tags=a", "tokenizer.tags must be a list, each item text, not 'a'. Put it in brackets"),
        ("tokenizer.case=???", "tokenizer.case has no value yet."),
        ("+times=2", "There is no option 'times'."),
        ("~tokenizer", "tokenizer is missing. Choose one: tokenizer=<option>"),
    ],
)
def test_task_option_in_a_section_is_checked(idea: Path, typed: str, says: str):
    with pytest.raises(UserError) as refusal:
        composed("task=spell", typed)
    assert str(refusal.value).startswith(says)


def test_missing_config_dir_is_reported(idea: Path):
    with pytest.raises(UserError, match="no folder 'nowhere'"):
        composed(config_dir="nowhere")


def test_a_file_cannot_allow_itself_to_run_code(idea: Path):
    (idea / "conf" / "experiment").mkdir()
    (idea / "conf" / "experiment" / "trap.yaml").write_text("# @package _global_\n# x\nextensions: [os]\n")
    with pytest.raises(UserError, match="extensions=\\[os\\]"):
        compose([*MINE[1:], "experiment=trap"], config_dir="conf")


def test_build_gives_positions_by_code_and_options_by_configuration(idea: Path):
    cfg = composed()
    mixer = build(cfg.model.attn, 16, 3)
    assert (mixer.dim, mixer.layer, mixer.heads) == (16, 3, 4)
    assert build(cfg.tokenizer).tags == ["a"] and type(build(cfg.tokenizer).tags) is list


def test_nested_nodes_arrive_as_partials(idea: Path):
    cfg = composed()
    root = OmegaConf.create(
        {
            "extensions": ["my_idea"],
            "model": {
                "_target_": "my_idea.Model",
                "dim": 16,
                "attn": cfg.model.attn,
                "local": cfg.model.attn,
            },
        }
    )
    model = build(root.model, 100)
    assert (model.vocab_size, model.dim) == (100, 16) and set(model.branches) == {"attn", "local"}
    assert isinstance(model.branches["attn"], functools.partial)
    assert model.branches["local"](8, 0).heads == 4


def test_constructor_errors_are_reported(idea: Path):
    cfg = composed("model.attn.heads=5")
    with pytest.raises(UserError, match="heads=5 can't share groups=2"):
        build(cfg.model.attn, 16, 0)


def test_composing_works_inside_a_running_hydra(idea: Path):
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with hydra.initialize_config_dir(str(idea / "conf")):
        outer = GlobalHydra.instance().hydra
        assert composed("seed=1").seed == 1
        assert GlobalHydra.instance().hydra is outer
    with pytest.raises(UserError):
        composed("sede=1")
    assert not GlobalHydra.instance().is_initialized()


# ---- annotations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Count, [1, 7], [0, -1, 1.0, True, "1", None]),
        (Natural, [0, 3], [-1, 0.5]),
        (Positive, [1, 0.1], [0, -1.0, float("nan"), float("inf"), "x"]),
        (NonNegative, [0, 0.0, 2], [-0.1]),
        (Fraction, [0, 1, 0.5], [1.1, -0.1]),
        (Count | None, [None, 2], [0, "null"]),
        (Annotated[Count | None, In("model")], [None, 2], [0, "2"]),
        (Literal["auto"] | bool, ["auto", True, False], ["car", 1]),
        (list[str], [[], ["a"]], ["a", [1]]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, []]),
        (Callable[[int], object], [{"_target_": "x"}], ["x", {}, None]),
        (Any, [None, 1, "a", []], []),
    ],
    ids=str,
)
def test_annotations_define_valid_values(kind: Any, good: list, bad: list):
    assert all(fits(value, kind) for value in good)
    assert not any(fits(value, kind) for value in bad)
    assert kind is Any or describe(kind)


# ---- going on from a run -------------------------------------------------------------------------


@pytest.fixture
def run(idea: Path) -> Path:
    """A run made with seed=7, dim=48 and a checkpoint."""
    run_dir = idea / "outputs" / "2026-01-01" / "00-00-00-x"
    perform(composed("word=write", "seed=7", "model.dim=48"), run_dir)
    return run_dir


def test_find_run(run: Path):
    assert find_run("latest") == find_run(run) == run.resolve()


def test_run_without_tags_is_read(run: Path):
    cfg = OmegaConf.load(run / "config.yaml")
    del cfg.tags
    OmegaConf.save(cfg, run / "config.yaml")
    validate(read_run(run, ["my_idea"]))
    assert composed(f"run={run}").tags == []


def test_a_run_is_looked_at_as_it_was_configured(run: Path):
    cfg = composed(f"run={run}", "data.seq_len=4", "sample.temperature=0")
    assert (cfg.seed, cfg.model.dim, cfg.data.seq_len, cfg.sample.temperature) == (7, 48, 4, 0)
    cfg = composed("run=latest", "model/attn=yours")
    assert cfg.model.attn.groups == 4 and cfg.choices["model/attn"] == "yours" and cfg.word == ""


def test_resuming_changes_how_long_and_nothing_else(run: Path):
    cfg = composed("resume=latest", "train.steps=9")
    assert (cfg.seed, cfg.model.dim, cfg.train.steps, cfg.resume) == (7, 48, 9, str(run.resolve()))
    assert composed("resume=latest", "train={eval_every: 3}").train.batch_size == cfg.train.batch_size
    assert perform(cfg, Path("elsewhere"))["run_dir"] == str(run.resolve())
    composed("resume=latest", "seed=7")  # said again, and no change
    assert composed("resume=latest", "tags=[better]").tags == ["better"]


@pytest.mark.parametrize("change", ["seed=8", "train.batch_size=3", "norm=post", "model.dim=64"])
def test_resuming_rejects_changed_settings(run: Path, change: str):
    with pytest.raises(UserError, match="init_from="):
        composed("resume=latest", change)


def test_starting_from_a_run_takes_its_model(run: Path):
    cfg = composed("init_from=latest", "optim.lr=0.5", "model.dropout=0.5")
    assert (cfg.seed, cfg.model.dim, cfg.model.dropout, cfg.optim.lr) == (0, 48, 0.5, 0.5)


def test_a_run_from_elsewhere_is_not_trusted(run: Path):
    with pytest.raises(UserError, match=r"extensions=\[my_idea\]"):
        read_run(run)
    assert read_run(run, ["my_idea"]).seed == 7
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.norm = {"_target_": "os.system", "command": "touch harm"}
    OmegaConf.save(cfg, run / "config.yaml")
    with pytest.raises(UserError, match=r"os\.system is refused"):
        composed("run=latest")


@pytest.mark.parametrize("text", ["[", "- a", "just words", "\x00", ""])
def test_a_damaged_configuration_of_a_run(run: Path, text: str):
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml"):
        composed(f"run={run}")


def test_named_keys():
    assert named_keys(["model/attn=mqa", "train={steps: 5}", "+a.b=1", "hydra.run.dir=x"]) == {
        "model.attn",
        "train.steps",
        "a.b",
    }


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "train"),
        (["model/attn=mqa", "norm=post", "seed=1"], "mqa-post-seed1"),
        (["task=generate", "run=/a/b", "prompts=[x y]"], "generate"),
        (["optim.lr=0.5", "hydra.run.dir=/x", "data.path=/a/b", "tags=[mine]"], "lr0.5"),
        (["model/attn=" + "x" * 200], "x" * 48),
        (["seed=0", "model.tie_embeddings=False"], "seed0-tie_embeddings-false"),
        (
            ["train.compile=TRUE", "model.softcap=null", "model/rec=null"],
            "compile-true-softcap-null-rec-null",
        ),
        (["model.layout=[attn mlp,rec mlp]", "seed=0,1", "train={steps: 5}"], "layout-seed-train-steps-5"),
    ],
)
def test_a_folder_is_named_after_the_choices(overrides: list[str], expected: str):
    assert short_folder_name(overrides) == expected


def test_only_empty_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    kept, empty = Path("outputs/a/kept"), Path("outputs/a/empty")
    for folder in (kept, empty):
        folder.mkdir(parents=True)
    (kept / "file").touch()
    remove_if_empty(empty)
    remove_if_empty(kept)
    assert (kept / "file").exists() and not empty.exists()
    (kept / "file").unlink()
    remove_if_empty(kept)
    assert not Path("outputs").exists() and tmp_path.exists()


def test_suggest():
    assert suggest("n_head", ["n_heads", "dim"]) == " Did you mean 'n_heads'?"
    assert suggest("zzz", ["b", "a"]) == " Choose one of: a, b."
    assert suggest("zzz", []) == ""
