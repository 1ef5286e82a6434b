"""The figures of a report, for a light and for a dark page. No pyplot: nothing global is touched."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_lipschitz.errors import MissingExtraError
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.report.content import Content
from lightning_lipschitz.report.numbers import upper
from lightning_lipschitz.report.predictions import Curve
from lightning_lipschitz.report.tightness import LayerBound

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 160
_WIDTH = 8.5  # inches
_THICK = 2.6  # of a bound, to be seen under the slope found where the two meet
_NAMED = 24  # layers whose names fit under an axis
_FAR = 1e100  # numbers of larger and smaller magnitude are in the tables only
_LETTERS = 30  # of names that fit side by side


@dataclass(frozen=True)
class Theme:
    """Colours; "none" is transparent. Blue and orange are told apart by every kind of eye, and by their lightness."""

    ink: str
    paper: str
    grid: str
    upper: str
    lower: str
    norms: str
    ramp: str


LIGHT = Theme("#22272e", "#ffffff", "#d8dee4", "#1f5fa8", "#c2510c", "#7d8590", "Blues")
DARK = Theme("#d7dde4", "none", "#3a424c", "#79b8ff", "#ffa657", "#8b949e", "Blues_r")


def draw_all(content: Content, theme: Theme) -> Iterator[tuple[str, Figure]]:
    """(section, figure) for every section that has something to draw.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    history = [record for record in content.subject.history if np.isfinite(record.get("upper_bound", np.nan))]
    if len(history) > 1:
        yield "training", draw_training(history, theme)
    if len(content.layers) > 1:
        yield "layers", draw_layers(content.layers, theme)
    if content.curve is not None:
        yield "curve", draw_curve(content.curve, theme)
    if content.pairs is not None:
        yield "pairs", draw_pairs(content.pairs.matrix, theme)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, on the paper of its theme.

    Example:
        >>> png(draw_pairs(np.array([[0.0, 2.0], [2.0, 0.0]]), LIGHT))[:4]
        b'\\x89PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def draw_training(history: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
    """Bounds above; below, how far they are apart, and the duality gap of the solver's answers."""
    sampled = any(record.get("lower_bound") for record in history)
    gaps = any(record.get("relative_gap") for record in history)
    rows = 1 + sampled + gaps
    figure = _figure(2.6 + 1.2 * (rows - 1), theme)
    axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True, height_ratios=[2.4] + [1.0] * (rows - 1)))
    steps, label = _abscissa(history)
    bounds, below = _column(history, "upper_bound"), _column(history, "lower_bound")
    axes[0].plot(steps, bounds, color=theme.upper, lw=_THICK, marker="o", ms=4, label="certified upper bound")
    if sampled:
        axes[0].plot(steps, below, color=theme.lower, lw=1.1, marker=".", label="steepest pair found (lower bound)")
        axes[0].fill_between(steps, below, bounds, color=theme.upper, alpha=0.14, lw=0, label="the constant is in here")
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            apart = bounds / below
        axes[1].plot(steps, np.where(np.isfinite(apart), apart, np.nan), color=theme.ink, marker=".")
        axes[1].set(ylabel="upper / lower", ylim=(1.0, None))
    if gaps:
        axes[-1].semilogy(steps, np.maximum(_column(history, "relative_gap"), 1e-16), color=theme.norms, marker=".")
        axes[-1].set(ylabel="duality gap")
    _scale(axes[0], np.concatenate([bounds, below[below > 0]]))
    axes[0].set(ylabel="Lipschitz constant (l2)")
    axes[-1].set(xlabel=label)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return _finished(figure, theme)


def draw_layers(layers: Sequence[LayerBound], theme: Theme) -> Figure:
    """Left, bounds of the maps up to each layer; right, by what factor each layer raises them and its own norm."""
    norms, factors = _of(layers, "norm"), _of(layers, "factor")
    chain = bool(np.isfinite([*norms, *factors]).all())
    figure = _figure(3.4, theme)
    left, *right = figure.subplots(1, 2, width_ratios=(3, 2)) if chain else [figure.subplots()]
    places = np.arange(float(len(layers)))
    lines = (
        (_of(layers, "product"), theme.norms, 1.5, "product of norms (certified)"),
        (_of(layers, "bound"), theme.upper, _THICK, "the method of the bound (certified)"),
        (_of(layers, "lower"), theme.lower, 1.1, "steepest pair found"),
    )
    for values, color, width, label in lines:
        if np.isfinite(values).any():
            left.plot(places, values, color=color, lw=width, marker=".", label=label)
    _scale(left, np.concatenate([values for values, *_ in lines]))
    left.set(ylabel="constant, input to here (l2)")
    for axes in right:
        axes.bar(places - 0.2, norms, 0.4, color=theme.norms, label="its own norm")
        axes.bar(places + 0.2, factors, 0.4, color=theme.upper, label="factor in the bound")
        axes.set(ylabel="factor of the layer", ylim=(0, 1.3 * float(max(*norms, *factors))))
    for axes in (left, *right):
        _name_layers(axes, places, layers)
    return _finished(figure, theme)


