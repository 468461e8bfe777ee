"""Encoders: what they see, what a decoder reads of them, what is refused, what they cost, and their import."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from minllm import tracing
from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.laws.laws import check_laws
from minllm.model.build import build_model, build_shapes
from minllm.model.context import PAD
from minllm.model.cost import cost, forward_flops
from minllm.model.lm import LM
from minllm.model.parameter import initialise
from minllm.schema.building import build
from minllm.tasks.describe import column
from minllm.tracing.tree import Step
from minllm.training import checkpoints
from tests.oracles import TINY, randomised
from tests.tiny import VOCAB, T, options, shrink, tiny_cfg, tokens, told
from tests.vocabularies import TEXTS, byte_level

transformers = pytest.importorskip(
    "transformers", reason="the oracle is not installed: pip install -e .[test]"
)

ENCODER = ("model/layout=decoder", "model/encoder=same")
ATTENTIONS = [choice for choice in options("model/attn") if choice != "model/attn=cross"]
MASKS = [f"model/attn=mha {mask}" for mask in options("model/attn/mask") if not mask.endswith("=full")]
DENSE = [choice for choice in options("model/mlp") if "expert_choice" not in choice and "none" not in choice]
MIXED = [
    *("norm=post", "model/residual=hyper", "model/residual=two_hop"),
    *("model.attn.sinks=true", "model.attn.weights=sigmoid", "model.attn.softcap=2.0"),
    *("model.attn.value_residual=true", "model.encoder.share_embeddings=false norm.embedding=true"),
    "+model/attn@model.encoder.attn=mla +model/pos@model.encoder.pos=alibi",
    "model/pos=none +model/pos@model.encoder.pos=t5",
    "+model/mlp@model.encoder.mlp=moe_expert_choice",
    "+model/attn@model.encoder.near=local model.encoder.layout=[near+mlp,attn] model.encoder.n_layers=3",
]
EVERYTHING = [*ATTENTIONS, *MASKS, *options("model/pos"), *DENSE, *MIXED]
every_encoder = pytest.mark.parametrize("choice", EVERYTHING)
some_encoders = pytest.mark.parametrize(
    "choice", [*ATTENTIONS, "model/pos=t5", "model/pos=alibi", "model/pos=learned", *MIXED]
)


@functools.cache
def encoder_decoder(choice: str) -> LM:
    """Return a tiny model with an encoder, and random weights, which tests share: nobody changes it."""
    cfg = composed(choice)
    model = build_model(cfg, SimpleNamespace(vocab_size=VOCAB))
    generator = torch.Generator().manual_seed(1)
    sigma = 0.1 if "norm=none" in choice else 0.2
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * sigma + (param.ndim == 1) * 0.5)
    return model.eval()


@functools.cache
def composed(choice: str) -> DictConfig:
    cfg = compose([*ENCODER, *choice.split(), "model.dim=32", f"data.seq_len={T}", "model.dropout=0"])
    cfg.typed = []
    shrink(cfg.model)
    cfg.model.n_layers = 2
    return told(cfg)


def same(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> None:
    assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max().item())


# ---- what is seen --------------------------------------------------------------------------------

PACKED = torch.tensor([[0] * 9 + [1] * 10 + [PAD] * 5] * 2)


@every_encoder
@torch.no_grad()
def test_it_sees_all_of_its_segment_and_nothing_of_others(choice):
    """A changed token changes what its document's last layer gives, before it and behind it, and no other document."""
    model, batch = encoder_decoder(choice), tokens()
    before = model.encode(batch, PACKED)
    changed = batch.clone()
    changed[:, 13] = (changed[:, 13] + 1) % VOCAB  # in the second document
    differs_S = (model.encode(changed, PACKED) != before).any(-1).any(0)
    assert not differs_S[:9].any() and not differs_S[19:].any()
    assert differs_S[13]
    # masks hide some tokens from each other, but not in one direction only
    assert differs_S[9:13].any() or hides(choice)
    assert differs_S[14:19].any() or hides(choice)
    if not hides(choice):
        assert differs_S[9:19].all()


def hides(choice: str) -> bool:
    cfg = composed(choice)
    attentions = [cfg.model.attn, *(node for node in cfg.model.encoder.values() if OmegaConf.is_dict(node))]
    masks = [node.mask._target_ for node in attentions if "mask" in node]
    return any(not mask.endswith("Full") for mask in masks)


