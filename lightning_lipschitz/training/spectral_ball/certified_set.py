"""CertifiedSet: the weights for which one choice of multipliers proves one bound, and the nearest point of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.bounds.threads import few_threads
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.result import State
from lightning_lipschitz.training.spectral_ball.ball import nearest_point, spectral_norm
from lightning_lipschitz.training.spectral_ball.gain_matrix import GainMatrix

Slopes: TypeAlias = Sequence[tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Projected:
    """The nearest weights.

    Attributes:
        weights: float64, in the set to rounding, on the device of the weights given; those given, where they were
            inside.
        state: for the next projection of similar weights.
        iterations: how many the method made; 0 where the weights were inside.
        distance: Frobenius distance moved, all layers together.
        gap: the squared distance over two is at most this much above the least possible.
        converged: whether the gap met the tolerance.
    """

    weights: list[Tensor]
    state: State
    iterations: int
    distance: float
    gap: float
    converged: bool


class CertifiedSet:
    r"""The chains :math:`W` with :math:`M(\rho, \lambda; W) \succeq 0`: multipliers, slopes and rho are fixed, the
    weights are not.

    Every member has an l2 Lipschitz constant of at most sqrt(rho), and the multipliers prove it. The set is convex
    where every slope interval contains zero; see :mod:`.gain_matrix` for the reason.

    Args:
        multipliers: rho, and lambda > 0, shape (n_k,) a layer.
        slopes: (alpha, beta) a layer, shape (n_k,) each; [0, 1] by default.

    Raises:
        ArgumentError: a multiplier that is not positive and finite, or an interval that does not contain zero (the
            set is not convex then; multipliers of
            :func:`.solve_multipliers` belong to the interval widened to
            zero).

    Example:
        >>> import numpy as np
        >>> ball = CertifiedSet(Multipliers(1.0, (np.ones(2),)))
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> [w.round(decimals=4).diagonal().tolist() for w in ball.project([3 * eye, 3 * eye]).weights]
        [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, multipliers: Multipliers, slopes: Slopes | None = None) -> None:
        self.multipliers = multipliers
        self._slopes = slopes or [(np.zeros_like(value), np.ones_like(value)) for value in multipliers.values]
        _check(multipliers, self._slopes)

    @classmethod
    def of(cls, network: Network, multipliers: Multipliers) -> CertifiedSet:
        """The set with the slopes of a network.

        Raises:
            ArgumentError: also where the network is not a chain.
        """
        if not network.is_chain:
            raise ArgumentError("network", "a network with skip connections", "a chain")
        return cls(multipliers, slopes_of(network))

    def with_rho(self, rho: float) -> CertifiedSet:
        """The set of these multipliers with another squared bound."""
        return CertifiedSet(Multipliers(rho, self.multipliers.values), self._slopes)

    def norm(self, weights: Sequence[Tensor]) -> float:
        """||G(W)||_2: at most 1 in the set, and homogeneous in the weights of all layers together."""
        image = self.image(weights)
        with few_threads(min(image.shape)):
            return spectral_norm(image)

    def image(self, weights: Sequence[Tensor]) -> Tensor:
        """G(W), float64, of shape (all odd layers, all even sources); the columns of the input come first."""
        doubles = [weight.detach().to(torch.float64) for weight in weights]
        gains = self._gains(doubles)
        return gains.matrix(gains.flatten(doubles))

    def project(
        self, weights: Sequence[Tensor], state: State | None = None, *, rtol: float = 1e-4, max_iterations: int = 1000
    ) -> Projected:
        r""":math:`\arg\min_{\bar W} \sum_k |\bar W_k - W_k|_F^2` subject to :math:`M(\rho, \lambda; \bar W) \succeq 0`.

        The step of Pauli et al. 2021 (L-CSS 6) that they solve as a semidefinite program, here as a projection on a
        spectral ball.

        Args:
            weights: shape (n_k, n_{k-1}), first layer first; any floating dtype, on one device, where the work is
                done in float64.
            state: of the projection of similar weights.
            rtol: of the squared distance.
            max_iterations: bound of the work; the answer is in the set all the same.

        Raises:
            ShapeError: matrices that do not fit the multipliers.
        """
        given = [weight.detach().to(torch.float64) for weight in weights]
        reduced, basis = _compress(given)
        gains = self._gains(reduced)
        with few_threads(min(gains.size)):
            v = gains.flatten(reduced)
            dual = _load(state, gains, basis, given[0].shape[1])
            penalty = state.penalty if state is not None and dual is not None else None
            found = nearest_point(gains, v, dual=dual, penalty=penalty, rtol=rtol, max_iterations=max_iterations)
        if found.iterations == 0 and found.converged:
            return Projected(given, State(_store(found.dual, gains, basis), 0.0), 0, 0.0, 0.0, True)
        nearest = gains.split(found.vector)
        nearest[0] = nearest[0] if basis is None else nearest[0] @ basis
        kept = State(_store(found.dual, gains, basis), found.penalty)
        distance = sqrt(float((found.vector - v).square().sum()))
        return Projected(nearest, kept, found.iterations, distance, found.gap, found.converged)

    def _gains(self, weights: Sequence[Tensor]) -> GainMatrix:
        widths = [len(value) for value in self.multipliers.values]
        expected = list(zip([*widths, len(weights[-1])], [weights[0].shape[1], *widths], strict=True))
        found = [tuple(weight.shape) for weight in weights]
        if found != expected:
            raise ShapeError("the list of weights", found, expected)
        sizes = [weights[0].shape[1], *widths, len(weights[-1])]
        device = weights[0].device
        values = [torch.as_tensor(value.copy(), device=device) for value in self.multipliers.values]
        slopes = [tuple(torch.as_tensor(s.copy(), device=device) for s in pair) for pair in self._slopes]
        return GainMatrix(sizes, self.multipliers.rho, values, slopes, device)  # type: ignore[arg-type]


