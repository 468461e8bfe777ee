"""A mixture of objectives, as in UL2 (2205.05131): each row of a batch is learnt with one of them.

    batch of 8 rows, weights 2 : 1 : 1     r r r r x x s s     which rows, and where numbers are rounded, is drawn

Parts that see different things can't share a pass, so each reads its own rows in a pass of its own. The loss is the sum
over all rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from minllm.data.batches import IGNORED, Batch, Corpus, Rows
from minllm.data.source import Source
from minllm.errors import UserError
from minllm.generation.sampler import Sampling
from minllm.model.lm import LM
from minllm.objective import Bound, Objective
from minllm.objective.noise import Noise
from minllm.schema.options import Kind, NonNegative
from minllm.tokenizer import Tokenizer

Part = Annotated[Callable[[], Objective], Kind("an objective", ("minllm.objective.Objective",))]


@dataclass(frozen=True)
class Mixed(Rows):
    """The inputs of a batch whose rows belong to different parts.

    part_of: the number of the part that each row belongs to
    own: the inputs of each part, in the order of its rows; None if it has no row
    """

    part_of: Sequence[int]
    own: Sequence[Rows | None]

    def rows(self, chosen: slice) -> Mixed:
        before, part_of = self.part_of[: chosen.start or 0], self.part_of[chosen]
        firsts = [before.count(part) for part in range(len(self.own))]
        counts = [part_of.count(part) for part in range(len(self.own))]
        own = [
            inputs.rows(slice(first, first + count)) if count else None
            for inputs, first, count in zip(self.own, firsts, counts)
        ]
        return Mixed(part_of, own)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Mixed:
        return replace(self, own=[None if inputs is None else inputs._changed(change) for inputs in self.own])


class Mixture(Objective):
    """Learn each row with one of several objectives, and evaluate and generate with one of them.

    Special tokens of the same meaning, such as sentinels, are the same for all parts. A part never predicts those of
    others.

    Args:
        of: the parts by name.
        weights: the shares of rows of the parts, relative to each other; 1 where a part has none, and a part with 0 is
            left out.
        evaluate: the part whose evaluation and generation are those of the mixture; None means the first.
        mode_tokens: let documents begin with a token that tells the model the part, in place of <bos>. A single part
            needs none.

    Raises:
        UserError: the parts can't be mixed.
    """

    def __init__(
        self,
        *,
        of: dict[str, Part],
        weights: dict[str, NonNegative],
        evaluate: str | None,
        mode_tokens: bool,
    ):
        refuse_unknown("objective.weights", weights, of)
        self.of = {name: made(name, part) for name, part in of.items() if weights.get(name, 1)}
        if not self.of:
            raise UserError("objective=mixture has no part: set objective.weights.<name> of one above 0.")
        if evaluate is not None:
            refuse_unknown("objective.evaluate", [evaluate], self.of)
        refuse_mixed_memory(self.of)
        refuse_two_vocabularies(self.of)
        self.weights = [weights.get(name, 1) for name in self.of]
        self.evaluated = evaluate or next(iter(self.of))
        self.modes = list(self.of) if mode_tokens and len(self.of) > 1 else []
        self.extra_tokens = place_special_tokens(self.of.values(), len(self.modes))

    # ---- what its parts need and have

    @property
    def attends(self) -> Literal["past", "all", "given", "blocks"]:
        """What attention that serves all parts may see: "given", which only attention can, if two see different things
        ahead."""
        ahead = {part.attends for part in self.of.values()} - {"past"}
        return "given" if len(ahead) > 1 else next(iter(ahead), "past")

    @property
    def gives_memory(self) -> bool:
        return self._evaluated_part.gives_memory

    @property
    def passes_vary(self) -> bool:
        return len(self.of) > 1

    @property
    def bound(self) -> Bound:
        return self._evaluated_part.bound

    @property
    def fills_holes(self) -> bool:
        return self._evaluated_part.fills_holes

    @property
    def predicts_in_order(self) -> bool:
        return self._evaluated_part.predicts_in_order

    @property
    def counts_right(self) -> bool:
        return self._evaluated_part.counts_right

    @property
    def learns_hidden(self) -> bool:
        return all(part.learns_hidden for part in self.of.values())

    @property
    def sampling_options(self) -> tuple[str, ...]:
        return self._evaluated_part.sampling_options

    def check(self, source: Source) -> None:
        for part in self.of.values():
            part.check(source)

    def check_model(self, model: LM) -> None:
        for part in self.of.values():
            part.check_model(model)

    def check_corpus(self, corpus: Corpus) -> None:
        for part in self.of.values():
            part.check_corpus(corpus)

    def parts(self, dim: int, vocab_size: int) -> nn.Module | None:
        for name, part in self.of.items():
            if part.parts(dim, vocab_size) is not None:
                raise UserError(
                    f"objective.of.{name} has parameters of its own, which other parts of a mixture wouldn't train:"
                    f" set objective.weights.{name}=0 and choose another objective."
                )
        return None

    # ---- learning

    def inputs(self, batch: Batch, noise: Noise, model: LM) -> Mixed:
        part_of_all = noise.divided(self.weights)
        part_of = [part_of_all[row] for row in noise.rows]
        own: list[Rows | None] = []
        for number, (name, part) in enumerate(self.of.items()):
            its_rows = [row for row, other in enumerate(part_of_all) if other == number]
            its_noise = noise.of_rows(its_rows)
            its_batch = self._with_mode(rows_of(batch, part_of, number), name, model)
            own.append(part.inputs(its_batch, its_noise, model) if its_noise.rows else None)
        return Mixed(part_of, own)

    @torch.compiler.disable(recursive=False)  # each part is compiled, for few shapes; all together have many
    def loss(self, model: LM, inputs: Mixed) -> Tensor:
        parts = zip(self.of.values(), inputs.own)
        return sum(part.loss(model, own) for part, own in parts if own is not None)

    def counted(self, batch: Batch, inputs: Mixed) -> int:
        parts = enumerate(zip(self.of.values(), inputs.own))
        return sum(
            part.counted(rows_of(batch, inputs.part_of, number), own)
            for number, (part, own) in parts
            if own is not None
        )

    # ---- evaluating and generating

    def nats(self, model: LM, batch: Batch, noise: Noise, right: list[Tensor] | None = None) -> Tensor:
        own = self._with_mode(batch, self.evaluated, model)
        return self._evaluated_part.nats(model, own, noise, *([] if right is None else [right]))

    def predictions(self, model: LM, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._evaluated_part.predictions(model, self._with_mode(batch, self.evaluated, model))

    def generate(
        self,
        model: LM,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        if self.modes:
            tokenizer = copy.copy(tokenizer)
            tokenizer.bos_id = self.mode_id(model, self.evaluated)
        return self._evaluated_part.generate(model, tokenizer, prompts, sampling, stream)

    @property
    def _evaluated_part(self) -> Objective:
        return self.of[self.evaluated]

    # ---- mode tokens

    def mode_id(self, model: LM, name: str) -> int:
        """Return the id of a part's mode token; they are the last ones."""
        return model.vocab_size - len(self.modes) + self.modes.index(name)

    def _with_mode(self, batch: Batch, name: str, model: LM) -> Batch:
        """Return a batch in which documents begin with a part's mode token."""
        if not self.modes:
            return batch
        mode = self.mode_id(model, name)
        is_real_BT = batch.targets_BT != IGNORED  # padding may be the same token as <bos>
        if batch.given_BT is not None:
            is_real_BT = is_real_BT | batch.given_BT
        begins_BT = is_real_BT & (batch.tokens_BT == batch.bos_id)
        return replace(batch, tokens_BT=batch.tokens_BT.masked_fill(begins_BT, mode), bos_id=mode)


