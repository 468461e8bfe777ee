"""The same budget for every arm of a comparison: `size.params=1e6` and its like."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.model.build import build_model, build_shapes
from minllm.model.cost import cost
from minllm.model.lm import LM
from minllm.model.size import in_words, sized
from minllm.model.solve import crossing, figure_of
from minllm.schema.building import build
from tests.tiny import completed, groups_of_model, options, reads_memory

GROUPS = [group for group in groups_of_model() if group != "model/attn/mask"]  # masks have no parameters
CHOICES = [completed(choice) for group in GROUPS for choice in options(group)]
SIZED = list(zip(CHOICES, itertools.cycle([3e5, 1e6])))
"""Every option at one of two sizes."""
COARSE = {"model/mlp=none"}
"""Where nothing has a hidden width, and a multiple of eight channels is all there is to choose."""
FEW = ["model.n_layers=2", "model.mlp.n_experts=4"]
"""Layers and experts: each model that is tried on the way is built."""


def chosen(choices: tuple[str, ...]) -> DictConfig:
    """Return the configuration of some choices, with a layout that says them and what they need, hardly repeated."""
    cfg = compose(["model/layout=recurrent"] * choices[0].startswith("model/rec=") + [*choices])
    if not COARSE & {*choices}:  # whose steps are large only in several layers
        cfg.model.n_layers = max(2, len(cfg.model.first) + len(cfg.model.layout))
    if any(reads_memory(node) for node in cfg.model.values() if OmegaConf.is_dict(node)):
        cfg.objective._target_, cfg.extensions = "tests.tiny.Told", ["tests"]
    return cfg


def shapes(cfg: DictConfig) -> LM:
    return build_shapes(cfg, build(cfg.tokenizer).vocab_size)


def params(model: LM) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("choices", "wanted"), SIZED, ids=[f"{c[0]} {n:.0e}" for c, n in SIZED])
def test_every_option_has_the_parameters_asked_for(choices, wanted):
    cfg = chosen(choices)
    cfg.size.params = wanted
    try:
        cfg = sized(cfg)
    except UserError as error:
        assert COARSE & {*choices} and "can't be met within 1 %: the nearest is" in str(error)
        return
    assert not COARSE & {*choices}
    assert abs(params(shapes(cfg)) / wanted - 1) <= 0.01


@pytest.mark.parametrize(
    ("words", "target", "wanted"),
    [
        (["model/attn=mqa"], "flops_per_token", 1e7),
        (["model/layout=griffin", "model.n_layers=3"], "flops_per_token", 2e7),
        (["model/mlp=moe", *FEW], "flops_per_token", 5e6),
        (["model/mlp=moe", *FEW], "params_active", 1e6),
        (["model/mlp=moe_sigmoid"], "params_non_embedding", 1e6),
        (["model/layout=mamba"], "state_bytes", 1e5),
        (["model/attn=gqa", "size.within=0.02"], "state_bytes", 1e6),
    ],
)
def test_other_figures_are_met_too(words, target, wanted):
    cfg = compose([*words, f"size.{target}={wanted}"])
    figures = cost(shapes(cfg), cfg.data.seq_len)
    figure = getattr(figures, "state_bytes_per_sequence" if target == "state_bytes" else target)
    assert figure_of(shapes(cfg), target, cfg.data.seq_len) == figure
    assert abs(figure / wanted - 1) <= cfg.size.within


@pytest.mark.parametrize("preset", ["min_llama3", "min_grok", "min_gemma", "gpt2", "small_transformer"])
def test_a_preset_keeps_its_proportions(preset):
    before, cfg = compose([f"experiment={preset}"]), compose([f"experiment={preset}", "size.params=1e6"])
    assert abs(params(shapes(cfg)) / 1e6 - 1) <= 0.01
    if hidden := before.model.mlp.get("hidden"):
        assert 0.8 < (cfg.model.mlp.hidden / cfg.model.dim) / (hidden / before.model.dim) < 1.25


def test_what_gives_way():
    start = compose([])
    wide, deep, hidden = (
        compose([f"size.by={by}", "size.params=2e6"]) for by in ("width", "layers", "hidden")
    )
    assert wide.model.dim > start.model.dim and wide.model.n_layers == start.model.n_layers
    assert deep.model.n_layers > start.model.n_layers and deep.model.dim == start.model.dim
    assert hidden.model.mlp.hidden > 341 and hidden.model.dim == start.model.dim
    assert all(abs(params(shapes(cfg)) / 2e6 - 1) <= 0.01 for cfg in (wide, deep, hidden))


def test_all_hidden_widths_change_in_proportion_and_what_follows_another_goes_on_to():
    cfg = compose(["model/mlp=moe_sigmoid", "size.by=hidden", "size.params=2e6"])
    assert cfg.model.mlp.expert.hidden == cfg.model.mlp.shared.hidden
    follows = "model.mlp.hidden=${model.dim}"
    cfg = compose([follows, "size.params=1e6", "size.within=0.05"])
    assert OmegaConf.is_interpolation(cfg.model.mlp, "hidden") and cfg.model.mlp.hidden == cfg.model.dim


def test_the_numbers_written_build_the_model_by_themselves():
    words = ["model/attn=mqa", "tokenizer=bytes"]
    cfg = compose([*words, "size.params=3e5"])
    assert cfg == compose([*words, "size.params=3e5"]) and cfg.size.params == 3e5
    widths = [f"model.dim={cfg.model.dim}", f"model.mlp.hidden={cfg.model.mlp.hidden or 'null'}"]
    one, other = build_model(cfg), build_model(compose([*words, *widths]))
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_sized_arms_begin_with_the_same_weights_where_they_share_them():
    words = ["tokenizer=bytes", "model.dim=64", "size.by=hidden", "size.params=3e5"]
    one, other = (build_model(compose([f"model/attn={attn}", *words])) for attn in ("gqa", "mqa"))
    assert torch.equal(one.embedding, other.embedding)
    assert abs(params(one) / params(other) - 1) <= 0.02


def test_a_run_says_how_it_was_sized():
    cfg = compose(["size.params=1e6"])
    assert in_words(cfg, shapes(cfg)) == (
        "Sized by width to 1,000,048 parameters (0.0048 % above 1,000,000): model.dim=112 and model.mlp.hidden=290."
    )
    assert in_words(compose([]), shapes(cfg)) is None


# ---- what can't be -------------------------------------------------------------------------------

REFUSED = [
    # what is typed, and the words that the one sentence must hold
    ("size.params=1e6 size.state_bytes=1e5", "size.params and size.state_bytes at once", "remove the other"),
    ("size.params=1e3", "nearest is 35,624 (3,462 % above)", "model.dim=8", "Ask for more", "size.by=layers"),
    ("size.params=1e15", "% below)", "Ask for less"),
    ("size.params=1e3 size.by=hidden", "model.mlp.hidden=1.", "size.by=width"),
    ("size.params=1e3 size.by=layers", "model.n_layers=1", "size.by=width"),
    ("size.state_bytes=1e6", "nearest is 1,015,808 (1.6 % above)", "Accept it with size.within=0.016"),
    ("size.state_bytes=1e6 size.by=hidden", "can't be met within 1 %", "size.by=width"),
    ("size.state_bytes=1e6 model/mlp=moe_expert_choice model.n_layers=1", "no state", "can't generate"),
    ("size.params=1e6 size.by=hidden model/layout=mamba", "size.by=hidden", "size.by=width"),
    ("size.params=1e6 model/layout=decoder model.n_layers=1", "cross-attention"),
    ("size.params=1e6 model.attn.n_kv_heads=3", "n_kv_heads=3"),
    ("size.params=1e6 model.attn.n_heads=four", "model.attn.n_heads must be a whole number", "'four'"),
    (
        "size.params=1e6 size.by=widht",
        "size.by must be one of width, hidden, layers",
        "Did you mean 'width'?",
    ),
    ("size.parms=1e6", "size has no option 'parms'. Did you mean 'params'?"),
    ("size.params=-1", "size.params must be a number above 0"),
    ("size.params=million", "size.params must be a number above 0"),
    ("size.params=${nowhere}", "size.params=${nowhere} can't be resolved"),
    ("size.params=1e6 size.within=1", "size.within must be a number from 0 to below 1"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_what_cannot_be_is_refused_in_one_sentence(case):
    typed, *expected = case
    with pytest.raises(UserError) as refusal:
        compose(typed.split())
    sentence = str(refusal.value)
    assert "\n" not in sentence and all(word in sentence for word in expected), sentence


@pytest.fixture(scope="module")
def sized_cfg() -> DictConfig:
    return compose(["size.params=3e5", "tokenizer=bytes"])


@pytest.fixture
def made(tmp_path, monkeypatch, sized_cfg) -> Path:
    """A folder with a run's configuration, sized when it was made."""
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    OmegaConf.save(sized_cfg, "made/config.yaml")
    return Path("made")


