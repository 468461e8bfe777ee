"""Find the letters that a size stands for: 96 may be H·K in one tensor and 3·D in another.

The model is traced at its own sizes and as two twins, in which every option with a letter has another value. A size
that is 24, 336 and 720 in the three traces is H·K if H·K has these values in all three, which is very unlikely by
chance. A size that no letters explain, such as the width of a convolution, stays a number.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from minllm.tracing.tree import Node, Value, structure

Sizes = tuple[int, ...]
"""One size in the trace and in each of its twins."""
Values = tuple[int | Fraction, ...]
"""The same for an expression, which may divide."""

MEANING = {
    "B": "batch",
    "T": "tokens",
    "S": "tokens so far",
    "D": "model width",
    "V": "vocabulary",
    "H": "query heads",
    "G": "key/value heads",
    "K": "head width",
    "F": "hidden width",
    "W": "window",
    "E": "experts",
    "N": "recurrent state",
    "P": "learned positions",
}

# option: its letter, and its values in the twins. Heads divide widths, key/value heads divide heads, head widths are
# multiples of 4 and times are multiples of 64, so that modules can split their input evenly.
OPTIONS: dict[str, tuple[str, int, int]] = {
    "n_heads": ("H", 12, 20),
    "n_kv_heads": ("G", 4, 5),
    "head_dim": ("K", 28, 36),
    "hidden": ("F", 136, 184),
    "window": ("W", 16, 48),
    "n_experts": ("E", 6, 10),
    "n_state": ("N", 24, 56),
    "max_len": ("P", 600, 700),
}
EVERYWHERE: dict[str, tuple[str, int, int]] = {
    "dim": ("D", 480, 880),
    "vocab_size": ("V", 1009, 1511),
    "batch": ("B", 3, 7),
    "seq_len": ("T", 192, 320),
}
# what can't always be varied: modules loop over chunks of tokens and over experts, and some need numbers of heads that
# are powers of two
SUSPECTS = (("seq_len",), ("n_experts",), ("n_heads", "n_kv_heads"))
# options whose null means a value that other options imply
IMPLIED = ("head_dim", "hidden")


@dataclass(frozen=True)
class Setup:
    """The input of a trace: a configuration, the sizes that it doesn't contain, and whether one token is decoded."""

    cfg: DictConfig
    vocab_size: int
    batch: int
    decode: bool


@dataclass
class Letters:
    """The letters of one branch, each with its size in the trace and in each twin."""

    of: dict[str, Sizes]
    """Letters of the configuration."""
    named: dict[str, Sizes] = field(default_factory=dict)
    """Letters that occur only in names in the code."""
    solved: dict[Sizes, str] = field(default_factory=dict)

    def adopt(self, named: Collection[tuple[str, Sizes]]) -> None:
        """Add letters that occur only in the code's names, if they have the same size everywhere."""
        for letter in {letter for letter, _ in named if letter.isalpha()} - set(self.of):
            sizes = {sizes for name, sizes in named if name == letter}
            if len(sizes) == 1:
                self.named[letter] = sizes.pop()

    def spell(self, sizes: Sizes, named: str, given: Collection[tuple[Sizes, str]]) -> str:
        """Return a size in letters, or "" if no letters match.

        Args:
            sizes: the size in the trace and its twins.
            named: its letter in the code's name, if any, which takes precedence if several letters match.
            given: sizes of the inputs with their letters, which take precedence next.
        """
        if self.of.get(named) == sizes:
            return named
        if len(set(sizes)) > 1:
            before = {text for own, text in given if own == sizes}
            if len(before) == 1 and (text := before.pop()):
                return text
            if sizes not in self.solved:
                found = expressions(self.varied, self.products, sizes)
                self.solved[sizes] = next((text for text, own in found if own == sizes), "")
            if self.solved[sizes]:
                return self.solved[sizes]
        return named if self.named.get(named) == sizes else ""

    @cached_property
    def varied(self) -> dict[str, Sizes]:
        return {letter: own for letter, own in self.of.items() if len(set(own)) > 1}

    @cached_property
    def products(self) -> list[tuple[str, Values]]:
        return sorted(monomials(self.varied), key=lambda product: len(product[0]))


