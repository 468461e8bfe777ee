"""Reads a config.json: every setting of it is translated, is known not to matter, or is refused.

A config.json may leave out a setting, and what it means then is a matter of its class in transformers, never of the
preset. So each family has a `Config`: the settings that its class reads, with their types and the class's defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from minllm.errors import UserError
from minllm.schema.checking import fits, words
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
"""Their names of activations, and ours."""

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
"""Settings that change no logits: bookkeeping, first values, tasks that aren't language modelling, fused kernels, and
how to sample."""


class WithRope:
    """What every class with a rope reads; all but the first are its form before version 5 of transformers."""

    rope_parameters: dict | None = None
    rope_scaling: dict | None = None
    rope_theta: Positive = 10000.0
    partial_rotary_factor: Fraction | None = None
    original_max_position_embeddings: Count | None = None


class Settings:
    """The settings of a config.json, each to be asked for once.

    name: what error messages call it
    """

    def __init__(self, values: Mapping[str, Any], name: str = "config.json") -> None:
        self.values, self.name = dict(values), name
        self.unread = {key for key in values if not HARMLESS.fullmatch(key)}
        self.table: type = object
        self.kinds: dict[str, Any] = {}

    def declare(self, table: type) -> Settings:
        """Take the types and the defaults of settings from the annotations and the values of a class.

        Its `aliases`, if there are any, are names that transformers replaces by others.
        """
        self.table, self.kinds = table, get_type_hints(table, include_extras=True)
        for alias, key in getattr(table, "aliases", {}).items():
            if alias in self.values:
                value = self.values.pop(alias)
                self.unread = (self.unread - {alias}) | {key}
                if self.values.setdefault(key, value) != value:
                    raise UserError(
                        f"{self.name} has {key}={self.values[key]} and {alias}={value}, which are two names of one"
                        f" setting: remove one of them."
                    )
        return self

    def take(self, key: str, *, default: Any = ...) -> Any:
        """Return the value of `key`; where it is left out, the default of the table.

        Args:
            default: of a setting that the table doesn't have.
        """
        self.unread.discard(key)
        if key not in self.values:
            default = getattr(self.table, key, default)
            if default is ...:
                raise UserError(f"{self.name} has no '{key}', so it isn't known what model this is.")
            return default
        value = self.values[key]
        if key in self.kinds and not fits(value, self.kinds[key]):
            raise UserError(
                f"{self.name} has a setting of the wrong type or range: {key} must be {words(self.kinds[key])}, not"
                f" {value!r}."
            )
        return value

    def unused(self, *keys: str) -> None:
        """Pass over settings that change no logits in this family."""
        self.unread -= set(keys)

    def ignored(self, key: str, used: Any) -> None:
        """Refuse a setting that the class ignores, unless it has the value that is used anyway."""
        if key in self.values and (value := self.take(key)) != used:
            raise UserError(
                f"{self.name} has {key}={value}, which transformers ignores for this kind of model: it uses {used}."
                f" Remove {key}, or write {used}."
            )

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse the setting `key` unless it has one of the values that are `allowed`."""
        value = self.take(key, default=allowed[0])
        if value not in allowed:
            known = " or ".join(map(str, allowed))
            default = "" if key in self.values else ", which is what leaving it out means"
            raise UserError(
                f"{self.name} has {key}={value}{default}, and minllm has a counterpart for {known} only."
            )

    def inner(self, key: str, table: type) -> Settings:
        """Return the settings inside one; null is none."""
        return Settings(self.take(key) or {}, f"{self.name}'s {key}").declare(table)

    def activation(self, key: str) -> str:
        said = self.take(key)
        if said not in ACTIVATIONS:
            raise UserError(f"{self.name} has {key}={said}, and minllm knows {', '.join(ACTIVATIONS)} only.")
        return ACTIVATIONS[said]

    def only_silu(self) -> None:
        self.only("hidden_act", "silu", "swish")

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


def llama_like(config: Settings, *, mlp: str = "model.mlp") -> list[str]:
    """Return the sizes of Llama and of all that name them as it does.

    Args:
        mlp: where the MLP is that the intermediate size is meant for.
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


def head_dim(config: Settings) -> int:
    said = config.take("head_dim", default=None)
    return said or config.take("hidden_size") // config.take("num_attention_heads")


def attention_biases(config: Settings, at: str = "model.attn") -> list[str]:
    has = config.take("attention_bias")
    return overrides({f"{at}.qkv_bias": has, f"{at}.out_bias": has})


# ---- layers of several kinds -----------------------------------------------------------------------

SENTENCES = {"sliding_attention": "local mlp", "full_attention": "attn mlp"}
"""What a layer of a kind does, where two kinds of attention take turns."""

OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
"""What transformers calls kinds of layers now."""


def layer_types(config: Settings, words: Mapping[str, str] = SENTENCES, *, every: int) -> list[str]:
    """Return the kind of each layer.

    Args:
        words: the sentence of each kind.
        every: where kinds aren't listed, each layer whose number this divides has the last of them, and all others
            the first.
    """
    usual, last = list(words)[0], list(words)[-1]
    n_layers = config.take("num_hidden_layers")
    said = config.take("layer_types", default=None)
    kinds = [usual if i % every else last for i in range(1, n_layers + 1)] if said is None else said
    kinds = [OLDER.get(kind, kind) for kind in kinds]
    if unknown := sorted(set(kinds) - set(words)):
        raise UserError(
            f"{config.name} has layers of type {unknown[0]}, and minllm knows {', '.join(words)} only."
        )
    if len(kinds) != n_layers:
        raise UserError(
            f"{config.name} has num_hidden_layers={n_layers}, and its layer_types are {len(kinds)}: make them as many."
        )
    return kinds


def layout(kinds: Sequence[str], words: Mapping[str, str] = SENTENCES) -> list[str]:
    """Return the sentences for the kinds of layers: `model.layout=[local mlp,attn mlp]`."""
    sentences = [words[kind] for kind in kinds]
    return [repeated(sentences), *without_unsaid(sentences, words.values())]


def repeated(sentences: list[str]) -> str:
    """Return the layers' sentences, as few as repeat."""
    lengths = range(1, len(sentences) + 1)
    period = next(n for n in lengths if all(one == sentences[i % n] for i, one in enumerate(sentences)))
    return override("model.layout", sentences[:period])


def without_unsaid(sentences: Iterable[str], of_preset: Iterable[str]) -> list[str]:
    """Return what is typed to remove the modules of a preset that no layer of a model has."""
    said, known = (set(" ".join(some).split()) for some in (sentences, of_preset))
    return [f"~model.{word}" for word in sorted(known - said - {"attn", "mlp"})]
