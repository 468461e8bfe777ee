"""What a config.json leaves out, sets to null, or says in an older form means what it means to transformers.

Each family's config.json is mutated: a setting is deleted, is null, or is changed. Then a model of transformers with
this config.json and random parameters must have the same logits as the imported one, or the import is refused in a
sentence.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch

from minllm.config.compose import compose
from minllm.convert.families import gpt_oss, mpt
from minllm.convert.folder import family_of
from minllm.convert.settings import HARMLESS, ConfigJson, WithRope
from minllm.convert.table import fill
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.schema.checking import fits
from tests.oracles import TINY, both_logits, randomised, saved
from tests.tiny import VOCAB, tokens, told

transformers = pytest.importorskip(
    "transformers", reason="the oracle is not installed: pip install -e .[test]"
)

PRESETS = [name for name in TINY if name != "min_llama3"]  # of the same class as llama3


@functools.cache
def config_of(preset: str) -> str:
    """Return a tiny config.json."""
    name, settings = TINY[preset]
    return getattr(transformers, f"{name}Config")(**settings).to_json_string(use_diff=False)


def settings_of(preset: str, **changes: Any) -> dict[str, Any]:
    """Return a tiny config.json with other settings; those that are ... are left out."""
    settings = json.loads(config_of(preset)) | copy.deepcopy(changes)
    return {key: infinite(value) for key, value in settings.items() if value is not ...}


def infinite(value: Any) -> Any:
    """Return a limit as it is read: JSON has no infinity, and transformers writes a section for it."""
    return [0.0, float("inf")] if isinstance(value, list) and {"__float__": "Infinity"} in value else value


def typed(settings: dict[str, Any]) -> list[str]:
    """Return what would be typed for a config.json. UserError where it's refused."""
    read = ConfigJson(copy.deepcopy(settings))
    words = family_of(settings["model_type"]).to_overrides(read)
    read.finish()
    return words


# ---- the tables are those of transformers ----------------------------------------------------------

BESIDE = {
    "gpt_neox": {"rotary_emb_base", "rotary_pct"},
    "gemma3": {"sliding_window_pattern", "rope_local_base_freq"},
    "qwen3_next": {"full_attention_interval"},
    "bloom": {"n_embed"},
    "mamba": {"intermediate_size"},
    # what every class reads, and for T5 the length that it was trained with
    "t5": {
        "dense_act_fn",
        "is_gated_act",
        "bos_token_id",
        "decoder_start_token_id",
        "tie_word_embeddings",
        "scale_decoder_outputs",
        "n_positions",
    },
    "bart": {"decoder_start_token_id"},
    **dict.fromkeys(("olmo2", "jamba", "bamba", "recurrent_gemma"), {"head_dim"}),
}
"""ConfigJson that aren't fields of the class, and that its code reads."""

NARROWER = {
    "deepseek_v3": {"v_head_dim", "n_group", "topk_group", "num_experts_per_tok", "first_k_dense_replace"},
    "bamba": {
        *(
            "mamba_n_heads",
            "mamba_n_groups",
            "mamba_d_state",
            "mamba_d_conv",
            "mamba_expand",
            "mamba_chunk_size",
        ),
        *("mamba_d_head", "time_step_limit"),
    },
    "recurrent_gemma": {"block_types"},
    "bart": {
        *("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads", "encoder_layerdrop"),
        *("decoder_layers", "decoder_ffn_dim", "decoder_attention_heads", "decoder_layerdrop"),
        *("activation_function", "d_model", "dropout", "attention_dropout", "activation_dropout"),
    },
}
"""ConfigJson that may be null by their class's types, and then its code fails."""


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_is_that_of_the_class(preset):
    kind = getattr(transformers, f"{TINY[preset][0]}Config")
    family = family_of(kind.model_type)
    assert_the_table_is_that_of(kind, family.Config, NARROWER.get(preset, set()), BESIDE.get(preset, set()))
    if issubclass(family.Config, WithRope):
        theta = kind.default_theta["global"] if preset == "gemma3" else kind.default_theta
        assert family.Config.rope_theta == theta


def test_the_table_inside_mpts_is_that_of_the_class():
    from transformers.models.mpt.configuration_mpt import MptAttentionConfig

    assert_the_table_is_that_of(MptAttentionConfig, mpt.Attention, set(), set())


def assert_the_table_is_that_of(kind: type, table: type, narrower: set[str], beside: set[str]) -> None:
    general = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name not in general}
    ours = get_type_hints(table, include_extras=True)
    ends = {"vocab_size", "bos_token_id", "eos_token_id"}
    expected = {name for name in fields if not HARMLESS.fullmatch(name) or name in ends}
    allowed = {*expected, *beside, *get_type_hints(WithRope), "num_mtp_layers"}
    assert expected - {"num_mtp_layers"} <= set(ours) <= allowed
    for name in expected & set(ours):
        default, field = getattr(table, name), fields[name]
        assert default == field.default and type(default) is type(field.default), name
        assert fits(default, ours[name]), name
        assert fits(None, ours[name]) == ("None" in str(field.type) and name not in narrower), name
    for alias, name in getattr(table, "aliases", {}).items():
        assert kind.attribute_map[alias] == name


