"""RecurrentGemma (2404.07839): Griffin, with Gemma's norms and MLP."""

import torch

from minllm.convert.settings import Settings, layout, overrides, rope
from minllm.convert.table import convolution, side_by_side

PREFIX = "model."
TABLE = {
    "embedding": "embed_tokens.weight",
    "layers.{i}.rec.before.*": "layers.{i}.temporal_pre_norm.*",
    "layers.{i}.rec.words.rec.gate_x.*": "layers.{i}.temporal_block.linear_[y x].*",
    "layers.{i}.rec.words.rec.conv.weight_WC": convolution("layers.{i}.temporal_block.conv_1d.weight"),
    "layers.{i}.rec.words.rec.conv.bias": "layers.{i}.temporal_block.conv_1d.bias",
    "layers.{i}.rec.words.rec.gates_HKM": side_by_side(
        "layers.{i}.temporal_block.rg_lru.[input recurrent]_gate_weight"
    ),
    "layers.{i}.rec.words.rec.gates_bias_HM": side_by_side(
        "layers.{i}.temporal_block.rg_lru.[input recurrent]_gate_bias"
    ),
    "layers.{i}.rec.words.rec.decay_F": "layers.{i}.temporal_block.rg_lru.recurrent_param",
    "layers.{i}.rec.words.rec.out.*": "layers.{i}.temporal_block.linear_out.*",
    "layers.{i}.attn.before.*": "layers.{i}.temporal_pre_norm.*",
    "layers.{i}.attn.words.attn.qkv.*": "layers.{i}.temporal_block.[q k v]_proj.*",
    "layers.{i}.attn.words.attn.out.*": "layers.{i}.temporal_block.o_proj.*",
    "layers.{i}.mlp.before.*": "layers.{i}.channel_pre_norm.*",
    "layers.{i}.mlp.words.mlp.gate_up.*": "layers.{i}.mlp_block.[gate up]_proj.*",
    "layers.{i}.mlp.words.mlp.down.*": "layers.{i}.mlp_block.down_proj.*",
    "norm.*": "final_norm.*",
    "head.*": "lm_head.*",
}


def typed(config: Settings) -> list[str]:
    config.only("hidden_activation", "gelu_pytorch_tanh")  # the mixers' too
    config.take("layer_types", "w_init_variance_scale", "final_w_init_variance_scale", default=None)
    dim, heads = config.take("hidden_size"), config.take("num_attention_heads")
    width = config.take("lru_width", default=None)
    return [
        "experiment=recurrent_gemma",
        layout(config, "block_types", words={"recurrent": "rec mlp", "attention": "attn mlp"}),
        *overrides(
            {
                "model.dim": dim,
                "model.n_layers": config.take("num_hidden_layers"),
                "model.tie_embeddings": config.take("tie_word_embeddings", default=True),
                "model.scale_embedding": torch.tensor(dim**0.5).bfloat16().item(),
                "model.softcap": config.take("logits_soft_cap"),
                "model.rec.width": None if width == dim else width,
                "model.rec.n_blocks": heads,
                "model.rec.conv_width": config.take("conv1d_width"),
                "model.attn.n_heads": heads,
                "model.attn.n_kv_heads": config.take("num_key_value_heads", default=None) or heads,
                "model.attn.head_dim": config.take("head_dim", default=None) or dim // heads,
                "model.attn.qkv_bias": config.take("attention_bias", default=False),
                "model.attn.mask.window": config.take("attention_window_size", "sliding_window"),
                "model.attn.dropout": config.take("attention_dropout", default=0.0),
                "model.mlp.hidden": config.take("intermediate_size") // 2,  # of gate and up together
                "norm.eps": config.take("rms_norm_eps"),
            }
        ),
        *rope(config, share=0.5),
    ]