def expressions(
    letters: Mapping[str, Sizes], products: Sequence[tuple[str, Values]], sizes: Sizes
) -> Iterator[tuple[str, Values]]:
    """Yield candidate expressions for a size, simplest first: T, H·K, H·T/G, 2F, K/2, (H+2G)·K, T+3.

    Multiples and fractions of products are only yielded if they have this size.

    Args:
        products: products of the letters, the shortest first.
    """
    yield from products
    for text, own in products:
        if any(size * own[0] != sizes[0] * x for size, x in zip(sizes, own)):
            continue
        ratio = Fraction(sizes[0]) / own[0]
        if ratio.denominator == 1:
            yield f"{ratio}{'·' * ('/' in text)}{text}", sizes
        elif ratio.numerator == 1 and "/" not in text:
            yield f"{text}/{ratio.denominator}", sizes
    for (first, x), (second, y) in itertools.combinations(letters.items(), 2):
        for a, b in itertools.product((1, 2, 3, 4), repeat=2):
            text = f"{'' if a == 1 else a}{first}+{'' if b == 1 else b}{second}"
            total = tuple(a * p + b * q for p, q in zip(x, y))
            yield text, total
            for factor, z in letters.items():
                yield f"({text})·{factor}", tuple(p * q for p, q in zip(total, z))
    for text, own in products:
        more = sizes[0] - own[0]
        if more.denominator == 1 and abs(more) < 64:
            yield f"{text}{int(more):+d}", tuple(x + more for x in own)


def monomials(letters: Mapping[str, Sizes]) -> Iterator[tuple[str, Values]]:
    """Yield products of up to three letters, also divided by another letter."""
    for count in (1, 2, 3):
        for factors in itertools.combinations_with_replacement(letters, count):
            product = [1] * len(next(iter(letters.values())))
            for letter in factors:
                product = [p * x for p, x in zip(product, letters[letter])]
            yield "·".join(factors), tuple(product)
            for letter in letters if count < 3 else ():
                if letter not in factors:
                    divided = tuple(Fraction(p, x) for p, x in zip(product, letters[letter]))
                    yield f"{'·'.join(factors)}/{letter}", divided


def twin(setup: Setup, which: int, varied: Collection[str]) -> Setup:
    """Return the setup with every option of `varied` at its value in twin 0 or 1."""
    cfg = copy.deepcopy(setup.cfg)
    OmegaConf.set_readonly(cfg, False)
    everywhere = {name: size[which] for name, (_, *size) in EVERYWHERE.items() if name in varied}
    cfg.model.dim = everywhere.get("dim", cfg.model.dim)
    cfg.data.seq_len = everywhere.get("seq_len", cfg.data.seq_len)
    counts: dict[str, list[int]] = {}
    for node in nodes(cfg.model):
        size = {name: node[name] for name in node if name in OPTIONS and name in varied}
        tied = size.get("n_heads") == size.get("n_kv_heads")
        for name, before in size.items():
            if before is None and name not in IMPLIED:
                continue
            # branches with different widths keep different widths in the twins
            others = counts.setdefault(name, [])
            others += [before] if before not in others else []
            times = 1 if name == "n_kv_heads" else 1 + others.index(before)
            node[name] = OPTIONS[name][1 + which] * times
        if tied and size.get("n_kv_heads"):
            node.n_kv_heads = node.n_heads
    return Setup(
        cfg,
        everywhere.get("vocab_size", setup.vocab_size),
        everywhere.get("batch", setup.batch),
        setup.decode,
    )


def letters_of(setup: Setup) -> dict[str, dict[str, int | None]]:
    """Return each branch's letters ("" is the model itself); None is a size that the module computes itself."""
    model, time = OmegaConf.to_container(setup.cfg.model, resolve=True), setup.cfg.data.seq_len
    shared = {
        "B": setup.batch,
        "T": 1 if setup.decode else time,
        "S": time,
        "D": model["dim"],
        "V": setup.vocab_size,
    }
    by_branch: dict[str, dict[str, int | None]] = {"": shared}
    for branch in model:
        if isinstance(model[branch], Mapping):
            own: dict[str, int | None] = {}
            for node in nodes(model[branch]):
                for name, (letter, *_) in OPTIONS.items():
                    if name in node and (node[name] is not None or name in IMPLIED):
                        own.setdefault(letter, node[name])
                if "n_kv_heads" in node and node["n_kv_heads"] is None:
                    own.setdefault("G", node.get("n_heads"))
            by_branch[branch] = {**shared, **own}
    by_branch[""] = {**by_branch.get("pos", {}), **shared}
    return by_branch


def sizes_by_letter(known: list[dict[str, int | None]], seen: Collection[Sizes]) -> dict[str, Sizes]:
    """Return a branch's letters, each with its size in the trace and its twins.

    If the module computes a size itself, it is the only size in `seen` with the letter's values in the twins.
    """
    result: dict[str, Sizes] = {}
    for letter in known[0]:
        own, *others = (letters[letter] for letters in known)
        own_sizes = {own} if own is not None else {sizes[0] for sizes in seen if [*sizes[1:]] == others}
        sizes = tuple(size for size in (*own_sizes, *others) if size is not None)
        if len(own_sizes) == 1 and len(sizes) == len(known):
            result[letter] = sizes
    return result


