"""`task=coordcheck`: whether hyper-parameters of a model transfer to other widths and depths.

python run.py task=coordcheck model.transfer=mup
python run.py task=coordcheck model.transfer=completep 'depths=[4,8,16,32]' widths=null
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from minllm.data.batches import open_data
from minllm.errors import UserError
from minllm.model.build import build_shapes
from minllm.page.html import document, escape, figure_html, table
from minllm.page.markdown import fit_to_width
from minllm.page.units import finite
from minllm.runs.folder import to_json, write_text
from minllm.schema.building import build
from minllm.schema.checking import validate
from minllm.schema.options import Count, NonNegative, reads
from minllm.training.coordinates import Coordinates, coordinates, slope

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

AXES = {"model.dim": "width", "model.n_layers": "depth"}
LEAST_SIZES = 3


@dataclass(frozen=True)
class Line:
    """One activation at several sizes: its root mean square at first, and that of its change in training."""

    activation: str
    initial: list[float]
    change: list[float]
    initial_slope: float
    slope: float
    """Of the logarithm of the change against that of the size."""
    is_flat: bool


@dataclass(frozen=True)
class Check:
    key: str
    sizes: list[int]
    lines: list[Line]

    @property
    def is_flat(self) -> bool:
        return all(line.is_flat for line in self.lines)


@reads("model", "norm", "objective", "tokenizer", "data", "optim", "train.batch_size", "train.clip", "seed")
def coordcheck(
    cfg: DictConfig,
    run_dir: Path,
    *,
    widths: list[Count] | None,
    depths: list[Count] | None,
    steps: Count,
    seeds: Count,
    tolerance: NonNegative,
) -> dict[str, Any]:
    """Train models of several sizes for a few steps; print, write and return how their activations grow.

    An activation is flat if the slope of its change is within `tolerance`. Logits may shrink, because those of a random
    head do in the rules of µP.

    Args:
        cfg: the composed configuration; its learning rate is that of the base shape.
        run_dir: where coordcheck.json and coordcheck.html are written.
        widths: values of model.dim, or null.
        depths: values of model.n_layers, or null.
        steps: training steps, at a constant learning rate, without a warm-up.
        seeds: seeds to average over.
        tolerance: largest slope that counts as flat.

    Raises:
        UserError: there are too few sizes, or a model can't be built at one.
    """
    asked = {"model.dim": widths, "model.n_layers": depths}
    for key, sizes in asked.items():
        if sizes is not None and len(set(sizes)) < LEAST_SIZES:
            raise UserError(
                f"{AXES[key]}s={sizes} are too few for a slope: give {LEAST_SIZES} different ones or more."
            )
    if not any(asked.values()):
        raise UserError("There is nothing to check: give widths, such as 'widths=[64,128,256]', or depths.")
    checks = [
        checked(cfg, key, sorted(set(sizes)), steps, seeds, tolerance)
        for key, sizes in asked.items()
        if sizes
    ]
    found = {"transfer": cfg.model.transfer, "checks": [as_dict(check) for check in checks]}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "coordcheck.json", to_json(found))
    write_text(run_dir / "coordcheck.html", page(cfg, checks))
    for check in checks:
        print("\n".join([*rows(check), "", sentence(cfg, check), ""]))
    print(f"The figure is {run_dir / 'coordcheck.html'}")
    return found


def checked(
    cfg: DictConfig, key: str, sizes: Sequence[int], steps: int, seeds: int, tolerance: float
) -> Check:
    tokenizer, source = build(cfg.tokenizer), build(cfg.data)
    at_size = {size: resized(cfg, key, size, tokenizer.vocab_size) for size in sizes}
    data = open_data(source, tokenizer)
    measured: dict[int, list[dict[str, Coordinates]]] = {size: [] for size in sizes}
    runs = list(itertools.product(sizes, range(seeds)))
    for size, seed in tqdm(runs, AXES[key], leave=False, disable=None):
        at_size[size].seed = cfg.seed + seed
        batches = data.train(cfg.train.batch_size, cfg.seed)
        measured[size].append(coordinates(at_size[size], tokenizer, batches, steps))
    return Check(key, list(sizes), [line(name, measured, tolerance) for name in measured[sizes[0]][0]])


def resized(cfg: DictConfig, key: str, size: int, vocab_size: int) -> DictConfig:
    """Return the configuration at a size. Raises UserError if no model can be built there."""
    sized = cfg.copy()
    OmegaConf.set_readonly(sized, False)
    OmegaConf.update(sized, key, size)
    validate(sized)
    try:
        build_shapes(sized, vocab_size)
    except UserError as error:
        raise UserError(f"With {key}={size}: {error}") from error
    return sized


def line(name: str, measured: dict[int, list[dict[str, Coordinates]]], tolerance: float) -> Line:
    initial = [statistics.fmean(one[name].initial for one in of_size) for of_size in measured.values()]
    change = [statistics.fmean(one[name].change for one in of_size) for of_size in measured.values()]
    found = slope(list(measured), change)
    is_flat = found <= tolerance and (name == "logits" or found >= -tolerance)
    return Line(name, initial, change, slope(list(measured), initial), found, is_flat)


# ---- what is shown -------------------------------------------------------------------------------


def sentence(cfg: DictConfig, check: Check) -> str:
    """Return the result of a check in a sentence or two."""
    axis = AXES[check.key]
    if check.is_flat:
        return (
            f"Flat: no activation's change depends on the {axis}, so a learning rate may transfer in {axis}."
        )
    steep = [f"{line.activation} ({line.slope:+.2f})" for line in check.lines if not line.is_flat]
    words = f"Not flat: the changes of {', '.join(steep)} depend on the {axis}."
    if check.key == "model.dim" and cfg.model.transfer == "none":
        return f"{words} Type model.transfer=mup."
    if check.key == "model.n_layers" and cfg.model.transfer != "completep":
        return f"{words} Type model.transfer=completep."
    return f"{words} A smaller optim.lr shows whether that is because training saturates."


def rows(check: Check) -> list[str]:
    head = ["change of", *(f"{size:,}" for size in check.sizes), "slope", "initial slope"]
    cells = [
        [
            line.activation,
            *(f"{value:.3g}" for value in line.change),
            f"{line.slope:+.2f}{'' if line.is_flat else ' *'}",
            f"{line.initial_slope:+.2f}",
        ]
        for line in check.lines
    ]
    return fit_to_width(head, cells, "l" + "r" * (len(head) - 1))


def as_dict(check: Check) -> dict[str, Any]:
    return {
        "key": check.key,
        "sizes": check.sizes,
        "flat": check.is_flat,
        "activations": [
            {
                "name": line.activation,
                "initial": line.initial,
                "change": line.change,
                "initial_slope": finite(line.initial_slope),
                "slope": finite(line.slope),
                "flat": line.is_flat,
            }
            for line in check.lines
        ],
    }


def page(cfg: DictConfig, checks: Sequence[Check]) -> str:
    body = [
        "<h1>Coordinate check</h1>",
        f"<p>model.transfer={escape(cfg.model.transfer)}, optim.lr={cfg.optim.lr:g}. Root mean squares of the changes"
        " of activations in the first steps of training. Where hyper-parameters transfer, the lines are flat.</p>",
    ]
    for check in checks:
        head = ["change of", *(f"{size:,}" for size in check.sizes), "slope"]
        cells = [
            [escape(line.activation), *(f"{value:.3g}" for value in line.change), f"{line.slope:+.2f}"]
            for line in check.lines
        ]
        body += [
            f"<h2>{AXES[check.key].capitalize()}</h2>",
            f"<p>{escape(sentence(cfg, check))}</p>",
            figure_html(drawn(check), f"coordinates-{AXES[check.key]}"),
            table(head, cells, "l" + "r" * (len(head) - 1)),
        ]
    return document("Coordinate check", body)


def drawn(check: Check) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    from minllm.study.report.figures import colour, layout

    figure = Figure(layout=layout(420))
    for index, line in enumerate(check.lines):
        style = {"mode": "lines+markers", "line_color": colour(index)}
        figure.add_trace(Scatter(x=check.sizes, y=line.change, name=line.activation, **style))
    figure.update_xaxes(type="log", title=AXES[check.key], tickvals=check.sizes)
    figure.update_yaxes(type="log", title="change of the activation")
    return figure