def draw_curve(curve: Curve, theme: Theme) -> Figure:
    """Certified accuracy against radius, the plain accuracy at 0."""
    figure = _figure(3.2, theme)
    axes = figure.subplots()
    axes.plot(curve.radii, 100 * curve.accuracy, color=theme.upper, label="one constant: margin / (√2 L)")
    if curve.pairs is not None:
        axes.plot(
            curve.radii, 100 * curve.pairs, color=theme.lower, ls="--", label="a constant for each pair of classes"
        )
    axes.plot([0], [100 * curve.clean], color=theme.ink, marker="o", ls="none", clip_on=False, label="plain accuracy")
    axes.set(xlabel="radius (l2, input units)", ylabel="certified accuracy (%)", ylim=(0, 100), xlim=(0, None))
    return _finished(figure, theme)


def draw_pairs(matrix: Array, theme: Theme) -> Figure:
    """The matrix of constants of the differences of outputs, numbers inside where there is room."""
    classes = len(matrix)
    side = min(7.0, 2.0 + 0.45 * classes)
    figure = _figure(side, theme, width=1.2 * side)
    axes = figure.subplots()
    shown = np.where(np.eye(classes, dtype=bool), np.nan, matrix)
    image = axes.imshow(shown, cmap=theme.ramp, vmin=0.0, vmax=float(matrix.max()) or 1.0)
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.ax.tick_params(colors=theme.ink)
    bar.outline.set_edgecolor(theme.grid)
    if classes <= 12:
        for i, j in zip(*np.nonzero(~np.eye(classes, dtype=bool)), strict=True):
            red, green, blue, _ = image.to_rgba(matrix[i, j])
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.55
            axes.text(j, i, upper(matrix[i, j], 3), ha="center", va="center", fontsize=7, color=_ON[dark])
        axes.set(xticks=range(classes), yticks=range(classes))
    axes.set(xlabel="output j", ylabel="output i")
    return _finished(figure, theme, grid=False)


_ON = {True: "#ffffff", False: "#1b1f24"}  # ink on dark and on light fields


def _figure(height: float, theme: Theme, width: float = _WIDTH) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("The report", "matplotlib", "report") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def _finished(figure: Figure, theme: Theme, grid: bool = True) -> Figure:
    """Everything in the colours of the theme."""
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(colors=theme.ink, which="both", labelsize=8)
        axes.xaxis.label.set(color=theme.ink, fontsize=9)
        axes.yaxis.label.set(color=theme.ink, fontsize=9)
        for spine in axes.spines.values():
            spine.set_color(theme.grid)
        if grid:
            axes.grid(color=theme.grid, lw=0.6)
            axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, labelcolor=theme.ink, frameon=False)
    return figure


def _name_layers(axes: Any, places: Array, layers: Sequence[LayerBound]) -> None:
    if len(layers) <= _NAMED:
        names = [layer.name for layer in layers]
        if sum(map(len, names)) > _LETTERS:
            axes.set_xticks(places, names, rotation=35, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(places, names)
    else:
        axes.set(xlabel="layer")


def _scale(axes: Any, values: Array) -> None:
    """Logarithmic where the values span more than a factor of ten; from zero elsewhere."""
    finite = values[np.isfinite(values) & (values > 0)]
    if len(finite) and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)


def _abscissa(history: Sequence[Mapping[str, Any]]) -> tuple[list[int], str]:
    """Epochs, or steps where an epoch was measured more than once."""
    epochs = [record["epoch"] for record in history]
    once = len(set(epochs)) == len(epochs)
    return (epochs, "epoch") if once else ([record["global_step"] for record in history], "optimizer step")


def _column(history: Sequence[Mapping[str, Any]], name: str) -> Array:
    return _numbers(record.get(name) for record in history)


def _of(layers: Sequence[LayerBound], name: str) -> Array:
    return _numbers(getattr(layer, name) for layer in layers)


def _numbers(values: Iterable[float | None]) -> Array:
    """NaN, which is not drawn, for None and for what no axis can show."""
    found = np.array([np.nan if value is None else value for value in values], dtype=float)
    shown = (found == 0) | ((np.abs(found) > 1 / _FAR) & (np.abs(found) < _FAR))
    return np.where(shown, found, np.nan)
