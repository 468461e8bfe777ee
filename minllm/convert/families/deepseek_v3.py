"""DeepSeek-V3 (2412.19437): latent attention, and experts with sigmoid routing after some dense layers."""

from collections.abc import Mapping
from typing import Any

from minllm.convert.ropes import rope, rope_settings, yarn_scale
from minllm.convert.settings import ConfigJson, WithRope, override, overrides
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, Natural, Positive

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.attn.before.*": "layers.{i}.input_layernorm.*",
    "layers.{i}.attn.words.attn.query_down.*": "layers.{i}.self_attn.q_a_proj.*",
    "layers.{i}.attn.words.attn.query_norm.*": "layers.{i}.self_attn.q_a_layernorm.*",
    "layers.{i}.attn.words.attn.query_up.*": "layers.{i}.self_attn.(q_b_proj|q_proj).*",
    "layers.{i}.attn.words.attn.down.*": "layers.{i}.self_attn.kv_a_proj_with_mqa.*",
    "layers.{i}.attn.words.attn.norm.*": "layers.{i}.self_attn.kv_a_layernorm.*",
    "layers.{i}.attn.words.attn.up.*": "layers.{i}.self_attn.kv_b_proj.*",
    "layers.{i}.attn.words.attn.out.*": "layers.{i}.self_attn.o_proj.*",
    "layers.{i}.mlp.before.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.mlp.words.mlp.gate_up.*": "layers.{i}.mlp.[gate up]_proj.*",
    "layers.{i}.mlp.words.mlp.down.*": "layers.{i}.mlp.down_proj.*",
    "layers.{i}.moe.before.*": "layers.{i}.post_attention_layernorm.*",
    "layers.{i}.moe.words.moe.router.score.*": "layers.{i}.mlp.gate.*",
    "layers.{i}.moe.words.moe.router.bias_E": "layers.{i}.mlp.gate.e_score_correction_bias",
    "layers.{i}.moe.words.moe.experts.{e}.gate_up.*": "layers.{i}.mlp.experts.{e}.[gate up]_proj.*",
    "layers.{i}.moe.words.moe.experts.{e}.down.*": "layers.{i}.mlp.experts.{e}.down_proj.*",
    "layers.{i}.moe.words.moe.shared.gate_up.*": "layers.{i}.mlp.shared_experts.[gate up]_proj.*",
    "layers.{i}.moe.words.moe.shared.down.*": "layers.{i}.mlp.shared_experts.down_proj.*",
    "norm.*": "norm.*",
    "head.*": "lm_head.*",
}


