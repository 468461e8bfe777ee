"""The table of transformers' DiffLlama, the oracle of differential attention; it is no preset."""

import torch

from minllm.convert.families import llama
from minllm.convert.table import Row

PREFIX = "model."
TABLE = {
    **llama.TABLE,
    "layers.{i}.attn.words.attn.qkv.*": Row(
        "layers.{i}.self_attn.[q k v]_proj.*",
        # their values: the first halves of all heads, then the second; ours: each head's two halves together
        lambda parts, attention: torch.cat(
            [
                *parts[:2],
                parts[2].unflatten(0, (2, attention.n_kv_heads, -1)).transpose(0, 1).flatten(0, 2),
            ]
        ),
    ),
    "layers.{i}.attn.words.attn.lambdas_22K": Row(
        "layers.{i}.self_attn.lambda_[q k][1 2]",
        lambda parts, attention: torch.stack(parts).unflatten(0, (2, 2)),
    ),
}
WORDS = [
    "model/attn=differential",
    "model.dim=32",
    "model.n_layers=2",
    "model.tie_embeddings=false",
    "model.scale_embedding=false",
    "model.attn.n_heads=4",
    "model.attn.n_kv_heads=2",
    "model.attn.head_dim=12",
    "model.mlp.hidden=40",
    "norm.eps=1e-3",
]
