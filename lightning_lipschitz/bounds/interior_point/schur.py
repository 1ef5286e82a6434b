"""The Schur complement of the HKM direction, from element-wise products: the rank-two structure at work."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.problem import Problem


def schur_complement(problem: Problem, X: Tensor, AX: Tensor, V: Tensor, AV: Tensor) -> Tensor:
    """``H_jk = tr(A_j X A_k V)`` with A_0 = E and A_g = B_g, shape (1 + G, 1 + G).

    With S, T the matrices of the columns s_i, t_i, and single units,

        H = (T'XS) o (S'VT) + (S'XT) o (T'VS) + (T'XT) o (S'VS) + (S'XS) o (T'VT),

    four element-wise products in place of N^2 traces of n x n matrices; groups are summed afterwards.

    Args:
        X, V: symmetric, (n, n); V is Z^-1. They may be one tensor.
        AX, AV: A X and A V, (N, n).
    """
    H = torch.empty(1 + problem.num_groups, 1 + problem.num_groups, dtype=X.dtype, device=X.device)
    x = problem.x
    H[0] = H[:, 0] = product_traces(problem, X[:, x], AX[:, x], V[:, x], AV[:, x])
    H[1:, 1:] = problem.collect(_units(problem, X, AX, V, AV))
    return H


def product_traces(problem: Problem, K: Tensor, AK: Tensor, V: Tensor, AV: Tensor) -> Tensor:
    """``tr(A_j K V')`` for all j, shape (1 + G,): row sums, no product of K and V.

    For the columns of x only, with K = X and V = Z^-1, it is the row of E of the Schur complement.

    Args:
        K, V: shape (n, m).
        AK, AV: A K and A V, (N, m).
    """
    Kz, Vz = K[problem.z], V[problem.z]
    units = 2 * (Kz * Vz).sum(1) - problem.sum * ((Kz * AV).sum(1) + (AK * Vz).sum(1))
    if problem.bypass:
        units += 2 * problem.product * (AK * AV).sum(1)
    inputs = (K[problem.x] * V[problem.x]).sum()
    return torch.cat([inputs[None], problem.collect(units)])


def _units(problem: Problem, X: Tensor, AX: Tensor, V: Tensor, AV: Tensor) -> Tensor:
    TXS, TXT, SXS = _sides(problem, X, AX)
    TVS, TVT, SVS = (TXS, TXT, SXS) if V is X else _sides(problem, V, AV)
    mixed = TXS * TVS.T
    return (mixed + mixed.T).addcmul_(TXT, SVS).addcmul_(SXS, TVT)


def _sides(problem: Problem, K: Tensor, AK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T'KS, T'KT and S'KS, each (N, N)."""
    z = problem.z
    TK = torch.addcmul(K[z], AK, problem.beta[:, None], value=-1.0)
    images = problem.rows(TK.T).T
    TKT = torch.addcmul(TK[:, z], images, problem.beta, value=-1.0)
    if not problem.bypass:
        return TK[:, z], TKT, K[z, z]
    TKS = torch.addcmul(TK[:, z], images, problem.alpha, value=-1.0)
    SK = torch.addcmul(K[z], AK, problem.alpha[:, None], value=-1.0)
    SKS = torch.addcmul(SK[:, z], problem.rows(SK.T).T, problem.alpha, value=-1.0)
    return TKS, TKT, SKS
