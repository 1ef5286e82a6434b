"""From weights in float64 to weights as the parameters hold them, signed by the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_lipschitz.certificate import Certificate, Multipliers
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.multipliers import narrowed, widened
from lightning_lipschitz.training.result import signed
from lightning_lipschitz.training.spectral_ball.certified_set import CertifiedSet
from lightning_lipschitz.weights.maps import with_weights

MARGINS = tuple(10.0**-k for k in range(11, 0, -1))  # room left below norm one, for the kernel's own rounding
_ATTEMPTS = 4  # to leave that room in spite of the parameters' rounding

Realise = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Realised:
    """Weights that can be stored, with their certificate.

    Attributes:
        weights: in the parameters' own dtype.
        intended: float64; written into the parameters, they become ``weights``.
        certificate: of the chain with exactly these weights; its bound is not above the root of rho, rounded up.
    """

    weights: list[Tensor]
    intended: list[Tensor]
    certificate: Certificate


def round_and_sign(weights: Sequence[Tensor], network: Network, multipliers: Multipliers, realise: Realise) -> Realised:
    """The weights times the largest (1 - t) found for which the kernel signs what the parameters can hold.

    Weights on the boundary of the certified set leave it when they are rounded. Zero is inside and the set is convex,
    so a little less of all of them is inside again: about 1e-10 for float64 parameters, 1e-7 for float32, 1e-3 for
    bfloat16.

    Args:
        weights: float64, in the certified set of ``multipliers``.
        network: the chain they belong to; only its slopes and biases are used.
        multipliers: of the widened network.
        realise: float64 weights -> the weights that the parameters hold once these are written into them.

    Raises:
        SolverError: nothing could be signed.
    """
    ball, proof = CertifiedSet.of(widened(network), multipliers), narrowed(network, multipliers)
    for margin in MARGINS:
        stored, intended = _leave_room(weights, ball, realise, margin)
        certificate = signed(with_weights(network, stored), proof)
        if certificate is not None:
            return Realised(stored, intended, certificate)
    raise SolverError(
        "the projected weights could not be certified; the multipliers may span more than float64 can hold."
    )


def rounding_to(weights: Sequence[Tensor]) -> Realise:
    """``realise`` of plain parameters: rounding to the dtype of these."""
    kinds = [(weight.dtype, weight.device) for weight in weights]
    return lambda values: [v.to(device=d, dtype=t) for v, (t, d) in zip(values, kinds, strict=True)]


def _leave_room(
    weights: Sequence[Tensor], ball: CertifiedSet, realise: Realise, margin: float
) -> tuple[list[Tensor], list[Tensor]]:
    """What is stored, with ``||G||_2 <= 1 - margin`` after its rounding, and what to write for it."""
    intended, target = list(weights), 1.0 - margin
    stored = realise(intended)
    for _ in range(_ATTEMPTS):
        norm = ball.norm(stored)
        if norm <= target:
            break
        intended = [(1.0 - margin / 8) * target / norm * weight for weight in intended]
        stored = realise(intended)
    return stored, intended
