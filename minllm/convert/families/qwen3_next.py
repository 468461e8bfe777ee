"""Qwen3-Next without experts: gated DeltaNet (2412.06464), and gated attention in every fourth layer."""

import torch
from torch import Tensor, nn

from minllm.convert.families import qwen3
from minllm.convert.ropes import rope, rope_settings
from minllm.convert.settings import ConfigJson, WithRope, layer_types, layout, llama_like, overrides
from minllm.convert.table import Row, convolution
from minllm.errors import UserError
from minllm.schema.options import Count, Fraction, Natural, NonNegative, Positive

PREFIX = qwen3.PREFIX


def qkv(parts: list[Tensor], attention: nn.Module) -> Tensor:
    """Return queries, keys and values; transformers stores each head's gate after its queries."""
    return torch.cat([_by_head(parts[0], attention)[:, 0].flatten(0, 1), *parts[1:]])


def gate(parts: list[Tensor], attention: nn.Module) -> Tensor:
    return _by_head(parts[0], attention)[:, 1].flatten(0, 1)


def q_k_v(parts: list[Tensor], delta: nn.Module) -> Tensor:
    """Return queries, keys and values; transformers groups them by key head, with the head's values and gates."""
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


class Config(WithRope):
    """The settings that Qwen3NextConfig reads, with its defaults."""

    vocab_size: Count = 151936
    bos_token_id: Natural | None = None
    eos_token_id: Natural | list[int] | None = None
    hidden_size: Count = 2048
    intermediate_size: Count = 5632
    num_hidden_layers: Count = 48
    num_attention_heads: Count = 16
    num_key_value_heads: Count = 2
    hidden_act: str = "silu"
    max_position_embeddings: Count = 32768
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_dropout: Fraction = 0.0
    head_dim: Count = 256
    linear_conv_kernel_dim: Count = 4
    linear_key_head_dim: Count = 128
    linear_value_head_dim: Count = 128
    linear_num_key_heads: Count = 16
    linear_num_value_heads: Count = 32
    decoder_sparse_step: Count = 1
    moe_intermediate_size: Natural = 512
    shared_expert_intermediate_size: Natural = 512
    num_experts_per_tok: Natural = 10
    num_experts: Natural = 512
    norm_topk_prob: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: NonNegative = 0.001
    mlp_only_layers: list[int] | None = None
    layer_types: list[str] | None = None
    # not fields of the class, but the class reads them
    partial_rotary_factor: Fraction | None = 0.25
    full_attention_interval: Count = 4


def to_overrides(config: ConfigJson) -> list[str]:
    config.declare(Config).only("attention_bias", False)
    config.only_silu()  # the mixers' too
    refuse_experts(config)
    branches = {"linear_attention": "rec mlp", "full_attention": "attn mlp"}
    kinds = layer_types(config, branches, every=config.take("full_attention_interval"))
    mixers = {
        "model.rec.n_heads": config.take("linear_num_key_heads"),
        "model.rec.n_value_heads": config.take("linear_num_value_heads"),
        "model.rec.head_dim": config.take("linear_key_head_dim"),
        "model.rec.value_dim": config.take("linear_value_head_dim"),
        "model.rec.conv_width": config.take("linear_conv_kernel_dim"),
    }
    return [
        "experiment=qwen3_next",
        *llama_like(config),
        *layout(kinds, branches),
        *(overrides(mixers) if "linear_attention" in kinds else []),
        *rope(config, rope_settings(config), partial=True),
    ]


def refuse_experts(config: ConfigJson) -> None:
    """Reject a model with a mixture of experts in a layer."""
    config.unused("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts_per_tok")
    config.unused("norm_topk_prob", "router_aux_loss_coef", "output_router_logits")
    n_experts, step = config.take("num_experts"), config.take("decoder_sparse_step")
    dense = config.take("mlp_only_layers") or ()
    if n_experts and any(
        i not in dense and (i + 1) % step == 0 for i in range(config.take("num_hidden_layers"))
    ):
        raise UserError(
            f"{config.name} has num_experts={n_experts}, but minllm's qwen3_next has none: set num_experts to 0; its"
            " default is 512."
        )
