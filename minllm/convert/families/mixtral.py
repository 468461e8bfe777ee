"""Mixtral (2401.04088): Llama's names, and experts in the place of the MLP."""

from minllm.convert.families import llama
from minllm.convert.settings import Settings, llama_like, override, overrides, rope

PREFIX = llama.PREFIX
TABLE = {
    **llama.TABLE,
    "layers.{i}.mlp.words.mlp.router.score.*": "layers.{i}.block_sparse_moe.gate.*",
    "layers.{i}.mlp.words.mlp.experts.{e}.gate_up.*": "layers.{i}.block_sparse_moe.experts.{e}.[w1 w3].*",
    "layers.{i}.mlp.words.mlp.experts.{e}.down.*": "layers.{i}.block_sparse_moe.experts.{e}.w2.*",
}


def typed(config: Settings) -> list[str]:
    config.only("sliding_window", None)
    config.only("router_jitter_noise", 0.0)
    config.take("output_router_logits", default=False)  # whether the balance loss is returned too
    return [
        "experiment=mixtral",
        *llama_like(config, mlp="model.mlp.expert"),
        override("model.mlp.expert.activation", config.activation("hidden_act")),
        *experts(config),
        *rope(config, theta=1e6),
    ]


def experts(config: Settings) -> list[str]:
    return overrides(
        {
            "model.mlp.n_experts": config.take("num_local_experts"),
            "model.mlp.top_k": config.take("num_experts_per_tok"),
            "model.mlp.router.balance": config.take("router_aux_loss_coef", default=0.001),
        }
    )
