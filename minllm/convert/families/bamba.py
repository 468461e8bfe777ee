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
    config.take("num_logits_to_keep", "z_loss_coefficient", "mamba_n_heads", "layer_types", default=None)
    mamba2.no_limit(config)
    return [
        "experiment=bamba",
        *llama_like(config),
        *layout(config),
        *attention_biases(config),
        override("model.mlp.activation", config.activation("hidden_act")),
        override("model.mlp.bias", config.take("mlp_bias", default=False)),
        *overrides(
            {
                "model.rec.head_dim": config.take("mamba_d_head"),
                "model.rec.n_groups": config.take("mamba_n_groups"),
                "model.rec.chunk": config.take("mamba_chunk_size"),
                **jamba.mamba_like(config),
            }
        ),
        *rope(config, share=0.5),
    ]


def layout(config: Settings) -> list[str]:
    """Return the first layer, and the sentences of the others: in the published models these repeat."""
    attends = set(config.take("attn_layer_indices", default=None) or ())
    sentences = ["attn mlp" if i in attends else "rec mlp" for i in range(config.take("num_hidden_layers"))]
    return [override("model.first", sentences[:1]), repeated(sentences[1:])]
