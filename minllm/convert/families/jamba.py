"""Jamba (2403.19887): Mamba with inner norms, attention in some layers, experts in some."""

from typing import Literal

from minllm.convert.families import llama, mamba
from minllm.convert.settings import ConfigJson, llama_like, overrides, repeated, without_unused
from minllm.convert.table import Row
from minllm.schema.options import Count, Fraction, Natural, NonNegative, Positive

PREFIX = llama.PREFIX


def layers(mixer: dict[str, str | Row]) -> dict[str, str | Row]:
    """Return the table of layers with a mixer or attention and an MLP, which Jamba and Bamba share."""
    return {
        "embedding": "embed_tokens.weight",
        "layers.{i}.rec.before.*": "layers.{i}.input_layernorm.*",
        **mixer,
        "layers.{i}.attn.before.*": "layers.{i}.input_layernorm.*",
        "layers.{i}.attn.words.attn.qkv.*": "layers.{i}.self_attn.[q k v]_proj.*",
        "layers.{i}.attn.words.attn.out.*": "layers.{i}.self_attn.o_proj.*",
        "layers.{i}.mlp.before.*": "layers.{i}.pre_ff_layernorm.*",
        "layers.{i}.mlp.words.mlp.gate_up.*": "layers.{i}.feed_forward.[gate up]_proj.*",
        "layers.{i}.mlp.words.mlp.down.*": "layers.{i}.feed_forward.down_proj.*",
        "norm.*": "final_layernorm.*",
        "head.*": "lm_head.*",
    }


TABLE = {
    **layers(mamba.mixer("layers.{i}.mamba")),
    "layers.{i}.rec.words.rec.inner_norms.0.*": "layers.{i}.mamba.dt_layernorm.*",
    "layers.{i}.rec.words.rec.inner_norms.1.*": "layers.{i}.mamba.b_layernorm.*",
    "layers.{i}.rec.words.rec.inner_norms.2.*": "layers.{i}.mamba.c_layernorm.*",
    "layers.{i}.moe.before.*": "layers.{i}.pre_ff_layernorm.*",
    "layers.{i}.moe.words.moe.router.score.*": "layers.{i}.feed_forward.router.*",
    "layers.{i}.moe.words.moe.experts.{e}.gate_up.*": "layers.{i}.feed_forward.experts.{e}.[gate up]_proj.*",
    "layers.{i}.moe.words.moe.experts.{e}.down.*": "layers.{i}.feed_forward.experts.{e}.down_proj.*",
}


class Config:
    """The settings that JambaConfig reads, with its defaults."""

    aliases = {"num_local_experts": "num_experts"}

    vocab_size: Count = 65536
    bos_token_id: Natural | None = 1
    eos_token_id: Natural | list[int] | None = 2
    tie_word_embeddings: bool = False
    hidden_size: Count = 4096
    intermediate_size: Count = 14336
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count = 8
    hidden_act: str = "silu"
    rms_norm_eps: Positive = 1e-6
    output_router_logits: bool = False
    router_aux_loss_coef: NonNegative = 0.001
    max_position_embeddings: Count = 262144
    attention_dropout: Fraction = 0.0
    num_experts_per_tok: Count = 2
    num_experts: Count = 16
    expert_layer_period: Count = 2
    expert_layer_offset: Natural = 1
    attn_layer_period: Count = 8
    attn_layer_offset: Natural = 4
    use_mamba_kernels: bool = True
    mamba_d_state: Count = 16
    mamba_d_conv: Count = 4
    mamba_expand: Count = 2
    mamba_dt_rank: Count | Literal["auto"] = "auto"
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    use_mambapy: bool = False
    use_associative_scan: bool = True
    # not a field of the class, but its layers read it
    head_dim: Count | None = None


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only_silu()  # the mixers' too
    config.only("mamba_inner_layernorms", True)
    config.only("sliding_window", None)
    config.unused("use_mamba_kernels", "use_mambapy", "use_associative_scan", "output_router_logits")
    config.unused("num_logits_to_keep", "calc_logits_for_entire_prompt")
    n_experts = config.take("num_experts")
    moe = {
        "model.moe.n_experts": n_experts,
        "model.moe.top_k": config.take("num_experts_per_tok"),
        "model.moe.router.balance": config.take("router_aux_loss_coef"),
    }
    rec = {"model.rec.dt_rank": mamba.rank(config, "mamba_dt_rank"), **mixer_overrides(config)}
    layers = branch_names(config, n_experts)
    removed = without_unused(layers, ["rec", "moe"])
    return [
        "experiment=jamba",
        *llama_like(config),
        repeated(layers),
        *removed,
        *(overrides(moe) if "~model.moe" not in removed else []),
        *(overrides(rec) if "~model.rec" not in removed else []),
    ]


def branch_names(config: ConfigJson, n_experts: int) -> list[str]:
    """Return the branch names of each layer; a mixture of one expert is the MLP itself."""
    attn, moe = (
        (config.take(f"{kind}_layer_period"), config.take(f"{kind}_layer_offset"))
        for kind in ("attn", "expert")
    )
    numbers = range(config.take("num_hidden_layers"))
    mixers = ["attn" if i % attn[0] == attn[1] else "rec" for i in numbers]
    mlps = ["moe" if i % moe[0] == moe[1] and n_experts > 1 else "mlp" for i in numbers]
    return [f"{mixer} {mlp}" for mixer, mlp in zip(mixers, mlps)]


def mixer_overrides(config: ConfigJson) -> dict[str, object]:
    """Return the mixer options that Jamba and Bamba share."""
    return {
        "model.rec.expand": config.take("mamba_expand"),
        "model.rec.n_state": config.take("mamba_d_state"),
        "model.rec.conv_width": config.take("mamba_d_conv"),
        "model.rec.conv_bias": bool(config.take("mamba_conv_bias")),
        "model.rec.bias": bool(config.take("mamba_proj_bias")),
    }
