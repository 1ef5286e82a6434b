"""What a file holds in place of the weights in training, and its certificate. Knows no Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lipschitz import api
from lightning_lipschitz.callbacks._constrained import ConstrainedWeights, Tensors
from lightning_lipschitz.certificate import Certificate, Multipliers, prove
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.network import Network
from lightning_lipschitz.training import nearby, nearest
from lightning_lipschitz.training.multipliers import narrowed
from lightning_lipschitz.training.result import signed
from lightning_lipschitz.weights import Store

_RTOL = 1e-4  # of the certified bound, where it is searched for
_ROUNDS = 3  # of the projection, where it goes far
_HALVINGS = 7  # of the squared bound that they prove


@dataclass(frozen=True, eq=False)
class Written:
    """What is written of the weights of a moment.

    Attributes:
        tensors: the parameters of the submodule that differ from those in training, by their name there.
        certificate: of the submodule with these.
    """

    tensors: dict[str, Tensor]
    certificate: Certificate

    def cpu(self) -> Written:
        """Such as can be sent to another process."""
        return Written({name: t.cpu() for name, t in self.tensors.items()}, self.certificate)


class Author:
    """From the weights of a moment to what is written of them; the last answer is kept.

    Validation and the checkpoints of the same moment ask for the same weights: they get the same answer.

    Args:
        weights: the submodule.
        max_lipschitz: the bound that whatever is written meets; None to certify the weights as they are.
    """

    def __init__(self, weights: ConstrainedWeights, max_lipschitz: float | None) -> None:
        self._weights = weights
        self._max_lipschitz = max_lipschitz
        self._given: dict[str, Tensor] = {}
        self._answer: Written | None = None
        #: multipliers that training has at hand, for slopes widened to contain zero; their rho is the bound squared
        self.hint: Callable[[], Multipliers | None] = lambda: None

    def __call__(self, tensors: Tensors) -> Written:
        """Written for these tensors of the submodule.

        Raises:
            NonFiniteError: weights that are NaN or infinite.
            LipschitzError: the bound cannot be certified.
        """
        if self._answer is not None and _same(tensors, self._given) and self._holds(tensors, self._answer):
            return self._answer
        answer = self._write(tensors)
        self.keep(tensors, answer)
        return answer

    def _holds(self, tensors: Tensors, answer: Written) -> bool:
        """Whether the model is still the one that the answer is of."""
        return self._weights.network({**tensors, **answer.tensors}).digest == answer.certificate.network_digest

    def keep(self, tensors: Tensors, answer: Written) -> None:
        """Take an answer that another process found."""
        self._given = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._answer = answer

    @torch.no_grad()
    def _write(self, tensors: Tensors) -> Written:
        """By the multipliers of training if they are there and will do, for that is cheap; else by a search."""
        network, multipliers = self._weights.network(tensors), None if self._weights.renewed else self.hint()
        if self._max_lipschitz is None or multipliers is None:
            return self._search(tensors, network)
        proved = _prove(network, multipliers)
        if proved is not None:
            return Written({}, proved)
        return self._nearby(tensors, network, multipliers) or self._search(tensors, network)

    def _nearby(self, tensors: Tensors, network: Network, multipliers: Multipliers) -> Written | None:
        """Projected on the set of these multipliers, unless that is far: others would then cost less."""
        linear, store = self._weights.linear, Store(self._weights.linear, tensors)
        found = nearby(linear, linear.read(tensors), network, multipliers, store)
        return None if found is None else self._checked(tensors, store.stored, found.certificate)

    def _search(self, tensors: Tensors, network: Network) -> Written:
        # no warm start: what is found depends on the weights alone, and a resumed run finds the same
        certificate = api.certify(network, rtol=_RTOL, throw=False)
        limit = self._max_lipschitz
        if limit is None or certificate.upper_bound <= limit:
            return Written({}, certificate)
        linear, store = self._weights.linear, Store(self._weights.linear, tensors)
        start = certificate.state
        found = nearest(linear, linear.read(tensors), network, limit, store, max_rounds=_ROUNDS, warm_start=start)
        return self._checked(tensors, store.stored, found.certificate)

    def _checked(self, tensors: Tensors, stored: dict[str, Tensor], certificate: Certificate) -> Written:
        if self._weights.network({**tensors, **stored}).digest != certificate.network_digest:
            raise LipschitzError("the projected weights do not read back as they were certified; please report this.")
        return Written(stored, certificate)


def _prove(network: Network, multipliers: Multipliers) -> Certificate | None:
    """The least bound, to half a per cent, that these multipliers prove of the weights as they are, if any."""
    start = time.perf_counter()
    proof = narrowed(network, multipliers)
    bound = prove(network, proof, SIGNING_MARGIN)
    if bound is None:
        return None
    low, high = 0.0, proof.rho
    for _ in range(_HALVINGS):
        middle = replace(proof, rho=0.5 * (low + high))
        lower = prove(network, middle, SIGNING_MARGIN)
        if lower is None:
            low = middle.rho
        else:
            high, bound, proof = middle.rho, lower, middle
    return signed(network, proof, bound, time.perf_counter() - start)


def _same(one: Tensors, other: Tensors) -> bool:
    """Whether all values are equal; at the end of a fit Lightning has moved the module to the CPU."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name].to(one[name].device)) for name in one)
