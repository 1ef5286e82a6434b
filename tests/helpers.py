"""Networks that the tests run over, and the exact arithmetic that judges them."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term

DATA = Path(os.environ.get("LIGHTNING_LIPSCHITZ_DATA", "data-not-given"))


def chain(sizes, seed=0, gain=1.0, slopes=(0.0, 1.0)):
    """A chain with entries N(0, gain^2 / fan-in)."""
    rng = np.random.default_rng(seed)
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    return Network.from_weights([gain * rng.normal(size=s) / np.sqrt(s[1]) for s in shapes], slopes=slopes)


def random_affine(rng, sources, rows, sizes, gain=1.0):
    return Affine(
        tuple(Term(j, gain * rng.normal(size=(rows, sizes[j])) / np.sqrt(sizes[j])) for j in sources),
        rng.normal(size=rows),
    )


def residual(widths=(3, 4, 4, 2), seed=0, gain=1.0, slopes=(0.0, 1.0)):
    """Every map reads all the earlier sources: the input reaches every layer and the output directly."""
    rng = np.random.default_rng(seed)
    *hidden, out = widths
    layers = []
    for k in range(1, len(hidden)):
        affine = random_affine(rng, range(k), hidden[k], widths, gain)
        layers.append(Layer(affine, np.full(hidden[k], slopes[0]), np.full(hidden[k], slopes[1]), name=f"layer {k}"))
    return Network(hidden[0], tuple(layers), random_affine(rng, range(len(hidden)), out, widths, gain))


def per_unit_slopes(seed=0):
    """A chain whose units have intervals of their own, negative slopes among them."""
    rng = np.random.default_rng(seed)
    alpha = [rng.uniform(-0.5, 0.5, size=n) for n in (4, 3)]
    base = chain((3, 4, 3, 2), seed)
    layers = [
        Layer(layer.affine, a, a + rng.uniform(0.1, 1.0, size=len(a)))
        for layer, a in zip(base.layers, alpha, strict=True)
    ]
    return Network(3, tuple(layers), base.output)


def grouped(seed=0):
    """A chain whose first layer is one norm-bounded block of three and one of one, and whose second is elementwise."""
    base = chain((3, 4, 3, 2), seed)
    first = Layer(base.layers[0].affine, np.full(4, -1.0), np.full(4, 1.0), np.array([0, 0, 0, 7]))
    return Network(3, (first, base.layers[1]), base.output)


def unread_units():
    """Layer 1 has a unit that nothing reads, layer 2 one that no input reaches."""
    first = [[1.0, 2.0], [0.5, -1.0], [1.0, 1.0]]
    second = [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    return Network.from_weights([first, second, [[1.0, 3.0]]])


COUNTEREXAMPLE = [
    [[1.0], [1.0]],
    [[1.0, -1.0]],
]  # relu(x + 1) - relu(x - 1): constant 1, where coupled multipliers prove 0
ABSOLUTE = [[[1.0], [-1.0]], [[1.0, -1.0]]]  # relu(x) - relu(-x) = x, bound 2
TWO_BY_TWO = [[[1.0, 2.0], [1.0, -2.0]], [[1.0, 1.0]]]  # bound 4 / sqrt(3)

NETWORKS: dict[str, Callable[[], Network]] = {
    "one affine map": lambda: chain((3, 2)),
    "one unit": lambda: chain((1, 1, 1)),
    "two by two": lambda: Network.from_weights(TWO_BY_TWO),
    "counterexample": lambda: Network.from_weights(COUNTEREXAMPLE),
    "absolute": lambda: Network.from_weights(ABSOLUTE),
    "chain": lambda: chain((3, 5, 4, 2)),
    "wide input": lambda: chain((20, 4, 3)),
    "wide output": lambda: chain((2, 4, 20)),
    "deep": lambda: chain((2, *[3] * 8, 2), gain=1.5),
    "leaky": lambda: chain((3, 5, 4, 2), slopes=(0.1, 1.0)),
    "sigmoid": lambda: chain((3, 5, 4, 2), slopes=(0.0, 0.25)),
    "symmetric": lambda: chain((3, 5, 4, 2), slopes=(-1.0, 1.0)),
    "swish-like": lambda: chain((3, 5, 4, 2), slopes=(-0.13, 1.13)),
    "tiny": lambda: chain((3, 5, 4, 2), gain=1e-6),
    "huge": lambda: chain((3, 5, 4, 2), gain=1e6),
    "residual": residual,
    "residual leaky": lambda: residual(slopes=(0.2, 1.0)),
    "residual negative": lambda: residual(slopes=(-0.3, 1.0)),
    "per-unit slopes": per_unit_slopes,
    "groups": grouped,
    "unread units": unread_units,
}


def lipsdp_weights(name):
    """Weights of the LipSDP repository's examples; skips where the data folder is not given."""
    path = DATA / "lipsdp" / f"{name}_weights.mat"
    if not path.exists():
        pytest.skip(f"{path} is missing: set LIGHTNING_LIPSCHITZ_DATA to the folder that holds lipsdp/")
    return [np.asarray(weight, dtype=np.float64) for weight in scipy.io.loadmat(path)["weights"].ravel()]


