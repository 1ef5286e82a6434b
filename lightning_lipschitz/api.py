"""The functions of the package: read the model, delegate, answer with one object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.lower import LowerBound, steepest_pair
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import (
    MapLike,
    Method,
    Settings,
    Solver,
    require_count,
    require_time_limit,
)
from lightning_lipschitz.certificate import Certificate, Composition, Status, proof_of, reprove
from lightning_lipschitz.errors import ArgumentError, SolverError
from lightning_lipschitz.extraction import Input, Output, RoutedExtractor, input_of, part, reader_for, submodule
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network

Model: TypeAlias = nn.Module | Network | Graph | Sequence[npt.ArrayLike]


def certify(
    model: Model,
    example_input: Any = None,
    *,
    method: Method = "auto",
    solver: Solver = "auto",
    rtol: float = 1e-6,
    time_limit: float | None = None,
    device: str | torch.device = "auto",
    split_size: int | None = None,
    workers: int | MapLike = 1,
    warm_start: Certificate | None = None,
    throw: bool = True,
    slopes: tuple[float, float] = (0.0, 1.0),
    couplings: str = "all",
    module: str = "",
    input: Input = None,
    output: Output = None,
) -> Certificate:
    r"""A proved upper bound L of the l2 Lipschitz constant: :math:`|f(x) - f(x')|_2 \le L\, |x - x'|_2` for all inputs.

    The bound is global, in eval mode, of the function between the flattened input and the flattened output, and it
    does not use the biases: a network may be less steep than any such bound. Source: Fazlyab et al., "Efficient and
    accurate estimation of Lipschitz constants for deep neural networks", NeurIPS 2019; see
    :mod:`lightning_lipschitz.certificate.lmi` for the theorem.

    Args:
        model: any ``nn.Module`` (also a LightningModule); or weight matrices, shape (outputs, inputs), first layer
            first; or a Network.
        example_input: for a module: one batch of inputs, shape (batch, ...). By default the module's
            ``example_input_array``.
        method: "norm-product", "closed-form", "sweep", "lipsdp-layer", "lipsdp-neuron", or "auto": the tightest that
            fits the time limit and the memory. "sweep" moves the closed form's multipliers down hill, towards those of
            "lipsdp-neuron" (:mod:`lightning_lipschitz.bounds.swept`). "composed" bounds a module node by node and never
            forms its explicit matrices; "auto" takes it where these would be too large. "lipsdp-network" is for
            reproduction only and never certified.
        solver: "native", or "clarabel" / "scs" through cvxpy.
        rtol: relative duality gap at which the search for the best bound ends. The bound is proved whatever the gap.
        time_limit: seconds, reading and proving included; when they are over, the best bound so far is returned. What
            would not end in time is not begun: of large models, only what the entries of the weights show is left. By
            default none, but "auto" optimises for a minute at most: name a method, or a limit, for what takes longer.
        device: where the native solver computes; "auto" takes a GPU where there is one and the problem is large.
        split_size: layers a sub-network, for very deep networks; by default no split.
        workers: sub-networks solved at once, each in a process; or a map-like callable ``workers(function, items)``.
        warm_start: an earlier certificate of nearly the same network.
        throw: raise when the method fails (True) or return the best simpler bound with ``status`` FALLBACK (False).
        couplings: of "lipsdp-network": "all", "random:K" or "spaced:K".
        slopes: of the activations when ``model`` is a list of matrices; [0, 1] covers ReLU, tanh and the like.
        module: dotted name of the submodule to certify; "" for the model itself. ``example_input`` is then that of the
            submodule; by default, what the model's ``example_input_array`` becomes on its way there.
        input: for a module of several inputs (``example_input`` a tuple or a mapping of names): position or name of the
            one that the bound is for. The others are held fixed at the values of the example's first sample, and the
            bound holds for these values only.
        output: for a module of several outputs: position or name (key, field) of one; "all" for the joint l2 norm of
            all as one vector; or a function of what the module returns, such as ``lambda y: y[0] - y[1]``.

    Returns:
        A frozen :class:`Certificate`; ``upper_bound`` is in output units per input unit.

    Raises:
        ArgumentError, ShapeError, NonFiniteError, EmptyNetworkError: unusable input.
        ExtractionError, UnsupportedModuleError: a model that has no reading as affine maps and activations.
        SolverError: ``throw`` and the method failed; ``error.certificate`` is the best simpler bound, if any.

    Example:
        >>> import lightning_lipschitz as ll
        >>> certificate = ll.certify([[[1.0, 2.0], [1.0, -2.0]], [[1.0, 1.0]]])
        >>> round(certificate.upper_bound, 5), certificate.certified
        (2.3094, True)
    """
    clock = Clock(time_limit)
    state = None if warm_start is None else warm_start.state or warm_start.proof
    settings = Settings(method, solver, rtol, time_limit, str(device), split_size, workers, state, couplings)
    part = {"module": module, "input": input, "output": output}
    network = read(model, example_input, slopes, method, **part)  # type: ignore[arg-type]
    reading = clock.seconds
    if method == "composed" and isinstance(network, Network):
        raise ArgumentError("method", method, "any other for explicit matrices; this one reads an nn.Module")
    certificate = (
        certify_graph(network, settings, clock)
        if isinstance(network, Graph)
        else certify_network(network, settings, clock)
    )
    unfinished = isinstance(network, Network) and certificate.status is Status.TIME_LIMIT
    if method == "auto" and unfinished and isinstance(model, nn.Module) and clock.fits(2.0 * reading):
        # explicit matrices that were too much for the time: node by node, convolutions are bounded in less
        graph = read(model, example_input, slopes, "composed", **part)  # type: ignore[arg-type]
        if isinstance(graph, Graph):
            composed = replace(certify_graph(graph, settings, clock), status=Status.TIME_LIMIT)
            certificate = min(certificate, composed, key=lambda each: each.upper_bound)
    if throw and certificate.status in (Status.FALLBACK, Status.FAILED):
        raise SolverError(f"`{method}` with solver `{solver}` failed. {certificate.status.value}", certificate)
    return certificate


def verify(
    certificate: Certificate,
    model: Model,
    example_input: Any = None,
    slopes: tuple[float, float] = (0.0, 1.0),
    *,
    module: str = "",
    input: Input = None,
    output: Output = None,
) -> float:
    """Prove the certificate's bound again, on the model at hand.

    Args:
        certificate: of :func:`certify` or ``Certificate.load``; it is no longer ``unverified`` afterwards.
        model: as in :func:`certify`.
        example_input: as in :func:`certify`.
        slopes: as in :func:`certify`.
        module: as in :func:`certify`.
        input: as in :func:`certify`.
        output: as in :func:`certify`.

    Returns:
        ``certificate.upper_bound``, l2 output change per l2 input change, now proved of ``model``.

    Raises:
        CertificateError: the certificate is not a certified one, belongs to another network, or its proof does not
            hold.

    Example:
        >>> weights = [[[1.0, 2.0], [1.0, -2.0]], [[1.0, 1.0]]]
        >>> verify(certify(weights), weights) == certify(weights).upper_bound
        True
    """
    method: Method = "composed" if isinstance(proof_of(certificate), Composition) else "norm-product"
    return reprove(certificate, read(model, example_input, slopes, method, module=module, input=input, output=output))


def lower_bound(
    model: nn.Module,
    inputs: Any,
    *,
    steps: int = 50,
    pairs: int = 64,
    seed: int = 0,
    time_limit: float | None = None,
    device: str | torch.device = "cpu",
    module: str = "",
    input: Input = None,
    output: Output = None,
) -> LowerBound:
    """A LOWER bound of the l2 Lipschitz constant: the steepest pair of inputs that a gradient ascent finds.

    Args:
        model: any module that :func:`certify` reads; run in eval mode and float64, left as it was.
        inputs: shape (batch, ...), where the search starts; inputs like those of training show slopes that matter. Of
            ``module``, where one is named; a tuple or a mapping of names, where it takes several.
        steps: ascent steps.
        pairs: pairs searched at once.
        seed: of the search's own random numbers; the global generators are not used.
        time_limit: seconds, reading included: fewer pairs are searched, and fewer steps taken, than were asked for.
            One pair is evaluated in any case.
        device: where to compute.
        module: as in :func:`certify`.
        input: as in :func:`certify`.
        output: as in :func:`certify`.

    Returns:
        LowerBound(value, u, v): the quotient and the pair that attains it, flattened inputs, float64.

    Raises:
        ArgumentError: no inputs, or counts that make no sense.
        ExtractionError: the model cannot be read.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> lower_bound(model, torch.randn(16, 2)).value <= certify(model, torch.randn(16, 2)).upper_bound
        True
    """
    clock = Clock(time_limit)
    require_time_limit(time_limit)
    searched = submodule(model, module)
    start = part(searched, inputs, input, output)[1] if isinstance(inputs, (Tensor, tuple, Mapping)) else inputs
    if not isinstance(start, Tensor) or start.ndim < 2 or len(start) == 0:
        raise ArgumentError(
            "inputs", tuple(getattr(start, "shape", ())), "a tensor of at least one input, shape (batch, ...)"
        )
    require_count("steps", steps, least=0)
    require_count("pairs", pairs)
    function = RoutedExtractor(searched, inputs, name=module, input=input, output=output).function(device)
    generator = torch.Generator().manual_seed(seed)
    begin = start.flatten(1).to(device)
    return steepest_pair(function, begin, steps=steps, pairs=pairs, generator=generator, clock=clock)


def read(
    model: Model,
    example_input: Any = None,
    slopes: tuple[float, float] = (0.0, 1.0),
    method: Method = "auto",
    *,
    module: str = "",
    input: Input = None,
    output: Output = None,
) -> Network | Graph:
    """The Network, or the Graph, of a module or a part of it; the Network of a list of matrices; or what was
    given itself. Arguments as in :func:`certify`.

    "composed" reads a Graph, "auto" a Network where its matrices fit and else a Graph, any other method a Network.
    """
    if isinstance(model, nn.Module):
        given = getattr(model, "example_input_array", None) if example_input is None else example_input
        if module and example_input is None and given is not None:
            given = input_of(model, module, given)
        reader = reader_for(method)
        target = submodule(model, module)
        return reader(target, given, name=module, input=input, output=output, at_once=False).network()
    for name, value, default in (("module", module, ""), ("input", input, None), ("output", output, None)):
        if value != default:
            raise ArgumentError(name, value, f"{default!r} unless `model` is an nn.Module")
    if isinstance(model, (Network, Graph)):
        return model
    if isinstance(model, (str, bytes)) or not isinstance(model, Sequence):
        accepted = f"an nn.Module, a list of 2-D weight matrices or a Network{_hint(model)}"
        raise ArgumentError("model", type(model).__name__, accepted)
    return Network.from_weights(model, slopes=slopes)


def _hint(model: Any) -> str:
    if isinstance(model, Mapping):
        return " (load a state dict into its module)"
    if isinstance(model, (str, os.PathLike)):
        return " (the command line reads files)"
    if hasattr(model, "ndim"):
        return " (put one matrix into a list)"
    return " (make an instance of the class)" if isinstance(model, type) else ""


__all__ = ["Model", "certify", "lower_bound", "read", "verify"]
