"""Folders that `save_pretrained` wrote become runs, with the same logits; what can't is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from minllm.config.compose import compose, perform
from minllm.convert.folder import family_of
from minllm.convert.settings import ConfigJson, layer_types
from minllm.errors import UserError
from minllm.tokenizer.huggingface import HuggingFace
from minllm.training import checkpoints
from tests.commands import python
from tests.oracles import TINY, nodes, randomised
from tests.vocabularies import AWKWARD, TEXTS, assert_survives, byte_fallback, byte_level

transformers = pytest.importorskip(
    "transformers", reason="the oracle is not installed: pip install -e .[test]"
)

PADDED = 448  # tokens of each model, some more than its tokenizer has


KINDS = {
    "gpt2": (byte_level, "<|endoftext|>"),
    "llama3": (byte_fallback, "</s>"),
    "gemma2": (byte_fallback, "</s>"),
    "gpt_neox": (byte_level, "<|endoftext|>"),
    "bloom": (byte_level, "<|endoftext|>"),
    "mamba2": (byte_level, "<|endoftext|>"),
    "recurrent_gemma": (byte_fallback, "</s>"),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    return pretrained(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return pretrained("gpt2", tmp_path_factory.mktemp("refused"))


def pretrained(preset: str, folder: Path) -> Path:
    """Write a tiny model and its tokenizer; the weights are in several files."""
    make, eot = KINDS[preset]
    tokenizer, (name, settings) = make(), TINY[preset]
    settings = settings | dict(
        vocab_size=PADDED, eos_token_id=tokenizer.token_to_id(eot), bos_token_id=1, pad_token_id=None
    )
    config = getattr(transformers, f"{name}Config")(**settings, attn_implementation="eager")
    model = randomised(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    model.save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save(str(folder / "tokenizer.json"))
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


def imported(folder: Path | str, run_dir: Path, *words: str) -> dict:
    return perform(compose(["task=import", f"from={folder}", *words]), run_dir)


def test_the_run_has_the_logits_of_the_folder(folder, tmp_path):
    summary = imported(folder, tmp_path / "run", "data.seq_len=20", "seed=3")
    model, tokenizer, cfg = checkpoints.load(tmp_path / "run")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    batch = torch.tensor([tokenizer.encode(TEXTS[0])[:24]])
    with torch.no_grad():
        assert (model(batch) - oracle(batch).logits).abs().max() < 1e-4
    assert model.vocab_size == tokenizer.vocab_size == PADDED
    assert tokenizer.eos_id == oracle.config.eos_token_id
    checkpoint = checkpoints.find(tmp_path / "run", "last")
    assert checkpoints.read_progress(checkpoint).tokenizer == tokenizer.fingerprint
    assert (cfg.data.seq_len, cfg.seed) == (20, 3)
    assert summary["params"] == sum(p.numel() for p in oracle.parameters())


def test_its_tokenizer_loses_nothing(folder):
    tokenizer = HuggingFace(
        name=str(folder), eos=json.loads((folder / "config.json").read_text())["eos_token_id"]
    )
    for text in [*AWKWARD, "<|endoftext|></s> <s>", "    four", " \u2581 ", TEXTS[-1]]:
        assert_survives(tokenizer, text)
    assert tokenizer.encode_batch(AWKWARD) == [tokenizer.encode(text) for text in AWKWARD]
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""


def test_its_tokens_are_the_folders_own(folder):
    """Where nothing is put before a text: a word behind another is encoded as the tokenizer itself does."""
    ours, theirs = HuggingFace(name=str(folder), eos=1), Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "The cat's hat sat on a mat, 123 times."
    expected = theirs.encode(f"\n{text}", add_special_tokens=False).ids
    assert expected[-len(ours.encode(text)[1:]) :] == ours.encode(text)[1:]


def test_a_run_keeps_it(folder, tmp_path):
    tokenizer = HuggingFace(name=str(folder), eos=1, vocab_size=PADDED)
    tokenizer.save(tmp_path)
    again = HuggingFace(tmp_path, name="gone", vocab_size=PADDED)
    assert (again.fingerprint, again.eos_id) == (tokenizer.fingerprint, 1)
    assert again.encode("The cat's hat.\n") == tokenizer.encode("The cat's hat.\n")


def test_files_before_version_5_name_and_keep_more(gpt2, tmp_path):
    """GPT-2 was published without its prefix and with its masks; others with a head that they share, and in fp16."""
    copy = changed(gpt2, tmp_path)
    weights = {}
    for path in copy.glob("model*"):
        weights |= load_file(path) if path.suffix == ".safetensors" else {}
        path.unlink()
    older = {name.removeprefix("transformer."): weight.half() for name, weight in weights.items()}
    older |= {"h.0.attn.bias": torch.ones(1, 1, 24, 24).tril(), "lm_head.weight": older["wte.weight"].clone()}
    save_file({name: weight.contiguous() for name, weight in older.items()}, copy / "model.safetensors")
    imported(copy, tmp_path / "run")
    model, _, _ = checkpoints.load(tmp_path / "run")
    assert torch.equal(model.embedding, weights["transformer.wte.weight"].half().float())
    older["lm_head.weight"][0] = 7
    save_file({name: weight.contiguous() for name, weight in older.items()}, copy / "model.safetensors")
    with pytest.raises(UserError, match="left over, such as lm_head.weight"):
        imported(copy, tmp_path / "other")


def test_a_run_of_an_import_is_a_run_like_others(gpt2, tmp_path):
    def run(*words: str) -> str:
        done = python("run.py", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ["data.train_stories=40", "data.val_stories=2"]
    assert "gpt2" in run("task=import", f"from={gpt2}", "model.pos.max_len=24", *small)
    for file in (
        "config.yaml",
        "summary.json",
        "tokenizer/tokenizer.json",
        "checkpoints/step-000000/state.json",
    ):
        assert len(list(tmp_path.glob(f"outputs/*/*/{file}"))) == 1
    assert "the cat" in run("task=generate", "run=latest", "prompts=[the cat]", "sample.max_new_tokens=4")
    assert "val_bpb" in run("task=evaluate", "run=latest")
    tuned = ["data.seq_len=20", "train.steps=2", "train.batch_size=2", "sample.max_new_tokens=4"]
    assert "Validation" in run("init_from=latest", *small, *tuned)


# ---- refusals ------------------------------------------------------------------------------------


def refused(folder: Path | str, tmp_path: Path, words: str, *typed: str) -> None:
    with pytest.raises(UserError, match=words):
        imported(folder, tmp_path / "run", *typed)
    assert not (tmp_path / "run").exists()


def changed(folder: Path, tmp_path: Path, **settings) -> Path:
    """Copy a folder with other settings in its config.json; those that are ... are left out."""
    copy = tmp_path / "changed"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text()) | settings
    (copy / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not ...}))
    return copy


def test_a_folder_that_is_none(gpt2, tmp_path):
    refused(tmp_path / "gone", tmp_path, "There is no folder")
    refused(tmp_path, tmp_path, "no config.json")
    refused("gone,also", tmp_path, "is not a single folder")
    refused(changed(gpt2, tmp_path, model_type="bert"), tmp_path, "model_type=bert.*bloom, .*gemma.*qwen3")


def test_overrides_take_precedence(gpt2, tmp_path):
    """Also what the default model has no such option for."""
    typed = ["model.pos.max_len=24", "model.dropout=0.5", "tokenizer.eos=0", "data.seq_len=7"]
    imported(gpt2, tmp_path / "run", *typed)
    _, tokenizer, cfg = checkpoints.load(tmp_path / "run")
    assert (cfg.model.dropout, tokenizer.eos_id, cfg.data.seq_len) == (0.5, 0, 7)
    assert cfg.choices["experiment"] == "gpt2" and cfg.choices.tokenizer == "hf"


def test_damaged_settings(gpt2, tmp_path):
    copy = changed(gpt2, tmp_path)
    (copy / "config.json").write_text("{")
    refused(copy, tmp_path, "can't be read as JSON")


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(activation_function="mish"), "activation_function=mish.*gelu_new"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        (dict(embd_pdrop=0.3), "embd_pdrop=0.3"),
        (dict(something_new=1), "something_new"),
        (dict(n_embd=...), "the shape"),
        (dict(n_embd=[32]), "has an invalid value"),
        (dict(n_head=5), "n_heads=5"),
        (dict(n_layer=3), "lack h.2"),
        (dict(n_layer=1), "left over, such as h.1"),
        (dict(n_inner=44), "the shape"),
    ],
)
def test_settings_that_cannot_be_expressed(gpt2, tmp_path, settings, words):
    refused(changed(gpt2, tmp_path, **settings), tmp_path, words)


def test_missing_weights_are_reported(gpt2, tmp_path):
    copy = changed(gpt2, tmp_path)
    first = sorted(copy.glob("model-*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:100])
    refused(copy, tmp_path, "is damaged")
    first.unlink()
    refused(copy, tmp_path, f"{first.name} is missing")
    for path in copy.glob("model*"):
        path.unlink()
    refused(copy, tmp_path, "no weights")
    (copy / "pytorch_model.bin").write_bytes(b"")
    refused(copy, tmp_path, r"only in \.bin files")


def test_a_tokenizer_that_does_not_fit(gpt2, tmp_path):
    copy = changed(gpt2, tmp_path)
    (copy / "tokenizer.json").unlink()
    refused(copy, tmp_path, f"no tokenizer.json.*{PADDED} tokens.*tokenizer=<option>")
    refused(copy, tmp_path, f"{PADDED} tokens, but this tokenizer has 257", "tokenizer=bytes")


def test_conflicting_overrides_are_rejected(gpt2, tmp_path):
    refused(gpt2, tmp_path, "can't be combined with from=", "experiment=gpt2")
    refused(gpt2, tmp_path, "the shape", "model.dim=16", "model.attn.n_heads=2")
    refused(gpt2, tmp_path, "which the weights don.t have", "model.head_bias=true")


def typed(**changes) -> list[str]:
    """Return what would be typed for a Llama whose config.json says this."""
    config = ConfigJson({"head_dim": 8, "max_position_embeddings": 9, **changes})
    words = family_of("llama").to_overrides(config)
    config.finish()
    return words


def test_ropes_and_layers_that_are_unknown():
    with pytest.raises(UserError, match="rope_type=longrope"):
        typed(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4})
    with pytest.raises(UserError, match="linear has beta_fast, which transformers ignores"):
        typed(rope_parameters={"rope_type": "linear", "factor": 2.0, "beta_fast": 8.0})
    with pytest.raises(UserError, match="chunked_attention"):
        layer_types(ConfigJson({"layer_types": ["chunked_attention"], "num_hidden_layers": 1}), every=2)


def test_ropes_before_version_5():
    """What stood beside the rope's own section, and was called otherwise."""
    older = typed(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    assert older == typed(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    assert {"model/pos=rope_linear", "model.pos.theta=500000.0", "model.pos.factor=2.0"} <= set(older)


OLDER = {
    "gemma3": (
        dict(sliding_window_pattern=6, rope_local_base_freq=20.0, rope_theta=500.0, rope_scaling=None),
        ("layer_types", "rope_parameters", "_sliding_window_pattern"),
    ),
    "gemma2": (dict(rope_theta=10000.0, hidden_act="gelu_pytorch_tanh"), ("layer_types", "rope_parameters")),
    "gpt_neox": (dict(rotary_emb_base=10000, rotary_pct=0.25), ("rope_parameters", "attention_bias")),
}


@pytest.mark.parametrize("preset", OLDER)
def test_older_settings_say_the_same(preset):
    """What is typed doesn't depend on the version that wrote a config.json."""
    name, settings = TINY[preset]
    now = getattr(transformers, f"{name}Config")(**settings).to_dict()
    more, less = OLDER[preset]
    older = {key: value for key, value in (now | more).items() if key not in less}
    family = family_of(now["model_type"])
    assert nodes(*family.to_overrides(ConfigJson(older))) == nodes(*family.to_overrides(ConfigJson(now)))
