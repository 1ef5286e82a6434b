"""Certified constants of every difference of two outputs: what decides between two classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any, TypeAlias, get_args

import numpy as np

from lightning_lipschitz.api import Model, read
from lightning_lipschitz.bounds import cost, swept
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.pairwise import RATIOS, Pair, difference, pairs, shared_proposals, shared_work
from lightning_lipschitz.bounds.search import FEWEST_STEPS, certify_network, searching
from lightning_lipschitz.bounds.settings import MatrixMethod, Method, Settings, Solver, require_choice
from lightning_lipschitz.bounds.signing import sign_nearby
from lightning_lipschitz.certificate import Certificate, Composition, Multipliers, Proof, prove, reprove
from lightning_lipschitz.certificate.floating_point import round_up, sqrt_up
from lightning_lipschitz.errors import ArgumentError, CertificateError, SolverError
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network

Proved: TypeAlias = tuple[float, Proof | None]
WarmStart: TypeAlias = Certificate | Multipliers | None


@dataclass(frozen=True, eq=False)
class PairwiseBounds:
    """Proved l2 Lipschitz bounds of every ``f_i - f_j``.

    Attributes:
        matrix: shape (classes, classes), float64, read-only; symmetric, zeros on the diagonal. Output units per input
            unit, as ``Certificate.upper_bound``. No entry is above sqrt(2) times ``whole.upper_bound`` (rounded up).
        whole: the certificate of the map to all outputs, from which the pairs started.
        proofs: for each pair (i, j), i < j, what proves the entry of the network of ``f_i - f_j``; None where it is
            sqrt(2) times the bound of the whole.
        refined: how many pairs had a search of their own.
        seconds: wall time of everything.
    """

    matrix: Array
    whole: Certificate
    proofs: Mapping[Pair, Proof | None]
    refined: int
    seconds: float

    def __repr__(self) -> str:
        classes, largest = len(self.matrix), float(self.matrix.max())
        found = f"{classes} x {classes}, none above {largest!r}; {self.refined} pairs refined"
        return f"PairwiseBounds({found}; whole={self.whole!r})"

    @property
    def network_digest(self) -> str:
        """SHA-256 of the network that the bounds are of."""
        return self.whole.network_digest

    def verify(self, model: Model, example_input: Any = None) -> Array:
        """Prove every entry again, on the model at hand; the arguments are those of :func:`pairwise_bounds`.

        Returns:
            ``matrix``.

        Raises:
            CertificateError: they belong to another network, or a proof does not hold.
        """
        network = _explicit(model, example_input)
        if network.digest != self.network_digest:
            raise CertificateError("the pairwise bounds belong to another network. Compute them of this model.")
        whole = reprove(self.whole, network)
        for (i, j), proof in self.proofs.items():
            bound = _sqrt2_times(whole) if proof is None else prove(difference(network, (i, j)), proof)
            if bound is None or not bound <= self.matrix[i, j]:
                raise CertificateError(f"the proof of the bound of output {i} less output {j} does not hold.")
        return self.matrix

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"proofs": dict(self.proofs), "whole": replace(self.whole, state=None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"proofs": MappingProxyType(state["proofs"])})
        self.matrix.setflags(write=False)


def pairwise_bounds(
    model: Model,
    example_input: Any = None,
    *,
    method: MatrixMethod = "auto",
    solver: Solver = "auto",
    rtol: float = 1e-3,
    time_limit: float | None = None,
    refine: bool = True,
    slopes: tuple[float, float] = (0.0, 1.0),
    warm_start: WarmStart | Sequence[WarmStart] = (),
) -> PairwiseBounds:
    r"""Proved bounds of the l2 Lipschitz constants of all differences of two outputs.

    A class i that leads by ``f_i(x) - f_j(x)`` still leads at every input closer than that over the constant of
    ``f_i - f_j``; sqrt(2) times the constant of f, the other bound of it, is never smaller than what is returned here.
    One search is done for all outputs, and one for the mean of log K_ij (:mod:`lightning_lipschitz.bounds.swept`); each
    pair then takes the multipliers of these, scaled by the best factor (see
    :mod:`lightning_lipschitz.bounds.pairwise`), or a closed form, and where there is time its own search.
    Every entry is proved by the kernel.

    Args:
        model: as in :func:`lightning_lipschitz.certify`; of two outputs or more.
        example_input: as in :func:`lightning_lipschitz.certify`.
        slopes: as in :func:`lightning_lipschitz.certify`.
        method: as in :func:`lightning_lipschitz.certify`, without "composed" and "lipsdp-network".
        solver: as in :func:`lightning_lipschitz.certify`.
        rtol: relative duality gap at which each search ends.
        time_limit: seconds, reading and proving included; half of them at most go to the search of all outputs. Pairs
            for which there is no time left have sqrt(2) times the bound of that. By default none, but "auto" optimises
            for a minute at most, in all.
        refine: whether every pair has a search of its own, the largest bounds first. Without it, the cost is little
            more than that of :func:`lightning_lipschitz.certify`.
        warm_start: multipliers that are offered beside those found, or several of them: of a certificate of nearly the
            same network, or of :meth:`.DifferentiableBound.multipliers`. Those of a margin loss prove more than a
            search finds. A certificate of this network is taken for the map to all outputs, without a search.

    Raises:
        ArgumentError: a single output, or an argument that cannot be used; else as :func:`lightning_lipschitz.certify`.

    Example:
        >>> bounds = pairwise_bounds([[[1.0, 2.0], [1.0, -2.0]], [[1.0, 1.0], [1.0, 0.0], [0.0, -2.0]]])
        >>> bool((bounds.matrix <= 1.4142136 * bounds.whole.upper_bound).all())
        True
        >>> bounds.matrix[0, 0], bool(bounds.matrix[0, 1] < bounds.matrix[0, 2])
        (np.float64(0.0), True)
    """
    clock = Clock(time_limit)
    require_choice("method", method, get_args(MatrixMethod))
    settings = Settings(method, solver, rtol, time_limit)
    network = _explicit(model, example_input, slopes)
    if network.output.size < 2:
        raise ArgumentError("model", f"{network.output.size} output", "one with two or more outputs; use `certify`")
    offered = (warm_start,) if isinstance(warm_start, (Certificate, Multipliers, type(None))) else warm_start
    return _PairSearch(network, settings, refine, clock, tuple(offered)).run()


def _explicit(model: Model, example_input: Any, slopes: tuple[float, float] = (0.0, 1.0)) -> Network:
    """Pairs are bounded on explicit matrices."""
    network = read(model, example_input, slopes, "lipsdp-neuron")
    if not isinstance(network, Network):
        raise ArgumentError("model", type(network).__name__, "an nn.Module, a list of weight matrices or a Network")
    return network


class _PairSearch:
    """From the whole to the pairs; keeps the best proved bound of each."""

    def __init__(
        self, network: Network, settings: Settings, refine: bool, clock: Clock, offered: Sequence[WarmStart] = ()
    ) -> None:
        self.network, self.settings, self.refine = network, settings, refine
        known = [each for each in offered if isinstance(each, Certificate)]
        self.known = next((each for each in known if each.certified and each.network_digest == network.digest), None)
        proofs = [each.proof if isinstance(each, Certificate) else each for each in offered if each is not self.known]
        self.offered = [each for each in proofs if isinstance(each, Multipliers) and _fits(each, network)]
        self.clock = searching(settings, clock)
        self.best: dict[Pair, Proved] = {}
        self.refined: set[Pair] = set()

    def run(self) -> PairwiseBounds:
        whole = self._certify(self.network, 2) if self.known is None else self.known
        self.best = dict.fromkeys(pairs(self.network.output.size), (_sqrt2_times(whole.upper_bound), None))
        for point in self.offered:
            self._share(point, _AS_THEY_ARE)
        if isinstance(whole.proof, Multipliers):
            self._share(whole.proof)
        if self.settings.method in ("auto", "sweep") and not self.offered:
            self._sweep()
        if self.refine and self.settings.method not in _SIMPLE:
            self._refine()
        self._simple()
        return PairwiseBounds(
            self._matrix(), whole, MappingProxyType(self._proofs()), len(self.refined), seconds=self.clock.seconds
        )

    def _certify(self, network: Network, share: int) -> Certificate:
        return certify_network(network, self.settings, self.clock.share(share))

    def _simple(self) -> None:
        """Norms and closed forms of each difference itself, where no search has tried them already."""
        methods: tuple[Method, ...] = ("norm-product",) if self.settings.method == "norm-product" else _SIMPLE
        for pair in self.best.keys() - self.refined:
            for method in methods:
                if self.clock.over:
                    return
                try:
                    found = certify_network(difference(self.network, pair), Settings(method), self.clock.share(1))
                except SolverError:
                    continue
                self._offer(pair, found)

    def _sweep(self) -> None:
        """Multipliers that are best for all pairs together."""
        steps = cost.swept_step(self.network).times(FEWEST_STEPS)
        if not self.network.layers or not self.clock.fits(self.clock.needs(steps)):
            return
        try:
            found = swept.propose(self.network, self.clock.share(2), objective=swept.mean_log_pairs)
        except SolverError:
            return
        self._share(found.multipliers, _AS_THEY_ARE)

    def _share(self, point: Multipliers, ratios: Sequence[float] = tuple(RATIOS)) -> None:
        if not self.clock.fits(self.clock.needs(shared_work(self.network, len(ratios)))):
            return
        proof = self.clock.needs(cost.proof(self.network))
        for pair, proposal in shared_proposals(self.network, point, ratios).items():
            if not self.clock.fits(proof):
                return
            self._offer(pair, sign_nearby(difference(self.network, pair), proposal))

    def _refine(self) -> None:
        order = sorted(self.best, key=lambda pair: -self.best[pair][0])
        for done, pair in enumerate(order):
            if self.clock.over:
                return
            try:
                found = self._certify(difference(self.network, pair), len(order) - done)
            except SolverError:
                continue
            self._offer(pair, found)
            self.refined.add(pair)

    def _offer(self, pair: Pair, found: Certificate | None) -> None:
        if found is not None and not isinstance(found.proof, Composition):
            self.best[pair] = min(self.best[pair], (found.upper_bound, found.proof), key=lambda proved: proved[0])

    def _matrix(self) -> Array:
        size = self.network.output.size
        matrix = np.zeros((size, size))
        for (i, j), (bound, _) in self.best.items():
            matrix[i, j] = matrix[j, i] = bound
        matrix.setflags(write=False)
        return matrix

    def _proofs(self) -> dict[Pair, Proof | None]:
        return {pair: proof for pair, (_, proof) in self.best.items()}


_SIMPLE: tuple[Method, ...] = ("norm-product", "closed-form")
_AS_THEY_ARE = (1.0,)  # ratios of multipliers that were made for the pairs


def _fits(point: Multipliers, network: Network) -> bool:
    """Whether there is a multiplier for every unit."""
    return [value.shape for value in point.values] == [(layer.size,) for layer in network.layers]


def _sqrt2_times(bound: float) -> float:
    """``|f_i - f_j| <= sqrt(2) |f|``, rounded up."""
    return round_up(Fraction(bound) * Fraction(sqrt_up(Fraction(2))))


__all__ = ["PairwiseBounds", "pairwise_bounds"]
