"""GraphMap: weights of a model -> the rows of its network, differentiable; and the network that has these rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction.linearised import Linearised
from lightning_lipschitz.extraction.units import NotLinearisedError
from lightning_lipschitz.graph.network import Affine, Array, Network, Term
from lightning_lipschitz.projection.codes import Code
from lightning_lipschitz.projection.dense import Form

LARGEST = 4000  # entries of (x, z): a factorisation takes seconds from there on


class GraphMap:
    """The map (float64 weights) -> (A, C) of :class:`~lightning_lipschitz.extraction.linearised.Linearised`.

    Args:
        linearised: of the model.
        codes: how the weights are stored.
        tensors: of the model, by name; what is no weight stays as it is there.
    """

    def __init__(self, linearised: Linearised, codes: Sequence[Code], tensors: Mapping[str, Tensor]) -> None:
        self._linearised, self._codes = linearised, codes
        self._own = {name: _double(tensor) for name, tensor in tensors.items()}

    @property
    def width(self) -> int:
        """Entries of (x, z): the size of the matrix inequality."""
        return self._linearised.width

    def __call__(self, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        tensors = {name: tensor.to(weights[0].device) for name, tensor in self._own.items()}
        for code, weight in zip(self._codes, weights, strict=True):
            tensors |= code.encode(weight, tensors)
        try:
            return self._linearised(tensors)
        except NotLinearisedError as error:
            raise not_yet(error) from error

    @torch.no_grad()
    def network(self, like: Network, weights: Sequence[Tensor]) -> Network:
        """The network with these weights, in float64: slopes, groups and biases as in ``like``."""
        return with_rows(like, *self(weights))


def with_rows(network: Network, A: Tensor, C: Tensor) -> Network:
    """The network with other matrices, where its terms stand."""
    starts = np.cumsum([0, *network.sizes])
    heights = np.cumsum([0, *network.sizes[1:], len(C)])
    stack = torch.cat([A, C]).detach().cpu().numpy()
    parts = [stack[top:end] for top, end in itertools.pairwise(heights)]
    affines = [_affine(a, part, starts) for a, part in zip(network.affines, parts, strict=True)]
    layers = tuple(replace(layer, affine=affine) for layer, affine in zip(network.layers, affines[:-1], strict=True))
    return Network(network.input_size, layers, affines[-1])


def rows_of(network: Network) -> Array:
    """The rows [A; C] of a network."""
    starts = np.cumsum([0, *network.sizes])
    stack = np.zeros((sum(affine.size for affine in network.affines), starts[-1]))
    top = 0
    for affine in network.affines:
        for term in affine.terms:
            stack[top : top + affine.size, starts[term.source] : starts[term.source + 1]] = term.matrix
        top += affine.size
    return stack


def layer_of_row(network: Network, row: int) -> str:
    """The name of the layer that a row of [A; C] belongs to; none for the output."""
    names = [*(layer.name for layer in network.layers), ""]
    return names[int(np.searchsorted(np.cumsum([affine.size for affine in network.affines]), row, side="right"))]


def form_of(network: Network, weights: Sequence[Tensor]) -> Form:
    """The form of a network, where the weights are."""
    return Form.of(network, weights[0].device)


def not_yet(error: NotLinearisedError) -> ProjectionError:
    """What the user reads of a layer that has no fresh input to stand for it."""
    advice = "Hold a part of the model to the bound (`module`), or replace it."
    return ProjectionError(error.path, error.operator, "models with it cannot be projected yet.", advice)


def _affine(affine: Affine, part: Array, starts: Any) -> Affine:
    terms = [Term(t.source, part[:, starts[t.source] : starts[t.source + 1]]) for t in affine.terms]
    return Affine(tuple(terms), affine.bias)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()
