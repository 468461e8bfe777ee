"""`model.transfer`: the published rules, what it leaves unchanged, and what it refuses."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import minllm
from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.model.build import build_model
from minllm.model.parameter import Growth, constant, parameter
from minllm.schema.building import build
from minllm.training.optimizers import AdamW, grouped
from minllm.training.transfer import of_orthogonal, set_lr
from minllm.verdict.ladder import covers_sizes
from tests.tiny import completed, options, tiny_cfg, tiny_model


class Vocabulary:
    vocab_size = 61


def made(*words: str):
    cfg = compose(["model.base.dim=32", "model.n_layers=4", *words])
    return cfg, build_model(cfg, Vocabulary())


def hyper_parameters(*words: str, lr: float = 1.0) -> dict[str, dict[str, float]]:
    """Return the learning rate, decay per step and ε of each parameter in training."""
    cfg, model = made(*words)
    optimizer = build(cfg.optim, model)
    set_lr(optimizer, lr)
    names = {param: name for name, param in model.named_parameters()}
    return {
        names[p]: {
            "lr": group["lr"],
            "decay": group["lr"] * group["decay"],
            "eps": group.get("eps", math.nan),
            "std": p.detach().std().item(),
        }
        for group in optimizer.param_groups
        for p in group["params"]
    }


# Powers of the growth of the width, relative to the base shape. Table 8 of 2203.03466 has them for SGD and Adam: its
# "input weights and all biases", "output weights" (with the multiplier 1/width) and "hidden weights".
TABLE_8 = {
    "sgd": {"embedding": 1, "head.weight": 1, "norm.weight": 1, "hidden": 0},
    "adamw": {"embedding": 0, "head.weight": 0, "norm.weight": 0, "hidden": -1},
}
# Lion's updates have the size of Adam's. Muon's are orthogonal, times √width.
BY_KIND = {**TABLE_8, "lion": TABLE_8["adamw"], "muon": {**TABLE_8["adamw"], "hidden": -0.5}}
HIDDEN = ("layers.0.attn.words.attn.qkv.weight", "layers.3.attn.words.attn.out.weight")


@pytest.mark.parametrize("optim", BY_KIND)
def test_learning_rates_are_those_of_the_published_table(optim):
    words = ["model.transfer=mup", f"optim={optim}", "model.tie_embeddings=false"]
    base = hyper_parameters(*words, "model.dim=32")
    for growth in (2, 4):
        grown = hyper_parameters(*words, f"model.dim={32 * growth}")
        for name, power in BY_KIND[optim].items():
            for path in HIDDEN if name == "hidden" else [name]:
                ratio = grown[path]["lr"] / base[path]["lr"]
                assert ratio == pytest.approx(growth**power, rel=1e-6), (path, growth)
                # weight decay has the same time scale at every width
                assert grown[path]["decay"] == pytest.approx(base[path]["decay"])
    # the µP column of CompleteP's table 1 (2505.01618) also has ε
    if optim == "adamw":
        assert all(of["eps"] == pytest.approx(base[name]["eps"] / growth) for name, of in grown.items())


def test_muon_measures_a_matrix_by_its_inputs_and_outputs():
    growth = Growth(width=4.0, fan_in=4.0)
    tall, wide = (
        parameter(*shape, kind="matrix", draw=constant(0), inputs=inputs)
        for shape, inputs in (((128, 6), 0), ((6, 128), 1))
    )
    for p in tall, wide:
        p.role = replace(p.role, growth=growth)
    # its norm must shrink as 1/√inputs, and Muon's updates grow with the root of the longer side, from 32 to 128
    assert of_orthogonal(tall) == of_orthogonal(wide) == pytest.approx(0.5 / 2)


def test_initial_values_and_factors_are_those_of_the_published_table():
    """Hidden weights have a variance of 1 / fan-in, the embedding's is constant, logits are divided by the width."""
    words = ["model.transfer=mup", "model.tie_embeddings=false"]
    base, grown = hyper_parameters(*words, "model.dim=32"), hyper_parameters(*words, "model.dim=128")
    for name, ratio in {HIDDEN[0]: 0.5, "embedding": 1.0, "head.weight": 1.0}.items():
        assert grown[name]["std"] / base[name]["std"] == pytest.approx(ratio, rel=0.1)
    _, model = made(*words, "model.dim=128")
    assert model.head_factor == 0.25
    attention = model.branches()[0].words["attn"]
    # 1 / K instead of 1 / √K, equal at the base shape's width of a head, 8
    assert attention.head_dim == 32 and attention.core.scale == pytest.approx(8**0.5 / 32)


