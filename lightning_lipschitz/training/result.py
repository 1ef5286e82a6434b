"""What a projection finds: weights with a certified bound as the parameters can hold them, and their certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_lipschitz.certificate import SIGNING_MARGIN, Certificate, Multipliers, Proposal, sign
from lightning_lipschitz.graph.network import Network


@dataclass(frozen=True, eq=False)
class State:
    """Where the projection of similar weights can start. Tensors and numbers only.

    Attributes:
        dual: the last dual variable, of the shape of G; scaled so that it stays near for other multipliers.
        penalty: its last penalty.
    """

    dual: Tensor
    penalty: float


@dataclass(frozen=True, eq=False)
class Nearest:
    """Weights that can be stored, with their certificate.

    Attributes:
        weights: in the dtype and on the device of those given; what the parameters hold.
        intended: float64; what to write into them, where they are not the weights themselves (weight norm).
        certificate: proves a bound of at most the one asked for, of the network with exactly these weights.
        multipliers: what to start from: those of the widened network, at rho = bound squared.
        distance: Frobenius distance from the weights given, all of them together.
        rounds: projections of a chain, or stages of the path of a graph, that were made.
        state: where the next projection of similar weights of a chain can start.
        warm_start: where LipSDP can start on similar weights.
    """

    weights: list[Tensor]
    intended: list[Tensor]
    certificate: Certificate
    multipliers: Multipliers
    distance: float
    rounds: int = 0
    state: State | None = None
    warm_start: Any = None


def signed(network: Network, proof: Multipliers) -> Certificate | None:
    """The certificate of the bound that multipliers prove of exactly these weights; None where they prove none."""
    return sign(network, Proposal(proof, "lipsdp-neuron", "native"), SIGNING_MARGIN)
