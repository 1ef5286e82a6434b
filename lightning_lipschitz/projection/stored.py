"""StoredWeights: matrices of a model and the parameters that they are made of, to be read and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.projection.barrier import Start
from lightning_lipschitz.projection.codes import Code
from lightning_lipschitz.projection.consensus import Consensus, Problem
from lightning_lipschitz.projection.interior import Inside
from lightning_lipschitz.projection.nearest import Nearest


class StoredWeights(ABC):
    """Weights of a model that are held to a bound: where they are stored, and the methods for their kind.

    Nothing is kept but names: the parameters are looked up when they are needed.

    Attributes:
        extractor: of the model.
        names: of the submodules that hold the weights.
        solves: of LipSDP, that a projection takes the time of.
    """

    solves: float
    extractor: Extractor
    names: tuple[str, ...]
    _model: nn.Module
    _codes: list[Code]

    # Reading and writing

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Of every parameter involved, as in the model's ``state_dict``."""
        return tuple(name for code in self._codes for name in code.names)

    def network(self) -> Network:
        """The network with the weights of this moment."""
        return self.extractor.network()

    def read(self, tensors: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The weights, detached, on their own device; in their own dtype where they are parameters, else float64.

        Args:
            tensors: a ``state_dict`` to read in place of the model's own; it may hold more.
        """
        return [weight.detach().clone() for weight in self.differentiable(tensors)]

    def differentiable(self, tensors: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The weights as functions of the parameters."""
        own = self.tensors() if tensors is None else tensors
        return [code.decode(own) for code in self._codes]

    def encode(self, weights: Sequence[Tensor], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """New tensors for a ``state_dict`` whose weights are ``weights`` (float64), up to the rounding of the
        parameters' dtype."""
        own = self.tensors() if tensors is None else tensors
        new: dict[str, Tensor] = {}
        for code, weight in zip(self._codes, weights, strict=True):
            new |= {name: tensor.detach() for name, tensor in code.encode(weight, own).items()}
        return new

    def realise(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """What :meth:`read` gives after :meth:`write` of the same weights. On the CPU, as the extractor computes it."""
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
        found = ((name, p) for name, p in self._model.named_parameters(remove_duplicate=False) if name in wanted)
        return dict(found)

    # Methods. ``weights`` are such as :meth:`read` gives; ``network`` has their slopes and groups.

    @abstractmethod
    def require_reachable(self, max_lipschitz: float) -> None:
        """Some weights have a bound below ``max_lipschitz``.

        Raises:
            ProjectionError: none have, because of what has no weights.
        """

    @abstractmethod
    def nearest(
        self,
        weights: Sequence[Tensor],
        network: Network,
        max_lipschitz: float,
        store: Store,
        *,
        rtol: float = 3e-3,
        max_rounds: int = 30,
        time_limit: float | None = None,
        device: str = "auto",
        warm_start: object = None,
    ) -> Nearest:
        """The nearest weights found with a certified bound of at most ``max_lipschitz``; see :func:`.project`."""

    @abstractmethod
    def nearby(
        self, weights: Sequence[Tensor], network: Network, multipliers: Multipliers, store: Store, within: float
    ) -> Nearest | None:
        """The nearest weights found from multipliers of the widened network that training has at hand, with the bound
        that these stand for. None where nothing can be signed, or where, with these multipliers kept, the way is longer
        than the relative distance ``within``: then others would cost less."""

    @abstractmethod
    def advance(self, consensus: Consensus, weights: Sequence[Tensor], network: Network, problem: Problem) -> Consensus:
        """One round of the alternating direction method of multipliers; see :mod:`.consensus`."""

    @abstractmethod
    def start_inside(self, weights: Sequence[Tensor], network: Network, max_lipschitz: float) -> Start:
        """Weights strictly inside the certified set, and their multipliers; see :func:`.barrier.start_inside`."""

    @abstractmethod
    def interior(self, multipliers: Sequence[Tensor], max_lipschitz: float, network: Network) -> Inside:
        """The certified set of these multipliers, one tensor a layer, for training strictly inside."""


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
