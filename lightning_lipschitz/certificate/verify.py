"""The kernel: only what passes through here is called an upper bound.

``strengthen`` takes a proposal and returns the least bound near it that it can prove; ``prove`` checks a finished
proof. Both work on the network as it was given, in float64, and allow for every rounding they commit themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lightning_lipschitz.certificate.floating_point import BlockCholesky, factorisation_error, round_up, sqrt_up
from lightning_lipschitz.certificate.lmi import ScaledLMI, assemble
from lightning_lipschitz.certificate.pieces import pieces, steepest
from lightning_lipschitz.certificate.proofs import Multipliers, Norms, Proof, Split
from lightning_lipschitz.certificate.spectral import norm_holds
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Layer, Network

SIGNING_MARGIN = (
    2.0  # proofs are signed with twice the rounding allowance, so that they hold again on other BLAS libraries
)
LARGEST_RAISE = 1e-2  # relative step of rho beyond which a proposal is called infeasible


def prove(network: Network, proof: Proof, margin: float = 1.0) -> float | None:
    """The l2 Lipschitz bound that ``proof`` proves of ``network``, or None where it proves nothing.

    Args:
        network: as given by the user or the extraction, not reduced or rescaled.
        proof: multipliers of the LMI, norms of the matrices, or proofs of pieces.
        margin: factor on the allowance for rounding, at least 1.
    """
    if isinstance(proof, Norms):
        return _product(network, proof) if _norms_hold(network, proof, margin) else None
    if isinstance(proof, Split):
        return _composed(network, proof, margin)
    feasible = _Feasibility(network, proof, margin)
    return sqrt_up(Fraction(proof.rho)) if feasible(proof.rho) else None


def strengthen(network: Network, proposal: Multipliers) -> Multipliers | None:
    """The proposal with rho raised by the least relative step that can be proved; None where 1 % is not enough."""
    feasible = _Feasibility(network, proposal, SIGNING_MARGIN)
    if not feasible.possible:
        return None
    rho = _least(feasible, proposal.rho)
    return None if rho is None else replace(proposal, rho=rho)


def _least(feasible: Callable[[float], bool], rho: float) -> float | None:
    """The least feasible ``rho (1 + step)``: steps grow tenfold, then one bisection of the exponent in eight."""
    if feasible(rho):
        return rho
    step = 1e-15
    while not feasible(rho * (1.0 + step)):
        step *= 10.0
        if step > LARGEST_RAISE:
            return None
    low, high = step / 10.0, step
    for _ in range(3):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if feasible(rho * (1.0 + middle)) else (middle, high)
    return rho * (1.0 + high)


class _Feasibility:
    """``rho -> proved(M(rho, lambda) > 0)`` for fixed multipliers; everything but the input's block is factored
    once."""

    def __init__(self, network: Network, proposal: Multipliers, margin: float) -> None:
        self.possible = False
        if not _admissible(network, proposal):
            return
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            lmi = assemble(network, proposal)
        if lmi is None or not np.isfinite(lmi.error + lmi.mass):
            return
        self.rho_exponents = lmi.rho_exponents
        self.factored = BlockCholesky(lmi.blocks, margin * _allowance(network, lmi, proposal.rho))
        self.rho_limit = proposal.rho * (1.0 + 2.0 * LARGEST_RAISE)
        self.possible = self.factored.definite

    def __call__(self, rho: float) -> bool:
        if not (self.possible and 0 < rho <= self.rho_limit and np.isfinite(rho)):
            return False
        return self.factored.definite_with(np.ldexp(rho, self.rho_exponents))


def _allowance(network: Network, lmi: ScaledLMI, rho: float) -> float:
    """What forming and factoring can do to the spectrum, for rho up to the largest raise."""
    trace = lmi.mass + (1.0 + 2.0 * LARGEST_RAISE) * float(np.sum(np.ldexp(rho, lmi.rho_exponents)))
    return lmi.error + 1.01 * factorisation_error(lmi.blocks, network.sizes, trace)


def _admissible(network: Network, proposal: Multipliers) -> bool:
    """The exact conditions: as many multipliers as units, finite, >= 0, constant on every group; rho finite and > 0."""
    values = proposal.values
    if len(values) != len(network.layers) or not (np.isfinite(proposal.rho) and proposal.rho > 0):
        return False
    return all(_admissible_layer(layer, lam) for layer, lam in zip(network.layers, values, strict=True))


def _admissible_layer(layer: Layer, lam: Array) -> bool:
    if lam.shape != (layer.size,) or not np.all(np.isfinite(lam)) or np.any(lam < 0):
        return False
    groups = np.asarray(layer.group)
    return layer.elementwise or all(len(set(lam[groups == g])) == 1 for g in np.unique(groups))


def _composed(network: Network, proof: Split, margin: float) -> float | None:
    """The product of what the parts prove of the pieces and of the units between them, in exact rationals."""
    parts = pieces(network, proof.cuts)
    if parts is None or len(parts) != len(proof.parts):
        return None
    total = Fraction(1)
    for k in proof.cuts:
        total *= steepest(network.layers[k - 1])
    for piece, part in zip(parts, proof.parts, strict=True):
        bound = prove(piece, part, margin)
        if bound is None or not np.isfinite(bound):
            return None
        total *= Fraction(bound)
    return round_up(total)


def _norms_hold(network: Network, proof: Norms, margin: float) -> bool:
    affines = network.affines
    if [len(row) for row in proof.values] != [len(affine.terms) for affine in affines]:
        return False
    return all(
        norm_holds(term.matrix, norm, term.rounding, margin)
        for affine, row in zip(affines, proof.values, strict=True)
        for term, norm in zip(affine.terms, row, strict=True)
    )


def _product(network: Network, proof: Norms) -> float:
    """Triangle inequality through the graph, in exact rationals: ``L_k = max slope * sum_j |W_kj| L_j``, ``L_0 =
    1``.
    """
    lipschitz = [Fraction(1)]
    for k, affine in enumerate(network.affines):
        total = sum(
            (Fraction(norm) * lipschitz[term.source] for term, norm in zip(affine.terms, proof.values[k], strict=True)),
            start=Fraction(0),
        )
        lipschitz.append(total * steepest(network.layers[k]) if k < len(network.layers) else total)
    return round_up(lipschitz[-1])
