"""The picture of iris_and_attacks.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

# Okabe and Ito, "Color universal design", 2008; the markers tell the lines apart without colour.
COLOURS = ("#000000", "#e69f00", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
MARKERS = ("o", "s", "^", "v", "D", "x")
METHODS = ("norm product", "closed form", "native, layer", "sampled", "eclipse-nn fast", "eclipse-nn")
AXES = {"width": "units of one hidden layer", "depth": "hidden layers"}

Series = Mapping[str, Mapping[int, Mapping[str, float]]]
Curves = Mapping[str, Mapping[str, Sequence[float]]]


def plot(series: Series, curves: Curves, radii: Sequence[float], data: str, path: Path) -> None:
    """Left: bounds over LipSDP-Neuron's. Right: what is certified of each training, and what an attack leaves."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    width, depth, radius = figure.subplots(1, 3)
    for axes, (name, points) in zip((width, depth), series.items(), strict=True):
        _draw_ratios(axes, points, AXES[name])
    width.set_ylabel("bound / LipSDP-Neuron")
    width.set(yscale="linear", ylim=(0, None))
    depth.legend(fontsize="small", loc="lower left")
    _draw_robustness(radius, curves, radii)
    radius.set(xlabel="l2 distance", ylabel=f"{data}: test images right within it (%)", ylim=(0, 100))
    figure.savefig(path, dpi=120)


def _draw_ratios(axes, points: Mapping[int, Mapping[str, float]], label: str) -> None:
    for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=True):
        ratios = [each[method] for each in points.values()]
        axes.plot(list(points), ratios, color=colour, marker=marker, label=method, linewidth=1.5, markersize=5)
    axes.axhline(1.0, color="0.4", linestyle="--", linewidth=1, label="LipSDP-Neuron")
    axes.set(xlabel=label, xscale="log", yscale="log", xticks=list(points), xticklabels=list(map(str, points)))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)


def _draw_robustness(axes, curves: Curves, radii: Sequence[float]) -> None:
    for (name, shares), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        style = {"color": colour, "marker": marker, "markersize": 4}
        axes.plot(radii, shares["certified"], "-", label=name, **style)
        axes.plot(radii, shares["left"], ":", **style)
    axes.plot([], [], color="0.4", linestyle="-", label="certified")
    axes.plot([], [], color="0.4", linestyle=":", label="left by projected gradient")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
