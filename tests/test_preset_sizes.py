"""The presets' sizes are the published ones: a published config.json translates into the preset."""

from __future__ import annotations

import pytest
import torch
from omegaconf import DictConfig

from minllm.convert.folder import family_of
from minllm.convert.settings import ConfigJson
from minllm.schema.building import build
from tests.oracles import TINY, composed, nodes, theta
from tests.tiny import options

transformers = pytest.importorskip(
    "transformers", reason="the oracle is not installed: pip install -e .[test]"
)

PUBLISHED = {
    "llama3": (
        dict(
            vocab_size=128256,
            hidden_size=2048,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            intermediate_size=8192,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_parameters=theta(
                500000.0,
                rope_type="llama3",
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        ),
        1_235_814_400,
    ),
    "min_llama3": (
        dict(
            vocab_size=512,
            hidden_size=128,
            num_hidden_layers=12,
            num_attention_heads=4,
            num_key_value_heads=1,
            intermediate_size=512,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
        ),
        2_985_088,
    ),
    "gemma": (
        dict(
            hidden_size=2048,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
            intermediate_size=16384,
            max_position_embeddings=8192,
        ),
        2_506_172_416,
    ),
    "gemma2": (dict(), 2_614_341_888),  # transformers' defaults are the 2B
    "gemma3": (
        dict(
            vocab_size=262144,
            hidden_size=640,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            intermediate_size=2048,
            max_position_embeddings=32768,
            sliding_window=512,
        ),
        268_098_176,
    ),
    "qwen3": (
        dict(
            hidden_size=1024,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=3072,
            max_position_embeddings=40960,
            tie_word_embeddings=True,
            rope_parameters=theta(1e6),
        ),
        596_049_920,
    ),
    "olmo2": (
        dict(
            vocab_size=100352,
            hidden_size=2048,
            num_hidden_layers=16,
            num_attention_heads=16,
            intermediate_size=8192,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_parameters=theta(500000.0),
        ),
        1_484_916_736,
    ),
    "gptj": (dict(), 6_050_882_784),
    "gpt_neox": (
        dict(
            vocab_size=50304,
            hidden_size=512,
            num_hidden_layers=6,
            num_attention_heads=8,
            intermediate_size=2048,
        ),
        70_426_624,
    ),
    "mpt": (dict(vocab_size=50432, d_model=4096, n_heads=32, n_layers=32), 6_649_286_656),
    "bloom": (dict(hidden_size=1024, n_head=16, n_layer=24), 559_214_592),
    "gpt2": (dict(), 124_439_808),
    "t5": (dict(), 60_506_624),
    "bart": (
        dict(),
        406_291_456 - 4 * 1024,
    ),  # without the first two positions of each stack, which nothing reads
    "mixtral": (dict(router_aux_loss_coef=0.02, max_position_embeddings=32768), 46_702_792_704),
    "gpt_oss": (
        dict(num_hidden_layers=24, num_local_experts=32, router_aux_loss_coef=0.9),
        20_914_757_184,
    ),
    "deepseek_v3": (
        dict(
            max_position_embeddings=163840,
            rope_parameters=theta(
                10000.0,
                rope_type="yarn",
                factor=40.0,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                original_max_position_embeddings=4096,
            ),
        ),
        671_026_404_352,  # and 14,848 biases that balance the load, which nobody learns
    ),
    "mamba": (dict(num_hidden_layers=24), 129_135_360),
    "mamba2": (
        dict(
            vocab_size=50288,
            hidden_size=768,
            num_hidden_layers=24,
            num_heads=24,
            n_groups=1,
            tie_word_embeddings=True,
        ),
        128_989_632,
    ),
    "recurrent_gemma": (dict(num_key_value_heads=1, intermediate_size=15360), 2_682_862_080),
    "jamba": (dict(), 51_570_323_328),
    "bamba": (dict(vocab_size=128256, attn_layer_indices=[9, 18, 27], mamba_d_state=128), 9_780_235_392),
    "qwen3_next": (dict(num_experts=0), 3_824_499_456),
}
"""What the published config.json says where it differs from the class's defaults, and the number of parameters."""


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_preset_is_the_published_model(preset):
    """The published config.json translates into the preset, with nothing that differs from it."""
    settings, params = PUBLISHED[preset]
    config = getattr(transformers, f"{TINY[preset][0]}Config")(**settings)
    words = family_of(config.model_type).to_overrides(ConfigJson(config.to_dict()))
    assert nodes(*words) == nodes(f"experiment={preset}")
    assert params_of(preset, config.vocab_size) == params


def test_min_gemma_has_964352_parameters():
    assert params_of("min_gemma", vocab=65) == 964_352


def params_of(preset: str, vocab: int) -> int:
    """Count a preset's parameters: each repetition of its layout has the same number, so that few are built."""
    cfg = composed(f"experiment={preset}").copy()
    depth, first, period = cfg.model.n_layers, len(cfg.model.first), len(cfg.model.layout)
    repeated, rest = divmod(depth - first, period)
    if repeated <= 2:
        return params_at(cfg, depth, vocab)
    few, more = (params_at(cfg, first + rest + period * times, vocab) for times in (1, 2))
    return few + (repeated - 1) * (more - few)


def params_at(cfg: DictConfig, n_layers: int, vocab: int) -> int:
    cfg.model.n_layers = n_layers
    with torch.device("meta"):
        model = build(cfg.model, vocab, build(cfg.norm))
    assert len(model.layers) == n_layers
    return sum(p.numel() for p in model.parameters())


def test_every_published_preset_has_an_oracle():
    elsewhere = ("megalodon", "min_gemma", "min_grok", "none")
    published = [name for name in options("experiment") if not name.startswith("experiment=small_")]
    assert {f"experiment={name}" for name in (*TINY, *elsewhere)} == set(published)


@pytest.mark.parametrize("choice", [name for name in options("experiment") if "=small_" in name])
def test_the_small_ones_have_half_a_million_parameters(choice):
    params = params_of(choice.removeprefix("experiment="), vocab=512)
    assert abs(params - 500_000) < 2_500