def slopes_of(network: Network) -> list[tuple[Array, Array]]:
    """(alpha, beta) of every layer."""
    return [(layer.alpha, layer.beta) for layer in network.layers]


def _check(multipliers: Multipliers, slopes: Slopes) -> None:
    for k, value in enumerate([np.array([multipliers.rho]), *multipliers.values]):
        bad = ~((value > 0) & (value < np.inf))
        if bad.any():
            name = f"multipliers of layer {k}" if k else "rho"
            raise ArgumentError(name, float(value[bad][0]), "positive and finite")
    for k, (alpha, beta) in enumerate(slopes, start=1):
        if ((alpha > 0) | (beta < 0)).any():
            accepted = "an interval that contains 0 (the set of weights is not convex otherwise)"
            raise ArgumentError(f"slopes of layer {k}", (float(alpha.max()), float(beta.min())), accepted)


def _compress(weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """W_1 = L Q with orthonormal rows Q: the nearest first matrix is some L' times the same Q, since all inputs
    weigh the same in G."""
    first = weights[0]
    if first.shape[1] <= first.shape[0]:
        return list(weights), None
    q, r = torch.linalg.qr(first.T)
    return [r.T.contiguous(), *weights[1:]], q.T


def _load(state: State | None, gains: GainMatrix, basis: Tensor | None, inputs: int) -> Tensor | None:
    """The dual of a state in the coordinates of this problem; None where there is none of the right shape."""
    if state is None or state.penalty == 0.0:
        return None
    rows, columns = gains.root
    dual = state.dual.to(rows)
    if basis is not None and dual.shape[1] >= inputs:
        dual = torch.cat([dual[:, :inputs] @ basis.T, dual[:, inputs:]], dim=1)
    return dual / rows[:, None] / columns if tuple(dual.shape) == gains.size else None


def _store(dual: Tensor, gains: GainMatrix, basis: Tensor | None) -> Tensor:
    """The inverse of :func:`_load`; source 0 comes first among the columns."""
    rows, columns = gains.root
    dual = dual * rows[:, None] * columns
    if basis is None:
        return dual
    rank = len(basis)
    return torch.cat([dual[:, :rank] @ basis, dual[:, rank:]], dim=1)
