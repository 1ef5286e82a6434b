"""How often does the kernel sign a false bound? Proposals of every wrong kind, judged in exact rational arithmetic.

A certificate is false if M(rho, lambda), formed and eliminated in rational arithmetic, is not positive definite. Small
networks, so that the exact test takes milliseconds.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import markdown, parser, publish

sys.path.insert(0, str(Path(__file__).parents[1]))
from lightning_lipschitz.bounds import closed_form, interior_point
from lightning_lipschitz.bounds.signing import sign_nearby
from lightning_lipschitz.certificate import Multipliers, Proposal, prove
from tests.helpers import chain, exact_lmi, exactly_positive_definite, grouped, per_unit_slopes, residual

SLOPES = [(0.0, 1.0), (0.1, 1.0), (0.0, 0.25), (-0.13, 1.13), (-1.0, 1.0)]


def draw_network(rng: np.random.Generator):
    seed, gain, slopes = int(rng.integers(1 << 30)), 10.0 ** rng.uniform(-6, 6), SLOPES[rng.integers(len(SLOPES))]
    widths = rng.integers(1, 5, size=rng.integers(3, 6)).tolist()
    kind = rng.integers(4)
    if kind == 0:
        return residual(widths, seed, min(max(gain, 1e-3), 1e3), slopes)
    return chain(widths, seed, gain, slopes) if kind < 3 else (per_unit_slopes(seed) if seed % 2 else grouped(seed))


def starved(network, rng):
    """A solver stopped almost at once, its value believed: the multipliers with a rho it only hopes for."""
    found = interior_point.propose(network, rtol=10.0 ** rng.uniform(-6, -0.5))
    return replace(found.multipliers, rho=max((found.lower_bound or 0.0) ** 2, 1e-300))


def perturbed(network, rng):
    point = closed_form.propose(network)[0].multipliers
    scale = 10.0 ** rng.uniform(-14, 0)
    values = tuple(np.abs(v * (1 + scale * rng.normal(size=v.shape))) for v in point.values)
    return Multipliers(point.rho * (1 + scale * rng.normal()), values)


def badly_scaled(network, rng):
    point = closed_form.propose(network)[0].multipliers
    return Multipliers(point.rho, tuple(v * 10.0 ** rng.uniform(-12, 12) for v in point.values))


def adversarial(network, rng):
    """The edge of the feasible set, overstepped by a few roundings."""
    point = closed_form.propose(network)[0].multipliers
    low, high = 0.0, point.rho
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if prove(network, replace(point, rho=middle)) is not None else (middle, high)
    return replace(point, rho=high * (1 - 2.0 ** rng.integers(-54, -20)))


KINDS = {"starved": starved, "perturbed": perturbed, "badly scaled": badly_scaled, "adversarial": adversarial}


def attempt(kind: str, rng: np.random.Generator) -> str:
    """ "refused", "signed" or "FALSE"."""
    network = draw_network(rng)
    sweeps = closed_form.propose(network)
    if not sweeps:
        return "refused"
    proposal = KINDS[kind](network, rng)
    accepted = [proposal] if prove(network, proposal) is not None else []
    inside = sweeps[0].multipliers
    signed = sign_nearby(network, Proposal(proposal, "", ""), replace(inside, rho=1.1 * inside.rho))
    accepted += [signed.proof] if signed else []
    if not all(exactly_positive_definite(exact_lmi(network, proof)) for proof in accepted):
        return "FALSE"
    return "signed" if accepted else "refused"


def main() -> None:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--problems", type=int, default=12_000)
    options = made.parse_args()
    rng = np.random.default_rng(0)
    counts = {kind: Counter() for kind in KINDS}
    each = (400 if options.quick else options.problems) // len(KINDS)
    for kind, counter in counts.items():
        for _ in range(each):
            counter[attempt(kind, rng)] += 1
    rows = [(kind, each, c["signed"], c["refused"], c["FALSE"]) for kind, c in counts.items()]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 5))))
    header = ("proposals", "problems", "signed (after repair)", "refused", "false certificates")
    publish("fails_safely", markdown("Fails safely", header, rows), options.write)
    sys.exit(1 if rows[-1][-1] else 0)


if __name__ == "__main__":
    main()
