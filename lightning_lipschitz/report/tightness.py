r"""Which layer costs what: certified bounds of the maps from the input to the pre-activations of every layer.

Let :math:`g_k` be the map from the input to the pre-activations of layer k, so that the last is the network f itself.
Every :math:`L_k \ge \mathrm{Lip}(g_k)` here is proved on its own, by the kernel that proves the bound of f. On a chain
the factors :math:`L_k / L_{k-1}` multiply to the bound of f. By itself layer k costs its spectral norm times the
steepest slope of the units before it, and the product of those is the norm-product bound; a smaller factor is what
LipSDP gains by seeing the layer together with those before it (Fazlyab et al., NeurIPS 2019; proofs of parts compose,
section 5 there, so an exact optimum never has the larger factor). Beside it stands the steepest slope that was found of
:math:`g_k`: where the two go apart, the bound is loose, the search was not lucky, or both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Method, Settings
from lightning_lipschitz.certificate import Certificate, Composition
from lightning_lipschitz.certificate.composition import claimed, prove_nodes
from lightning_lipschitz.certificate.floating_point import round_up
from lightning_lipschitz.certificate.spectral import norm_upper_bound
from lightning_lipschitz.errors import CertificateError, LipschitzError
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Affine, Network


@dataclass(frozen=True)
class LayerBound:
    """A line of the table.

    Attributes:
        name: name of the layer, as extracted.
        width: number of its outputs.
        norm: certified spectral norm of its matrix; None where none was proved.
        product: certified bound of the map to its pre-activations by norms alone; None where there is none.
        bound: the best certified bound of that map.
        lower: the steepest slope found of that map; None where none was searched.
        factor: ``bound`` over the one of the line before; None where layers do not form a chain.
    """

    name: str
    width: int
    norm: float | None
    product: float | None
    bound: float
    lower: float | None = None
    factor: float | None = None


@dataclass(frozen=True, eq=False)
class Prefix:
    """The map to the pre-activations of one layer.

    Attributes:
        network: the layers that the map goes through.
        layers: their numbers in the whole, from 0.
    """

    network: Network
    layers: tuple[int, ...]


def prefix(network: Network, k: int) -> Prefix:
    """The part of the network that its affine map number ``k`` (from 0, the last is the output's) depends on.

    Example:
        >>> whole = Network.from_weights([[[1.0], [1.0]], [[1.0, -1.0]], [[2.0]]])
        >>> prefix(whole, 1).network.sizes, prefix(whole, 1).layers
        ((1, 2), (0,))
    """
    sources = {term.source for term in network.affines[k].terms}
    for layer in range(k, 0, -1):
        if layer in sources:
            sources |= {term.source for term in network.affines[layer - 1].terms}
    kept = sorted(sources - {0})
    number = {0: 0} | {old: new for new, old in enumerate(kept, start=1)}
    layers = tuple(
        replace(network.layers[old - 1], affine=_renumbered(network.affines[old - 1], number)) for old in kept
    )
    output = _renumbered(network.affines[k], number)
    return Prefix(Network(network.input_size, layers, output), tuple(old - 1 for old in kept))


def _renumbered(affine: Affine, number: dict[int, int]) -> Affine:
    return replace(affine, terms=tuple(replace(term, source=number[term.source]) for term in affine.terms))


def layer_bounds(
    certificate: Certificate,
    network: Network | Graph,
    *,
    sample: Callable[[Prefix], float] | None = None,
    time_limit: float | None = None,
) -> tuple[LayerBound, ...]:
    """One line a layer, the last of the bound of the whole.

    Args:
        certificate: certificate of ``network``.
        network: explicit, or a graph; of the latter, the bounds that its proof goes through are read off.
        sample: gives a lower bound of the constant of a part.
        time_limit: seconds for all of it.

    Raises:
        CertificateError: the proof does not hold.
        SolverError: a part of which nothing could be proved.
    """
    if isinstance(network, Graph):
        return _graph_bounds(certificate, network)
    clock = Clock(time_limit)
    lines: list[LayerBound] = []
    for k, affine in enumerate(network.affines):
        part, last = prefix(network, k), k == len(network.layers)
        bound = certificate.upper_bound if last else _bound(part.network, certificate, clock, len(network.layers) - k)
        before = lines[-1].bound if lines and network.is_chain else 0.0
        lines.append(
            LayerBound(
                name=_name(network, k),
                width=affine.size,
                norm=_norm(affine),
                product=_product(part.network),
                bound=bound,
                lower=None if sample is None else sample(part),
                factor=bound / before if before > 0 else (bound if k == 0 and network.is_chain else None),
            )
        )
    return tuple(lines)


def _name(network: Network, k: int) -> str:
    return "output" if k == len(network.layers) else network.layers[k].name or f"layer {k + 1}"


def _norm(affine: Affine) -> float:
    """Certified norm of the matrices of all that the layer reads, side by side."""
    matrix = np.concatenate([term.matrix for term in affine.terms], axis=1)
    rounding = sum((Fraction(term.rounding) for term in affine.terms), start=Fraction(0))
    return norm_upper_bound(matrix, round_up(rounding))


def _product(network: Network) -> float | None:
    try:
        return certify_network(network, Settings("norm-product")).upper_bound
    except LipschitzError:
        return None


def _bound(network: Network, certificate: Certificate, clock: Clock, left: int) -> float:
    """Bound of a part, by the method of the whole; "auto" for LipSDP, which splits what is too deep."""
    method: Method = certificate.method if certificate.method in _CHEAP else "auto"  # type: ignore[assignment]
    limit = None if clock.left is None else max(clock.left / max(left, 1), 1e-3)
    return certify_network(network, Settings(method, rtol=1e-3, time_limit=limit)).upper_bound


_CHEAP = ("norm-product", "closed-form", "lipsdp-layer")


def _graph_bounds(certificate: Certificate, graph: Graph) -> tuple[LayerBound, ...]:
    proof = certificate.proof
    bounds = prove_nodes(graph, proof) if isinstance(proof, Composition) else None
    if bounds is None or not isinstance(proof, Composition):
        raise CertificateError("the proof of the bounds along the graph does not hold.")
    norms = dict(zip(claimed(graph), proof.norms.tolist(), strict=True))
    numbers = sorted({*norms, *(end for _, end, _ in proof.blocks), len(graph.nodes) - 1})
    return tuple(
        LayerBound(
            name=graph.nodes[number].name or ("output" if number == numbers[-1] else f"node {number}"),
            width=graph.nodes[number].size,
            norm=norms[number] if np.isfinite(norms.get(number, np.inf)) else None,
            product=None,
            bound=bounds[number],
        )
        for number in numbers
        if np.isfinite(bounds[number])  # inside of a part that was proved as a whole nothing is claimed
    )
