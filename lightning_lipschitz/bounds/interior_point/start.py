"""Strictly feasible multipliers to start from: cold, by a backward recursion, or from a similar network's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.linear import cholesky
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.lipsdp import Reduced
from lightning_lipschitz.certificate.proofs import Multipliers

_MARGIN = 1.05


def recursion(problem: Problem) -> Tensor:
    """y = (rho, lam) with Z(y) > 0: one multiplier a layer, from the output back, rho a little more than needed.

    R is what the layers behind leave to be dominated, at first C. Layer k is written ``z = m y + u``, m and r the middle
    and the radius of the slopes, so that lam = c contributes ``2 c (|u|^2 - |r y|^2)``. The block of u becomes
    2 c I - R_uu, and R is replaced by its Schur complement, which grows by about
    ``2 c |r A|^2 + |R_uv|^2 / (2 c - |R_uu|)``: least for ``2 c = |R_uu| + |R_uv| / |r A|``. For slopes [0, 1] this
    is the closed form of ECLipsE-Fast (Xu and Sivaranjani 2024), c = |R_uu|, which is taken where it is larger.
    """
    lam = torch.empty(problem.num_units, dtype=torch.float64, device=problem.device)
    R, A = problem.output.T @ problem.output, problem.dense_rows()
    floor = 1e-6 * R.diagonal().max()
    middle, radius = problem.sum[:, None] / 2, (problem.beta - problem.alpha)[:, None] / 2
    for source, units in zip(reversed(problem.sources[1:]), reversed(problem.layers), strict=True):
        before = slice(0, source.start)
        own, cross, rest = R[source, source], R[source, before], R[before, before]
        centre, reach = middle[units] * A[units, before], radius[units] * A[units, before]
        both = cross + own @ centre
        size = torch.linalg.eigvalsh(own)[-1].clamp(min=floor)
        lam[units] = torch.maximum(size, (size + both.norm() / reach.norm()) / 2)
        block = 2 * torch.diag(lam[units]) - own
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(block), both, upper=False)
        R = rest + centre.T @ cross + both.T @ centre + (2 * lam[units][0]) * reach.T @ reach + half.T @ half
    rho = _MARGIN * torch.linalg.eigvalsh(R)[-1]
    return torch.cat([rho[None], lam.new_zeros(problem.num_groups).index_copy_(0, problem.group, lam)])


def warm(problem: Problem, reduced: Reduced, multipliers: Multipliers, blends: tuple[float, ...]) -> Tensor | None:
    """y = (rho, lam) with Z(y) > 0 from the multipliers of a similar network, or None where they are of no use.

    The multipliers are mixed with those of the cold start, by the first of ``blends`` that is feasible for some rho
    below that of the cold start.
    """
    if [value.shape for value in multipliers.values] != [mask.shape for mask in reduced.moving]:
        return None
    _, values = reduced.scale(multipliers)
    units = problem.tensor(np.concatenate(values))
    count = problem.collect(torch.ones_like(units))
    lam, cold = problem.collect(units) / count, recursion(problem)
    for blend in blends:
        mixed = torch.lerp(lam, cold[1:], blend)
        rho = least_rho(problem, mixed)
        if rho is not None and _MARGIN * rho < cold[0]:
            return torch.cat([_MARGIN * rho[None], mixed])
    return None


def least_rho(problem: Problem, lam: Tensor) -> Tensor | None:
    """The least rho with Z(rho, lam) >= 0, by a Schur complement on the input; None where no rho is enough."""
    Z = problem.slack(torch.cat([lam.new_zeros(1), lam]))
    factor = cholesky(Z[problem.z, problem.z])
    if factor is None:
        return None
    half = torch.linalg.solve_triangular(factor, Z[problem.z, problem.x], upper=False)
    rho: Tensor = torch.linalg.eigvalsh(half.T @ half - Z[problem.x, problem.x])[-1]
    return rho