class Config(WithRope):
    """The settings that DeepseekV3Config reads, with its defaults."""

    aliases = {"num_local_experts": "n_routed_experts"}

    vocab_size: Count = 129280
    bos_token_id: Natural | None = 0
    eos_token_id: Natural | list[int] | None = 1
    hidden_size: Count = 7168
    intermediate_size: Count = 18432
    moe_intermediate_size: Count = 2048
    num_hidden_layers: Count = 61
    num_attention_heads: Count = 128
    num_key_value_heads: Count | None = 128
    n_shared_experts: Count = 1
    n_routed_experts: Count = 256
    output_router_logits: bool = False
    routed_scaling_factor: Positive = 2.5
    kv_lora_rank: Count = 512
    q_lora_rank: Count | None = 1536
    qk_rope_head_dim: Count = 64
    v_head_dim: Count = 128
    qk_nope_head_dim: Count = 128
    n_group: Count = 8
    topk_group: Count = 4
    num_experts_per_tok: Count = 8
    first_k_dense_replace: Natural = 3
    norm_topk_prob: bool | None = True
    hidden_act: str = "silu"
    max_position_embeddings: Count = 4096
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    rope_interleave: bool | None = True
    attention_bias: bool = False
    attention_dropout: Fraction | None = 0.0


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("attention_bias", False)
    if config.take("rms_norm_eps") != 1e-6:
        raise UserError(
            f"{config.name} has rms_norm_eps={config.take('rms_norm_eps')}, but transformers always uses"
            " 1e-06 for the norms of latents, and minllm has a single eps for all norms."
        )
    activation = config.activation("hidden_act")
    config.unused("num_nextn_predict_layers", "num_mtp_layers", "output_router_logits", "qk_head_dim")
    check_published_keys(config)
    heads, width = config.take("num_attention_heads"), config.take("qk_rope_head_dim")
    config.only("head_dim", width)
    if heads // (config.take("num_key_value_heads") or heads) != 1:
        config.only("num_key_value_heads", heads)
    settings = rope_settings(config)
    ropes = rope(config, settings, width=width, preset=("factor", "original_len", "magnitude"))
    return [
        "experiment=deepseek_v3",
        *overrides(
            {
                "model.dim": config.take("hidden_size"),
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings"),
                "model.attn.n_heads": heads,
                "model.attn.latent_dim": config.take("kv_lora_rank"),
                "model.attn.query_latent_dim": config.take("q_lora_rank"),
                "model.attn.head_dim": config.take("qk_nope_head_dim"),
                "model.attn.rope_dim": width,
                "model.attn.value_dim": config.take("v_head_dim"),
                "model.attn.scale": (config.take("qk_nope_head_dim") + width) ** -0.5
                * attention_scale(config, settings) ** 2,
                "model.attn.dropout": config.take("attention_dropout") or 0.0,
                "model.mlp.hidden": config.take("intermediate_size"),
                "model.mlp.activation": activation,
                "norm.eps": 1e-6,
                "data.seq_len": config.take("max_position_embeddings"),
            }
        ),
        *layout(config),
        *ropes,
        override("model.pos.interleaved", bool(config.take("rope_interleave"))),
    ]


def check_published_keys(config: ConfigJson) -> None:
    """Accept keys of the published files that transformers doesn't read, if their values are what it does anyway."""
    config.only("moe_layer_freq", 1)
    config.only("scoring_func", "sigmoid")
    config.only("topk_method", "noaux_tc")
    config.unused("aux_loss_alpha", "seq_aux", "ep_size")


def layout(config: ConfigJson) -> list[str]:
    """Return the overrides for the dense layers, and for the mixtures of experts after them if there are any."""
    n_dense, mixtures = config.take("first_k_dense_replace"), experts(config)
    if n_dense >= config.take("num_hidden_layers"):
        return ["model.first=[]", override("model.layout", ["attn mlp"]), "~model.moe"]
    return [override("model.first", ["attn mlp"] * n_dense), *mixtures]


def experts(config: ConfigJson) -> list[str]:
    hidden = config.take("moe_intermediate_size")
    return overrides(
        {
            "model.moe.n_experts": config.take("n_routed_experts"),
            "model.moe.top_k": config.take("num_experts_per_tok"),
            "model.moe.expert.hidden": hidden,
            "model.moe.expert.activation": config.activation("hidden_act"),
            "model.moe.shared.hidden": hidden * config.take("n_shared_experts"),
            "model.moe.shared.activation": config.activation("hidden_act"),
            "model.moe.router.renormalise": bool(config.take("norm_topk_prob")),
            "model.moe.router.scale": config.take("routed_scaling_factor"),
            "model.moe.router.n_groups": config.take("n_group"),
            "model.moe.router.top_groups": config.take("topk_group"),
        }
    )


def attention_scale(config: ConfigJson, settings: Mapping[str, Any]) -> float:
    """Return the factor by which YaRN scales queries and keys, in addition to 1/√K."""
    mscale, factor = settings.get("mscale_all_dim"), settings.get("factor")
    if not mscale:
        return 1.0
    if factor is None:
        raise UserError(f"{config.name}'s rope has mscale_all_dim, which needs a numeric factor.")
    return yarn_scale(factor, mscale)