def test_completep_is_its_published_table():
    """Table 1 of 2505.01618 with α = 1: branches / d, learning rates as with µP, ε / (m d) in branches, else / m."""
    words = ["model.transfer=completep", "model.base.n_layers=2", "model.dim=64"]
    at_base = hyper_parameters(*words, "model.base.dim=64", "model.n_layers=2")
    wide = hyper_parameters(*words, "model.n_layers=2")
    deep = hyper_parameters(*words, "model.n_layers=8")
    for name, of_base in at_base.items():
        depth = 4 if name.startswith("layers.") else 1
        assert deep[name]["lr"] == wide[name]["lr"]
        assert wide[name]["eps"] == pytest.approx(of_base["eps"] / 2)
        assert deep[name]["eps"] == pytest.approx(wide[name]["eps"] / depth)
    _, model = made(*words, "model.n_layers=8")
    assert {branch.factor for branch in model.branches()} == {0.25}
    # the output of a branch at initialisation is that of the base depth, divided by d
    out = "layers.1.attn.words.attn.out.weight"
    assert deep[out]["std"] / wide[out]["std"] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("transfer", ["mup", "completep"])
@pytest.mark.parametrize(
    "choice", ["optim=adamw", "optim=muon", "optim=sgd", "model/mlp=moe", "model/rec=mamba2"]
)
def test_at_the_base_shape_nothing_changes_to_the_bit(choice, transfer):
    choices = [choice, "model.layout=[rec mlp]"] if "rec" in choice else [choice]
    results = []
    for words in ([], [f"model.transfer={transfer}", "model.base.dim=32"]):
        cfg = compose([*choices, *words, "model.dim=32", "model.n_layers=4"])
        model = build_model(cfg, Vocabulary())
        optimizer = build(cfg.optim, model)
        set_lr(optimizer, 0.01)
        tokens = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            loss = model(tokens).logsumexp(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        results.append((loss, groups, [p.detach() for p in model.parameters()]))
    (loss, groups, params), (other_loss, other_groups, other_params) = results
    assert torch.equal(loss, other_loss) and groups == other_groups
    assert all(map(torch.equal, params, other_params))


@pytest.mark.parametrize(
    "choice",
    [*options("model/attn"), *options("model/mlp"), *options("model/rec"), *options("model/residual")],
)
def test_every_option_transfers_or_is_refused(choice):
    """At twice the base width, a parameter whose inputs don't grow keeps its learning rate, and others halve it."""
    try:
        model = build_model(with_transfer(tiny_cfg(*completed(choice))), Vocabulary())
    except UserError as error:
        assert "model.transfer=mup has no rule" in str(error)
        return
    plain = tiny_model(*completed(choice))
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain.parameters()]
    factors = {p.role.growth.fan_in for p in model.parameters()}
    assert all(0.9 < factor < 2.3 for factor in factors) and max(factors) > 1.8
    optimizer = AdamW(
        model,
        lr=1.0,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.99,
        eps=1e-8,
        decay_embeddings=True,
        cautious_decay=False,
    )
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(
        map(id, model.parameters())
    )


