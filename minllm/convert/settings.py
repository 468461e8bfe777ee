"""Reads a config.json: each setting is translated, known to have no effect on logits, or rejected.

For a setting that a config.json leaves out, the default of its class in transformers applies, and not the preset's. So
each family has a `Config`: the settings that its class reads, with their types and the class's defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from minllm.errors import UserError
from minllm.schema.checking import describe, fits
from minllm.schema.options import Count, Fraction, Positive

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
"""The names of activations in transformers and in minllm."""

HARMLESS = re.compile(
    r"""_.* | architectures | model_type | auto_map | transformers_version | torch_dtype | dtype | init_device
    | (bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id | vocab_size | tokenizer_class | tokenizer_name
    | use_cache | cache_implementation | output_attentions | output_hidden_states | return_dict(_in_generate)?
    | is_decoder | is_encoder_decoder | chunk_size_feed_forward | gradient_checkpointing | pruned_heads
    | id2label | label2id | num_labels | problem_type | finetuning_task | task_specific_params | classifier_dropout
    | summary_.* | initializer_range | n_ctx | seq_length | pretraining_tp | slow_but_exact | attn_impl | verbose
    | attention_softmax_in_fp32 | masked_softmax_fusion | bias_dropout_fusion | skip_bias_add(_qkv)? | offset_alibi
    | reorder_and_upcast_attn | init_config | embedding_fraction | attn_uses_sequence_id
    | torchscript | use_bfloat16 | tf_legacy_loss
    | do_sample | (max|min)_(length|new_tokens) | temperature | top_[kp] | typical_p | num_beams | num_beam_groups
    | num_return_sequences | early_stopping | length_penalty | repetition_penalty | diversity_penalty
    | (encoder_)?no_repeat_ngram_size | bad_words_ids | suppress_tokens | begin_suppress_tokens
    | forced_(bos|eos)_token_id | remove_invalid_values | exponential_decay_length_penalty | output_scores""",
    re.VERBOSE,
)
"""Settings with no effect on logits: metadata, initialization, tasks other than language modelling, fused kernels, and
sampling."""


class WithRope:
    """RoPE settings that every class reads; all but the first have the form used before version 5 of transformers."""

    rope_parameters: dict | None = None
    rope_scaling: dict | None = None
    rope_theta: Positive = 10000.0
    partial_rotary_factor: Fraction | None = None
    original_max_position_embeddings: Count | None = None


class ConfigJson:
    """The settings of a config.json, with a record of which were read.

    name: the name for error messages
    """

    def __init__(self, values: Mapping[str, Any], name: str = "config.json") -> None:
        self.values, self.name = dict(values), name
        self.unread = {key for key in values if not HARMLESS.fullmatch(key)}
        self.table: type = object
        self.kinds: dict[str, Any] = {}

    def declare(self, table: type) -> ConfigJson:
        """Take the types and defaults of settings from the annotations and values of a class.

        Its optional `aliases` maps names that transformers accepts to the actual settings.
        """
        self.table, self.kinds = table, get_type_hints(table, include_extras=True)
        for alias, key in getattr(table, "aliases", {}).items():
            if alias in self.values:
                value = self.values.pop(alias)
                self.unread = (self.unread - {alias}) | {key}
                if self.values.setdefault(key, value) != value:
                    raise UserError(
                        f"{self.name} has {key}={self.values[key]} and {alias}={value}, which are two names of one"
                        f" setting. Remove one of them."
                    )
        return self

    def take(self, key: str, *, default: Any = ...) -> Any:
        """Return the value of `key`, or the table's default if it is left out.

        Args:
            default: the default of a setting that isn't in the table.
        """
        self.unread.discard(key)
        if key not in self.values:
            default = getattr(self.table, key, default)
            if default is ...:
                raise UserError(f"{self.name} has no '{key}', which is required for this kind of model.")
            return default
        value = self.values[key]
        if key in self.kinds and not fits(value, self.kinds[key]):
            raise UserError(
                f"{self.name} has an invalid value: {key} must be {describe(self.kinds[key])}, not {value!r}."
            )
        return value

    def unused(self, *keys: str) -> None:
        """Mark settings as read that have no effect on logits in this family."""
        self.unread -= set(keys)

    def ignored(self, key: str, used: Any) -> None:
        """Reject a setting that the class ignores, unless it has the value that the class uses."""
        if key in self.values and (value := self.take(key)) != used:
            raise UserError(
                f"{self.name} has {key}={value}, which transformers ignores for this kind of model: it uses {used}."
                f" Remove {key}, or set it to {used}."
            )

    def only(self, key: str, *allowed: Any) -> None:
        """Reject the setting `key` unless it has one of the `allowed` values."""
        value = self.take(key, default=allowed[0])
        if value not in allowed:
            known = " or ".join(map(str, allowed))
            default = "" if key in self.values else " (the default)"
            raise UserError(f"{self.name} has {key}={value}{default}, but minllm supports only {known}.")

    def inner(self, key: str, table: type) -> ConfigJson:
        """Return the nested settings of `key`; null counts as empty."""
        return ConfigJson(self.take(key) or {}, f"{self.name}'s {key}").declare(table)

    def activation(self, key: str) -> str:
        name = self.take(key)
        if name not in ACTIVATIONS:
            raise UserError(
                f"{self.name} has {key}={name}, but minllm supports only {', '.join(ACTIVATIONS)}."
            )
        return ACTIVATIONS[name]

    def only_silu(self) -> None:
        self.only("hidden_act", "silu", "swish")

    def finish(self) -> None:
        """Reject settings that weren't read, because they might change what the model computes."""
        if self.unread:
            raise UserError(
                f"{self.name} has settings that minllm doesn't support: {', '.join(sorted(self.unread))}."
            )


def override(key: str, value: Any) -> str:
    """Return the override that sets `key` to `value`."""
    if isinstance(value, list):
        return f"{key}=[{','.join(value)}]"
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def overrides(values: Mapping[str, Any]) -> list[str]:
    return [override(key, value) for key, value in values.items()]


def llama_like(config: ConfigJson, *, mlp: str = "model.mlp") -> list[str]:
    """Return the overrides for the sizes of Llama and of models with the same setting names.

    Args:
        mlp: the key of the MLP that has the intermediate size.
    """
    heads = config.take("num_attention_heads")
    return overrides(
        {
            "model.dim": config.take("hidden_size"),
            "model.n_layers": config.take("num_hidden_layers"),
            "model.tie_embeddings": config.take("tie_word_embeddings"),
            "model.attn.n_heads": heads,
            "model.attn.n_kv_heads": config.take("num_key_value_heads") or heads,
            "model.attn.head_dim": head_dim(config),
            "model.attn.dropout": config.take("attention_dropout") or 0.0,
            f"{mlp}.hidden": config.take("intermediate_size"),
            "norm.eps": config.take("rms_norm_eps"),
            "data.seq_len": config.take("max_position_embeddings"),
        }
    )


def head_dim(config: ConfigJson) -> int:
    width = config.take("head_dim", default=None)
    return width or config.take("hidden_size") // config.take("num_attention_heads")


def attention_biases(config: ConfigJson, at: str = "model.attn") -> list[str]:
    bias = config.take("attention_bias")
    return overrides({f"{at}.qkv_bias": bias, f"{at}.out_bias": bias})


# ---- layers of several kinds -----------------------------------------------------------------------

LAYERS = {"sliding_attention": "local mlp", "full_attention": "attn mlp"}
"""The branches of each kind of layer, for models that alternate two kinds of attention."""

OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
"""Old names of layer kinds in transformers, and the current ones."""


def layer_types(config: ConfigJson, branches: Mapping[str, str] = LAYERS, *, every: int) -> list[str]:
    """Return the kind of each layer.

    Args:
        branches: the branches of each kind.
        every: if the config.json doesn't list the kinds, every n-th layer has the last kind, and all others the first.
    """
    first, last = list(branches)[0], list(branches)[-1]
    n_layers = config.take("num_hidden_layers")
    listed = config.take("layer_types", default=None)
    kinds = [first if i % every else last for i in range(1, n_layers + 1)] if listed is None else listed
    kinds = [OLDER.get(kind, kind) for kind in kinds]
    if unknown := sorted(set(kinds) - set(branches)):
        raise UserError(
            f"{config.name} has layers of type {unknown[0]}, but minllm supports only {', '.join(branches)}."
        )
    if len(kinds) != n_layers:
        raise UserError(
            f"{config.name} has num_hidden_layers={n_layers}, but {len(kinds)} layer_types. Make them equal."
        )
    return kinds


def layout(kinds: Sequence[str], branches: Mapping[str, str] = LAYERS) -> list[str]:
    """Return the overrides for the layers: `model.layout=[local mlp,attn mlp]`."""
    layers = [branches[kind] for kind in kinds]
    return [repeated(layers), *without_unused(layers, branches.values())]


def repeated(layers: list[str]) -> str:
    """Return the override of model.layout, with the shortest period that repeats to `layers`."""
    lengths = range(1, len(layers) + 1)
    period = next(n for n in lengths if all(layer == layers[i % n] for i, layer in enumerate(layers)))
    return override("model.layout", layers[:period])


def without_unused(layers: Iterable[str], of_preset: Iterable[str]) -> list[str]:
    """Return the overrides that remove the branches of a preset that no layer of the model has."""
    used, known = (set(" ".join(some).split()) for some in (layers, of_preset))
    return [f"~model.{branch}" for branch in sorted(known - used - {"attn", "mlp"})]