@pytest.mark.parametrize("mask", ["window", "dilated", "strided", "blocks"])
@torch.no_grad()
def test_a_mask_hides_as_much_on_either_side(mask):
    words = f"model/attn=mha model/attn/mask={mask} model/mlp=none model.encoder.n_layers=1"
    model, batch = encoder_decoder(words), tokens(1)
    seen_SS = torch.zeros(T, T, dtype=torch.bool)
    before = model.encode(batch)
    for t in range(T):
        changed = batch.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        seen_SS[:, t] = (model.encode(changed) != before)[0].any(-1)
    positions = torch.arange(T)
    rule = model.encoder.layers[0]["attn"].words["attn"].core.mask
    expected_SS = rule.visible(positions[None, :, None], positions[None, None])[0]
    assert torch.equal(seen_SS, expected_SS)
    assert expected_SS.triu(1).any()


@torch.no_grad()
def test_alibi_is_the_same_in_both_directions():
    model, batch = encoder_decoder("model/pos=alibi"), tokens()
    same(model.encode(batch.flip(1)).flip(1), model.encode(batch))


@every_encoder
@torch.no_grad()
def test_packing_and_padding_change_nothing(choice):
    model, batch = encoder_decoder(choice), tokens()
    packed = model.encode(batch, PACKED)
    same(packed[:, :9], model.encode(batch[:, :9]))
    same(packed[:, 9:19], model.encode(batch[:, 9:19]))
    padded = batch.clone()
    padded[:, 19:] = 0
    same(model.encode(padded, PACKED)[:, :19], packed[:, :19], 3e-6)


@some_encoders
@torch.no_grad()
def test_a_document_of_a_packed_row_reads_its_own_memory(choice):
    """Two pairs packed in a row, their sources in another order of lengths, give the logits that they give alone."""
    model, batch, source = encoder_decoder(choice), tokens(), tokens(2, 17, seed=5)
    source_segments = torch.tensor([[0] * 4 + [1] * 11 + [PAD] * 2] * 2)
    packed = model(batch, PACKED, source_BS=source, source_segments_BS=source_segments)
    same(packed[:, :9], model(batch[:, :9], source_BS=source[:, :4]))
    same(packed[:, 9:19], model(batch[:, 9:19], source_BS=source[:, 4:15]))
    assert (packed[:, :9] - model(batch[:, :9], source_BS=source[:, 4:15])).abs().max() > 1e-3
    assert packed.isfinite().all()


def test_a_document_without_a_source_reads_nothing():
    """Its cross-attention adds nothing, in training too: nothing becomes NaN."""
    model, batch, source = copy.deepcopy(encoder_decoder("")), tokens(), tokens(2, 7, seed=5)
    of_the_second = torch.ones_like(source)
    logits = model.train()(batch, PACKED, source_BS=source, source_segments_BS=of_the_second)
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(param.grad.isfinite().all() for param in model.parameters())
    nothing = model(batch[:, :9], source_BS=source[:, :1], source_segments_BS=of_the_second[:, :1])
    same(logits[:, :9], nothing)


@some_encoders
@torch.no_grad()
def test_decoding_step_by_step_equals_the_whole(choice):
    """Prompts of different lengths, padded on the left, whose sources have different lengths too.

    The memory and its segments are given once, and are part of the state from then on.
    """
    model, batch, source, pad = encoder_decoder(choice), tokens(), tokens(2, 13, seed=5), 5
    segments, source_segments = torch.zeros_like(batch), torch.zeros_like(source)
    segments[1, :pad], source_segments[0, 8:] = PAD, PAD
    state = model.init_state(2, T)
    given = {"source_BS": source, "source_segments_BS": source_segments}
    together = [model(batch[:, :12], segments[:, :12], state, **given)]
    together += [model(batch[:, t : t + 1], state=state) for t in range(12, T)]
    together = torch.cat(together, dim=1)
    same(together[:1], model(batch[:1], source_BS=source[:1, :8]))
    same(together[1:, pad:], model(batch[1:, pad:], source_BS=source[1:]))


