"""The weights that a file holds in place of those in training, and their certificate. Knows no Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lipschitz import api
from lightning_lipschitz.callbacks._bounded_weights import BoundedWeights
from lightning_lipschitz.callbacks._held_weights import HeldWeights, Tensors
from lightning_lipschitz.callbacks._last_layer_weights import LastLayerWeights
from lightning_lipschitz.certificate import Certificate, Multipliers
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training import nearby, nearest, scaled_layer
from lightning_lipschitz.training.at_hand import certificate_by
from lightning_lipschitz.weights import Store

_SECONDS = 20.0  # for a certificate of explicit matrices that are scaled: small networks take less
_RTOL = 1e-4  # of the certified bound, where it is searched for
_ROUNDS = 3  # of the projection, where it goes far


@dataclass(frozen=True, eq=False)
class CertifiedWeights:
    """What is written of the weights of a moment.

    Attributes:
        tensors: the parameters of the submodule that differ from those in training, by their name there.
        certificate: certificate of the submodule with these.
        factor: number that the last affine layer was multiplied by, where that is how they were made.
    """

    tensors: dict[str, Tensor]
    certificate: Certificate
    factor: float = 1.0

    def cpu(self) -> CertifiedWeights:
        """These on the CPU, to be sent to another process."""
        return replace(self, tensors={name: tensor.cpu() for name, tensor in self.tensors.items()})


class Certifier:
    """Finds the certified weights that are written of those of a moment; keeps the last answer.

    Validation and the checkpoints of the same moment ask for the same weights: they get the same answer. Subclasses say
    how certified weights are made of others.

    Args:
        weights: the submodule.
    """

    def __init__(self, weights: HeldWeights) -> None:
        self._weights = weights
        self._given: dict[str, Tensor] = {}
        self._answer: CertifiedWeights | None = None

    def _write(self, tensors: Tensors) -> CertifiedWeights:
        """What is written of these tensors. Raises as :meth:`__call__`."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, tensors: Tensors) -> CertifiedWeights:
        """What is written of these tensors of the submodule.

        Raises:
            NonFiniteError: weights that are NaN or infinite.
            LipschitzError: the bound cannot be certified.
        """
        if self._answer is not None and _same(tensors, self._given) and self._holds(tensors, self._answer):
            return self._answer
        answer = self._write(tensors)
        self.keep(tensors, answer)
        return answer

    def _holds(self, tensors: Tensors, answer: CertifiedWeights) -> bool:
        """Whether the model is still the one that the answer is of."""
        return self._weights.network({**tensors, **answer.tensors}).digest == answer.certificate.network_digest

    def keep(self, tensors: Tensors, answer: CertifiedWeights) -> None:
        """Take an answer that another process found."""
        self._given = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._answer = answer

    @property
    def answer(self) -> CertifiedWeights | None:
        """The last one."""
        return self._answer


class Projector(Certifier):
    """All weights of the submodule move to the nearest certified ones.

    Args:
        weights: the submodule.
        max_lipschitz: the bound that whatever is written meets; None to certify the weights as they are.
        hint: gives multipliers that training has at hand, for slopes widened to contain zero; their rho is the bound
            squared.
    """

    _weights: BoundedWeights

    def __init__(
        self, weights: BoundedWeights, max_lipschitz: float | None, hint: Callable[[], Multipliers | None]
    ) -> None:
        super().__init__(weights)
        self._max_lipschitz, self._hint = max_lipschitz, hint

    def _write(self, tensors: Tensors) -> CertifiedWeights:
        """Use the multipliers of training if they are there and will do, for that is cheap; else search."""
        network, multipliers = self._weights.network(tensors), None if self._weights.renewed else self._hint()
        if self._max_lipschitz is None or multipliers is None:
            return self._search(tensors, network)
        proved = certificate_by(network, multipliers)
        if proved is not None:
            return CertifiedWeights({}, proved)
        return self._nearby(tensors, network, multipliers) or self._search(tensors, network)

    def _nearby(self, tensors: Tensors, network: Network, multipliers: Multipliers) -> CertifiedWeights | None:
        """Projected on the set of these multipliers, unless that is far: others would then cost less."""
        stored, store = self._weights.stored, Store(self._weights.stored, tensors)
        found = nearby(stored, stored.read(tensors), network, multipliers, store)
        return None if found is None else self._checked(tensors, store.stored, found.certificate)

    def _search(self, tensors: Tensors, network: Network) -> CertifiedWeights:
        # no warm start: what is found depends on the weights alone, and a resumed run finds the same
        certificate = api.certify(network, rtol=_RTOL, throw=False)
        limit = self._max_lipschitz
        if limit is None or certificate.upper_bound <= limit:
            return CertifiedWeights({}, certificate)
        stored, store = self._weights.stored, Store(self._weights.stored, tensors)
        start = certificate.state
        found = nearest(stored, stored.read(tensors), network, limit, store, max_rounds=_ROUNDS, warm_start=start)
        return self._checked(tensors, store.stored, found.certificate)

    def _checked(self, tensors: Tensors, stored: dict[str, Tensor], certificate: Certificate) -> CertifiedWeights:
        if self._weights.network({**tensors, **stored}).digest != certificate.network_digest:
            raise LipschitzError("the projected weights do not read back as they were certified; please report this.")
        return CertifiedWeights(stored, certificate)


class LastLayerScaler(Certifier):
    """The last affine layer of the submodule is multiplied by one number.

    Args:
        weights: the submodule.
        max_lipschitz: the bound that whatever is written meets.
    """

    _weights: LastLayerWeights

    def __init__(self, weights: LastLayerWeights, max_lipschitz: float) -> None:
        super().__init__(weights)
        self._max_lipschitz = max_lipschitz

    def _write(self, tensors: Tensors) -> CertifiedWeights:
        layer, read = self._weights.layer, self._weights.network

        def certify(subject: Network | Graph) -> Certificate:
            # node by node it takes seconds anyway, and a limit would cost parts of it their time
            limit = _SECONDS if isinstance(subject, Network) else None
            return api.certify(subject, rtol=_RTOL, time_limit=limit, throw=False)

        found = scaled_layer(layer, tensors, self._max_lipschitz, read, certify)
        return CertifiedWeights(found.tensors, found.certificate, found.factor)


def _same(one: Tensors, other: Tensors) -> bool:
    """Whether all values are equal; at the end of a fit Lightning has moved the module to the CPU."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name].to(one[name].device)) for name in one)