def exact_lmi(network: Network, proof: Multipliers) -> list[list[Fraction]]:
    """M(rho, lambda) in rational arithmetic, entry by entry from its definition with the vectors s_i and t_i."""
    offsets = np.cumsum((0, *network.sizes)).tolist()
    total = offsets[-1]
    matrix = [[Fraction(0)] * total for _ in range(total)]
    for i in range(network.input_size):
        matrix[i][i] += Fraction(proof.rho)
    for row in _exact_rows(network.output, offsets, total):
        _add_outer(matrix, row, row, Fraction(-1))
    for k, layer in enumerate(network.layers, start=1):
        for i, row in enumerate(_exact_rows(layer.affine, offsets, total)):
            s, t = ([-Fraction(float(slope[i])) * a for a in row] for slope in (layer.alpha, layer.beta))
            s[offsets[k] + i] += 1
            t[offsets[k] + i] += 1
            _add_outer(matrix, s, t, Fraction(float(proof.values[k - 1][i])))
            _add_outer(matrix, t, s, Fraction(float(proof.values[k - 1][i])))
    return matrix


def _exact_rows(affine, offsets, total):
    rows = [[Fraction(0)] * total for _ in range(affine.size)]
    for term in affine.terms:
        for row, values in zip(rows, term.matrix, strict=True):
            row[offsets[term.source] : offsets[term.source + 1]] = [Fraction(float(value)) for value in values]
    return rows


def _add_outer(matrix, left, right, factor):
    columns = [j for j, value in enumerate(right) if value]
    for i, value in enumerate(left):
        if value:
            for j in columns:
                matrix[i][j] += factor * value * right[j]


def exactly_positive_definite(matrix: list[list[Fraction]]) -> bool:
    """Gaussian elimination without a rounding: every pivot is positive."""
    rows = [list(row) for row in matrix]
    for k in range(len(rows)):
        if rows[k][k] <= 0:
            return False
        for i in range(k + 1, len(rows)):
            if rows[i][k]:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return True


def evaluate(network: Network, x: np.ndarray, activation: Callable[[np.ndarray, Layer], np.ndarray]) -> np.ndarray:
    """The network's outputs for the columns of x, every layer with ``activation(pre-activations, layer)``."""

    def apply(affine, sources):
        return (
            sum((t.matrix @ sources[t.source] for t in affine.terms), start=np.zeros((affine.size, 1)))
            + affine.bias[:, None]
        )

    sources = [x]
    for layer in network.layers:
        sources.append(activation(apply(layer.affine, sources), layer))
    return apply(network.output, sources)
