"""The laws that every model must obey for its metrics to be valid, checked on the model as configured.

    repeatable          evaluating a text again gives the same outputs
    rows apart          a text gives the same outputs alone and in a batch of any size
    no look-ahead       changing a token changes no output at an earlier token, in evaluation and in training
    documents apart     documents packed in a row give the same outputs as alone, and padding has no effect
    decoding            a prompt followed by one token at a time gives the same outputs as the whole text at once
    gradients           every parameter has a gradient
    objective           evaluation returns the summed cross-entropy of the next tokens

A model that reads the next token could reach any loss, so a model that breaks a law is rejected before training. The
laws are checked on a specimen of the model (see `minllm.laws.specimen`), on the CPU and in fp32, whatever the run uses.
The model's weights and torch's random state are unchanged.

Two passes are compared part by part, in the order in which the parts are computed. The first part whose outputs differ
although everything before it is equal breaks the law.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from minllm.data.batches import IGNORED, Batch
from minllm.errors import UserError
from minllm.laws.passes import Pass, first_difference, first_not_finite, joined, recorded
from minllm.laws.specimen import STRENGTHS, VOCABULARY, randomise, specimen
from minllm.model.build import try_out
from minllm.model.context import PAD
from minllm.model.contract import refuse_plain_parameters
from minllm.model.lm import LM, ModelState
from minllm.objective import Objective
from minllm.objective.noise import Noise
from minllm.schema.building import build

LENGTH = 37  # a prime, so that chunks don't end where a document or a change does
LONG = 149  # for modules that compute longer texts differently
WORK = 1e9
"""Maximum of parameters times tokens of the longest text: at most about a second."""
ROWS = 3
MANY = 9
"""Rows of a larger batch."""
DOCUMENTS = (13, 1, 16)
"""The lengths of the documents in a packed row; the rest is padding."""
SEEDS = (0, 1, 2)
"""Seeds of weights and tokens. It takes two failures to break a law: rounding may change one token's expert."""

EXACT, ROUNDED, DECODED = 1e-5, 1e-4, 1e-3
"""Relative tolerances for rounding: between passes of the same shape, which differ at most in the rows of experts;
between passes of different lengths; and between decoding and a whole text."""

UNCHECKED = "Unchecked: this model may look ahead (train.check=false)."
TURN_OFF = " To train it without this check, add train.check=false."


MIXES_ROWS = (
    "the outputs of a text depend on the other texts in its batch. Each row must be computed independently."
)


class BrokenLaw(UserError):
    """A model breaks a law, so its metrics may be wrong."""


def check_laws(cfg: DictConfig) -> str:
    """Check the model of a validated configuration; return a message for the log that lists the laws checked.

    Raises:
        BrokenLaw: the model breaks a law.
        UserError: the model can't be built.
    """
    began = time.perf_counter()
    # external modules may draw random numbers in their constructors
    with torch.random.fork_rng(devices=[]):
        model, objective = specimen(cfg), build(cfg.objective)
        check_specimen(model, cfg.data.seq_len, objective)
    names = [name for name, law in LAWS.items() if holds_for(model, law, objective)]
    share = f", in {len(model.layers)} of {cfg.model.n_layers} layers" * (
        len(model.layers) < cfg.model.n_layers
    )
    declared = " It is declared to look ahead." * bool(model.cannot_generate)
    return f"Checked{share}: {', '.join(names)}; {time.perf_counter() - began:.1f} s.{declared}"


def check_specimen(model: LM, seq_len: int, objective: Objective) -> None:
    """Raise BrokenLaw if a model breaks a law with texts of up to `seq_len` tokens. Overwrites its weights."""
    refuse_plain_parameters(model)
    randomise(model, 0, strength=0.0)
    try_out(model)
    broken = {
        name: violation
        for name, violation in violations(model, seq_len, objective, SEEDS[0]).items()
        if violation
    }
    for seed in SEEDS[1:] if broken else ():
        again = violations(model, seq_len, objective, seed, only=broken)
        for violation in filter(None, again.values()):
            raise BrokenLaw(violation + TURN_OFF)


