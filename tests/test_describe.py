"""What a model is and costs, in a table."""

from __future__ import annotations

import re

import pytest

from minllm.config.compose import compose
from minllm.errors import UserError
from minllm.tasks.describe import column, describe, table


def test_two_models_stand_side_by_side(capsys):
    cfg = compose(["task=describe", "tokenizer=bytes"])
    describe(cfg, None, against="model/attn=mqa norm=post tokenizer=bytes")
    out = capsys.readouterr().out
    assert re.search(r"· model/attn +gqa +mqa", out) and re.search(r"· norm +pre +post", out)
    assert re.search(r"  model/pos +rope +rope", out)


def test_what_cannot_generate_says_so():
    assert "can't generate" in "\n".join(table([column(compose(["model/mlp=moe_expert_choice"]))]))


@pytest.mark.parametrize("line", ["model/attn='", "model/attn=mqx"])
def test_a_mistake_in_the_other_command_line_is_a_sentence(line):
    with pytest.raises(UserError):
        describe(compose(["task=describe"]), None, against=line)
