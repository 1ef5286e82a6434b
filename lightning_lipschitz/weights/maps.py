"""Weights of a model -> the matrices of its network, differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction.linearised import Linearised
from lightning_lipschitz.extraction.units import NotLinearisedError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.weights.parametrization import Parametrization

Blocks: TypeAlias = Mapping[tuple[int, int], Tensor]  # by map, from 1 and with the output last, and source
Pullback: TypeAlias = Callable[[Blocks], list[Tensor]]


class WeightMap:
    """Weights -> the matrices W_kj of the network.

    Args:
        blocks: the map, differentiable. Where it is not plain it takes float64.
        plain: whether the matrices are the weights themselves, in their order.
    """

    def __init__(self, blocks: Callable[[Sequence[Tensor]], Blocks], *, plain: bool) -> None:
        self._blocks, self._plain = blocks, plain

    @torch.no_grad()
    def __call__(self, weights: Sequence[Tensor]) -> Blocks:
        """The matrices, detached."""
        return self._blocks([weight.detach() if self._plain else weight.detach().double() for weight in weights])

    def with_pullback(self, weights: Sequence[Tensor]) -> tuple[Blocks, Pullback]:
        """The matrices, detached, and the map from derivatives in them to derivatives in the weights."""
        if self._plain:
            return self(weights), lambda slopes: list(slopes.values())
        leaves = [weight.detach().double().requires_grad_() for weight in weights]
        with torch.enable_grad():  # weights are also looked for where gradients are off
            blocks = self._blocks(leaves)
        used = [key for key, block in blocks.items() if block.requires_grad]

        def pullback(slopes: Blocks) -> list[Tensor]:
            outputs, seeds = [blocks[key] for key in used], [slopes[key] for key in used]
            found = torch.autograd.grad(outputs, leaves, seeds, allow_unused=True)
            return [torch.zeros_like(w) if g is None else g for w, g in zip(leaves, found, strict=True)]

        return {key: block.detach() for key, block in blocks.items()}, pullback

    def network(self, like: Network, weights: Sequence[Tensor]) -> Network:
        """The network with these weights, in float64: slopes, groups and biases as in ``like``."""
        return like.with_matrices({key: block.double().cpu().numpy() for key, block in self(weights).items()})


chain_map = WeightMap(lambda weights: {(k, k - 1): weight for k, weight in enumerate(weights, 1)}, plain=True)


def with_weights(chain: Network, weights: Sequence[Tensor]) -> Network:
    """The chain with other matrices: slopes, groups, biases and names stay."""
    return chain_map.network(chain, weights)


def graph_map(
    linearised: Linearised, parametrizations: Sequence[Parametrization], tensors: Mapping[str, Tensor], network: Network
) -> WeightMap:
    """The map that ``linearised`` is, cut where terms of the network stand.

    Args:
        linearised: the rows of the model's network as functions of its tensors.
        parametrizations: how the weights are stored.
        tensors: of the model, by name; what is no weight stays as it is there.
        network: the model's, for its terms; its numbers are not used.
    """
    own = {name: t.detach().double() if t.is_floating_point() else t.detach() for name, t in tensors.items()}
    terms = [(k, term.source) for k, affine in enumerate(network.affines, 1) for term in affine.terms]
    sizes = linearised.sizes

    def blocks(weights: Sequence[Tensor]) -> Blocks:
        inputs = {name: tensor.to(weights[0].device) for name, tensor in own.items()}
        for each, weight in zip(parametrizations, weights, strict=True):
            inputs |= each.encode(weight, inputs)
        try:
            A, C = linearised(inputs)
        except NotLinearisedError as error:
            raise not_yet(error) from error
        rows = [torch.split(part, sizes, 1) for part in (*torch.split(A, sizes[1:]), C)]
        return {(k, j): rows[k - 1][j] for k, j in terms}

    return WeightMap(blocks, plain=False)


def not_yet(error: NotLinearisedError) -> ProjectionError:
    """What the user reads of a layer that has no fresh input to stand for it."""
    advice = "Hold a part of the model to the bound (`module`), or replace it."
    return ProjectionError(error.path, error.operator, "models with it cannot be projected yet.", advice)