@pytest.mark.parametrize("goes_on", ["resume=made", "init_from=made", "task=evaluate run=made"])
@pytest.mark.parametrize("asked", ["size.params=1e6", "size.by=layers"])
def test_a_run_that_was_made_has_its_size(made, goes_on, asked):
    cfg = compose(goes_on.split())
    assert cfg.model.dim == OmegaConf.load("made/config.yaml").model.dim
    with pytest.raises(
        UserError,
        match=f"{asked.split('=')[0]} (can't be combined with .*=, because|would do nothing: task=evaluate reads)",
    ):
        compose([*goes_on.split(), asked])


def test_a_run_made_before_there_were_sizes_still_loads(made):
    cfg = OmegaConf.load("made/config.yaml")
    del cfg["size"]
    OmegaConf.save(cfg, "made/config.yaml")
    assert compose(["resume=made"]).model.dim == cfg.model.dim


def test_a_command_line_is_sized(capsys):
    perform(compose(["task=describe", "model/attn=mqa", "size.params=1e6"]), Path("unused"))
    assert "1,000,496" in capsys.readouterr().out


# ---- the search ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grows", [lambda n: n, lambda n: 7 * n**2 + 1000, lambda n: n**3, lambda n: n + n**2 // 9]
)
@pytest.mark.parametrize("step", [1, 8, 24])
@pytest.mark.parametrize("wanted", [2e4, 123_456, 1e6])
def test_a_crossing_is_closed_in_on_with_few_looks(grows, step, wanted):
    looks = set()

    def figure(n: int) -> float | None:
        if n % step == 0:
            looks.add(n)
        return None if n % step else grows(n)

    x = crossing(figure, 120, range(1, 2**20), wanted)
    below = int(x // step) * step
    assert grows(below) <= wanted <= grows(below + step)
    assert len(looks) < 30
