"""What a file holds in place of the weights in training, and its certificate. Knows no Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lipschitz import api
from lightning_lipschitz.callbacks._constrained import ConstrainedWeights, Tensors
from lightning_lipschitz.certificate import Certificate, Multipliers, Status, prove
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.network import Network
from lightning_lipschitz.projection import nearest
from lightning_lipschitz.projection.weights import LinearWeights

_RTOL = 1e-4  # of the certified bound
_ROUNDS = 1  # of the projection; training has brought the weights close


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
        self.hint: Callable[[], Multipliers | None] = lambda: None

    def __call__(self, tensors: Tensors) -> Written:
        """Written for these tensors of the submodule.

        Raises:
            NonFiniteError: weights that are NaN or infinite.
            LipschitzError: the bound cannot be certified.
        """
        if self._answer is not None and _same(tensors, self._given):
            return self._answer
        answer = self._write(tensors)
        self.keep(tensors, answer)
        return answer

    def keep(self, tensors: Tensors, answer: Written) -> None:
        """Take an answer that another process found."""
        self._given = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._answer = answer

    @torch.no_grad()
    def _write(self, tensors: Tensors) -> Written:
        network = self._weights.network(tensors)
        # no warm start: what is found depends on the weights alone, and a resumed run finds the same
        certificate = api.certify(network, rtol=_RTOL, throw=False)
        limit = self._max_lipschitz
        if limit is None or certificate.upper_bound <= limit:
            return Written({}, certificate)
        proved = self._prove(network, limit, certificate)
        return Written({}, proved) if proved else self._project(tensors, network, limit, certificate)

    def _prove(self, network: Network, limit: float, other: Certificate) -> Certificate | None:
        """By the multipliers that training kept, where the search for better ones did not get as far."""
        multipliers = self.hint()
        bound = None if multipliers is None else prove(network, multipliers, SIGNING_MARGIN)
        if multipliers is None or bound is None or bound > limit:
            return None
        return Certificate(
            bound, True, Status.SOLVED, "lipsdp-neuron", "native", None, 0.0, other.seconds, network.digest, multipliers
        )

    def _project(self, tensors: Tensors, network: Network, limit: float, above: Certificate) -> Written:
        linear = self._weights.linear
        realise = _Realise(linear, tensors)
        given = linear.read(tensors)
        found = nearest(given, network, limit, max_rounds=_ROUNDS, warm_start=above.state, realise=realise)
        moved = {**tensors, **realise.stored}
        if self._weights.network(moved).digest != found.certificate.network_digest:
            raise LipschitzError("the projected weights do not read back as they were certified; please report this.")
        return Written(realise.stored, found.certificate)


class _Realise:
    """float64 matrices -> the matrices of the parameters that hold them; the parameters of the last call are kept.

    On the CPU, where the certificate's network is read.
    """

    def __init__(self, linear: LinearWeights, tensors: Tensors) -> None:
        self._linear = linear
        self._own = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self.stored: dict[str, Tensor] = {}

    def __call__(self, weights: Sequence[Tensor]) -> list[Tensor]:
        self.stored = self._linear.encode([weight.cpu() for weight in weights], self._own)
        return self._linear.read({**self._own, **self.stored})


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
