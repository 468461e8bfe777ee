"""`task=coordcheck`: activations change alike at every width with µP, and at every depth with CompleteP."""

from __future__ import annotations

import json
import math
import re

import pytest

from minllm.config.compose import perform
from minllm.errors import UserError
from minllm.training.coordinates import slope
from tests.tiny import unjudged

TINY = ["tokenizer=tales_512", "data.train_stories=60", "data.val_stories=2", "data.seq_len=32"]
TINY += ["train.batch_size=4", "model.n_layers=2", "optim.lr=0.003"]
MODELS = {
    "attention": [],
    "gated_deltanet": ["model/rec=gated_deltanet", "model.layout=[rec mlp]"],
    "mamba2": ["model/rec=mamba2", "model.layout=[rec mlp]"],
    "experts": ["model/mlp=moe", "model.mlp.n_experts=4"],
}
OPTIMIZERS = {"lion": 0.0003, "sgd": 0.1, "muon": 0.003}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def check(tmp_path, stores, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def checked(*words: str) -> dict:
        cfg = unjudged("task=coordcheck", *TINY, f"data.cache={stores}", *words)
        return perform(cfg, tmp_path / "check")

    return checked


def slopes(check: dict) -> dict[str, float]:
    return {line["name"]: line["slope"] for line in check["activations"]}


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
def test_changes_depend_on_the_width_but_not_with_mup(check, words):
    words = [*words, "widths=[32,64,128]", "tolerance=0.2", "steps=3"]
    (standard,) = check(*words)["checks"]
    assert not standard["flat"] and slopes(standard)["logits"] > 0.3
    (transferred,) = check(*words, "model.transfer=mup", "model.base.dim=32")["checks"]
    assert transferred["flat"], slopes(transferred)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_other_optimizers_are_flat_too(check, optim):
    words = [f"optim={optim}", f"optim.lr={OPTIMIZERS[optim]}", "widths=[32,64,128]", "tolerance=0.2"]
    words += ["norm.embedding=true", "train.clip=null"]  # the norm of the gradient depends on the width
    (standard,) = check(*words)["checks"]
    (transferred,) = check(*words, "model.transfer=mup", "model.base.dim=32")["checks"]
    assert transferred["flat"] and not standard["flat"], (slopes(transferred), slopes(standard))


def test_changes_depend_on_the_depth_but_not_with_completep(check, capsys):
    words = [
        "widths=null",
        "depths=[2,4,8]",
        "model.dim=32",
        "norm.embedding=true",
        "optim.lr=0.0003",
        "tolerance=0.2",
        "steps=3",
    ]
    (wide_only,) = check(*words, "model.transfer=mup", "model.base.dim=32")["checks"]
    assert not wide_only["flat"] and slopes(wide_only)["hidden"] > 0.4
    assert "Type model.transfer=completep" in capsys.readouterr().out
    both = [*words, "model.transfer=completep", "model.base.dim=32", "model.base.n_layers=2"]
    (transferred,) = check(*both)["checks"]
    assert transferred["flat"], slopes(transferred)
    assert "Flat: no activation's change depends on the depth" in capsys.readouterr().out


def test_the_page_and_the_json_have_the_same_lines(check, tmp_path, capsys):
    found = check("model.dim=16", "widths=[16,24,32]", "depths=[1,2,3]", "seeds=2", "steps=1")
    assert json.loads((tmp_path / "check" / "coordcheck.json").read_text()) == found
    html = (tmp_path / "check" / "coordcheck.html").read_text()
    for one in found["checks"]:
        assert {line["name"] for line in one["activations"]} == {
            "embedding",
            "attn",
            "mlp",
            "hidden",
            "logits",
        }
        assert f"coordinates-{'width' if one['key'] == 'model.dim' else 'depth'}" in html
    assert re.search(r"\| logits +\|", capsys.readouterr().out)


def test_all_sizes_are_tried_before_one_is_trained(check, monkeypatch):
    monkeypatch.setattr("minllm.tasks.coordcheck.coordinates", lambda *args: pytest.fail("trained"))
    with pytest.raises(UserError, match="With model.dim=66: dim=66 can't be split"):
        check("widths=[32,64,66]")


def test_dropout_is_no_change(check):
    words = ["widths=[16,24,32]", "optim.lr=1e-9", "model.dropout=0.5", "steps=1"]
    (unchanged,) = check(*words)["checks"]
    assert all(max(line["change"]) < 1e-3 for line in unchanged["activations"])


def test_an_encoder_is_checked_too(check):
    words = ["objective=span", "model/encoder=same", "model/layout=decoder", "widths=[16,24,32]", "steps=1"]
    (found,) = check(*words)["checks"]
    names = ["embedding", "attn", "cross", "mlp", "encoder.attn", "encoder.mlp", "hidden", "logits"]
    assert [line["name"] for line in found["activations"]] == names


def test_a_slope_is_that_of_the_power_law():
    sizes = [16, 64, 128]
    assert slope(sizes, [3 * size**0.7 for size in sizes]) == pytest.approx(0.7)
    assert math.isnan(slope(sizes, [1.0, 0.0, 1.0])) and math.isnan(slope(sizes, [1.0, math.inf, 1.0]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["widths=[64,128]"], "widths=[64, 128] are too few"), (["widths=null"], "There is nothing to check")],
    ids=str,
)
def test_too_few_sizes_are_refused(check, words, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        check(*words)
