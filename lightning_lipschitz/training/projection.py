"""project: the nearest weights with a certified bound, written into a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import (
    Settings,
    require_choice,
    require_count,
    require_fraction,
    require_time_limit,
)
from lightning_lipschitz.certificate import Certificate, Multipliers, Status
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training import path, spectral_ball
from lightning_lipschitz.training.decisions import scale_decisions
from lightning_lipschitz.training.multipliers import squared
from lightning_lipschitz.training.result import Nearest
from lightning_lipschitz.training.scaled import fits, scaled
from lightning_lipschitz.weights import Store, StoredWeights, stored_weights

Keep: TypeAlias = Literal["weights", "decisions"]


def project(
    model: nn.Module,
    max_lipschitz: float,
    example_input: Any = None,
    *,
    keep: Keep = "weights",
    rtol: float = 3e-3,
    max_rounds: int = 30,
    time_limit: float | None = None,
    device: str | torch.device = "auto",
) -> Certificate:
    r"""Move a model to the nearest weights found whose certified l2 Lipschitz bound is at most ``max_lipschitz``, in
    place.

    With ``keep="decisions"`` it is moved otherwise: all weights stay but those of the last affine layer, which are
    multiplied, with the bias, by one number. So every output is multiplied by it and no argmax changes, in a model of
    any size that :func:`~lightning_lipschitz.certify` reads. Below is ``keep="weights"``.

    .. math::

        \mathrm{arg}\min_{\bar W} \sum_k |\bar W_k - W_k|_F^2 \quad\text{such that some } \lambda \ge 0 \text{ has }
        M(L^2, \lambda; \bar W) \succeq 0,

    with M of :mod:`lightning_lipschitz.certificate.lmi`. For fixed lambda it is the convex step of Pauli et al.
    ("Training robust neural networks using Lipschitz bounds", L-CSS 2021), here for chains of ``nn.Linear`` a
    projection on a spectral ball; lambda descends along the gradient of its value. Other models (residual,
    concatenated, convolutional, with batch norm in evaluation mode, with shared weights) follow the path of a
    log-determinant barrier in their parameters and lambda together, and the distance is that of the parameters. Either
    problem is not convex: a local minimum; it starts from all weights scaled alike. Biases and all other parameters
    stay. A model that meets the bound is not touched.

    Args:
        model: any that :func:`~lightning_lipschitz.certify` reads as explicit matrices, of up to 4000 inputs and units,
            with elementwise activations, max pooling, softmax, sorting or the larger of two tensors. Weight norm is
            written through.
        max_lipschitz: the bound L > 0, output change per input change.
        example_input: one batch of inputs, shape (batch, ...). By default the module's ``example_input_array``.
        keep: what stays as it is as far as it can: "weights", or "decisions" (the argmax of the outputs).
        rtol: relative decrease of the distance that is worth three more projections.
        max_rounds: at most so many projections. Neither is used where decisions are kept.
        time_limit: seconds. Where a projection would not end in time, all weights are scaled alike instead, by as
            much as the simple methods need to prove the bound, and the certificate's status is TIME_LIMIT.
        device: where LipSDP computes; "auto" takes a GPU where there is one and the problem is large. The projection
            stays where the weights are.

    Returns:
        A certificate of the model as it now is: ``upper_bound <= max_lipschitz``.

    Raises:
        ArgumentError: a bound that is not positive, or other unusable arguments.
        ProjectionError: a layer whose weights cannot be projected; names the submodule. A bound that skip connections
            alone exceed. To keep decisions: what ends in something else than an affine layer, such as a softmax.
        ExtractionError, NonFiniteError: the model cannot be read.
        SolverError: nothing could be certified. The model is as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(100, 2)
        >>> decided = model(x).argmax(1)
        >>> project(model, 0.2, torch.zeros(1, 2), keep="decisions").upper_bound <= 0.2
        True
        >>> bool((model(x).argmax(1) == decided).all())
        True
        >>> project(model, 0.1, torch.zeros(1, 2)).upper_bound <= 0.1
        True
    """
    clock = Clock(time_limit)
    _check(max_lipschitz, rtol, max_rounds, time_limit)
    require_choice("keep", keep, get_args(Keep))
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
    if keep == "decisions":
        return replace(scale_decisions(model, max_lipschitz, example_input, clock, str(device)), seconds=clock.seconds)
    weights = stored_weights(model, example_input)
    network = weights.network()
    inside = certify_network(network, Settings(device=str(device)), clock.share(3))
    if inside.upper_bound <= max_lipschitz:
        return inside
    if not fits(weights, network, clock):
        intended, certificate = scaled(weights, max_lipschitz, clock)
        _write(weights, intended, certificate)
        return replace(certificate, status=Status.TIME_LIMIT, seconds=clock.seconds)
    found = nearest(
        weights,
        weights.read(),
        network,
        max_lipschitz,
        Store(weights),
        rtol=rtol,
        max_rounds=max_rounds,
        time_limit=clock.left,
        device=str(device),
        warm_start=inside.state,
    )
    _write(weights, found.intended, found.certificate)
    return replace(found.certificate, seconds=clock.seconds)


def nearest(
    stored: StoredWeights,
    weights: Sequence[Tensor],
    network: Network,
    max_lipschitz: float,
    store: Store,
    *,
    warm_start: Any = None,
    **options: Any,
) -> Nearest:
    """The nearest weights found with a certified bound of at most ``max_lipschitz``; see :func:`project`.

    Args:
        stored: where the weights are.
        weights: such as :meth:`.StoredWeights.read` gives.
        network: has their slopes and groups.
        max_lipschitz: the bound.
        store: writes float64 weights as the parameters hold them.
        warm_start: LipSDP's, for these weights; the path of a graph begins at smaller ones, where it is of no use.
        options: as in :func:`.spectral_ball.nearest` and :func:`.path.nearest`.

    Raises:
        ProjectionError, SolverError: as :func:`project`.
    """
    if stored.is_chain:
        return spectral_ball.nearest(weights, network, max_lipschitz, realise=store, warm_start=warm_start, **options)
    constraint = path.Constraint.of(stored.map(network, store.own), network, weights)
    return path.nearest(constraint, weights, network, max_lipschitz, store, **options)


def nearby(
    stored: StoredWeights, weights: Sequence[Tensor], network: Network, multipliers: Multipliers, store: Store
) -> Nearest | None:
    """The nearest weights found from multipliers of the widened network that training has at hand, with the bound that
    these stand for; None where nothing can be signed, or where LipSDP anew is expected to cost less.

    Arguments as of :func:`nearest`; the multipliers' rho is the bound squared.
    """
    if stored.is_chain:
        return spectral_ball.nearby(weights, network, multipliers, store)
    constraint = path.Constraint.of(stored.map(network, store.own), network, weights)
    return path.nearby(constraint, weights, network, multipliers, store)


def require_reachable(stored: StoredWeights, max_lipschitz: float) -> None:
    """Some weights have a bound below ``max_lipschitz``: those of a chain always, with zero weights.

    Raises:
        ProjectionError: none have, because of what has no weights.
    """
    if not stored.is_chain:
        network, weights = stored.network(), stored.read()
        constraint = path.Constraint.of(stored.map(network), network, weights)
        path.require_reachable(constraint, weights, max_lipschitz)


def _write(weights: StoredWeights, intended: Sequence[Tensor], certificate: Certificate) -> None:
    """Write, and make sure that what is read is what was certified; else put back what was there.

    Raises:
        SolverError: it is not.
    """
    before = {name: tensor.detach().clone() for name, tensor in weights.tensors().items()}
    weights.write(intended)
    if weights.extractor.extract().network.digest == certificate.network_digest:
        return
    with torch.no_grad():
        for name, tensor in weights.tensors().items():
            tensor.copy_(before[name])
    raise SolverError("the projected weights do not read back as they were certified; please report this.")


def _check(max_lipschitz: float, rtol: float, max_rounds: int, time_limit: float | None) -> None:
    squared(max_lipschitz)
    require_fraction("rtol", rtol)
    require_count("max_rounds", max_rounds)
    require_time_limit(time_limit)
