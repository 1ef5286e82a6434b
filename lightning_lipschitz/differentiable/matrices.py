"""The explicit matrices of a model as functions of its parameters of this moment, with a graph to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.inequality import Blocks
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.linearised import Linearised
from lightning_lipschitz.extraction.undisturbed import tensors_of
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.weights import NotAChainError, StoredWeights, chain_weights

Matrices: TypeAlias = Callable[[], Blocks]

_NOISE = 0.1  # relative: of the parameters, to see which matrices are zero by chance only


def matrices_of(model: nn.Module, example_input: Tensor, extractor: Extractor) -> tuple[Matrices, bool]:
    """What gives the matrices W_kj, float64, on the device of the parameters (on the CPU where that has no float64);
    and whether these are weights of a chain of linear layers, as they are.

    Args:
        model: of one input and one output.
        example_input: of it.
        extractor: of the same model.

    Raises:
        NotLinearisedError: a weight scales, within one operator, what its units give.
        LipschitzError: as the extraction.
    """
    try:
        return _OfChain(chain_weights(model, example_input, extractor=extractor)), True
    except NotAChainError:
        return _OfGraph(model, extractor.linearised(), extractor.network()), False


class _OfChain:
    """The weights of the linear layers themselves."""

    def __init__(self, weights: StoredWeights) -> None:
        self._weights = weights

    def __call__(self) -> Blocks:
        return {(k, k - 1): _double(weight) for k, weight in enumerate(self._weights.differentiable(), 1)}


class _OfGraph:
    """Columns of the traced graph; see :class:`.Linearised`."""

    def __init__(self, model: nn.Module, linearised: Linearised, network: Network) -> None:
        self._model, self._linearised = model, linearised
        self._keys = self._read(network)

    def __call__(self) -> Blocks:
        return self._split({name: _double(each) for name, each in tensors_of(self._model).items()}, self._keys)

    def _split(self, tensors: dict[str, Tensor], keys: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        sizes = self._linearised.sizes
        A, C = self._linearised(tensors)
        rows = [torch.split(part, sizes, 1) for part in (*torch.split(A, sizes[1:]), C)]
        return {(k, j): rows[k - 1][j] for k, j in keys}

    @torch.no_grad()
    def _read(self, network: Network) -> list[tuple[int, int]]:
        """Which map reads which source: with these weights, or with others near them."""
        generator, moved = torch.Generator().manual_seed(0), {}
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, each in tensors_of(self._model).items():
            value = each.detach().cpu()
            if name in parameters and value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value = value.double() + _NOISE * (1.0 + value.double().abs()) * noise
            moved[name] = value
        every = [(k, j) for k in range(1, len(network.sizes) + 1) for j in range(k)]
        found = self._split(moved, every)
        own = {(k, term.source) for k, affine in enumerate(network.affines, 1) for term in affine.terms}
        return [key for key in every if key in own or bool(found[key].any())]


def _double(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()  # MPS has no float64
