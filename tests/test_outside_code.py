"""Code from outside that fails: one sentence with its file, its line and the error, wherever it fails."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import run

MIXER = """\
import torch
from torch import nn
from minllm.model.parameter import Linear

class Mine(nn.Module):
    def __init__(self, dim, layer, *, rate: float):
        super().__init__()
        self.out = Linear(dim, dim, stream="writes")
    def forward(self, x_BTD, ctx):
        return self.out(x_BTD)
"""

AT_IMPORT = {
    "syntax": ("def forward(self", "def forward((self", "line 9: SyntaxError"),
    "tabs": ("        super", "\tsuper", "TabError"),
    "package": ("import torch\n", "import torch, no_such_thing\n", "line 1, `import torch, no_such_thing`"),
    "name": (
        "import Linear",
        "import Linaer",
        "line 3, `from minllm.model.parameter import Linaer`: ImportError",
    ),
    "annotation": ("rate: float", "rate: Flaot", "NameError: name 'Flaot'"),
    "error": ("import torch\n", "1 / 0\n", "line 1, `1 / 0`: ZeroDivisionError: division by zero"),
    "exit": ("import torch\n", "raise SystemExit(3)\n", "SystemExit: 3"),
}
AT_WORK = {
    "argument": (', stream="writes"', "", "Mine.__init__ fails at .*line 8.*missing .*'stream'"),
    "stream": ('"writes"', '"write"', "reads, writes, within, not 'write'"),
    "attribute": ("dim, stream", "layer.widht, stream", "no attribute 'widht'"),
    "value": (
        "        self.out =",
        "        raise ValueError('rate?')\n        self.out =",
        "ValueError: rate",
    ),
    "shapes": ("(x_BTD)", "(x_BTD @ torch.ones(3, 3))", "model.attn: Mine.forward fails at .*line 10"),
    "context": ("self.out(x_BTD)", "self.out(x_BTD) * ctx.mask", "'Context' object has no attribute 'mask'"),
}


def outcome(package: str, code: str, tmp_path: Path, monkeypatch, capfd) -> tuple[int, str]:
    """Return the exit code and what is printed where a model is described whose mixer is this code."""
    (tmp_path / package / "conf/model/attn").mkdir(parents=True)
    (tmp_path / package / "conf/model/attn/mine.yaml").write_text(
        f"_target_: {package}.mixer.Mine\nrate: 0.1\n"
    )
    (tmp_path / package / "mixer.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = [f"--config-dir={package}/conf", f"extensions=[{package}]", "model/attn=mine"]
    words += ["task=describe", "model.dim=32", "model.n_layers=2", "tokenizer=bytes"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    code = run.main(words)
    return code, capfd.readouterr().err


@pytest.mark.parametrize("kind", [*AT_IMPORT, *AT_WORK])
def test_where_and_why_it_fails_is_one_sentence(kind: str, tmp_path: Path, monkeypatch, capfd):
    old, new, says = (AT_IMPORT | AT_WORK)[kind]
    assert old in MIXER
    code, err = outcome(f"failing_{kind}", MIXER.replace(old, new), tmp_path, monkeypatch, capfd)
    assert code == 2 and err.count("\n") == 1 and f"failing_{kind}/mixer.py, line" in err, err
    assert re.search(says, err), err
    assert ("importing" in err and err.startswith("model.attn._target_=")) == (kind in AT_IMPORT), err


def test_code_that_works_is_described(tmp_path: Path, monkeypatch, capfd):
    code, err = outcome("working_mixer", MIXER, tmp_path, monkeypatch, capfd)
    assert code == 0, err