def nodes(node: Any) -> Iterator[Any]:
    """Yield a part of the configuration, as a DictConfig or a dictionary, and all parts inside it."""
    yield node
    for inner in node.values():
        if isinstance(inner, Mapping):
            yield from nodes(inner)


def find_twins(setup: Setup, root: Node, trace: Callable[[Setup], Node]) -> list[tuple[Setup, Node]]:
    """Return two setups with the same steps as `setup` at other sizes, and their traces."""

    def traced(which: int, varied: Collection[str]) -> tuple[Setup, Node] | None:
        setup_of_twin = twin(setup, which, varied)
        try:
            tree = trace(setup_of_twin)
        except Exception:  # a module, possibly from outside, rejects these sizes
            return None
        return (setup_of_twin, tree) if structure(tree) == structure(root) else None

    def vary_most(which: int, wanted: list[str]) -> tuple[list[str], tuple[Setup, Node]]:
        if found := traced(which, wanted):
            return wanted, found
        # some option can't be varied freely: keep it, and vary the others
        varied: list[str] = []
        found = setup, root
        waiting = apart(wanted)
        while waiting:
            names = waiting.pop(0)
            if more := traced(which, [*varied, *names]):
                varied, found = [*varied, *names], more
            elif len(names) > 1:
                waiting = [*halves(names), *waiting]
        return varied, found

    present = {name for node in nodes(setup.cfg.model) for name in node}
    varied, first = vary_most(0, [*EVERYWHERE, *(name for name in OPTIONS if name in present)])
    _, second = vary_most(1, varied)
    return [first, second]


def apart(names: Sequence[str]) -> list[Sequence[str]]:
    """Return the options without those that modules loop over or restrict, then each of these."""
    suspects = [[name for name in names if name in suspect] for suspect in SUSPECTS]
    return [[name for name in names if name not in itertools.chain(*SUSPECTS)], *filter(None, suspects)]


def halves(names: Sequence[str]) -> list[Sequence[str]]:
    middle = len(names) // 2
    return [names[:middle], names[middle:]]


def assign_letters(setup: Setup, root: Node, trace: Callable[[Setup], Node]) -> dict[str, dict[str, int]]:
    """Set the letters of every tensor in a trace; return the letters and sizes of each branch.

    Args:
        setup: the input of the trace.
        root: its trace.
        trace: traces another setup in the same way.
    """
    twins = find_twins(setup, root, trace)
    same = zip(*([value for _, value, _ in values(tree)] for tree in (root, *(tree for _, tree in twins))))
    sizes_of = {value: list(zip(value.sizes, *(other.sizes for other in others))) for value, *others in same}
    known = [letters_of(each) for each in (setup, *(setup_of_twin for setup_of_twin, _ in twins))]
    letters = {}
    for branch in known[0]:
        own = [value for owner, value, _ in values(root) if owner == branch]
        seen = {sizes for value in own for sizes in sizes_of[value]}
        letters[branch] = Letters(sizes_by_letter([by_branch[branch] for by_branch in known], seen))
        letters[branch].adopt([pair for value in own for pair in zip(value.name_letters, sizes_of[value])])
    for branch, value, given in values(root):
        alike = [source.letters for source in given if sizes_of[source] == sizes_of[value]]
        if value.letters:
            continue
        elif alike and not value.name_letters:
            value.letters = alike[0]
        else:
            spelled = {pair for source in given for pair in zip(sizes_of[source], source.letters)}
            names = value.name_letters or " " * len(value.sizes)
            value.letters = tuple(
                letters[branch].spell(sizes, name, spelled) for sizes, name in zip(sizes_of[value], names)
            )
    present = {"", *(branch for branch, _, _ in values(root))}
    return {
        branch: {letter: sizes[0] for letter, sizes in {**own.named, **own.of}.items()}
        for branch, own in letters.items()
        if branch in present
    }


def values(node: Node) -> Iterator[tuple[str, Value, list[Value]]]:
    """Yield every tensor of a trace with its branch and the tensors that it was made from."""
    for arg in node.args:
        yield node.branch, arg.value, []
    for part in node.inside:
        if isinstance(part, Node):
            yield from values(part)
            continue
        given = list(part.given())
        yield from ((node.branch, value, []) for value in given)
        yield from ((node.branch, value, given) for value in part.outputs)
