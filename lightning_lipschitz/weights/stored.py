"""StoredWeights: the weights of a model that are held to a bound, and the parameters that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.weights.maps import WeightMap, chain_map, graph_map
from lightning_lipschitz.weights.parametrization import Parametrization


class StoredWeights:
    """Which tensors are held to a bound, how they enter the network, and how they are written back.

    Nothing is kept but names: the parameters are looked up when they are needed.

    Args:
        model: that holds the parameters.
        extractor: reads its network.
        parametrizations: how each weight is stored.
        names: dotted names of the submodules that hold the weights.
        is_chain: whether the weights are the matrices of a chain, first layer first, and not any tensors on which the
            matrices of the network depend.

    Attributes:
        model, extractor, names, is_chain: as given.
    """

    def __init__(
        self,
        model: nn.Module,
        extractor: Extractor,
        parametrizations: Sequence[Parametrization],
        names: Sequence[str],
        *,
        is_chain: bool,
    ) -> None:
        self.model, self.extractor, self.names, self.is_chain = model, extractor, tuple(names), is_chain
        self._parametrizations = tuple(parametrizations)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of all parameters involved, as in the model's ``state_dict``."""
        return tuple(name for each in self._parametrizations for name in each.names)

    def network(self) -> Network:
        """The network with the weights of this moment."""
        return self.extractor.network()

    def map(self, network: Network, tensors: Mapping[str, Tensor] | None = None) -> WeightMap:
        """Weights -> matrices of the network.

        Args:
            network: of the model; it says what reads what, its numbers are not used.
            tensors: of the model, by name; what is no weight stays as it is there. By default as it is now.

        Raises:
            NotLinearisedError: there is none.
        """
        if self.is_chain:
            return chain_map
        linearised = self.extractor.linearised(tensors)
        return graph_map(linearised, self._parametrizations, tensors or self.tensors(), network)

    def read(self, tensors: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The weights, detached, on their own device; in their own dtype where they are parameters, else float64.

        Args:
            tensors: a ``state_dict`` to read in place of the model's own; it may hold more.
        """
        return [weight.detach().clone() for weight in self.differentiable(tensors)]

    def differentiable(self, tensors: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The weights as functions of the parameters."""
        own = self.tensors() if tensors is None else tensors
        return [each.decode(own) for each in self._parametrizations]

    def encode(self, weights: Sequence[Tensor], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """New tensors for a ``state_dict`` whose weights are ``weights`` (float64), up to the rounding of the
        parameters' dtype."""
        own = self.tensors() if tensors is None else tensors
        new: dict[str, Tensor] = {}
        for each, weight in zip(self._parametrizations, weights, strict=True):
            new |= {name: tensor.detach() for name, tensor in each.encode(weight, own).items()}
        return new

    def realise(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """What :meth:`read` gives after :meth:`write` of these weights; computed on the CPU, as the extractor does."""
        realised = Store(self)(weights)
        return [stored.to(weight.device) for stored, weight in zip(realised, weights, strict=True)]

    @torch.no_grad()
    def write(self, weights: Sequence[Tensor]) -> None:
        """Write the weights (float64) into the parameters, in place."""
        own = self.tensors()
        new = self.encode([weight.detach().cpu() for weight in weights], {n: t.detach().cpu() for n, t in own.items()})
        for name, tensor in new.items():
            own[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters involved, by name, as they are in the model."""
        wanted = set(self.parameter_names)
        found = ((name, p) for name, p in self.model.named_parameters(remove_duplicate=False) if name in wanted)
        return dict(found)


class Store:
    """float64 weights -> the weights of the parameters that hold them; the parameters of the last call are kept.

    On the CPU, where the certificate's network is read.

    Args:
        weights: what is stored.
        tensors: of the model, by name; by default the model's own.

    Attributes:
        own: the tensors as they were given, on the CPU.
        stored: the tensors of the last call, by name.
    """

    def __init__(self, weights: StoredWeights, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._weights = weights
        given = weights.tensors() if tensors is None else tensors
        self.own = {name: tensor.detach().cpu() for name, tensor in given.items()}
        self.stored: dict[str, Tensor] = {}

    def __call__(self, weights: Sequence[Tensor]) -> list[Tensor]:
        self.stored = self._weights.encode([weight.detach().cpu() for weight in weights], self.own)
        return self._weights.read({**self.own, **self.stored})

    def network(self) -> Network:
        """The network of the tensors of the last call."""
        return self._weights.extractor.extract({**self.own, **self.stored}).network