def with_transfer(cfg: DictConfig) -> DictConfig:
    """Return a tiny configuration with µP, from half its width."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    cfg.model.transfer, cfg.model.base.dim, cfg.model.base.n_heads = "mup", 16, None
    return cfg


def test_more_heads_instead_of_wider_ones():
    words = ["model.transfer=mup", "model.dim=64", "model.attn.n_heads=8", "model.attn.n_kv_heads=2"]
    _, wider = made(*words)
    _, more = made(*words, "model.base.n_heads=4")
    assert wider.branches()[0].words["attn"].core.scale == pytest.approx(4**0.5 / 8)
    assert more.branches()[0].words["attn"].core.scale is None  # as wide as at the base shape
    assert all(
        wide.role.growth == tall.role.growth for wide, tall in zip(wider.parameters(), more.parameters())
    )


def test_hidden_widths_that_were_solved_for_are_in_proportion():
    cfg, model = made("model.transfer=mup", "size.params=1e5")
    growth = cfg.model.dim / 32
    down = model.branches()[1].words["mlp"].down.weight
    assert cfg.model.dim != 32 and down.role.growth.fan_in == pytest.approx(growth, rel=0.1)


@pytest.mark.parametrize(
    ("choices", "covered"),
    [
        ([], False),
        (["model.transfer=mup"], True),
        (["model.transfer=mup", "size.by=layers"], False),
        (["model.transfer=completep", "size.by=layers"], True),
    ],
)
def test_a_ladder_knows_what_transfer_covers(choices, covered):
    assert covers_sizes(compose(choices)) == covered


def test_an_optimizer_without_a_rule_is_refused():
    _, model = made("model.transfer=mup", "model.dim=64")
    with pytest.raises(UserError, match="has no rule for model.transfer"):
        grouped(model.parameters(), 0.1, True, False)
    _, base = made("model.transfer=mup", "model.dim=32")
    assert len(grouped(base.parameters(), 0.1, True, False)) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.transfer=mup", "norm.kind=l2"], "norm.kind=cosine and l2"),
        (["model.transfer=mup", "model/attn=differential"], "λ is a sum over the width of a head"),
        (["model.transfer=mup", "objective=diffuseq"], "an objective with parameters of its own"),
        (["model.transfer=mup", "model/rec=mega", "model.layout=[rec mlp]"], "Mega with wider heads"),
        (["model.transfer=mup", "model.base=null"], "model.base is null"),
        (["model.transfer=completep", "norm=post", "model.n_layers=8"], "norms on the residual stream"),
        (["model.transfer=completep", "model/residual=hyper", "model.n_layers=8"], "multiply the stream"),
        (["model.transfer=mup", "model.base.dim=30"], "isn't possible: dim=30 can't be split"),
        (["model.transfer=mup", "model.base.n_layers=2"], "model.base.n_layers would do nothing"),
        (["model.base.dim=64"], "model.base.dim would do nothing with model.transfer=none"),
        (["model.transfer=mu"], "model.transfer"),
    ],
    ids=str,
)
def test_what_does_not_transfer_is_refused(words, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        build_model(compose(["model.dim=64", *words]), Vocabulary())


def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["model.transfer=completep", "model.base.dim=16", "model.dim=32", "model.n_layers=2"]
    words += [
        "tokenizer=tales_512",
        "data.train_stories=60",
        "data.val_stories=2",
        "data.seq_len=32",
        "optim=muon",
    ]
    words += ["model.base.n_layers=1", "train.batch_size=4", "train.check=false", "train.precision=fp32"]
    words += ["schedule=constant", "schedule.warmup_steps=1"]
    whole = minllm.train(minllm.compose([*words, "train.steps=6"]), tmp_path / "whole")
    minllm.train(minllm.compose([*words, "train.steps=3"]), tmp_path / "parts")
    resumed = minllm.train(minllm.compose([f"resume={tmp_path / 'parts'}", "train.steps=6"]))
    assert resumed["val_loss"] == whole["val_loss"]
