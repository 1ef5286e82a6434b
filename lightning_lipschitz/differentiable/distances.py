"""Euclidean distances between the rows of a matrix, with a gradient that is finite where they are zero."""

from __future__ import annotations

import torch
from torch import Tensor

_DIRECT = 10**8  # numbers to subtract: beyond, a product of matrices is many times as fast


def distances(rows: Tensor) -> Tensor:
    """Distance of every two rows, exactly zero on the diagonal and without a gradient there and where rows are equal.

    Small ones are summed up as they are. Large ones are |r_i|^2 + |r_j|^2 - 2 r_i'r_j of the rows less their mean;
    what of that is rounding counts as zero, for the root has a slope of any size there.

    Args:
        rows: shape (rows, entries).
    """
    if rows.shape[0] ** 2 * rows.shape[1] <= _DIRECT:
        direct: Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        return direct
    centred = rows - rows.mean(0)
    products = centred @ centred.mT
    lengths = products.diagonal()
    squares = lengths[:, None] + lengths[None] - products - products.mT
    noise = 8.0 * torch.finfo(rows.dtype).eps * (lengths[:, None] + lengths[None])
    apart = (squares > noise) & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
