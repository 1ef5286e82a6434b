"""One measurement: a certified upper bound and a sampled lower bound of a module as it is now. Knows no Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lightning_lipschitz import api
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.settings import Method, Settings
from lightning_lipschitz.certificate import Certificate, Multipliers, Status
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.pairwise import PairwiseBounds, pairwise_bounds

_SAMPLING = 0.2  # of what the time limit leaves, for the lower bound
_LEAST_SAMPLING = 1.0  # seconds for the lower bound, where there is no limit and the upper bound took less
_MOST_OUTPUTS = 100  # whose pairs are bounded: a proof each
LOGGED = ("upper_bound", "lower_bound", "relative_gap", "seconds", "solver_ok")  # keys, in their order
_REACHED = (Status.SOLVED, Status.ALMOST_SOLVED)


@dataclass(frozen=True)
class HistoryEntry:
    """One entry of ``callback.history``.

    Attributes:
        epoch: number of the epoch, from 0.
        global_step: optimizer steps taken.
        upper_bound: certified; infinite where nothing can be, as with weights that are NaN.
        lower_bound: sampled; None if switched off or not possible.
        relative_gap: duality gap of the solver's answer, None where the method has none.
        seconds: wall time of the whole measurement.
        solver_ok: whether the method reached its goal; the bound is valid either way.
        method: method that gave the bound.
    """

    epoch: int
    global_step: int
    upper_bound: float
    lower_bound: float | None
    relative_gap: float | None
    seconds: float
    solver_ok: bool
    method: str

    def metrics(self) -> dict[str, float]:
        """What is logged, by the last part of its key."""
        values = {name: getattr(self, name) for name in LOGGED}
        return {name: float(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Measurement:
    """An entry, the certificate behind it (None where nothing could be certified), what went wrong, if anything, and
    the bounds of pairs of outputs, where they were asked for and there was time."""

    entry: HistoryEntry
    certificate: Certificate | None
    trouble: str | None
    pairs: PairwiseBounds | None = None

    @classmethod
    def failed(cls, at: tuple[int, int], trouble: str) -> Measurement:
        """Nothing is known, and that is infinity."""
        return cls(HistoryEntry(*at, math.inf, None, None, 0.0, False, "none"), None, trouble)

    def warnings(self, limit: float | None) -> dict[str, str]:
        """What went wrong, and a bound above the one that was asked for: sentences by subject."""
        entry, found = self.entry, {}
        where = f"epoch {entry.epoch}, step {entry.global_step}:"
        if self.trouble is not None:
            found["trouble"] = f"{where} {self.trouble} The upper bound logged is {entry.upper_bound:.6g}."
        if limit is not None and entry.upper_bound > limit:
            known = "" if entry.lower_bound is None else f", the constant at least {entry.lower_bound:.6g}"
            told = f"the upper bound is {entry.upper_bound:.6g}{known}: above `max_lipschitz={limit:g}`."
            found["limit"] = f"{where} {told}"
        return found

    def without_state(self) -> Measurement:
        """This without what only the next solve on this machine can use."""
        pairs = self.pairs and replace(self.pairs, whole=replace(self.pairs.whole, state=None))
        return replace(self, certificate=self.certificate and replace(self.certificate, state=None), pairs=pairs)


def measure(
    read: Callable[[], Network | Graph],
    sample: Callable[[float], float | None] | None,
    settings: Settings,
    warm_start: Certificate | None,
    at: tuple[int, int],
    offered: Callable[[], Sequence[Multipliers]] | None = None,
) -> Measurement:
    """Read the weights, certify them and sample a lower bound.

    Whatever fails costs tightness and never the run: a method that fails is replaced by the product of the norms, and
    where that fails too, as with weights that are not finite, the bound is infinity.

    Args:
        read: gives the network as it is now.
        sample: gives the lower bound, in so many seconds: what the limit leaves, or as long as the upper bound took;
            None for no lower bound.
        settings: what the certification is asked for.
        warm_start: the last certificate of the same network.
        at: (epoch, global_step).
        offered: multipliers for the bounds of pairs; None where these are not wanted.
    """
    clock = Clock(settings.time_limit)
    network, trouble = _attempted(read)
    certificate, pairs = None, None
    if network is not None:
        certificate, trouble = _certify(network, settings, warm_start, clock)
    if network is not None and certificate is not None and offered is not None:
        pairs = _pairs(network, certificate, offered, clock)
    left = max(_LEAST_SAMPLING, clock.seconds) if clock.left is None else clock.left
    lower, lower_trouble = (None, None) if sample is None or certificate is None else _sampled(sample, left)
    entry = HistoryEntry(
        *at,
        upper_bound=math.inf if certificate is None else certificate.upper_bound,
        lower_bound=lower,
        relative_gap=None if certificate is None else certificate.relative_gap,
        seconds=clock.seconds,
        solver_ok=trouble is None,
        method="none" if certificate is None else certificate.method,
    )
    return Measurement(entry, certificate and certificate.at(*at), trouble or lower_trouble, pairs)


def _attempted(read: Callable[[], Network | Graph]) -> tuple[Network | Graph | None, str | None]:
    try:
        return read(), None
    except Exception as error:
        return None, _told(error)


def _pairs(
    network: Network | Graph,
    certificate: Certificate,
    offered: Callable[[], Sequence[Multipliers]],
    clock: Clock,
) -> PairwiseBounds | None:
    """Bounds of the differences of two outputs, which certify more than one of the whole; None where there are none."""
    if not isinstance(network, Network) or not 2 <= network.output.size <= _MOST_OUTPUTS or clock.over:
        return None
    limit = None if clock.left is None else max((1.0 - _SAMPLING) * clock.left, 1e-3)
    try:
        return pairwise_bounds(network, refine=False, time_limit=limit, warm_start=[certificate, *offered()])
    except Exception:  # the bound of the whole serves as well
        return None


def _certify(
    network: Network | Graph, settings: Settings, warm_start: Certificate | None, clock: Clock
) -> tuple[Certificate | None, str | None]:
    limit = None if clock.left is None else max((1.0 - _SAMPLING) * clock.left, 1e-3)
    settings = replace(settings, time_limit=limit)
    certificate, trouble = _attempt(network, settings.method, settings, warm_start)
    if certificate is None:
        certificate, _ = _attempt(network, "norm-product", settings, None)
    return certificate, trouble


def _attempt(
    network: Network | Graph, method: Method, settings: Settings, warm_start: Certificate | None
) -> tuple[Certificate | None, str | None]:
    """A certified bound or None, and the reason why the method did not reach its goal, if it did not."""
    try:
        certificate = api.certify(
            network,
            method=method,
            solver=settings.solver,
            rtol=settings.rtol,
            time_limit=settings.time_limit,
            workers=settings.workers,
            warm_start=warm_start,
            throw=False,
        )
    except Exception as error:  # a training run is worth more than a bound
        return None, _told(error)
    if not (certificate.certified and math.isfinite(certificate.upper_bound)):
        return None, certificate.status.value
    return certificate, None if certificate.status in _REACHED else certificate.status.value


def _sampled(sample: Callable[[float], float | None], seconds: float) -> tuple[float | None, str | None]:
    try:
        return sample(seconds), None
    except Exception as error:
        return None, f"no lower bound was sampled: {_told(error)}"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
