"""Reads a config.json: every setting of it is translated, is known not to matter, or is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from minllm.errors import UserError

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
"""Their names of activations, and ours."""

ROPES = {
    "default": ("rope", {}),
    "linear": ("rope_linear", {"factor": "factor"}),
    "llama3": (
        "rope_llama3",
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_len",
            "low_freq_factor": "low",
            "high_freq_factor": "high",
        },
    ),
    "yarn": (
        "rope_yarn",
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_len",
            "beta_fast": "fast",
            "beta_slow": "slow",
            "truncate": "truncate",
            "attention_factor": "magnitude",
        },
    ),
}
"""Their rope types: our model/pos, and what each setting is called there."""

HARMLESS = re.compile(
    r"""_.* | architectures | model_type | auto_map | transformers_version | torch_dtype | dtype | init_device
    | (bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id | vocab_size | tokenizer_class | tokenizer_name
    | use_cache | cache_implementation | output_attentions | output_hidden_states | return_dict(_in_generate)?
    | is_decoder | is_encoder_decoder | chunk_size_feed_forward | gradient_checkpointing | pruned_heads
    | id2label | label2id | num_labels | problem_type | finetuning_task | task_specific_params | classifier_dropout
    | summary_.* | initializer_range | n_ctx | seq_length | pretraining_tp | slow_but_exact | attn_impl | verbose
    | attention_softmax_in_fp32 | masked_softmax_fusion | bias_dropout_fusion | skip_bias_add(_qkv)? | offset_alibi
    | reorder_and_upcast_attn | init_config | embedding_fraction | max_window_layers
    | attn_uses_sequence_id""",
    re.VERBOSE,
)
"""Settings that change no logits: bookkeeping, first values, tasks that aren't language modelling, fused kernels."""


class Settings:
    """The settings of a config.json, each to be asked for once.

    name: what sentences call it
    """

    def __init__(self, values: Mapping[str, Any], name: str = "config.json") -> None:
        self.values, self.name = dict(values), name
        self.unread = {key for key in values if not HARMLESS.fullmatch(key)}

    def take(self, *keys: str, default: Any = ...) -> Any:
        """Return the value of the first of `keys` that is there; older files call some settings otherwise."""
        found = [key for key in keys if key in self.values]
        self.unread -= set(found)
        if not found and default is ...:
            raise UserError(f"{self.name} has no '{keys[0]}', so it isn't known what model this is.")
        return self.values[found[0]] if found else default

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse the setting `key` unless it isn't there or has one of the values that are `allowed`."""
        value = self.take(key, default=allowed[0])
        if value not in allowed:
            known = " or ".join(map(str, allowed))
            raise UserError(f"{self.name} has {key}={value}, and minllm has a counterpart for {known} only.")

    def inner(self, key: str) -> Settings | None:
        """Return the settings inside one, if there are any."""
        values = self.take(key, default=None)
        return None if values is None else Settings(values, f"{self.name}'s {key}")

    def activation(self, *keys: str) -> str:
        said = self.take(*keys)
        if said not in ACTIVATIONS:
            raise UserError(
                f"{self.name} has {keys[0]}={said}, and minllm knows {', '.join(ACTIVATIONS)} only."
            )
        return ACTIVATIONS[said]

    def finish(self) -> None:
        """Refuse what nobody has asked for: it might change what the model computes."""
        if self.unread:
            raise UserError(
                f"{self.name} has settings that minllm has no counterpart for: {', '.join(sorted(self.unread))}."
            )


def override(key: str, value: Any) -> str:
    """Return what is typed to give a setting its value."""
    if isinstance(value, list):
        return f"{key}=[{','.join(value)}]"
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def overrides(values: Mapping[str, Any]) -> list[str]:
    return [override(key, value) for key, value in values.items()]


def llama_like(config: Settings, *, tied: bool = False, mlp: str = "model.mlp") -> list[str]:
    """Return the sizes of Llama and of all that name them as it does.

    Args:
        tied: what silence about the head means.
        mlp: where the MLP is that the intermediate size is meant for.
    """
    hidden, heads = config.take("hidden_size"), config.take("num_attention_heads")
    return overrides(
        {
            "model.dim": hidden,
            "model.n_layers": config.take("num_hidden_layers"),
            "model.tie_embeddings": config.take("tie_word_embeddings", default=tied),
            "model.attn.n_heads": heads,
            "model.attn.n_kv_heads": config.take("num_key_value_heads", default=None) or heads,
            "model.attn.head_dim": config.take("head_dim", default=None) or hidden // heads,
            "model.attn.dropout": config.take("attention_dropout", default=0.0),
            f"{mlp}.hidden": config.take("intermediate_size"),
            "norm.eps": config.take("rms_norm_eps"),
            "data.seq_len": config.take("max_position_embeddings"),
        }
    )


def attention_biases(config: Settings, *, usual: bool = False) -> list[str]:
    has = config.take("attention_bias", default=usual)
    return overrides({"model.attn.qkv_bias": has, "model.attn.out_bias": has})


def rope(
    config: Settings,
    at: str = "model.pos",
    *,
    kind: str | None = None,
    theta: float = 10000.0,
    share: float = 1.0,
) -> list[str]:
    """Return the choice of a RoPE and its settings.

    Args:
        at: the place of the positions that are chosen.
        kind: which layers are meant, where layers have ropes of their own.
        theta, share: θ and the part of a head that turns, where nothing says them.
    """
    theta, scaling = config.take("rope_theta", default=theta), config.inner("rope_scaling")
    share = config.take("partial_rotary_factor", default=share)
    if (parameters := config.inner("rope_parameters")) is not None:
        parameters = (parameters.inner(kind) or Settings({})) if kind else parameters
        theta, share = parameters.take("rope_theta"), parameters.take("partial_rotary_factor", default=share)
    given = parameters or scaling or Settings({})
    their_type = given.take("rope_type", "type", default="default")
    if their_type not in ROPES:
        raise UserError(f"{given.name} has rope_type={their_type}, and minllm knows {', '.join(ROPES)} only.")
    ours, names = ROPES[their_type]
    values = {name: given.take(key, default=None) for key, name in names.items()}
    given.finish()
    if "original_len" in values and values["original_len"] is None:
        values["original_len"] = config.take("max_position_embeddings")
    return [
        f"model/pos={ours}" if at == "model.pos" else f"model/pos@{at}={ours}",
        *overrides({f"{at}.theta": theta, f"{at}.fraction": turning(config, share)}),
        *overrides({f"{at}.{name}": value for name, value in values.items() if value is not None}),
    ]


def turning(config: Settings, share: float) -> float:
    """Return the share of a head's channels that turn: transformers cuts their number down to a whole one."""
    width = config.take("head_dim", default=None)
    width = width or config.take("hidden_size") // config.take("num_attention_heads")
    return int(width * share) / width


SENTENCES = {"sliding_attention": "local mlp", "full_attention": "attn mlp"}
"""What a layer of a kind does, where two kinds of attention take turns."""


def layout(
    config: Settings,
    key: str = "layer_types",
    *,
    words: Mapping[str, str] = SENTENCES,
    every: int = 1,
) -> str:
    """Return the sentences for the kinds of layers, as few as repeat: `model.layout=[local mlp,attn mlp]`.

    Args:
        key: the setting that lists the kinds.
        words: the sentence of each kind.
        every: older files don't list them. Each layer whose number this divides has the last of the kinds then, and
            all others the first.
    """
    usual, last = list(words)[0], list(words)[-1]
    numbers = range(1, config.take("num_hidden_layers") + 1)
    kinds = config.take(key, default=None) or [usual if number % every else last for number in numbers]
    if unknown := sorted(set(kinds) - set(words)):
        raise UserError(
            f"{config.name} has layers of type {unknown[0]}, and minllm knows {', '.join(words)} only."
        )
    return repeated([words[kind] for kind in kinds])


def repeated(sentences: list[str]) -> str:
    """Return the layers' sentences, as few as repeat."""
    lengths = range(1, len(sentences) + 1)
    period = next(n for n in lengths if all(one == sentences[i % n] for i, one in enumerate(sentences)))
    return override("model.layout", sentences[:period])
