"""Jamba (2403.19887): Mamba with inner norms, attention in some layers, experts in some."""

from minllm.convert.families import llama, mamba
from minllm.convert.settings import Settings, llama_like, override, overrides, repeated
from minllm.convert.table import Row

PREFIX = llama.PREFIX


def layers(mixer: dict[str, str | Row]) -> dict[str, str | Row]:
    """Return the names of layers with a mixer or an attention, and an MLP: Jamba's and Bamba's."""
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


def typed(config: Settings) -> list[str]:
    config.take(
        "use_mamba_kernels", "use_mambapy", "use_associative_scan", "output_router_logits", default=None
    )
    return [
        "experiment=jamba",
        *llama_like(config),
        repeated(sentences(config)),
        override("model.mlp.activation", config.activation("hidden_act")),
        *overrides(
            {
                "model.moe.n_experts": config.take("num_experts", "num_local_experts"),
                "model.moe.top_k": config.take("num_experts_per_tok"),
                "model.moe.router.balance": config.take("router_aux_loss_coef"),
                "model.rec.dt_rank": mamba.rank(config, "mamba_dt_rank"),
                **mamba_like(config),
            }
        ),
    ]


def sentences(config: Settings) -> list[str]:
    layers = range(config.take("num_hidden_layers"))
    attn, moe = (
        (config.take(f"{kind}_layer_period"), config.take(f"{kind}_layer_offset"))
        for kind in ("attn", "expert")
    )
    mixers = ["attn" if i % attn[0] == attn[1] else "rec" for i in layers]
    mlps = ["moe" if i % moe[0] == moe[1] else "mlp" for i in layers]
    return [f"{mixer} {mlp}" for mixer, mlp in zip(mixers, mlps)]


def mamba_like(config: Settings) -> dict[str, object]:
    """Return what Jamba and Bamba say of their mixers in the same words."""
    return {
        "model.rec.expand": config.take("mamba_expand"),
        "model.rec.n_state": config.take("mamba_d_state"),
        "model.rec.conv_width": config.take("mamba_d_conv"),
        "model.rec.conv_bias": config.take("mamba_conv_bias"),
        "model.rec.bias": config.take("mamba_proj_bias"),
    }