# ---- how it is configured ------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [*options("model/rec"), "model/attn=cross"])
def test_what_reads_in_one_direction_is_refused(choice):
    word = choice.split("/")[1].split("=")[0]
    with pytest.raises(
        UserError, match=rf"model.encoder.layout has '{word}' \(\w+\), which can't read.* choose att"
    ):
        build_shapes(composed(f"{choice} model.encoder.layout=[{word}]"), VOCAB)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("model/layout=transformer", "no layer of model.layout has cross-attention.*model/layout=decoder"),
        ("model.encoder.layout=[]", "model.encoder.layout is empty"),
        ("model.encoder.layout=[atn]", "model.encoder.layout names 'atn'.*attn.*@model.encoder.atn="),
        ("model.encoder.layout=[attn+mlp,attn,mlp]", "model.encoder.n_layers=2 is too small"),
        ("+model/attn@model.encoder.near=local", "model.encoder.near would do nothing"),
        ("+model/attn@model.near=local", "model.near would do nothing"),
        ("model.encoder.depth=3", "model.encoder has no option 'depth'"),
        ("model.encoder._target_=minllm.model.branch.nothing", "takes"),
    ],
)
def test_what_cannot_be(words, complaint):
    with pytest.raises(UserError, match=complaint):
        cfg = told(compose([*ENCODER, *words.split(), "model.n_layers=2"]))
        build_model(cfg, SimpleNamespace(vocab_size=VOCAB))


def test_without_a_memory_it_is_refused_as_before():
    with pytest.raises(UserError, match="this objective supplies none"):
        build_shapes(compose([*ENCODER]), VOCAB)


def test_model_encoder_none_is_no_encoder():
    one, other = (build_shapes(compose(words), VOCAB) for words in ([], ["model/encoder=none"]))
    assert one.encoder is None and other.encoder is None
    assert [*dict(one.named_parameters())] == [*dict(other.named_parameters())]


def test_its_parts_are_its_own():
    """Depth, layout, attention and positions of its own; what it doesn't configure is built like the decoder's."""
    model = encoder_decoder(
        "model/pos=t5 +model/attn@model.encoder.attn=mqa model.encoder.attn.n_heads=4"
        " model.encoder.layout=[attn+mlp] model.encoder.n_layers=5"
    )
    assert (len(model.encoder.layers), len(model.layers)) == (5, 2)
    attention, mlp = model.encoder.layers[0]["attn+mlp"].words.values()
    assert attention.n_kv_heads == 1 and type(mlp) is type(model.layers[0]["mlp"].words["mlp"])
    assert attention.stands_as == "model.encoder.attn" and mlp.stands_as == "model.mlp"
    assert model.encoder.position.weight_UH is not model.position.weight_UH
    assert model.encoder.embedding is None
    own = encoder_decoder("model.encoder.share_embeddings=false").encoder
    assert own.embedding.role.kind == "embedding"


def test_typed_options_of_an_encoder_have_an_effect():
    """What is typed is compared by what the model computes, and that includes what its encoder computes."""
    for words in (
        ["model.encoder.n_layers=3"],
        ["model.encoder.share_embeddings=false"],
        ["+model/attn@model.encoder.attn=mha", "model.encoder.attn.qkv_bias=true"],
        ["+model/pos@model.encoder.pos=rope", "model.encoder.pos.theta=500.0"],
        ["+model/mlp@model.encoder.mlp=moe", "model.encoder.mlp.router.balance=0.1"],
    ):
        cfg = told(compose([*ENCODER, "model.dim=32", "model.n_layers=2", *words]))
        build_model(cfg, SimpleNamespace(vocab_size=VOCAB))
    words = ["+model/attn@model.encoder.attn=mha", "model.encoder.attn.softcap=null"]
    with pytest.raises(UserError, match="layer of model.encoder.layout has 'attn'"):
        cfg = told(compose([*ENCODER, "model.encoder.layout=[mlp]", *words]))
        build_shapes(cfg, VOCAB)


# ---- what it costs and how it begins -------------------------------------------------------------


def test_initial_values_are_drawn_by_path():
    """A decoder begins with the same weights, whether it has an encoder or not, and the encoder with others."""
    plain = build_model(tiny_cfg("model/layout=decoder"), SimpleNamespace(vocab_size=VOCAB))
    model = build_model(composed(""), SimpleNamespace(vocab_size=VOCAB))
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[path], param) for path, param in plain.named_parameters())
    encoder = {path for path in weights if path.startswith("encoder.")}
    assert encoder == set(weights) - set(dict(plain.named_parameters()))
    path = "layers.0.attn.words.attn.qkv.weight"
    assert not torch.equal(weights[path], weights[f"encoder.{path}"])
    deeper = build_model(composed("model.encoder.n_layers=2"), SimpleNamespace(vocab_size=VOCAB))
    initialise(deeper, seed=1)
    assert not torch.equal(deeper.get_parameter(f"encoder.{path}"), weights[f"encoder.{path}"])


