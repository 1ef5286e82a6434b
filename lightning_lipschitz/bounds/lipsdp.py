r"""The LipSDP problem (Fazlyab et al. 2019), made smaller and well scaled, and the way back.

LipSDP minimises rho over multipliers lambda >= 0 with the matrix inequality of
:mod:`lightning_lipschitz.certificate.lmi`. :func:`reduce` returns a network that has the same optimum and is easier
for a solver, in four steps; each is undone by :meth:`Reduced.restore`.

1. Units that no path of non-zero weights links to the input never move: dz_i = 0. They are dropped; without them the
   optimum is attained (their multipliers would go to infinity). With one multiplier a layer the optimum can only
   fall: they no longer share theirs.
2. The input enters through the stack of all maps from source 0, an (r, n0) matrix. If n0 > r it is replaced by the
   factor L of its LQ factorisation: x -> Qx has norm one and is onto.
3. Only F'F of the output map F matters. If F has more rows than columns, its factor R of QR replaces it.
4. Layer k is measured in units of sigma_k, a power of two near the gain from the input to it:
   W_kj -> W_kj sigma_j / sigma_k, rho -> rho / sigma_f^2, lambda_k -> lambda_k sigma_k^2 / sigma_f^2. A congruence of
   M, free of rounding. Deep networks need it.

Nothing here has to be trusted: what comes back is verified on the network as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.certificate.proofs import Multipliers
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term

Sharing = Literal["neuron", "layer"]  # one multiplier a unit (or a norm-bounded group), or one a layer
Mask = npt.NDArray[np.bool_]

# Multiplier of a unit that never moves, over what its neighbours would need: costs about 1e-10 of rho.
_STILL = 2.0**33
_POWER_STEPS = 8


@dataclass(frozen=True, eq=False)
class Reduced:
    """A network with the same LipSDP optimum, and how to carry multipliers back.

    Args:
        network: the smaller, scaled network.
        original: the network as given.
        moving: for each layer of ``original``, which units were kept.
        exponents: log2 of sigma, one for each layer of ``network`` and one for its output.
    """

    network: Network
    original: Network
    moving: tuple[Mask, ...]
    exponents: tuple[int, ...]

    @property
    @np.errstate(over="ignore")
    def unit(self) -> float:
        """rho of the original network for a rho of one of the reduced."""
        return float(np.ldexp(1.0, 2 * self.exponents[-1]))

    @np.errstate(over="ignore")  # a bound beyond the range of float64 comes back as infinity
    def restore(self, rho: float, values: Sequence[npt.ArrayLike]) -> Multipliers:
        """The point of the original inequality that ``(rho, values)`` of the reduced one stands for.

        Args:
            rho: the squared bound on ``self.network``.
            values: multipliers of ``self.network``, shape (n_k,) a layer.

        Returns:
            Multipliers of ``self.original``; feasible if the reduced point is strictly feasible.
        """
        *layers, out = self.exponents
        rho = float(np.ldexp(rho, 2 * out))
        kept = iter([np.ldexp(np.asarray(v, np.float64), 2 * (out - e)) for v, e in zip(values, layers, strict=True)])
        full = [np.zeros(len(mask)) for mask in self.moving]
        for mask, target in zip(self.moving, full, strict=True):
            if mask.any():
                target[mask] = next(kept)
        self._fill_still_units(full, rho)
        return Multipliers(rho, tuple(full))

    def scale(self, multipliers: Multipliers) -> tuple[float, tuple[Array, ...]]:
        """The inverse of :meth:`restore`: (rho, values) of the reduced network."""
        *layers, out = self.exponents
        kept = [v[mask] for v, mask in zip(multipliers.values, self.moving, strict=True) if mask.any()]
        values = tuple(np.ldexp(v, 2 * (e - out)) for v, e in zip(kept, layers, strict=True))
        return float(np.ldexp(multipliers.rho, -2 * out)), values

    def _fill_still_units(self, values: list[Array], rho: float) -> None:
        """Multipliers of the dropped units, last layer first: far above what the layers that read them take away."""
        for k in range(len(values), 0, -1):
            still = ~self.moving[k - 1]
            if still.any():
                demand = self._demand(k, values)[still]
                values[k - 1][still] = np.where(demand > 0, demand, rho or 1.0)

    def _demand(self, k: int, values: Sequence[Array]) -> Array:
        demand = np.zeros(self.original.sizes[k])
        for layer, moving, value in zip(self.original.layers[k:], self.moving[k:], values[k:], strict=True):
            weight = np.maximum(abs(layer.alpha), abs(layer.beta)) ** 2 * value
            for term in (t for t in layer.affine.terms if t.source == k):
                factor = np.where(moving, _STILL, 4.0 * len(demand))
                demand += (factor * weight) @ term.matrix**2
        for term in (t for t in self.original.output.terms if t.source == k):
            demand += _STILL * (term.matrix**2).sum(axis=0)
        return demand


def reduce(network: Network, *, keep_outputs: bool = False) -> Reduced:
    """The equivalent smaller, scaled network; see the module's docstring.

    Args:
        network: as given.
        keep_outputs: leave out the third step, for what looks at single outputs.

    Example:
        >>> import numpy as np
        >>> reduced = reduce(Network.from_weights([np.ones((2, 784)), np.ones((1, 2))]))
        >>> reduced.network.sizes
        (2, 2)
    """
    moving = moving_units(network)
    small = _shrink_input(_keep(network, moving))
    small = small if keep_outputs else _shrink_output(small)
    exponents = _gain_exponents(small)
    return Reduced(_rescale(small, exponents), network, moving, exponents)


def moving_units(network: Network) -> tuple[Mask, ...]:
    """For each layer, the units that some path of non-zero weights links to the input (groups as one)."""
    moving: list[Mask] = [np.ones(network.input_size, dtype=np.bool_)]
    for layer in network.layers:
        row = np.zeros(layer.size, dtype=np.bool_)
        for term in layer.affine.terms:
            row |= (term.matrix[:, moving[term.source]] != 0).any(axis=1)
        moving.append(np.isin(np.asarray(layer.group), np.asarray(layer.group)[row]))
    return tuple(moving[1:])


def _keep(network: Network, moving: Sequence[Mask]) -> Network:
    if all(mask.all() for mask in moving):
        return network
    columns = [np.ones(network.input_size, dtype=np.bool_), *moving]
    number = np.cumsum([True, *(mask.any() for mask in moving)]) - 1

    def part(affine: Affine, rows: Mask) -> Affine:
        kept = (t for t in affine.terms if columns[t.source].any() or t.source == 0)
        terms = tuple(Term(int(number[t.source]), t.matrix[rows][:, columns[t.source]]) for t in kept)
        return Affine(terms, affine.bias[rows])

    layers = []
    for layer, mask in zip(network.layers, moving, strict=True):
        if mask.any():
            group = np.asarray(layer.group)[mask]
            layers.append(Layer(part(layer.affine, mask), layer.alpha[mask], layer.beta[mask], group, layer.name))
    output = part(network.output, np.ones(network.output.size, dtype=np.bool_))
    return Network(network.input_size, tuple(layers), output)


def _shrink_input(network: Network) -> Network:
    stack = [t.matrix for affine in network.affines for t in affine.terms if t.source == 0]
    rows = sum(len(matrix) for matrix in stack)
    if not 0 < rows < network.input_size:
        return network
    upper: Array = np.asarray(np.linalg.qr(np.concatenate(stack).T, mode="r"))
    parts = iter(np.split(upper.T, np.cumsum([len(matrix) for matrix in stack])[:-1]))

    def part(affine: Affine) -> Affine:
        terms = tuple(Term(0, next(parts)) if t.source == 0 else t for t in affine.terms)
        return replace(affine, terms=terms)

    layers = tuple(replace(layer, affine=part(layer.affine)) for layer in network.layers)
    return Network(rows, layers, part(network.output))


def _shrink_output(network: Network) -> Network:
    terms = network.output.terms
    columns = sum(term.matrix.shape[1] for term in terms)
    if not 0 < columns < network.output.size:
        return network
    upper: Array = np.asarray(np.linalg.qr(np.concatenate([term.matrix for term in terms], axis=1), mode="r"))
    parts = np.split(upper, np.cumsum([term.matrix.shape[1] for term in terms])[:-1], axis=1)
    small = tuple(Term(term.source, part) for term, part in zip(terms, parts, strict=True))
    return replace(network, output=Affine(small, np.zeros(columns)))


def _gain_exponents(network: Network) -> tuple[int, ...]:
    """log2 of sigma_k = max slope * |[W_kj sigma_j]_j|, the spectral norm of the scaled row of blocks."""
    exponents = [0]
    slopes = [max(abs(layer.alpha).max(), abs(layer.beta).max()) for layer in network.layers]
    for affine, slope in zip(network.affines, [*slopes, 1.0], strict=True):
        top = max((exponents[term.source] for term in affine.terms), default=0)
        scaled = [np.ldexp(term.matrix, exponents[term.source] - top) for term in affine.terms]
        gain = slope * _rough_norm(np.concatenate(scaled, axis=1)) if scaled else 0.0
        exponents.append(top + int(np.round(np.log2(gain))) if gain > 0 else 0)
    return tuple(exponents[1:])


def _rough_norm(matrix: Array) -> float:
    """A few power steps from the largest row: within some per cent of the spectral norm, all that scaling needs."""
    largest = float(np.abs(matrix).max(initial=0.0))
    if largest == 0:
        return 0.0
    matrix = matrix / largest
    vector = matrix[np.argmax((matrix**2).sum(axis=1))]
    for _ in range(_POWER_STEPS):
        vector = vector / np.linalg.norm(vector)
        vector = (matrix @ vector) @ matrix
    return largest * float(np.sqrt(np.linalg.norm(vector)))


def _rescale(network: Network, exponents: Sequence[int]) -> Network:
    source = (0, *exponents[:-1])

    def scaled(affine: Affine, exponent: int) -> Affine:
        terms = tuple(Term(t.source, np.ldexp(t.matrix, source[t.source] - exponent)) for t in affine.terms)
        return Affine(terms, np.ldexp(affine.bias, -exponent))

    *hidden, last = [scaled(affine, e) for affine, e in zip(network.affines, exponents, strict=True)]
    layers = tuple(replace(layer, affine=affine) for layer, affine in zip(network.layers, hidden, strict=True))
    return Network(network.input_size, layers, last)
