"""DeepSeek-V3 (2412.19437): latent attention, and experts chosen by sigmoids behind some dense layers."""

import math

from minllm.convert.settings import Settings, override, overrides, rope

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.attn.before.*": "layers.{i}.input_layernorm.*",
    "layers.{i}.attn.words.attn.query_down.*": "layers.{i}.self_attn.q_a_proj.*",
    "layers.{i}.attn.words.attn.query_norm.*": "layers.{i}.self_attn.q_a_layernorm.*",
    "layers.{i}.attn.words.attn.query_up.*": "layers.{i}.self_attn.q_b_proj.*",
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


def typed(config: Settings) -> list[str]:
    config.only("attention_bias", False)
    config.only("rms_norm_eps", 1e-6)  # that of the norms of latents, whatever is said
    config.only("hidden_act", "silu")
    config.take("num_nextn_predict_layers", "output_router_logits", "num_key_value_heads", "qk_head_dim")
    without, turning = config.take("qk_nope_head_dim"), config.take("qk_rope_head_dim")
    words, sharper = ropes(config)
    return [
        "experiment=deepseek_v3",
        override("model.first", ["attn mlp"] * config.take("first_k_dense_replace")),
        *overrides(
            {
                "model.dim": config.take("hidden_size"),
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=False),
                "model.attn.n_heads": config.take("num_attention_heads"),
                "model.attn.latent_dim": config.take("kv_lora_rank"),
                "model.attn.query_latent_dim": config.take("q_lora_rank"),
                "model.attn.head_dim": without,
                "model.attn.rope_dim": turning,
                "model.attn.value_dim": config.take("v_head_dim"),
                "model.attn.scale": (without + turning) ** -0.5 * sharper**2,
                "model.attn.dropout": config.take("attention_dropout", default=0.0),
                "model.mlp.hidden": config.take("intermediate_size"),
                "norm.eps": 1e-6,
                "data.seq_len": config.take("max_position_embeddings"),
            }
        ),
        *experts(config),
        *words,
    ]


def experts(config: Settings) -> list[str]:
    hidden = config.take("moe_intermediate_size")
    return overrides(
        {
            "model.moe.n_experts": config.take("n_routed_experts", "num_local_experts"),
            "model.moe.top_k": config.take("num_experts_per_tok"),
            "model.moe.expert.hidden": hidden,
            "model.moe.shared.hidden": hidden * config.take("n_shared_experts"),
            "model.moe.router.renormalise": config.take("norm_topk_prob"),
            "model.moe.router.scale": config.take("routed_scaling_factor"),
            "model.moe.router.n_groups": config.take("n_group"),
            "model.moe.router.top_groups": config.take("topk_group"),
        }
    )


def ropes(config: Settings) -> tuple[list[str], float]:
    """Return what is typed for the rope, and how much sharper than 1/√K attention is by each of its two sides."""
    interleaved = config.take("rope_interleave", default=True)
    key = "rope_parameters" if config.values.get("rope_parameters") else "rope_scaling"
    said = dict(config.values.get(key) or {})
    each, all_of_it = said.pop("mscale", None), said.pop("mscale_all_dim", None)
    factor = said.get("factor", 1.0)
    if each and all_of_it:  # queries and keys are made longer by the one, and scores all in all by the other
        said["attention_factor"] = _longer(factor, each) / _longer(factor, all_of_it)
    config.values[key] = said or None
    words = [*rope(config), override("model.pos.interleaved", interleaved)]
    return words, _longer(factor, all_of_it or 0)


def _longer(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0
