"""Linear nodes as explicit sparse matrices. Entries are copied: nothing is rounded."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from lightning_lipschitz.graph import Along, Convolution, Gather, Node, Scaling

Matrix = Any  # scipy.sparse.csr_array of float64; scipy ships no types for it


def matrix(node: Node, width: int) -> Matrix | None:
    """The matrix of a linear node with one source, of ``width`` numbers; None for other kinds.

    Example:
        >>> matrix(Gather(sources=(0,), indices=[1, -1]), 2).toarray().tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    if isinstance(node, Convolution):
        return convolution_matrix(node)
    if isinstance(node, Along):
        inner = sparse.kron(sparse.csr_array(node.matrix), sparse.identity(node.after), format="csr")
        return sparse.csr_array(sparse.kron(sparse.identity(node.before), inner, format="csr"))
    if isinstance(node, Scaling):
        return sparse.csr_array(sparse.diags(node.factors, format="csr"))
    if isinstance(node, Gather):
        rows = np.flatnonzero(node.indices >= 0)
        ones = np.ones(len(rows))
        return sparse.csr_array((ones, (rows, node.indices[rows])), shape=(node.size, width))
    return None


def convolution_matrix(node: Convolution) -> Matrix:
    """From the definition in :class:`~lightning_lipschitz.graph.Convolution`, tap by tap."""
    rows, columns, values = [], [], []
    inputs, outputs = math.prod(node.lengths), math.prod(node.result[1:])
    height, width = node.kernel.shape[0] // node.groups, node.kernel.shape[1]
    flat = node.kernel.reshape(node.groups, height, width, -1)
    for number, tap in enumerate(itertools.product(*(range(k) for k in node.taps))):
        to, start = _pairs(node, tap)
        for group in range(node.groups):
            row, column, place = np.meshgrid(np.arange(height), np.arange(width), np.arange(len(to)), indexing="ij")
            rows.append(((row + group * height) * outputs + to[place]).reshape(-1))
            columns.append(((column + group * width) * inputs + start[place]).reshape(-1))
            values.append(np.broadcast_to(flat[group, :, :, number, None], row.shape).reshape(-1))
    shape = (math.prod(node.result), math.prod(node.image))
    made = sparse.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    return sparse.csr_array(made.T) if node.transposed else made


def _pairs(node: Convolution, tap: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Flat positions (of the output, of the input) that a tap connects."""
    out = np.stack([axis.reshape(-1) for axis in np.indices(node.result[1:])])
    geometry = zip(node.stride, node.dilation, tap, node.padding, strict=True)
    read = np.stack([s * o + d * t - before for (s, d, t, (before, _)), o in zip(geometry, out, strict=True)])
    lengths = np.array(node.lengths)[:, None]
    if node.circular:
        read %= lengths
    inside = np.all((read >= 0) & (read < lengths), axis=0)
    flat = np.ravel_multi_index(tuple(read[:, inside]), node.lengths)
    return np.flatnonzero(inside), flat.astype(np.int64)