def violations(
    model: LM, seq_len: int, objective: Objective, seed: int, only: Collection[str] | None = None
) -> dict[str, str | None]:
    """Return an error message for each law; None if it holds with this seed's weights and tokens."""
    texts = Texts(model, seq_len, objective, seed)
    return {
        name: law(model, texts)
        for name, law in LAWS.items()
        if holds_for(model, law, objective) and (only is None or name in only)
    }


def holds_for(model: LM, law: Law, objective: Objective) -> bool:
    if law is next_tokens:
        # the objective computes the memory from data, which a specimen doesn't have
        return objective.attends == "past" and not model.reads_memory
    return not (model.cannot_generate and law is decoding)


# ---- the laws ------------------------------------------------------------------------------------


def repeatable(model: LM, texts: Texts) -> str | None:
    difference = first_difference(texts.whole, texts.read(texts.tokens_BT, torch_seed=1), None, EXACT)
    if difference:
        return (
            f"{difference} gives other outputs for the same text the second time, in evaluation mode: draw random"
            " numbers only if self.training is true, and keep nothing between passes except in the state."
        )
    return None


def rows_apart(model: LM, texts: Texts) -> str | None:
    alone = texts.read(texts.tokens_BT[:1])
    difference = first_difference(texts.whole, alone, None, ROUNDED, rows=slice(0, 1))
    difference = difference or first_difference(
        alone, texts.read(texts.many_BT), None, ROUNDED, rows=slice(0, 1)
    )
    return f"{difference} mixes rows: {MIXES_ROWS}" if difference else None


def no_look_ahead(model: LM, texts: Texts) -> str | None:
    short = _no_look_ahead(texts, texts.tokens_BT, texts.whole)
    return short or _no_look_ahead(texts, texts.long_BT, texts.read(texts.long_BT))


def no_look_ahead_in_training(model: LM, texts: Texts) -> str | None:
    """Gates that are initially closed, such as sigmoid(-12), are opened first, because training may open them."""
    for gates_open in (True, False):
        randomise(model, texts.seed, texts.strength, gates_open=gates_open)
        before = texts.read(texts.tokens_BT, training=True)
        if before.is_sound:
            break
    violation = _no_look_ahead(texts, texts.tokens_BT, before, training=True)
    return f"In training, {violation}" if violation else None


