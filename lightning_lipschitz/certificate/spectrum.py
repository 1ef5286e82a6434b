r"""Convolutional parts of a graph, one frequency at a time: LipSDP with the same multipliers at every position.

Take a part of convolutions that pad with zeros, units whose slopes depend on the channel alone, and sums. Lay every
image on one torus, so large that no tap that reads beyond an edge meets an image again, and let units act everywhere on
it: inside of the image as they are, outside with the output zero. A unit of output zero satisfies
:math:`(dz - \alpha dy)(dz - \beta dy) = \alpha \beta\, dy^2 \le 0` whatever its input, if :math:`\alpha \le 0 \le
\beta`; intervals that do not hold zero are widened. So the part is a network of circular convolutions to which the
theorem of :mod:`lightning_lipschitz.certificate.lmi` applies, seen at some positions of its output.

With multipliers lambda that depend on the channel alone, M(rho, lambda) is a matrix of circular convolutions: the
Fourier transform makes it block diagonal, one Hermitian block a frequency, and that block is M(rho, lambda) of the
network whose matrices are the symbols at this frequency. It is proved to be positive for each, in its real form
[[Re, -Im], [Im, Re]]. A stride of the convolutions that read the part's input is taken out by making channels of the
positions of each remainder ("space to depth"), as in :mod:`~lightning_lipschitz.certificate.symbols`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF, frobenius, product_up, sum_up
from lightning_lipschitz.certificate.proofs import Channels, Multipliers
from lightning_lipschitz.certificate.symbols import LONGEST_TABLE, Symbols, half
from lightning_lipschitz.certificate.verify import prove
from lightning_lipschitz.graph import Convolution, Elementwise, Graph, Sum
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term
from lightning_lipschitz.graph.parts import members

Summands = dict[int, tuple[Convolution | None, ...]]  # by source: convolutions, None for the source itself


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A convolutional part of a graph.

    Args:
        layers: of the part: its name, its slopes (widened to hold zero) and what its units read, by source: 0 is the
            part's input, k the units of layer k.
        output: the same, for the part's output.
        channels: of every source; those of the input as many times as there are remainders of the stride.
        periods: of the torus.
    """

    layers: tuple[tuple[str, float, float, Summands], ...]
    output: Summands
    channels: tuple[int, ...]
    rows: int
    periods: tuple[int, ...]

    @property
    def frequencies(self) -> npt.NDArray[np.int64]:
        """The torus' frequencies but for opposites, shape (count, dimensions)."""
        return np.concatenate(list(half(self.periods, 2**20)))

    def networks(self, frequencies: npt.NDArray[np.int64]) -> Iterator[Network | None]:
        """At each frequency, the network of the symbols in their real form; None where it overflows."""
        symbols = {
            id(node): Symbols.on(node, self.periods)
            for _, summands in self._reads()
            for each in summands.values()
            for node in each
            if node is not None
        }
        slacks = {key: each.slack(0) for key, each in symbols.items()}
        for frequency in frequencies:
            yield self._network({key: (s.embedded_at(frequency), slacks[key]) for key, s in symbols.items()})

    def _reads(self) -> list[tuple[int, Summands]]:
        hidden = [(rows, summands) for rows, (_, _, _, summands) in zip(self.channels[1:], self.layers, strict=True)]
        return [*hidden, (self.rows, self.output)]

    def _network(self, symbols: Mapping[int, tuple[Array, float]]) -> Network | None:
        made = [self._affine(rows, summands, symbols) for rows, summands in self._reads()]
        affines = [affine for affine in made if affine is not None]
        if len(affines) < len(made):
            return None
        layers = (
            Layer(affine, np.float64(alpha), np.float64(beta), name=name)  # type: ignore[arg-type]
            for affine, (name, alpha, beta, _) in zip(affines[:-1], self.layers, strict=True)
        )
        return Network(2 * self.channels[0], tuple(layers), affines[-1])

    def _affine(self, rows: int, summands: Summands, symbols: Mapping[int, tuple[Array, float]]) -> Affine | None:
        terms = []
        for source, nodes in sorted(summands.items()):
            total, rounding = np.zeros((2 * rows, 2 * self.channels[source])), 0.0
            for count, node in enumerate(nodes):
                matrix, slack = (np.eye(2 * rows), 0.0) if node is None else symbols[id(node)]
                total = total + matrix
                made = product_up(UNIT_ROUNDOFF, frobenius(total)) if count else 0.0
                rounding = sum_up(rounding, slack, made)
            if not (np.isfinite(rounding) and np.all(np.isfinite(total))):
                return None
            terms.append(Term(source, total, rounding))
        return Affine(tuple(terms), np.zeros(2 * rows))


