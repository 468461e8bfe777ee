"""Presets against the classes of `transformers`: the same weights must give the same logits.

Each model is made as an import makes it: a config.json becomes overrides (`families/*.py`, `to_overrides`), and the
weights are filled in by the family's table. So the preset, the translation and the table prove each other. Every
parameter is random at σ = 0.2, gains and biases included: at the usual initial values almost any bug passes.
"""

from __future__ import annotations

import copy
import functools
import random
import tempfile
from types import ModuleType, SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import nn

from minllm.config.compose import compose
from minllm.convert.folder import family_of
from minllm.convert.settings import ConfigJson
from minllm.convert.table import fill
from minllm.model.build import build_model
from minllm.model.lm import LM
from minllm.schema.building import build
from tests import diffllama
from tests.tiny import SIZES_OF, VOCAB, T, options, tiny_cfg, tokens, told

transformers = pytest.importorskip(
    "transformers", reason="the oracle is not installed: pip install -e .[test]"
)

W = SIZES_OF["window"]
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,  # four of them are more than the width
    intermediate_size=40,
    max_position_embeddings=T,
    rms_norm_eps=1e-3,
)
SOME = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}


def theta(number: float, **scaling) -> dict:
    return {"rope_theta": number, "rope_type": "default", **scaling}


LLAMA3 = theta(
    500.0,
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=3.0,
    original_max_position_embeddings=16,
)
YARN = theta(
    500.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=2.0, beta_slow=0.5
)
GEMMA3 = {"sliding_attention": theta(20.0), "full_attention": theta(500.0)}

TINY = {
    "llama3": ("Llama", SIZES | dict(rope_parameters=LLAMA3)),
    "min_llama3": ("Llama", SIZES | dict(rope_parameters=theta(10000.0), num_key_value_heads=1)),
    "gemma": ("Gemma", SIZES | dict(num_key_value_heads=1)),
    "gemma2": (
        "Gemma2",
        # bounds so near that they bite, and a scale that isn't 1/√12
        SIZES
        | dict(
            num_hidden_layers=3,
            sliding_window=W,
            query_pre_attn_scalar=3,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": (
        "Gemma3Text",
        SIZES | dict(num_hidden_layers=8, sliding_window=W, query_pre_attn_scalar=3, rope_parameters=GEMMA3),
    ),
    "qwen3": ("Qwen3", SIZES | dict(rope_parameters=theta(500.0))),
    # its heads are as wide as the model allows
    "olmo2": ("Olmo2", {key: SIZES[key] for key in SIZES if key != "head_dim"}),
    "gptj": (
        "GPTJ",
        dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, rotary_dim=4, n_positions=T, n_inner=40),
    ),
    "gpt_neox": (
        "GPTNeoX",
        SOME | dict(intermediate_size=40, max_position_embeddings=T, num_attention_heads=2),
    ),
    # a number of heads that is no power of two takes its slopes in between
    "mpt": ("Mpt", dict(vocab_size=VOCAB, d_model=36, n_heads=6, n_layers=2, max_seq_len=T)),
    "bloom": ("Bloom", dict(vocab_size=VOCAB, hidden_size=36, n_head=6, n_layer=2)),
    "mixtral": (
        "Mixtral",
        SIZES | dict(num_local_experts=4, num_experts_per_tok=2, rope_parameters=theta(500.0)),
    ),
    "gpt_oss": (
        "GptOss",
        SIZES
        | dict(
            num_hidden_layers=3,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=W,
            swiglu_limit=1.5,  # so near that it bites
            rope_parameters=YARN | dict(truncate=False),
        ),
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {key: SIZES[key] for key in SIZES if key not in ("head_dim", "num_key_value_heads")}
        | dict(
            num_hidden_layers=3,
            num_key_value_heads=4,
            rms_norm_eps=1e-6,
            q_lora_rank=10,
            kv_lora_rank=12,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=6,
            first_k_dense_replace=1,
            moe_intermediate_size=24,
            n_routed_experts=8,
            n_shared_experts=2,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.3),
        ),
    ),
    "mamba": (
        "Mamba",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=3,
            time_step_rank=5,
            use_bias=True,
        ),
    ),
    "mamba2": (
        "Mamba2",
        dict(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=8,
            head_dim=8,
            n_groups=2,
            state_size=3,
            chunk_size=7,
            use_bias=True,
        ),
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        {key: SIZES[key] for key in SIZES if key != "max_position_embeddings" and key != "head_dim"}
        | dict(num_hidden_layers=4, attention_window_size=W, logits_soft_cap=3.0, lru_width=32),
    ),
    "jamba": (
        "Jamba",
        {key: SIZES[key] for key in SIZES if key != "head_dim"}
        | dict(
            num_hidden_layers=6,
            num_experts=4,
            attn_layer_period=3,
            attn_layer_offset=1,
            mamba_d_state=3,
            mamba_dt_rank=5,
            mamba_proj_bias=True,
        ),
    ),
    "bamba": (
        "Bamba",
        {key: SIZES[key] for key in SIZES if key != "head_dim"}
        | dict(
            num_hidden_layers=4,
            attn_layer_indices=[2],
            mamba_n_heads=8,
            mamba_n_groups=2,
            mamba_d_state=3,
            mamba_chunk_size=7,
        ),
    ),
    "qwen3_next": (
        "Qwen3Next",
        SIZES
        | dict(
            num_hidden_layers=4,
            num_experts=0,
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=6,
            linear_value_head_dim=10,
            rope_parameters=theta(500.0, partial_rotary_factor=0.5),
        ),
    ),
    # distances and depths at which both directions' buckets and both stacks differ
    "t5": (
        "T5",
        dict(
            vocab_size=VOCAB,
            d_model=32,
            d_kv=6,
            d_ff=40,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=12,
            decoder_start_token_id=0,
        ),
    ),
    "bart": (
        "Bart",
        dict(
            vocab_size=VOCAB,
            d_model=32,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=4,
            encoder_ffn_dim=24,
            decoder_ffn_dim=40,
            max_position_embeddings=T,
        ),
    ),
    "gpt2": ("GPT2", dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_inner=40, n_positions=T)),
}
"""For each preset its class in transformers, and sizes at which each setting matters."""

