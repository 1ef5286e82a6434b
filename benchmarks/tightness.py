"""Bounds of every method on the same networks, and how much tighter ours is than eclipse-nn."""

from __future__ import annotations

from common import digits, lipsdp_weights, markdown, parser, publish, random_weights, trained
from methods import METHODS
from torch import nn

CONIC_UNITS = 64  # Clarabel and SCS take minutes beyond


def cases(data_dir: str | None, quick: bool):
    found = {}
    for name in ("random", "mnist"):
        if (weights := lipsdp_weights(data_dir, name)) is not None:
            found[f"LipSDP's {name}"] = weights
    found["4-20-20-2 random"] = random_weights((4, 20, 20, 2))
    found["16-50-50-4 random"] = random_weights((16, 50, 50, 4))
    if quick:
        return found
    found["4-(20 x 10)-2 random"] = random_weights((4, *[20] * 10, 2))
    found["8-100-100-100-8 random"] = random_weights((8, 100, 100, 100, 8))
    found["64-64-32-10 digits, ReLU"] = trained(digits(None), (64, 32), nn.ReLU, 20)
    found["64-64-64-64-10 digits, tanh"] = trained(digits(None), (64, 64, 64), nn.Tanh, 20)
    return found


def main() -> None:
    options = parser(__doc__).parse_args()
    names = list(METHODS)
    rows = []
    for name, weights in cases(options.data_dir, options.quick).items():
        conic = sum(len(w) for w in weights[:-1]) <= CONIC_UNITS
        bounds = {m: METHODS[m](weights) for m in names if conic or m not in ("Clarabel", "SCS")}
        ratio = bounds["eclipse-nn"] / bounds["native"] if bounds.get("eclipse-nn") else float("nan")
        rows.append((name, *(f"{b:.5f}" if (b := bounds.get(m)) else "-" for m in names), f"{ratio:.3f}"))
    header = ("network", *names, "eclipse-nn / native")
    publish("tightness", markdown("Tightness", header, rows), options.write)


if __name__ == "__main__":
    main()
