"""Seconds to the LipSDP-Neuron optimum (relative gap 1e-6): native against Clarabel, SCS and the cheaper bounds."""

from __future__ import annotations

from common import digits, lipsdp_weights, markdown, parser, publish, random_weights, timed, trained
from methods import METHODS
from torch import nn

SKIPPED = {"784-128-64-10 trained": ("Clarabel", "SCS"), "784-600-400-200-10 random": ("Clarabel", "SCS", "eclipse-nn")}


def cases(data_dir: str | None, quick: bool):
    found = {}
    if (weights := lipsdp_weights(data_dir, "random")) is not None:
        found["2-10-30-20-2 (LipSDP's)"] = weights
    found["16-50-50-4 random"] = random_weights((16, 50, 50, 4))
    if quick:
        return found
    if (weights := lipsdp_weights(data_dir, "mnist")) is not None:
        found["784-50-10 (LipSDP's)"] = weights
    if data_dir:
        found["784-128-64-10 trained"] = trained(digits(data_dir), (128, 64), nn.ReLU, 2)
    return found


def main() -> None:
    options = parser(__doc__).parse_args()
    rows = []
    for name, weights in cases(options.data_dir, options.quick).items():
        measured = {}
        for method, bound in METHODS.items():
            if method in SKIPPED.get(name, ()):
                continue
            slow = method in ("Clarabel", "SCS", "eclipse-nn")
            measured[method] = timed(lambda b=bound, w=weights: b(w), 1 if slow else 5)
        native = measured["native"][1]
        for method, (value, seconds) in measured.items():
            shown = "-" if value is None else f"{value:.6f}"
            rows.append((name, method, shown, f"{seconds:.4f}", f"{seconds / native:.1f}"))
    header = ("network", "method", "bound", "seconds", "time / native")
    publish("runtime", markdown("Runtime", header, rows), options.write)


if __name__ == "__main__":
    main()