def test_the_rope_of_a_gpt_oss_that_says_nothing_of_it():
    said = transformers.GptOssConfig().rope_parameters
    assert {key: value for key, value in said.items() if key != "rope_theta"} == gpt_oss.DEFAULT_ROPE


# ---- mutations -------------------------------------------------------------------------------------

SCALED = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 16,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 2.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
]
OTHER = {
    "rope_theta": [777.0],
    "partial_rotary_factor": [0.5, 0.25, 1.0],
    "type": ["linear"],
    "attention_factor": [0.6],
    "truncate": [True],
    "beta_fast": [0],
    "original_max_position_embeddings": [16],
}
BESIDE_THE_ROPE = {
    "rope_theta": [777.0],
    "partial_rotary_factor": [0.5, 0.25, 1.0],
    "original_max_position_embeddings": [16],
    "rotary_emb_base": [777.0],
    "rotary_pct": [0.5],
    "attn_rotary_emb": [2, 4],
    "rope_local_base_freq": [33.0],
}


def mutations(preset: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield changes of single settings."""
    for key, value in settings_of(preset).items():
        if HARMLESS.fullmatch(key):
            continue
        yield "left out", {key: ...}
        yield "null", {key: None}
        yield from (("changed", {key: other}) for other in others(key, value))


def others(key: str, value: Any) -> list[Any]:
    """Return other values of a setting."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value + 1, max(value // 2, 1)]
    if isinstance(value, float):
        return [value * 2, 0.0]
    if isinstance(value, str):
        return ["relu", "gelu"] if "act" in key else []
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [value[::-1], value[:-1], [value[0]] * len(value), [value[-1]] * len(value)]
    return [[], [0, 1]] if isinstance(value, list) else []


def ropes(preset: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each type of rope with a key less, with a key that is null, and with another; in both forms."""
    if "rope_parameters" not in settings_of(preset):
        return
    for whole in SCALED:
        less = [{key: value for key, value in whole.items() if key != gone} for gone in whole]
        nulls = [whole | {key: None} for key in whole]
        more = [whole | {key: value} for key, values in OTHER.items() for value in values]
        for rope in [whole, *less, *nulls, *more]:
            yield "rope", {"rope_parameters": in_kinds(preset, rope)}
            yield "older rope", {"rope_scaling": rope, "rope_parameters": ...}
        for key, values in BESIDE_THE_ROPE.items():
            for value in values:
                yield "beside the rope", {"rope_scaling": whole, "rope_parameters": ..., key: value}
                yield "beside the rope", {"rope_parameters": in_kinds(preset, whole), key: value}


def in_kinds(preset: str, rope: dict[str, Any]) -> dict[str, Any]:
    """Return a rope as the class has it: Gemma 3 has one for each kind of layer."""
    return {"full_attention": rope, "sliding_attention": {"rope_theta": 20.0}} if preset == "gemma3" else rope


MODELS = 1
"""How many mutations of each kind are compared as models, so that the suite stays fast; a larger number tries more."""


@pytest.mark.parametrize("preset", PRESETS)
def test_mutations_have_the_logits_of_transformers(preset):
    draw, verdicts = random.Random(preset), Counter()
    for kinds in (list(mutations(preset)), list(ropes(preset))):
        compared = 0
        for _, changes in draw.sample(kinds, len(kinds)):
            if compared < MODELS:
                verdict = compare(settings_of(preset, **changes), changes, is_valid=False)
                verdicts[verdict] += 1
                compared += verdict == "equal"
    print(dict(verdicts))
    assert verdicts["equal"] >= MODELS


FULL = ["full_attention"] * 3
VALID = [
    ("deepseek_v3", {"rope_parameters": {"rope_type": "default"}}),
    ("deepseek_v3", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    ("deepseek_v3", {"rope_parameters": {**SCALED[3], "mscale": ...}}),
    ("deepseek_v3", {"rope_parameters": {**SCALED[3], "mscale_all_dim": ...}}),
    ("deepseek_v3", {"rope_parameters": {**SCALED[3], "attention_factor": 1.3}}),
    ("deepseek_v3", {"rope_parameters": {**SCALED[3], "factor": None, "mscale_all_dim": ...}}),
    ("deepseek_v3", {"q_lora_rank": None}),
    ("deepseek_v3", {"first_k_dense_replace": 2}),
    ("deepseek_v3", {"norm_topk_prob": None, "rope_interleave": None}),
    ("gpt_oss", {"rope_parameters": {"rope_type": "default"}}),
    ("gpt_oss", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    ("gpt_oss", {"rope_parameters": {**SCALED[3], "truncate": ...}}),
    ("gpt_oss", {"rope_parameters": {**SCALED[3], "truncate": None}}),
    ("gpt_oss", {"rope_parameters": ...}),
    ("gpt_oss", {"layer_types": FULL}),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.2}}),  # 3 of 16 channels
    ("gpt_neox", {"rope_parameters": {**SCALED[2], "partial_rotary_factor": 0.5}}),
    ("bamba", {"rope_parameters": ..., "partial_rotary_factor": 0.5, "attn_rotary_emb": 4}),
    ("qwen3_next", {"rope_parameters": ..., "partial_rotary_factor": None}),
    ("qwen3_next", {"head_dim": ..., "num_attention_heads": 2, "num_key_value_heads": 1}),
    ("gemma2", {"attention_bias": True}),
    ("gemma3", {"layer_types": ["full_attention"] * 8}),
    ("gemma2", {"layer_types": FULL}),
    ("recurrent_gemma", {"block_types": ...}),
    ("recurrent_gemma", {"block_types": ["attention"]}),
    ("bamba", {"attn_layer_indices": [0, 1, 2, 3]}),
    ("jamba", {"attn_layer_period": 1, "attn_layer_offset": 0, "num_experts": 1}),
    ("qwen3_next", {"layer_types": ["full_attention"] * 4}),
    ("mamba", {"intermediate_size": 96}),
]


@pytest.mark.parametrize("preset, changes", VALID)
def test_valid_models_are_not_refused(preset, changes):
    rope = changes.get("rope_parameters")
    if isinstance(rope, dict):
        changes = changes | {
            "rope_parameters": {key: value for key, value in rope.items() if value is not ...}
        }
    # what else is typed is the same, and tests/test_oracles.py has it with the same sizes
    known = typed(settings_of(preset)) if OF_ROPES.issuperset(changes) else []
    assert compare(settings_of(preset, **changes), changes, known=known) == "equal"


OF_ROPES = {"rope_parameters", "partial_rotary_factor", "attn_rotary_emb"}
"""Settings of a config.json that change nothing but its rope."""

IGNORED = [
    *((preset, {"partial_rotary_factor": 0.5}) for preset in ("llama3", "gemma", "gemma2", "qwen3", "olmo2")),
    ("mixtral", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("bamba", {"rope_parameters": ..., "attn_rotary_emb": 2}),
    ("bamba", {"rope_parameters": ..., "partial_rotary_factor": 0.25}),
    ("gpt_neox", {"rope_parameters": ..., "rope_theta": 500.0}),
    ("gpt_neox", {"rope_parameters": ..., "partial_rotary_factor": 0.5}),
    ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),  # beside rope_parameters
    ("llama3", {"rope_parameters": {"rope_type": "default", "factor": 4.0}}),
    ("llama3", {"rope_theta": 777.0}),
]


@pytest.mark.parametrize("preset, changes", IGNORED)
def test_settings_that_transformers_ignores_are_rejected(preset, changes):
    with pytest.raises(UserError, match="ignores|no use for"):
        typed(settings_of(preset, **changes))


def compare(
    settings: dict[str, Any], changes: dict[str, Any], is_valid: bool = True, known: Sequence[str] = ()
) -> str:
    """Return what became of a mutation; fail if the logits differ.

    Args:
        is_valid: settings without an effect are refused, as an import does, which takes most of the time.
        known: what is known to have an effect, whatever the positions are.
    """
    try:
        words = typed(settings)
    except UserError:
        return "refused"
    try:
        oracle = model_of_transformers(settings)
    except MemoryError:
        return "large"
    except Exception:  # of any kind: it's their code that fails
        return "refused by transformers"
    try:
        cfg = compose(words)
        of_position = ("model.pos.", "model/pos=")
        judged = [word for word in cfg.typed if word not in known or word.startswith(of_position)]
        cfg.typed = judged if is_valid else []
        cfg = told(cfg) if oracle.config.is_encoder_decoder else cfg
        model = build_model(cfg, SimpleNamespace(vocab_size=VOCAB)).eval()
        family = family_of(settings["model_type"])
        renamed = getattr(family, "RENAMED", {})
        fill(model, family.TABLE, saved(oracle), prefix=family.PREFIX, renamed=renamed)
    except UserError:
        return "refused"
    ours, theirs = both_logits(model, oracle)
    assert (ours - theirs).abs().max() < 1e-4 * max(1, theirs.std().item()), changes
    return "equal"


def model_of_transformers(settings: dict[str, Any]) -> torch.nn.Module:
    kind = transformers.AutoConfig.for_model(settings["model_type"]).__class__
    config = kind.from_dict(copy.deepcopy(settings))
    config._attn_implementation = "eager"
    auto = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    build = functools.partial(auto.from_config, attn_implementation="eager")
    with torch.device("meta"):
        if sum(param.numel() for param in build(copy.deepcopy(config)).parameters()) > 300_000:
            raise MemoryError
    model = randomised(build(config))
    with torch.no_grad():
        # some settings fail here only
        model(tokens(3), **{"decoder_input_ids": tokens(3)} if config.is_encoder_decoder else {})
    return model
