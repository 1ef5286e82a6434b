"""A bound met by one multiplication, of the last affine layer: at any size, and no decision changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import SIGNING_MARGIN, Certificate, Multipliers, Proposal, sign
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.extraction import RoutedExtractor
from lightning_lipschitz.extraction.undisturbed import tensors_of, unwrapped
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.last_layer import LastLayer, last_layer

_ROOM = 1e-6  # relative, below the bound: what rounding to float32 may add
_TRIALS = 8  # each with four times the room of the one before: coarse dtypes round by more

Subject = Network | Graph
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ScaledLayer:
    """A last layer as it meets a bound.

    Attributes:
        factor: what it was multiplied by, at most 1.
        tensors: its parameters by name, where the factor is not 1; on the CPU.
        certificate: certificate of the model with these.
    """

    factor: float
    tensors: dict[str, Tensor]
    certificate: Certificate


def scaled_layer(
    layer: LastLayer,
    tensors: Tensors,
    max_lipschitz: float,
    read: Callable[[Tensors], Subject],
    certify: Callable[[Subject], Certificate],
) -> ScaledLayer:
    """The last layer times the largest factor found, at most 1, with which the certified bound is at most
    ``max_lipschitz``.

    The bound is certified again of the weights as their dtype holds them.

    Args:
        layer: of the model.
        tensors: of the model, by name.
        max_lipschitz: the bound.
        read: the network, or graph, of the model with given tensors.
        certify: certifies it.

    Raises:
        SolverError: nothing finite can be proved.
    """
    whole = certify(read(tensors))
    if whole.upper_bound <= max_lipschitz:
        return ScaledLayer(1.0, {}, whole)
    certificate, factor, room = whole, 1.0, _ROOM
    for _ in range(_TRIALS):
        if not math.isfinite(certificate.upper_bound):
            raise SolverError("no finite bound can be proved, so no factor brings it to `max_lipschitz`.")
        factor *= (1.0 - room) * max_lipschitz / certificate.upper_bound
        scaled = layer.scaled(tensors, factor)
        subject = read({**tensors, **scaled})
        certificate = _carried_over(subject, whole, max_lipschitz) or certify(subject)
        if certificate.upper_bound <= max_lipschitz:
            return ScaledLayer(factor, scaled, certificate)
        room = min(4.0 * room, 0.5)
    raise SolverError("the dtype of the last layer is too coarse for the bound, or the bound is too small for it.")


def _carried_over(subject: Subject, whole: Certificate, max_lipschitz: float) -> Certificate | None:
    """The certificate that the multipliers of the unscaled network prove, which are those of the scaled one but for a
    factor; None where they prove none of at most ``max_lipschitz``."""
    proof = whole.proof
    if not isinstance(proof, Multipliers) or not isinstance(subject, Network):
        return None
    rho = max_lipschitz**2 * (1.0 - 0.1 * _ROOM)
    multipliers = Multipliers(rho, tuple(rho / proof.rho * values for values in proof.values))
    found = sign(subject, Proposal(multipliers, whole.method, whole.solver, whole.status), SIGNING_MARGIN)
    return found if found is not None and found.upper_bound <= max_lipschitz else None


def scale_decisions(
    model: nn.Module, max_lipschitz: float, example_input: Any, clock: Clock, device: str
) -> Certificate:
    """Multiply the last affine layer of a model in place, so that its certified bound is at most ``max_lipschitz``.

    Args:
        model: any that :func:`~lightning_lipschitz.certify` reads and that ends in an affine layer, see
            :func:`.last_layer`.
        max_lipschitz: the bound.
        example_input: one batch of its input.
        clock: of the whole call.
        device: where LipSDP computes.

    Raises:
        ProjectionError: it does not end in an affine layer.
        SolverError: nothing could be proved. The model is as it was.
    """
    model = unwrapped(model)
    reader = RoutedExtractor(model, example_input)
    layer = last_layer(model, example_input)

    def certify(subject: Subject) -> Certificate:
        settings, share = Settings(device=device), clock.share(2)
        if isinstance(subject, Graph):
            return certify_graph(subject, settings, share)
        return certify_network(subject, settings, share)

    found = scaled_layer(layer, tensors_of(model), max_lipschitz, lambda given: reader.extract(given).network, certify)
    _write(model, reader, found)
    return found.certificate


def _write(model: nn.Module, reader: RoutedExtractor, found: ScaledLayer) -> None:
    """Write, and make sure that what is read is what was certified; else put back what was there.

    Raises:
        SolverError: it is not.
    """
    live = {name: tensor for name, tensor in tensors_of(model).items() if name in found.tensors}
    before = {name: tensor.detach().clone() for name, tensor in live.items()}
    _copy(live, found.tensors)
    if reader.extract().network.digest != found.certificate.network_digest:
        _copy(live, before)
        raise SolverError("the scaled weights do not read back as they were certified; please report this.")


@torch.no_grad()
def _copy(live: Tensors, values: Tensors) -> None:
    for name, tensor in live.items():
        tensor.copy_(values[name])