def rows_of(batch: Batch, part_of: Sequence[int], number: int) -> Batch:
    """Return the rows of a batch that belong to a part."""
    rows = [row for row, part in enumerate(part_of) if part == number]
    return batch.rows(torch.tensor(rows, dtype=torch.int64))


def place_special_tokens(parts: Iterable[Objective], n_modes: int) -> int:
    """Tell each part where its special tokens are; return how many there are with the mode tokens, which come last.

    Those that are predicted come first, so that the tokens that a part may predict are the first ones of the model.
    """
    by_name: dict[str, list[Objective]] = {}
    for part in sorted(parts, key=lambda part: not part.predicts_special):
        by_name.setdefault(part.special_name or type(part).__qualname__, []).append(part)
    sizes = [max(part.extra_tokens for part in sharing) for sharing in by_name.values()]
    total = sum(sizes) + n_modes
    for number, sharing in enumerate(by_name.values()):
        for part in sharing:
            part.special_before = sum(sizes[:number])
            part.special_after = total - part.special_before - part.extra_tokens
    return total


# ---- what can't be mixed -------------------------------------------------------------------------


def made(name: str, part: Callable[[], Objective]) -> Objective:
    """Return a part of a mixture, if it can be one."""
    try:
        objective = part()
    except UserError as error:  # which names the options as those of the only objective
        raise UserError(str(error).replace("objective.", f"objective.of.{name}.")) from error
    if isinstance(objective, Mixture):
        raise UserError(
            f"objective.of.{name} is a mixture itself: add its parts to objective.of, with their objective.weights."
        )
    if getattr(objective, "predict_ahead", 0):
        raise UserError(
            f"objective.of.{name}.predict_ahead must be 0: the layers that it trains aren't those of a mixture."
        )
    return objective


def refuse_unknown(key: str, names: Iterable[str], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{key} names '{name}', which isn't a part: choose among {', '.join(known)}.")


def refuse_mixed_memory(parts: Mapping[str, Objective]) -> None:
    with_memory = [name for name, part in parts.items() if part.gives_memory]
    without = [name for name, part in parts.items() if not part.gives_memory]
    if with_memory and without:
        raise UserError(
            f"objective.of.{with_memory[0]} needs a model with an encoder, which objective.of.{without[0]} can't use:"
            f" leave one of them out, with objective.weights.{without[0]}=0 or objective.weights.{with_memory[0]}=0."
        )


def refuse_two_vocabularies(parts: Mapping[str, Objective]) -> None:
    """Reject parts that would predict each other's special tokens."""
    predicting = {part.special_name: name for name, part in parts.items() if part.predicts_special}
    if len(predicting) > 1:
        first, second = list(predicting.values())[:2]
        raise UserError(
            f"objective.of.{first} and objective.of.{second} predict different special tokens: leave one of them out,"
            f" with objective.weights.{second}=0."
        )
