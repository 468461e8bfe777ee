"""Qwen3-Next without experts: gated DeltaNet (2412.06464), and gated attention in every fourth layer."""

import torch
from torch import Tensor, nn

from minllm.convert.families import qwen3
from minllm.convert.settings import Settings, layout, llama_like, overrides, rope
from minllm.convert.table import Row, convolution

PREFIX = qwen3.PREFIX


def qkv(parts: list[Tensor], attention: nn.Module) -> Tensor:
    """Return queries, keys and values: theirs have each head's gate behind its queries."""
    return torch.cat([_by_head(parts[0], attention)[:, 0].flatten(0, 1), *parts[1:]])


def gate(parts: list[Tensor], attention: nn.Module) -> Tensor:
    return _by_head(parts[0], attention)[:, 1].flatten(0, 1)


def q_k_v(parts: list[Tensor], delta: nn.Module) -> Tensor:
    """Return queries, keys and values: theirs stand by key head, each with its queries, values and gates."""
    return torch.cat([x.flatten(0, 1) for x in _by_key_head(parts[0], delta)[:3]])


def z(parts: list[Tensor], delta: nn.Module) -> Tensor:
    return _by_key_head(parts[0], delta)[3].flatten(0, 1)


def beta(parts: list[Tensor], delta: nn.Module) -> Tensor:
    return parts[0].unflatten(0, (delta.n_heads, 2, -1))[:, 0].flatten(0, 1)


def decay(parts: list[Tensor], delta: nn.Module) -> Tensor:
    return parts[0].unflatten(0, (delta.n_heads, 2, -1))[:, 1].flatten(0, 1)


def _by_head(q: Tensor, attention: nn.Module) -> Tensor:
    return q.unflatten(0, (-1, 2, attention.head_dim))


def _by_key_head(qkvz: Tensor, delta: nn.Module) -> tuple[Tensor, ...]:
    K, M = delta.head_dim, delta.value_dim * delta.n_value_heads // delta.n_heads
    return qkvz.unflatten(0, (delta.n_heads, -1)).split([K, K, M, M], dim=1)


REC, DELTA = "layers.{i}.rec.words.rec", "layers.{i}.linear_attn"
TABLE = {
    **qwen3.TABLE,
    "layers.{i}.attn.words.attn.qkv.*": Row("layers.{i}.self_attn.[q k v]_proj.*", qkv),
    "layers.{i}.attn.words.attn.gate.*": Row("layers.{i}.self_attn.q_proj.*", gate),
    "layers.{i}.rec.before.*": "layers.{i}.input_layernorm.*",
    f"{REC}.q_k_v.weight": Row(f"{DELTA}.in_proj_qkvz.weight", q_k_v),
    f"{REC}.gate.weight": Row(f"{DELTA}.in_proj_qkvz.weight", z),
    f"{REC}.beta.weight": Row(f"{DELTA}.in_proj_ba.weight", beta),
    f"{REC}.decay.weight": Row(f"{DELTA}.in_proj_ba.weight", decay),
    f"{REC}.conv.weight_WC": convolution(f"{DELTA}.conv1d.weight"),
    f"{REC}.decay_bias_H": f"{DELTA}.dt_bias",
    f"{REC}.log_A_H": f"{DELTA}.A_log",
    f"{REC}.norm.weight": f"{DELTA}.norm.weight",
    f"{REC}.out.*": f"{DELTA}.out_proj.*",
}


def typed(config: Settings) -> list[str]:
    config.only("num_experts", 0)
    config.only("attention_bias", False)
    config.only("hidden_act", "silu")  # the mixers' too
    unused = (
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "num_experts_per_tok",
        "norm_topk_prob",
    )
    config.take(*unused, "router_aux_loss_coef", "output_router_logits", default=None)
    config.take("decoder_sparse_step", "mlp_only_layers", default=None)
    every = config.take("full_attention_interval", default=4)
    return [
        "experiment=qwen3_next",
        *llama_like(config),
        layout(config, words={"linear_attention": "rec mlp", "full_attention": "attn mlp"}, every=every),
        *overrides(
            {
                "model.rec.n_heads": config.take("linear_num_key_heads"),
                "model.rec.n_value_heads": config.take("linear_num_value_heads"),
                "model.rec.head_dim": config.take("linear_key_head_dim"),
                "model.rec.value_dim": config.take("linear_value_head_dim"),
                "model.rec.conv_width": config.take("linear_conv_kernel_dim"),
            }
        ),
        *rope(config, share=0.25),
    ]