def _no_look_ahead(texts: Texts, tokens_BT: Tensor, before: Pass, training: bool = False) -> str | None:
    """Compare with texts that differ from some token on; row 0 is unchanged."""
    if difference := first_not_finite(before):
        return f"{difference} returns NaN or infinity in a text of {tokens_BT.shape[1]} tokens."
    T, changed_BT, same_BT = (
        tokens_BT.shape[1],
        tokens_BT.clone(),
        torch.ones_like(tokens_BT, dtype=torch.bool),
    )
    for row, place in list(enumerate((T, T // 2 + 1, T // 4 + 1)))[: len(tokens_BT)]:
        changed_BT[row, place:] = (tokens_BT[row, place:] + 1 + row) % VOCABULARY
        same_BT[row, place:] = False
    changed = texts.read(changed_BT, training=training)
    difference = first_difference(before, changed, same_BT[:1], EXACT, rows=slice(0, 1))
    if difference:
        return f"{difference} mixes rows: {MIXES_ROWS}"
    difference = first_difference(before, changed, same_BT, EXACT, spared=declares)
    if difference:
        return (
            f"{difference} looks ahead: changing a token changes its output at earlier tokens, so it would see the"
            " tokens that it has to predict. The output at a token may depend only on that token and earlier ones."
        )
    return None


def documents_apart(model: LM, texts: Texts) -> str | None:
    ends = list(itertools.accumulate(texts.documents))
    tokens_BT, segments_BT = texts.tokens_BT[:2], torch.full((2, texts.length), PAD)
    places = list(zip([0, *ends], ends))
    for segment, (start, stop) in enumerate(places):
        segments_BT[:, start:stop] = segment
    packed = texts.read(tokens_BT, segments_BT)
    for start, stop in places:
        alone = texts.read(tokens_BT[:, start:stop])
        difference = first_difference(alone, packed.at(start, stop), None, ROUNDED)
        if difference:
            return (
                f"{difference} doesn't keep the documents of a row apart: a document packed with another one gets other"
                " outputs than alone. A token may see only its own segment (ctx.segments_BT, ctx.positions_BT,"
                " ctx.begins())."
            )
    end = ends[-1]
    repadded_BT = tokens_BT.clone()
    repadded_BT[:, end:] = (tokens_BT[:, end:] + 1) % VOCABULARY
    difference = first_difference(
        packed.at(0, end), texts.read(repadded_BT, segments_BT).at(0, end), None, EXACT
    )
    if difference:
        return f"{difference} reads padding: changing its tokens changes the outputs. No token may see segment {PAD}."
    return None


def decoding(model: LM, texts: Texts) -> str | None:
    T = min(18, texts.length)
    prompt = max(1, T // 2)
    ends = [end for end in (prompt, prompt + 3, *range(prompt + 4, T + 1)) if end <= T]
    decoded = texts.decode(texts.tokens_BT[:, : ends[-1]], ends)
    difference = first_difference(texts.whole.at(0, ends[-1]), decoded, None, DECODED)
    if difference:
        return (
            f"{difference} doesn't decode as it trains: a text that is read one token at a time, with a state, gets"
            f" other outputs than one read at once. {_cure(difference.part)}"
        )
    pads, ends = T // 4, [end for end in range(prompt, prompt + 4) if end <= T]
    segments_BT = torch.zeros_like(texts.tokens_BT[:2, :T])
    segments_BT[1, :pads] = PAD
    together = texts.decode(texts.tokens_BT[:2, : ends[-1]], ends, segments_BT[:, : ends[-1]])
    alone = texts.read(texts.tokens_BT[:2, pads : ends[-1]])
    difference = first_difference(alone, together.at(pads, ends[-1]), None, DECODED, rows=slice(1, 2))
    if difference:
        return (
            f"{difference} reads padding in decoding: a prompt padded on the left, in a batch with a longer one, gets"
            f" other outputs than alone. {_cure(difference.part)}"
        )
    return None


def gradients(model: LM, texts: Texts) -> str | None:
    """Every trained parameter needs a gradient, which may be zero for an expert that no token chose."""
    model.train()
    ahead: list[Tensor] = []
    losses: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # of dropout; only the CPU's, which is restored
        x_BTD = model.hidden(texts.tokens_BT, memory_BSD=texts.memory(3), losses=losses, ahead=ahead)
        outputs = [model.logits(x) for x in (x_BTD, *ahead)]
        weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(0))
        total = sum((weights * logits).mean() for logits in outputs) + sum(losses)
        total.backward()
    without = [
        path
        for path, param in model.named_parameters()
        if param.requires_grad and (param.grad is None or (param.role.active == 1 and not param.grad.any()))
    ]
    model.zero_grad(set_to_none=True)
    model.eval()
    if not without:
        return None
    more = f" (and {len(without) - 1} others)" if len(without) > 1 else ""
    return (
        f"{_owner(model, without[0])} has a parameter that no gradient reaches, so it would never be trained:"
        f" {without[0]}{more}. Use it in forward, without detach() or no_grad(), or remove it."
    )


def next_tokens(model: LM, texts: Texts) -> str | None:
    """Objectives may train with any loss, but evaluation must always return the same metric."""
    tokens_BT, targets_BT = texts.tokens_BT[:, :-1], texts.tokens_BT[:, 1:].clone()
    targets_BT[0, : texts.length // 3], targets_BT[1, -3:] = IGNORED, IGNORED
    with torch.no_grad():
        noise = Noise(texts.seed, "law", range(len(tokens_BT)), len(tokens_BT))
        # without <bos>, which a mixture replaces by a token that names the part
        batch = Batch(tokens_BT, targets_BT, None, bos_id=-1)
        evaluated_B = texts.objective.nats(model, batch, noise)
        # called as the objective calls it, so that padding is treated in the same way
        x_BTD = model.hidden(tokens_BT, counted_BT=targets_BT != IGNORED)
        nats = F.cross_entropy(
            model.logits(x_BTD)[..., : texts.objective.text_size(model)].flatten(0, 1).double(),
            targets_BT.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        nats_B = nats.view(targets_BT.shape).sum(1)
    if not isinstance(evaluated_B, Tensor) or evaluated_B.shape != nats_B.shape:
        return f"objective ({type(texts.objective).__name__}): nats must return a number for each row."
    if torch.allclose(evaluated_B.double(), nats_B, rtol=EXACT * 100, atol=EXACT):
        return None
    return (
        f"objective ({type(texts.objective).__name__}) evaluates to {evaluated_B.sum():.4f} nats, but the cross-entropy"
        f" of the next tokens is {nats_B.sum():.4f}, so val_bpb wouldn't be comparable with other runs: nats must"
        " return the summed cross-entropy of the model's logits over the counted targets of each row."
    )


Law = Callable[[LM, "Texts"], str | None]
LAWS: dict[str, Law] = {
    "repeatable": repeatable,
    "rows apart": rows_apart,
    "no look-ahead": no_look_ahead,
    "documents apart": documents_apart,
    "decoding as in training": decoding,
    "a gradient for each parameter": gradients,
    "the cost of the next tokens": next_tokens,
    "no look-ahead in training": no_look_ahead_in_training,
}


# ---- inputs of the laws --------------------------------------------------------------------------


class Texts:
    """Random tokens, and passes of a model with random weights over them."""

    def __init__(self, model: LM, seq_len: int, objective: Objective, seed: int):
        self.model, self.objective, self.seed = model.eval(), objective, seed
        # modules needn't support texts longer than those trained on
        affordable = max(LONG, int(WORK / sum(param.numel() for param in model.parameters())))
        longest = max(2, min(seq_len, model.position.max_positions or affordable, affordable))
        self.length = min(LENGTH, longest)
        scale = self.length / LENGTH
        self.documents = [max(1, math.floor(n * scale)) for n in DOCUMENTS][: self.length]
        generator = torch.Generator().manual_seed(seed)
        self.many_BT = torch.randint(0, VOCABULARY, (MANY, self.length), generator=generator)
        self.tokens_BT = self.many_BT[:ROWS]
        self.long_BT = torch.randint(0, VOCABULARY, (ROWS - 1, longest), generator=generator)
        self.memory_1SD = torch.randn(1, 5, model.dim, generator=generator) if model.reads_memory else None
        self.source_1S = self.many_BT[:1, :5]
        for self.strength in STRENGTHS:
            randomise(model, seed, self.strength)
            self.whole = self.read(self.tokens_BT)
            if self.whole.is_sound:
                break

    def read(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None = None,
        state: ModelState | None = None,
        torch_seed: int = 0,
        training: bool = False,
    ) -> Pass:
        memory_BSD = self.memory(len(tokens_BT))
        with torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(torch_seed)  # of dropout; only the CPU's, which is restored
            self.model.train(training)
            try:
                return recorded(self.model, tokens_BT, segments_BT, state, memory_BSD)
            finally:
                self.model.eval()

    def decode(self, tokens_BT: Tensor, ends: Sequence[int], segments_BT: Tensor | None = None) -> Pass:
        """Read tokens in pieces with a state: up to each of `ends`."""
        state = self.model.init_state(len(tokens_BT), tokens_BT.shape[1])
        passes = []
        for start, end in zip([0, *ends], ends):
            # tokens without segments continue the last segment
            segments = segments_BT[:, start:end] if segments_BT is not None and start == 0 else None
            passes.append(self.read(tokens_BT[:, start:end], segments, state))
        return joined(passes)

    def memory(self, rows: int) -> Tensor | None:
        if self.memory_1SD is None:
            return None
        # encoded anew each time, so that gradients reach the encoder
        memory_1SD = self.memory_1SD if self.model.encoder is None else self.model.encode(self.source_1S)
        return memory_1SD.expand(rows, -1, -1)


def declares(part: torch.nn.Module | None) -> bool:
    """Whether a part is declared to look ahead."""
    return part is not None and any(getattr(module, "looks_ahead", None) for module in part.modules())


def _cure(part: torch.nn.Module | None) -> str:
    if part is not None and not hasattr(part, "init_state"):
        return (
            "It has no state: a module that mixes tokens needs forward(self, x_BTD, ctx, state=None) and"
            " init_state(self, batch, max_len, *, device, dtype)."
        )
    return "Its forward must use the earlier tokens in the state, and add the new tokens to it."


def _owner(model: LM, path: str) -> str:
    """Return the name of the part that has a parameter."""
    owners = [
        f"{part.stands_as} ({type(part).__name__})"
        for name, part in model.named_modules()
        if "stands_as" in vars(part) and path.startswith(f"{name}.")
    ]
    return owners[0] if owners else "The model"
