"""The solver behind the interface that all optimising methods share."""

from __future__ import annotations

from typing import Any

import torch

from lightning_lipschitz.bounds.interior_point.result import WarmStart
from lightning_lipschitz.bounds.interior_point.solver import solve
from lightning_lipschitz.bounds.lipsdp import Sharing
from lightning_lipschitz.certificate import Proposal, Status
from lightning_lipschitz.graph.network import Network

_GPU_UNITS = 300  # below this a CPU is as fast
_STATUS = {"solved": Status.SOLVED, "time limit": Status.TIME_LIMIT, "stalled": Status.ALMOST_SOLVED}


def propose(
    network: Network,
    *,
    sharing: Sharing = "neuron",
    rtol: float = 1e-6,
    time_limit: float | None = None,
    device: str = "auto",
    warm_start: Any = None,
) -> Proposal:
    """:func:`solve` as a :class:`Proposal`.

    Args:
        device: a torch device, or "auto": a CUDA device if there is one and the network is large enough to gain.
        warm_start: ``state`` of an earlier proposal; anything else is ignored.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and network.num_units >= _GPU_UNITS else "cpu"
    state = warm_start if isinstance(warm_start, WarmStart) else None
    found = solve(network, sharing=sharing, rtol=rtol, time_limit=time_limit, device=device, warm_start=state)
    return Proposal(
        proof=found.multipliers,
        method=f"lipsdp-{sharing}",
        solver="native",
        status=_STATUS[found.ending],
        lower_bound=found.lower_bound**0.5,
        state=found.warm_start,
    )
