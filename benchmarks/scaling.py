"""Time, memory and gap against width (one hidden layer) and against depth (60 units a layer), with a plot."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from common import RESULTS, markdown, parser, publish, random_weights

WIDTHS = (50, 100, 200, 400, 800, 1600)
DEPTHS = (2, 5, 10, 20, 40, 100)


def one(sizes: list[int]) -> None:
    """A single case in a process of its own, so that the peak of memory is its own."""
    from lightning_lipschitz import certify

    weights = random_weights(sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = certify(weights)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    closed = certify(weights, method="closed-form").upper_bound
    record = {"seconds": found.seconds, "megabytes": (after - before) / 1024, "gap": found.relative_gap}
    print(json.dumps(record | {"bound": found.upper_bound, "closed": closed, "method": found.method}))


def measure(sizes: list[int]) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, "--one", *map(str, sizes)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def plot(series: dict[str, list[tuple[int, dict]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 2), series.items(), strict=True):
        x = [value for value, _ in points]
        axes.loglog(x, [record["seconds"] for _, record in points], marker="o", color="#2166ac", label="seconds")
        axes.loglog(
            x, [record["megabytes"] / 1000 for _, record in points], marker="s", color="#b2182b", label="GB above start"
        )
        axes.set(xlabel=name, title=f"LipSDP-Neuron against {name}")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "scaling.png", dpi=130)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--one", nargs="+", type=int)
    options = made.parse_args()
    if options.one:
        one(options.one)
        return
    last = 3 if options.quick else None
    series = {
        "width": [(w, measure([16, w, 4])) for w in WIDTHS[:last]],
        "depth": [(d, measure([4, *[60] * d, 1])) for d in DEPTHS[:last]],
    }
    rows = [
        (name, value, f"{r['seconds']:.2f}", f"{r['megabytes']:.0f}", "-" if r["gap"] is None else f"{r['gap']:.1e}",
         f"{r['bound']:.6g}", f"{r['closed'] / r['bound']:.3f}", r["method"])
        for name, points in series.items() for value, r in points
    ]  # fmt: skip
    header = ("axis", "value", "seconds", "MB above start", "relative gap", "bound", "closed form / bound", "method")
    publish("scaling", markdown("Scaling", header, rows), options.write)
    if options.write:
        plot(series)


if __name__ == "__main__":
    main()
