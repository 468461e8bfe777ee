"""Presets against the classes of `transformers`: the same weights must give the same logits.

Each model is made as an import makes it: a config.json becomes overrides (`families/*.py`, `to_overrides`), and the
weights are filled in by the family's table. So the preset, the translation and the table prove each other. Every
parameter is random at σ = 0.2, gains and biases included: at the usual initial values almost any bug passes.
"""

from __future__ import annotations

import copy
import random
from types import ModuleType, SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from minllm.config.compose import compose
from minllm.convert.folder import family_of
from minllm.convert.settings import ConfigJson
from minllm.convert.table import fill
from minllm.model.build import build_model
from minllm.model.lm import LM
from tests import diffllama
from tests.oracles import SIZES, TINY, YARN, W, both_logits, randomised, saved, theta
from tests.tiny import VOCAB, T, tiny_cfg, tokens, told

transformers = pytest.importorskip(
    "transformers", reason="the oracle is not installed: pip install -e .[test]"
)

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
