"""The picture of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_lipschitz.demo.training import MAX_LIPSCHITZ, RADII, RADIUS, Epoch, Trained
from lightning_lipschitz.errors import MissingExtraError
from lightning_lipschitz.report.numbers import hundredths_up

# Okabe and Ito, "Color universal design", 2008; the dashes tell the lines apart without colour.
COLOURS = {"plain": "#000000", "margin": "#009e73", "scale": "#d55e00", "CLIP": "#0072b2"}
DASHES = {"plain": "-", "margin": (0, (7, 1, 1.5, 1)), "scale": (0, (1.5, 1)), "CLIP": (0, (5, 1.5))}
_GREY = "#999999"


def draw(rows: Sequence[Epoch], outcomes: Sequence[Trained], data: str, path: Path) -> Path:
    """Left: the certified bounds over training. Right: what they are worth, certified accuracy against the radius.

    Args:
        rows: the epochs of plain training.
        outcomes: the trainings side by side.
        data: name of the data set, for the title.
        path: where the PNG goes.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("The demo's picture", "matplotlib", "demo") from error
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"The same network on {data}, trained in four ways")
    _draw_bounds(left, rows, outcomes)
    _draw_accuracy(right, outcomes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _line(outcome: Trained) -> dict[str, Any]:
    return {"color": COLOURS[outcome.name], "linestyle": DASHES[outcome.name], "linewidth": 2}


def _draw_bounds(axes: Any, rows: Sequence[Epoch], outcomes: Sequence[Trained]) -> None:
    epochs = [row.epoch for row in rows]
    axes.plot(epochs, [row.product for row in rows], color=_GREY, label="plain: product of spectral norms")
    for outcome in outcomes:
        label = f"{outcome.name}: certified bound"
        axes.plot(range(len(outcome.history)), outcome.history, label=label, **_line(outcome))
    every = slice(len(rows) // 15, None, max(1, len(rows) // 10))
    style = {"marker": "^", "linestyle": "none", "color": "white", "markeredgecolor": COLOURS["plain"]}
    axes.plot(epochs[every], [row.lower for row in rows][every], label="plain: steepest pair found", **style)
    axes.set(xlabel="epoch", ylabel="Lipschitz constant (l2)", ylim=(0, None))
    axes.set_title("What is proved while it trains", fontsize="medium")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left", fontsize="small")
    axes.grid(alpha=0.3)


def _draw_accuracy(axes: Any, outcomes: Sequence[Trained]) -> None:
    radii = torch.linspace(0.0, 0.8, 161).tolist()
    for outcome in outcomes:
        accuracy = [100 * outcome.certified_accuracy(radius) for radius in radii]
        held = {"scale": f" held to {MAX_LIPSCHITZ:g}", "margin": f" for {RADIUS:g}"}.get(outcome.name, "")
        bound = (
            f"{outcome.name}{held}: L ≤ {hundredths_up(outcome.certificate.upper_bound)}, {outcome.accuracy:.1%} right"
        )
        axes.plot(radii, accuracy, label=bound, **_line(outcome))
    for radius in RADII:
        axes.axvline(radius, color=_GREY, linewidth=0.8)
    axes.set(xlabel="l2 distance within which the class cannot change", ylabel="certified accuracy (%)")
    axes.set(xlim=(0, radii[-1]), ylim=(0, 100))
    axes.set_title("What it is worth on the test images", fontsize="medium")
    axes.legend(loc="upper right", fontsize="small")
    axes.grid(alpha=0.3)
