"""Generation: what a prompt gets, alone and in company."""

from __future__ import annotations

import pytest
import torch

from minllm.errors import UserError
from minllm.generation.generate import generate
from minllm.generation.sampler import Sampling
from minllm.tokenizer import Tokenizer
from tests.tiny import tiny_model

PROMPTS = ["", "b", "a longer prompt of several words"]


class Letters(Tokenizer):
    """A tokenizer of the 61 characters from space on; 60 ends the text."""

    vocab_size = 61
    bos_id = eos_id = pad_id = 60
    table = [chr(number + 32).encode() for number in range(61)]

    def encode_texts(self, texts):
        return [[min(ord(c) - 32, 59) % 60 for c in text] for text in texts]


def sampling(**changed):
    usual = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0, "max_new_tokens": 8, "seed": 0}
    return Sampling(**{**usual, **changed})


@pytest.mark.parametrize("choice", ["model/attn=gqa", "model/pos=none", "norm=post"])
def test_a_batch_gives_each_prompt_what_it_gets_alone(choice):
    model = tiny_model(choice, randomised=True)
    together = generate(model, Letters(), PROMPTS, max_new_tokens=40, seed=3)
    alone = [generate(model, Letters(), [prompt], max_new_tokens=40, seed=3)[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) == len(PROMPTS)
    assert together != generate(model, Letters(), PROMPTS, max_new_tokens=40, seed=4)


def test_it_stops_at_the_end_of_the_text():
    model, tokenizer = tiny_model(randomised=True), Letters()
    long = generate(model, tokenizer, PROMPTS, max_new_tokens=60, temperature=0.0)
    tokenizer.eos_id = ord(long[1][5]) - 32
    # prompts begin with the end-of-text token, so ends are looked for in what this tokenizer writes
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=60, temperature=0.0)
    assert all(chr(tokenizer.eos_id + 32) not in text for text in texts)
    assert any(len(text) < 60 for text in texts)


def test_the_stream_is_the_text():
    model, pieces = tiny_model(randomised=True), []
    (text,) = generate(model, Letters(), ["Once"], max_new_tokens=20, stream=pieces.append)
    assert "".join(pieces) == text and len(pieces) == len(text) > 1
    with pytest.raises(ValueError, match="one prompt"):
        generate(model, Letters(), PROMPTS, stream=pieces.append)


def test_the_model_goes_back_to_training():
    model = tiny_model().train()
    generate(model, Letters(), ["a"], max_new_tokens=2)
    assert model.training


LOGITS = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.2, 0.2, 0.1]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.34, 0.04 / 0.34, 0.04 / 0.34, 0.01 / 0.34]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 3}, [5 / 9, 2 / 9, 2 / 9, 0]),
        ({"top_k": 100}, [0.5, 0.2, 0.2, 0.1]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.85}, [5 / 9, 2 / 9, 2 / 9, 0]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        ({"min_p": 0.3}, [5 / 9, 2 / 9, 2 / 9, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
    ],
)
def test_what_the_next_token_is_drawn_from(options, expected):
    torch.testing.assert_close(
        sampling(**options).probabilities(LOGITS), torch.tensor([expected], dtype=torch.float32)
    )


def test_draws_follow_the_probabilities():
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = sampling().draw(LOGITS.expand(1000, 4), uniforms)
    assert torch.bincount(drawn, minlength=4).tolist() == [500, 200, 200, 100]
    # tokens that are ruled out never come, not even for the last uniform number below 1
    edge = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sampling(top_k=1).draw(LOGITS, edge).item() == 0


def test_learned_places_end_the_text_and_refuse_a_longer_prompt():
    model = tiny_model("model/pos=learned", randomised=True)
    (text,) = generate(model, Letters(), ["abc"], max_new_tokens=100, seed=1)
    assert 0 < len(text) <= model.position.max_positions - 3
    with pytest.raises(UserError, match="max_len"):
        generate(model, Letters(), ["x" * 30])


def test_learned_places_end_each_row_of_a_batch_where_they_end_it_alone():
    model = tiny_model("model/pos=learned", randomised=True)
    prompts = ["abcdefgh", "a", ""]
    together = generate(model, Letters(), prompts, max_new_tokens=100, seed=3)
    assert together == [generate(model, Letters(), [one], max_new_tokens=100, seed=3)[0] for one in prompts]
    assert len(set(map(len, together))) > 1


def test_a_stream_ends_with_what_is_left_of_a_character():
    class Halves(Letters):
        def token_bytes(self, token):
            return "é".encode()[:1]

        def decode(self, ids):
            return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    pieces = []
    (text,) = generate(tiny_model(randomised=True), Halves(), ["a"], max_new_tokens=3, stream=pieces.append)
    assert "".join(pieces) == text != ""


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 2.0}, {"top_k": 0}, {"max_new_tokens": -1}, {"seed": 0.5}]
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match=f"sample.{next(iter(options))} must be"):
        generate(tiny_model(), Letters(), ["a"], **options)
    with pytest.raises(UserError, match="list of texts"):
        generate(tiny_model(), Letters(), "a")
