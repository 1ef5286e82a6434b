"""Strictly feasible multipliers to start from: cold, by a backward recursion, or from a similar network's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.linear import cholesky
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.lipsdp import Reduced
from lightning_lipschitz.certificate.proofs import Multipliers
from lightning_lipschitz.errors import SolverError

_MARGIN = 1.05
_INSIDE = 0.25


def recursion(problem: Problem) -> Tensor:
    """y = (rho, lam) with Z(y) > 0: one number a layer, from the output back, rho a little more than needed.

    R is what the layers behind leave to be dominated, at first C. Layer k is written ``z = m y + u``, m and r the
    middle and the radius of the slopes, and u is measured in units of |a_i|. There ``lam_i = c / |a_i|^2`` contributes
    ``2 c (|u|^2 - |r y|^2)``: the block of u becomes 2 c I - R_uu, and R is replaced by its Schur complement. It grows
    by about ``2 c |r A|^2 + |R_uv|^2 / (2 c - |R_uu|)``, least for ``2 c = |R_uu| + |R_uv| / |r A|``; c = |R_uu|, the
    closed form of ECLipsE-Fast (Xu and Sivaranjani 2024), is taken where it is larger.
    """
    lam = torch.empty(problem.num_units, dtype=torch.float64, device=problem.device)
    R, A, norms = problem.output.T @ problem.output, problem.dense_rows(), _row_norms(problem)
    floor = 1e-6 * R.diagonal().max()
    middle, radius = problem.sum[:, None] / 2, (problem.beta - problem.alpha)[:, None] / 2
    for source, units in zip(reversed(problem.sources[1:]), reversed(problem.layers), strict=True):
        before, scale = slice(0, source.start), norms[units, None]
        centre, reach = middle[units] * A[units, before], radius[units] * A[units, before] / scale
        own = scale * R[source, source] * scale.T
        both = scale * R[source, before] + own @ (centre / scale)
        size = torch.linalg.eigvalsh(own)[-1].clamp(min=floor)
        c = torch.maximum(size, (size + both.norm() / reach.norm()) / 2)
        lam[units] = c / norms[units] ** 2
        block = 2 * c * torch.eye(len(own), dtype=torch.float64, device=problem.device) - own
        factor = cholesky(block)
        if factor is None:
            raise SolverError("no strictly feasible multipliers were found; the weights may be beyond float64's range.")
        half = torch.linalg.solve_triangular(factor, both, upper=False)
        straight = R[source, before].T @ centre
        R = R[before, before] + straight + (centre / scale).T @ both + 2 * c * reach.T @ reach + half.T @ half
    rho = _MARGIN * torch.linalg.eigvalsh(R)[-1]
    return torch.cat([rho[None], lam.new_zeros(problem.num_groups).index_copy_(0, problem.group, lam)])


def _row_norms(problem: Problem) -> Tensor:
    """|a_i|, shape (N,); the root mean square where units share a multiplier."""
    squares = torch.zeros(problem.num_units, dtype=torch.float64, device=problem.device)
    for block in problem.blocks:
        squares[block.rows] += (block.matrix**2).sum(dim=1)
    return problem.spread(problem.collect(squares) / problem.collect(torch.ones_like(squares))).sqrt()


def warm(problem: Problem, reduced: Reduced, path: Sequence[Multipliers]) -> Tensor | None:
    """y = (rho, lam) with Z(y) > 0 from points for a similar network, or None where they are of no use.

    Taken is the point nearest to the old optimum that is still inside, by a quarter of the way that it once was above
    that optimum. Points closer to the boundary, or outside and lifted by a larger rho, cost more steps than the cold
    start. It saves half of the work where the weights moved by a per mille, and nothing where they moved by several
    per cent.
    """
    optimum = path[-1].rho if path else 0.0
    for point in reversed(path):
        if [value.shape for value in point.values] != [mask.shape for mask in reduced.moving]:
            continue
        rho, values = reduced.scale(point)
        units = problem.tensor(np.concatenate(values))
        lam = problem.collect(units) / problem.collect(torch.ones_like(units))
        least = least_rho(problem, lam)
        if least is not None and least <= rho * (1.0 - _INSIDE * (1.0 - optimum / point.rho)):
            return torch.cat([lam.new_tensor([rho]), lam])
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