def spectrum(graph: Graph, start: int, end: int) -> Spectrum | None:
    """The part from node ``start`` to node ``end``, or None where it is not of the kind that this module speaks of."""
    inside = members(graph, start, end)
    if inside is None:
        return None
    walk = _PartWalk(graph, start, inside)
    return walk.spectrum(end) if walk.possible() else None


class _PartWalk:
    def __init__(self, graph: Graph, start: int, inside: tuple[int, ...]) -> None:
        self.graph, self.start, self.inside = graph, start, inside
        nodes = [graph.nodes[number] for number in inside[1:]]
        self.convolutions = [node for node in nodes if isinstance(node, Convolution)]
        self.first = [node for node in self.convolutions if node.sources[0] == start]

    def possible(self) -> bool:
        """Whether all convolutions are plain ones, and only the first ones, all alike, are strided."""
        if not self.first:
            return False
        stride, image = self.first[0].stride, self.first[0].image
        plain = all(not (node.circular or node.transposed) and node.groups == 1 for node in self.convolutions)
        alike = all(node.stride == stride and node.image == image for node in self.first)
        later = (node for node in self.convolutions if node.sources[0] != self.start)
        return plain and alike and all(set(node.stride) == {1} and node.dims == len(stride) for node in later)

    def spectrum(self, end: int) -> Spectrum | None:
        stride = self.first[0].stride
        shapes, sources = {self.start: self.first[0].image}, {self.start: 0}
        reads: dict[int, Summands] = {self.start: {0: (None,)}}
        layers: list[tuple[str, float, float, Summands]] = []
        channels = [self.first[0].image[0] * math.prod(stride)]
        for number in self.inside[1:]:
            node = self.graph.nodes[number]
            given = [shapes[source] for source in node.sources]
            if isinstance(node, Convolution) and node.sources[0] in sources and given[0] == node.image:
                shapes[number], reads[number] = node.result, {sources[node.sources[0]]: (node,)}
            elif isinstance(node, Sum) and len(set(given)) == 1:
                shapes[number], reads[number] = given[0], _joined([reads[source] for source in node.sources])
            elif isinstance(node, Elementwise) and node.alpha.ndim == node.beta.ndim == 0 and node.alpha < node.beta:
                slopes = min(float(node.alpha), 0.0), max(float(node.beta), 0.0)
                layers.append((node.name, *slopes, reads[node.sources[0]]))
                shapes[number], sources[number] = given[0], len(layers)
                reads[number] = {len(layers): (None,)}
                channels.append(given[0][0])
            else:
                return None
        copies = any(None in each.get(0, ()) for each in [*(summands for *_, summands in layers), reads[end]])
        if (copies and set(stride) != {1}) or math.lcm(*(periods := self.torus())) > LONGEST_TABLE:
            return None
        return Spectrum(tuple(layers), reads[end], tuple(channels), shapes[end][0], periods)

    def torus(self) -> tuple[int, ...]:
        """As many positions as the most demanding convolution needs, counted in strides, the same for every axis."""
        return tuple(map(max, zip(*(Symbols.needed(node) for node in self.convolutions), strict=True)))


def prove_channels(part: Spectrum, proof: Channels, margin: float = 1.0) -> float | None:
    """The l2 Lipschitz bound that multipliers per channel prove of a part, or None where they prove nothing."""
    if [len(values) for values in proof.values] != list(part.channels[1:]):
        return None
    twice = Multipliers(proof.rho, tuple(np.concatenate([values, values]) for values in proof.values))
    bound = None
    for network in part.networks(part.frequencies):
        bound = None if network is None else prove(network, twice, margin)
        if bound is None:
            return None
    return bound  # the square root of rho, the same at every frequency


def _joined(parts: list[Summands]) -> Summands:
    total: Summands = {}
    for part in parts:
        for source, nodes in part.items():
            total[source] = total.get(source, ()) + nodes
    return total
