"""The picture of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_lipschitz.errors import MissingExtraError


def draw(rows: Sequence[Any], data: str, path: Path) -> Path:
    """Accuracy above, the three bounds below, against the epoch; the true constant lies in the shaded band.

    Args:
        rows: with ``epoch``, ``accuracy``, ``lower``, ``certified`` and ``product``.
        data: name of the data set, for the title.
        path: where the PNG goes.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("The demo's picture", "matplotlib", "demo") from error
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    epochs = [row.epoch for row in rows]
    _draw_accuracy(top, epochs, rows, data)
    _draw_bounds(bottom, epochs, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _draw_accuracy(axes: Any, epochs: list[int], rows: Sequence[Any], data: str) -> None:
    axes.plot(epochs, [100 * row.accuracy for row in rows], color="#1b7837", marker=".")
    axes.set(ylabel="test accuracy (%)", title=f"A classifier of {data}, certified every epoch")
    axes.grid(alpha=0.3)


def _draw_bounds(axes: Any, epochs: list[int], rows: Sequence[Any]) -> None:
    lower, certified, product = ([getattr(row, name) for row in rows] for name in ("lower", "certified", "product"))
    axes.plot(epochs, product, color="#999999", marker=".", label="product of spectral norms (certified)")
    axes.plot(epochs, certified, color="#2166ac", marker=".", label="LipSDP bound (certified)")
    axes.plot(epochs, lower, color="#b2182b", marker=".", label="steepest pair found (lower bound)")
    axes.fill_between(epochs, lower, certified, color="#2166ac", alpha=0.12, label="the Lipschitz constant is in here")
    axes.set(xlabel="epoch", ylabel="Lipschitz constant (l2)", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