def test_costs_count_the_encoder():
    plain, model = (build_shapes(cfg, VOCAB) for cfg in (tiny_cfg("model/layout=decoder"), composed("")))
    extra = cost(model, T).params - cost(plain, T).params
    assert extra == sum(param.numel() for param in model.encoder.parameters()) > 0
    # the FLOPs of a matrix are two for each of its elements and tokens; those of attention are 4 S D
    matrices = sum(p.numel() for p in model.encoder.parameters() if p.role.kind == "matrix")
    attention = len(model.encoder.layers) * 4 * T * T * model.dim
    assert forward_flops(model, T) - forward_flops(plain, T) == 2 * T * matrices + attention
    assert cost(model, T).state_bytes_per_sequence == cost(plain, T).state_bytes_per_sequence


def test_describe_and_trace_show_the_encoder():
    cfg = composed("model.encoder.n_layers=3")
    said = column(cfg)
    assert said["encoder's layers"] == "3 × attn mlp" and int(said["  encoder"].replace(",", "")) > 0
    trace, model = tracing.trace(cfg), build_shapes(cfg, build(cfg.tokenizer).vocab_size)
    steps = [part for part in trace.root.walk() if isinstance(part, Step)]
    assert trace.params == sum(step.params for step in steps) == cost(model, T).params
    assert trace.flops == sum(step.flops for step in steps) == forward_flops(model, T)
    text = str(trace)
    assert "encoder: Encoder(source_BS)" in text and "CrossAttention" in text
    assert "Encoder" in str(tracing.trace(cfg, packed=True))
    # the memory is there before a token is decoded
    assert "Encoder" not in str(tracing.trace(cfg, decode=True))


@pytest.mark.parametrize("choice", ["", "model/mlp=moe", "model.encoder.share_embeddings=false"])
def test_it_passes_the_check_before_training(choice):
    assert "a gradient for each parameter" in check_laws(composed(choice))


# ---- import --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["t5", "bart"])
def test_a_folder_becomes_a_run_with_its_logits(preset, tmp_path):
    folder, run = pretrained(preset, tmp_path), tmp_path / "run"
    perform(compose(["task=import", f"from={folder}"]), run)
    model, tokenizer, cfg = checkpoints.load(run)
    oracle = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
    source = torch.tensor([tokenizer.encode(TEXTS[0])[:24]])
    batch = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(TEXTS[1])[:13]]])
    with torch.no_grad():
        ours, theirs = model(batch, source_BS=source), oracle(source, decoder_input_ids=batch).logits
    assert (ours - theirs).abs().max() < 1e-4
    assert cfg.choices["experiment"] == preset
    assert (tokenizer.bos_id, tokenizer.eos_id) == (
        oracle.config.decoder_start_token_id,
        oracle.config.eos_token_id,
    )


def pretrained(preset: str, tmp_path: Path, **settings) -> Path:
    tokenizer, folder, (name, sizes) = byte_level(), tmp_path / "folder", TINY[preset]
    vocabulary = dict(
        vocab_size=448, decoder_start_token_id=0, eos_token_id=tokenizer.token_to_id("<|endoftext|>")
    )
    config = getattr(transformers, f"{name}Config")(**sizes | vocabulary | settings)
    model = randomised(getattr(transformers, f"{name}ForConditionalGeneration")(config))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("preset", "settings", "complaint"),
    [
        ("t5", dict(feed_forward_proj="gated-tanh"), "feed_forward_proj=gated-tanh"),
        ("bart", dict(encoder_layerdrop=0.1), "encoder_layerdrop=0.1"),
        ("bart", dict(activation_function="tanh"), "activation_function=tanh"),
    ],
)
def test_what_cannot_be_imported(preset, settings, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        compose(["task=import", f"from={pretrained(preset, tmp_path, **settings)}"])


def test_a_bias_of_the_logits_is_not_lost(tmp_path):
    """BART's files have one, which is zero unless somebody has changed it."""
    from safetensors.torch import load_file, save_file

    folder = pretrained("bart", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["final_logits_bias"] = torch.linspace(-1, 1, 448)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = ["task=import", f"from={folder}"]
    with pytest.raises(UserError, match="left over, such as final_logits_bias"):
        perform(compose(words), tmp_path / "run")
    perform(compose([*words, "model.head_bias=true"]), tmp_path / "other")
    model, _, _ = checkpoints.load(tmp_path / "other")
    assert torch.equal(model.head_bias_V.data, weights["final_logits_bias"][0])
