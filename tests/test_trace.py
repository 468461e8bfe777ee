"""The trace: it shows what is there, its figures are what is measured, and no letter is wrong."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest
import torch
import torch.nn.functional as F

from minllm import tracing
from minllm.config.compose import compose, perform
from minllm.errors import UserError
from minllm.schema.building import build
from minllm.tracing.definitions import scaled_dot_product_attention
from minllm.tracing.tree import Step

SMALL = ["tokenizer=bytes", "model.dim=32", "model.n_layers=3", "data.seq_len=24", "model.mlp.hidden=40"]
HEADS = ["model.attn.n_heads=4", "model.attn.head_dim=8"]


def small(*choices: str) -> tracing.Trace:
    return tracing.trace(compose([*SMALL, *HEADS, *choices]))


def line(text: str, *words: str) -> str:
    """Return the first line that has all of the words, with single spaces."""
    return next(
        re.sub(" +", " ", one.strip()) for one in text.splitlines() if all(word in one for word in words)
    )


def steps(trace: tracing.Trace) -> list[Step]:
    return [part for part in trace.root.walk() if isinstance(part, Step)]


def plain_model(cfg) -> torch.nn.Module:
    return build(cfg.model, 257, build(cfg.norm))


def test_what_a_reader_of_attention_looks_for_is_there():
    text = str(small("model/attn=gqa"))
    assert line(text, "linear(x_BTD").startswith("linear(x_BTD, weight[(H+2G)·K D]) B=1 T=24 (H+2G)·K=64")
    assert line(text, "split(", "H·K") == "split(↑, [32, 16, 16], dim=-1) q B=1 T=24 H·K=32"
    assert line(text, "q_BHTK  ") == "transpose(↑, 1, 2) q_BHTK B=1 H=4 T=24 K=8"
    assert line(text, "k_BGTK  ") == "transpose(↑, 1, 2) k_BGTK B=1 G=2 T=24 K=8"
    assert line(text, "arange(0, 8, 2)") == "arange(0, 8, 2) K/2=4"
    assert line(text, "chunk(q_BHTK") == "chunk(q_BHTK, 2, dim=-1) a B=1 H=4 T=24 K/2=4"
    assert line(text, "addcmul", "k_BGSK") == "addcmul(↑, swapped, sin_B1TR) k_BGSK B=1 G=2 S=24 K=8"
    assert "2 query heads share a key/value head: 0–1 read 0, 2–3 read 1" in text
    assert line(text, "repeat_interleave(k").startswith(
        "repeat_interleave(k_BGSK, 2, dim=-3) k_BHSK B=1 H=4 S=24 K=8"
    )
    assert line(text, "matmul(q").startswith("matmul(q_BHTK, ↑) scores_BHTS B=1 H=4 T=24 S=24")
    assert line(text, "softmax").startswith("softmax(scores_BHTS, -1) weights_BHTS")
    assert line(text, " flatten(") == "flatten(↑, 2) y B=1 T=24 H·K=32"
    assert "weight[2F D]" in text and "tied" in text


@pytest.mark.parametrize("attn", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("pos", ["rope", "learned", "none"])
def test_no_letter_is_wrong_where_all_sizes_are_the_same(attn, pos):
    """With D = F = T = H·K = 64 and H = G·2 = 4, sizes alone tell nothing: letters must come out as with odd sizes."""
    choices = ["tokenizer=bytes", "model.n_layers=1", f"model/attn={attn}", f"model/pos={pos}"]
    alike = ["model.dim=64", "data.seq_len=64", "model.mlp.hidden=64", "model.attn.n_heads=4"]
    apart = ["model.dim=96", "data.seq_len=56", "model.mlp.hidden=68", "model.attn.n_heads=4"]
    one = tracing.trace(compose([*choices, *alike, "model.attn.head_dim=16"]))
    other = tracing.trace(compose([*choices, *apart, "model.attn.head_dim=22"]))
    spelled = [[value.letters for step in steps(trace) for value in step.outputs] for trace in (one, other)]
    assert spelled[0] == spelled[1]
    for trace in (one, other):
        letters = {**trace.letters[""], **trace.letters["attn"], **trace.letters["mlp"]}
        for step in steps(trace):
            for value in step.outputs:
                for text, size in zip(value.letters, value.sizes):
                    assert not text or worth(text, letters) == size, (step.function, value.name, text, size)


def worth(text: str, letters: dict[str, int]) -> float:
    """Return what a size in letters is as a number, such as (H+2G)·K, 2F, K/2."""
    if found := re.fullmatch(r"\((.+)\)·(\w)", text):
        return sum(worth(part, letters) for part in found[1].split("+")) * letters[found[2]]
    above, _, below = text.partition("/")
    result = 1.0
    for factor in above.split("·"):
        number, letter = re.fullmatch(r"(\d*)([A-Z]?)", factor).groups()
        result *= int(number or 1) * (letters[letter] if letter else 1)
    return result / (int(below) if below.isdigit() else letters[below]) if below else result


def test_layers_that_are_alike_are_shown_once():
    trace = small()
    assert "layers.1 to 2: each as layers.0" in str(trace)
    assert str(trace).count("Attention(") == 1
    assert trace.show(every_layer=True).count("Attention(") == 3


def test_layers_that_differ_are_shown():
    text = str(small("model.layout=[attn mlp, mlp]", "model.n_layers=2"))
    assert "as layers.0" not in text and text.count("Gated(") == 2


def test_a_pattern_of_layers_is_shown_once():
    text = str(small("model.layout=[attn mlp, mlp]", "model.n_layers=6"))
    assert "layers.2, 4: each as layers.0" in text and "layers.3, 5: each as layers.1" in text


def test_inside_shows_one_module_and_hide_closes_others():
    trace = small()
    inside = trace.show(inside="layers.2.attn")
    assert "chunk(" in inside and "silu" not in inside and "layers.0" not in inside
    assert "chunk(" in trace.show(inside="rotate") and "matmul" not in trace.show(inside="rotate")
    hidden = trace.show(hide=["mlp", "norm"])
    assert "silu" not in hidden and "rms_norm" not in hidden and "matmul" in hidden
    assert line(hidden, "mlp: Branch") == line(str(trace), "mlp: Branch").replace(") ", ") B=1 T=24 D=32 ")
    assert "Attention" not in trace.show(depth=2) and "attn: Branch" in trace.show(depth=2)


@pytest.mark.parametrize("option", [{"inside": "atn"}, {"hide": ["atn"]}])
def test_a_name_that_nothing_has_is_refused_with_a_suggestion(option):
    with pytest.raises(
        UserError, match="doesn't match any module or function of this model. Did you mean 'attn'"
    ):
        small().show(**option)


def test_decoding_shows_one_token_and_the_state():
    trace = tracing.trace(compose([*SMALL, *HEADS]), batch=5, decode=True)
    text = str(trace)
    assert line(text, "held[:, :, 23:24] = k_BGSK").endswith("B=5 G=2 S=24 K=8")
    assert "scores_BHTS B=5 H=4 T=1 S=24" in line(text, "matmul(q")
    assert trace.state_bytes == plain_model(compose(SMALL)).init_state(5, 24).nbytes


def test_packed_rows_show_what_a_token_may_see():
    assert "visible_BTS" not in str(small())
    packed = str(tracing.trace(compose([*SMALL, *HEADS]), batch=2, packed=True))
    assert line(packed, "and(visible_BTS").endswith("visible_BTS B=2 T=24 S=24")


def test_the_forward_pass_is_left_as_it_was():
    """Tracing changes nothing in torch: no hook stays behind, not even after an error."""
    cfg = compose([*SMALL, "model/pos=learned", "model.pos.max_len=3"])
    hooks = torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks
    before = [len(one) for one in hooks]
    with pytest.raises(UserError, match="increase model.pos.max_len"):
        tracing.trace(cfg)
    assert [len(one) for one in hooks] == before


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", [None, "causal", "bool", "float"])
def test_attention_is_shown_as_torch_computes_it(groups, mask):
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)
    visible = {"bool": torch.ones(6, 6, dtype=torch.bool).tril(1), "float": torch.randn(6, 6)}.get(mask)
    args = (q, k, v, visible, 0.0, mask == "causal")
    torch.testing.assert_close(
        scaled_dot_product_attention(*args, enable_gqa=groups != 4),
        F.scaled_dot_product_attention(*args, enable_gqa=groups != 4),
    )


def extension(folder, name: str, module: str, conf: str) -> list[str]:
    (folder / f"{name}.py").write_text(dedent(module))
    (folder / "conf/model/attn").mkdir(parents=True)
    (folder / f"conf/model/attn/{name}.yaml").write_text(dedent(conf))
    return [f"model/attn={name}", f"extensions=[{name}]", *SMALL]


def test_an_idea_from_elsewhere_is_traced(tmp_path, monkeypatch):
    """Letters for what is known or named in its code, numbers for the rest."""
    choices = extension(
        tmp_path,
        "slots",
        """
        import torch
        from torch import nn

        class Slots(nn.Module):
            def __init__(self, dim: int, layer, *, n_heads: int, n_slots: int, taps: int):
                super().__init__()
                self.n_heads, self.taps = n_heads, taps
                self.keys = nn.Parameter(torch.empty(n_slots, dim))
                self.mix = nn.Linear(dim, dim, bias=False)

            def forward(self, x_BTD, ctx):
                padded = torch.cat([x_BTD[:, :1].expand(-1, self.taps - 1, -1), x_BTD], dim=1)
                weights_BTM = (x_BTD @ self.keys.mT).softmax(-1)
                y_BTHK = self.mix(weights_BTM @ self.keys).unflatten(-1, (self.n_heads, -1))
                return y_BTHK.flatten(2) + padded[:, : x_BTD.shape[1]]
        """,
        """
        # Learned slots
        _target_: slots.Slots
        n_heads: 4
        n_slots: 8
        taps: 4
        """,
    )
    monkeypatch.syspath_prepend(tmp_path)
    trace = tracing.trace(compose(choices, config_dir=tmp_path / "conf"))
    text = str(trace)
    assert line(text, "softmax") == "softmax(↑, -1) weights_BTM B=1 T=24 M=8"
    assert line(text, "cat([↑").endswith("padded B=1 T+3=27 D=32")
    assert line(text, "unflatten").endswith("y_BTHK B=1 T=24 H=4 D/H=8")
    assert "words.attn: Slots(x_BTD)" in text and "mix: Linear(↑)" in text
    assert trace.flops == sum(step.flops for step in steps(trace)) > 0


def test_sizes_that_a_module_insists_on_stay_as_they_are(tmp_path, monkeypatch):
    """A module that works at one width only: D is not varied, and nothing else is taken for it."""
    choices = extension(
        tmp_path,
        "stubborn",
        """
        from torch import nn

        class Stubborn(nn.Module):
            def __init__(self, dim: int, layer, *, n_heads: int):
                super().__init__()
                assert dim == 32
                self.n_heads = n_heads

            def forward(self, x_BTD, ctx):
                heads = x_BTD.unflatten(-1, (self.n_heads, -1))
                return heads.flatten(2)
        """,
        """
        # Works at one width
        _target_: stubborn.Stubborn
        n_heads: 8
        """,
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = str(tracing.trace(compose([*choices, "model.mlp.hidden=32"], config_dir=tmp_path / "conf")))
    assert line(text, "unflatten").endswith("heads B=1 T=24 8 4")
    assert line(text, "up_BTF").endswith("up_BTF B=1 T=24 F=32")
    assert line(text, "mul(x").endswith("x_BTD B=1 T=24 D=32")


def test_the_task_prints_the_trace_and_writes_nothing(tmp_path, capsys):
    perform(compose(["task=trace", *SMALL, *HEADS, "inside=attn", "hide=[norm]"]), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "layers.0.attn: Branch(x_BTD)" in printed and "rms_norm" not in printed
    assert "\033" not in printed and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["batch=0"], "batch must be a whole number of 1 or more"),
        (["hide=mlp"], "Put it in brackets"),
        (["layers=every"], "layers must be one of folded, all"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence):
        perform(compose(["task=trace", *SMALL, *words]), tmp_path)