VARIANTS = {
    "biases": ("Llama", SIZES | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "linear": ("Llama", SIZES | dict(rope_parameters=theta(500.0, rope_type="linear", factor=4.0))),
    "yarn": ("Llama", SIZES | dict(rope_parameters=YARN)),
    "no global layer": ("Gemma3Text", SIZES | dict(sliding_window=W, query_pre_attn_scalar=3)),
    "without bounds": ("Gemma2", SIZES | dict(attn_logit_softcapping=None, final_logit_softcapping=None)),
    "one expert": ("Jamba", TINY["jamba"][1] | dict(num_experts=1, num_hidden_layers=3)),
    "tied": ("GPTJ", TINY["gptj"][1] | dict(tie_word_embeddings=True)),
    "gated": ("T5", TINY["t5"][1] | dict(feed_forward_proj="gated-gelu")),
    "unscaled": ("T5", TINY["t5"][1] | dict(tie_word_embeddings=False, feed_forward_proj="gated-silu")),
    "scaled": ("Bart", TINY["bart"][1] | dict(scale_embedding=True, activation_function="relu")),
    "no biases": ("GPTNeoX", TINY["gpt_neox"][1] | dict(attention_bias=False, hidden_act="gelu_new")),
}
"""What a config.json may say besides."""


def oracle_of(name: str, settings: dict) -> nn.Module:
    """Return a model of transformers, eager, with every parameter random."""
    config = getattr(transformers, f"{name}Config")(**settings, attn_implementation="eager")
    heads = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
    heads |= {pair: f"{pair}ForConditionalGeneration" for pair in ("T5", "Bart")}
    head = heads.get(name, f"{name}ForCausalLM")
    return randomised(getattr(transformers, head)(config))


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            # Gemma's gains are 1 + w
            is_1p = "Gemma" in type(module).__name__ and "Norm" in type(module).__name__
            for param in module.parameters(recurse=False):
                param.normal_(0.5 if param.ndim == 1 and not is_1p else 0, 0.2)
            if hasattr(module, "e_score_correction_bias"):
                module.e_score_correction_bias.normal_(0, 0.2)
    return model.eval()


def typed(oracle: nn.Module, family: ModuleType) -> list[str]:
    settings = ConfigJson(copy.deepcopy(oracle.config.to_dict()))
    words = family.to_overrides(settings)
    settings.finish()
    return words


def model_of(cfg: DictConfig, oracle: nn.Module, family: ModuleType) -> LM:
    if oracle.config.is_encoder_decoder:
        cfg = told(cfg)
    model = build_model(cfg, SimpleNamespace(vocab_size=VOCAB))
    renamed = getattr(family, "RENAMED", {})
    fill(model, family.TABLE, saved(oracle), prefix=family.PREFIX, renamed=renamed)
    return model.eval()


def saved(oracle: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights by the names that published files have, which are not always those of the class."""
    with tempfile.TemporaryDirectory() as folder:
        oracle.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


@torch.no_grad()
def both_logits(model: LM, oracle: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    batch, source = tokens(3), tokens(3, T - 5, seed=1)
    if model.encoder is None:
        return model(batch), oracle(batch).logits
    return model(batch, source_BS=source), oracle(source, decoder_input_ids=batch).logits


def assert_same_logits(model: LM, oracle: nn.Module) -> None:
    ours, theirs = both_logits(model, oracle)
    difference = (ours - theirs).abs().max().item()
    print(f"largest difference {difference:.1e}, σ of the logits {theirs.std():.2f}")
    assert theirs.std() > 0.1
    assert difference < 1e-4 * min(1, theirs.std() / 0.4)  # T5's logits are divided by √dim


@pytest.mark.parametrize("name", [*TINY, *VARIANTS])
def test_the_logits_are_those_of_transformers(name):
    oracle = oracle_of(*(TINY | VARIANTS)[name])
    family = family_of(oracle.config.model_type)
    assert_same_logits(model_of(compose(typed(oracle, family)), oracle, family), oracle)


def drawn(name: str, seed: int) -> dict:
    """Return settings of an encoder-decoder, at random."""
    draw = random.Random(seed)
    heads = draw.choice([2, 3, 4])
    sizes = dict(vocab_size=VOCAB, d_model=12 * draw.randint(2, 4), decoder_start_token_id=draw.randrange(5))
    if name == "T5":
        return sizes | dict(
            d_kv=draw.randint(4, 12),
            d_ff=draw.randint(20, 60),
            num_layers=draw.randint(1, 4),
            num_decoder_layers=draw.randint(1, 4),
            num_heads=heads,
            relative_attention_num_buckets=draw.choice([4, 6, 8, 16, 32]),
            relative_attention_max_distance=draw.randint(17, 40),
            layer_norm_epsilon=10 ** draw.uniform(-6, -1),
            feed_forward_proj=draw.choice(["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"]),
            tie_word_embeddings=draw.choice([True, False]),
        )
    return sizes | dict(
        encoder_layers=draw.randint(1, 4),
        decoder_layers=draw.randint(1, 4),
        encoder_attention_heads=draw.choice([2, 3, 4]),
        decoder_attention_heads=heads,
        encoder_ffn_dim=draw.randint(20, 60),
        decoder_ffn_dim=draw.randint(20, 60),
        activation_function=draw.choice(["gelu", "gelu_new", "relu", "silu"]),
        scale_embedding=draw.choice([True, False]),
        max_position_embeddings=draw.randint(T, 2 * T),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_encoder_decoders_have_the_logits_and_write_the_tokens_of_transformers(name, seed):
    oracle = oracle_of(name, drawn(name, seed))
    family = family_of(oracle.config.model_type)
    model = model_of(compose(typed(oracle, family)), oracle, family)
    assert_same_logits(model, oracle)
    assert_same_text(model, oracle)


@torch.no_grad()
def assert_same_text(model: LM, oracle: nn.Module) -> None:
    """Compare greedy decoding with a state, which holds the memory from the first pass on.

    No token is written twice, because a random model would write the same one again and again.
    """
    source, new = tokens(3, 11, seed=2), 12
    plain = dict(
        do_sample=False, num_beams=1, eos_token_id=None, forced_eos_token_id=None, no_repeat_ngram_size=1
    )
    plain |= dict(output_logits=True, return_dict_in_generate=True)
    theirs = oracle.generate(source, attention_mask=torch.ones_like(source), max_new_tokens=new, **plain)
    ours = torch.full((3, 1), oracle.config.decoder_start_token_id)
    state, given = model.init_state(3, new), {"source_BS": source}
    for their_logits in theirs.logits:
        logits = model(ours[:, -1:], state=state, **given)
        assert (logits[:, 0] - their_logits).abs().max() < 1e-4
        token_B1 = logits[:, 0].scatter(1, ours, -torch.inf).argmax(-1, keepdim=True)
        ours, given = torch.cat([ours, token_B1], dim=1), {}
    assert ours.shape == (3, new + 1)
    assert ours.tolist() == theirs.sequences.tolist()


def test_untied_head_is_imported():
    """As files of T5 1.1 have it, which the class reads as a copy of the embedding."""
    oracle = oracle_of(*VARIANTS["unscaled"])
    family, head = family_of("t5"), torch.nn.Linear(32, VOCAB, bias=False)
    settings = ConfigJson(copy.deepcopy(oracle.config.to_dict()) | {"tie_word_embeddings": False})
    cfg = told(compose(family.to_overrides(settings)))
    oracle.lm_head = randomised(head)
    model = build_model(cfg, SimpleNamespace(vocab_size=VOCAB))
    fill(model, family.TABLE, {**oracle.state_dict()}, prefix=family.PREFIX)
    assert_same_logits(model.eval(), oracle)


def test_min_gemma():
    """Gemma's class with an exact GELU and with biases in its MLPs, which it has no settings for."""
    cfg = tiny_cfg("experiment=min_gemma")
    config = transformers.GemmaConfig(
        **SIZES
        | dict(
            num_key_value_heads=1,
            head_dim=cfg.model.attn.head_dim,
            rms_norm_eps=cfg.norm.eps,
            rope_parameters=theta(cfg.model.pos.theta),
        ),
        attn_implementation="eager",
    )
    oracle = transformers.GemmaForCausalLM(config)
    for layer in oracle.model.layers:
        layer.mlp.act_fn = nn.GELU()
        for name in ("gate_proj", "up_proj", "down_proj"):
            plain = getattr(layer.mlp, name)
            setattr(layer.mlp, name, nn.Linear(plain.in_features, plain.out_features))
    randomised(oracle)
    assert_same_logits(model_of(cfg, oracle, family_of("gemma")), oracle)


def test_differential_attention():
    oracle = oracle_of("DiffLlama", SIZES | dict(num_attention_heads=8, num_key_value_heads=4))
    assert_same_logits(model_of(compose(diffllama.WORDS), oracle, diffllama), oracle)


# ---- the presets' sizes are the published ones ---------------------------------------------------

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


@functools.lru_cache(1)  # the preset that is compared is also counted
def composed(*words: str) -> DictConfig:
    return compose(words)


def nodes(*words: str) -> dict:
    """Return what makes the model, as a configuration has it."""
    cfg = OmegaConf.to_container(composed(*words), resolve=True)
    return {name: cfg[name] for name in ("model", "norm")} | {"seq_len": cfg["data"]["seq_len"]}


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
    cfg = composed(f"experiment={preset}")
    with torch.device("meta"):
        model = build(cfg.model, vocab, build(cfg.norm))
    return sum(p.numel() for p in model.parameters())


def test_every_published_preset_has_an_oracle():
    elsewhere = ("megalodon", "min_gemma", "min_grok", "none")
    published = [name for name in options("experiment") if not name.startswith("experiment=small_")]
    assert {f"experiment={name}" for name in (*TINY, *elsewhere)} == set(published)


@pytest.mark.parametrize("choice", [name for name in options("experiment") if "=small_" in name])
def test_the_small_ones_have_half_a_million_parameters(choice):
    params = params_of(choice.removeprefix("experiment="), vocab=512)
    assert abs(params - 500_000) < 2_500
