"""Bamba: Mamba-2 and an MLP in each layer, attention instead of Mamba-2 in a few."""

from minllm.convert.families import jamba, mamba2
from minllm.convert.settings import (
    Settings,
    attention_biases,
    llama_like,
    override,
    overrides,
    repeated,
    rope,
)

PREFIX = jamba.PREFIX
TABLE = jamba.layers(mamba2.mixer("layers.{i}.mamba"))


def typed(config: Settings) -> list[str]:
    config.only("hidden_act", "silu")  # the mixers' too
    how_trained = "z_loss_coefficient", "num_logits_to_keep", "use_mamba_kernels"
    config.take(*how_trained, "mamba_n_heads", "layer_types", default=None)
    mamba2.no_limit(config)
    return [
        "experiment=bamba",
        *llama_like(config),
        *layout(config),
        *attention_biases(config),
        override("model.mlp.bias", config.take("mlp_bias", default=False)),
        *overrides(
            {
                "model.rec.head_dim": config.take("mamba_d_head"),
                "model.rec.n_groups": config.take("mamba_n_groups"),
                "model.rec.chunk": config.take("mamba_chunk_size"),
                **jamba.mamba_like(config),
            }
        ),
        *rope(config, share=share(config)),
    ]


def share(config: Settings) -> float:
    """Return the part of a head that turns; older files say how many of its channels."""
    width = config.take("hidden_size") // config.take("num_attention_heads")
    return config.take("attn_rotary_emb", default=width / 2) / width


def layout(config: Settings) -> list[str]:
    """Return the first layer, and the sentences of the others: in the published models these repeat."""
    attends = set(config.take("attn_layer_indices", default=None) or ())
    first, *others = [
        "attn mlp" if i in attends else "rec mlp" for i in range(config.take("num_hidden_layers"))
    ]
    # a single layer is both
    return [override("model.first", [first] if others else []), repeated(others or [first])]
