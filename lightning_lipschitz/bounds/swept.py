r"""LipSDP-Neuron without a semidefinite program: swept multipliers moved down hill.

Every (theta, t) gives multipliers that prove a bound, see :mod:`lightning_lipschitz.bounds.inequality.sweep`; Adam
(Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015) moves them from the closed form towards
LipSDP-Neuron's. A step costs a Cholesky factorisation and an eigenvalue a layer, where one of an interior point costs
dense products of all units at once. Multipliers may be best for the whole map, or for its differences of two outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.inequality import Blocks, Structure, Swept, blocks_of, sweep
from lightning_lipschitz.bounds.inequality.sweep import SLACK, Largest, largest_eigenvalue
from lightning_lipschitz.bounds.lipsdp import reduce
from lightning_lipschitz.certificate.proofs import Proposal
from lightning_lipschitz.certificate.scalars import Status
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Network

Objective: TypeAlias = Callable[[Tensor], Tensor]  # of the output's covariance

STEPS = 300  # of Adam, in a search
RATE = 3e-2  # of Adam, at the start of a search; it falls to zero
SHARES_FASTER = 10.0  # than theta: where the best share is near one, the sigmoid takes long to get there
LARGEST_SHARE = 0.999


def log_whole(covariance: Tensor) -> Tensor:
    """Logarithm of the bound of the map to all outputs.

    Example:
        >>> log_whole(torch.eye(2)).item()
        0.0
    """
    largest: Tensor = torch.linalg.eigvalsh(covariance)[-1]
    return 0.5 * largest.log()


def pair_bounds(covariance: Tensor) -> Tensor:
    """K_ij of all differences of two outputs, shape (outputs, outputs); zeros on the diagonal, without a gradient.

    Example:
        >>> pair_bounds(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        tensor([[0., 2.],
                [2., 0.]])
    """
    own = covariance.diagonal()
    squares = own[:, None] + own[None, :] - 2.0 * covariance
    same = torch.eye(len(own), dtype=torch.bool, device=own.device)
    # the root has no slope at zero: neither the diagonal nor outputs that are alike may reach it
    usable = ~same & (squares > torch.finfo(own.dtype).eps * own.amax())
    return torch.where(usable, torch.where(usable, squares, torch.ones_like(squares)).sqrt(), 0.0)


def mean_log_pairs(covariance: Tensor) -> Tensor:
    """Mean of log K_ij over all pairs of outputs that differ; with one output, what :func:`log_whole` gives.

    Example:
        >>> round(mean_log_pairs(torch.tensor([[2.0, 0.0], [0.0, 2.0]])).item(), 5)  # log 2
        0.69315
    """
    bounds = pair_bounds(covariance)
    differ = bounds > 0
    if not bool(differ.any()):
        return log_whole(covariance)
    return torch.where(differ, bounds, torch.ones_like(bounds)).log().sum() / differ.sum()


class SweptMultipliers:
    """Multipliers of a network as unconstrained parameters, moved by Adam; they start at the closed form.

    What is moved is told by :meth:`aim`, and not by a loss that reads them as well.

    Args:
        structure: of the network; its device is that of the parameters.
        rate: of Adam.
        largest_share: how near to the border of what is feasible a layer's multipliers may come, below one.
        largest: see :func:`.sweep`.

    Attributes:
        parameters: theta, one a group of units, and t, one a layer; float64.
    """

    def __init__(
        self,
        structure: Structure,
        *,
        rate: float = RATE,
        largest_share: float = LARGEST_SHARE,
        largest: Largest = largest_eigenvalue,
    ) -> None:
        self.structure, self._most, self._largest = structure, largest_share, largest
        device = structure.group.device
        shares = torch.tensor([self._start(k) for k in range(len(structure.alpha))], dtype=torch.float64, device=device)
        theta = torch.zeros(structure.count, dtype=torch.float64, device=device)
        self.parameters = [theta.requires_grad_(), torch.logit(shares / self._most).requires_grad_()]
        theta, t = self.parameters
        self._optimizer = torch.optim.Adam([{"params": [theta]}, {"params": [t]}], lr=rate)
        self.set_rate(rate)
        self._aim: list[Tensor] = []

    def _start(self, k: int) -> float:
        """The closed form's share of what the multiplier may be: half of it for slopes [0, 1]."""
        s, w = self.structure.spans[k]
        return min(w / (w + abs(s)), 0.9 * self._most)

    @property
    def device(self) -> torch.device:
        return self.structure.group.device

    def at(self, blocks: Blocks) -> Swept | None:
        """The point that they stand for, of these matrices (float64, on :attr:`device`); see :func:`.sweep`."""
        return sweep(self.structure, blocks, *self.values(), self._largest)

    def values(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What :func:`.sweep` calls log weights and shares."""
        theta, t = self.parameters
        return self.structure.unshared(theta), list(self._most * torch.sigmoid(t))

    def aim(self, objective: Tensor, *, retain_graph: bool = False) -> None:
        """Take the gradient of what is to become smaller; other leaves of its graph get none."""
        found = torch.autograd.grad(objective, self.parameters, retain_graph=retain_graph, allow_unused=True)
        self._aim = [each for each in found if each is not None]

    def step(self) -> None:
        """One step against the gradient taken last, if there is a new one; what a loss left in ``grad`` is dropped."""
        if len(self._aim) == len(self.parameters) and all(bool(each.isfinite().all()) for each in self._aim):
            for parameter, slope in zip(self.parameters, self._aim, strict=True):
                parameter.grad = slope
            self._optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        self._aim = []

    def set_rate(self, rate: float) -> None:
        """Let the steps from now on have this rate."""
        of_theta, of_t = self._optimizer.param_groups
        of_theta["lr"], of_t["lr"] = rate, SHARES_FASTER * rate

    def state_dict(self) -> dict[str, Any]:
        """Tensors of the CPU and plain values."""
        held = self._optimizer.state_dict()["state"]
        moments = {k: {name: each.to("cpu", copy=True) for name, each in one.items()} for k, one in held.items()}
        return {"parameters": [each.detach().to("cpu", copy=True) for each in self.parameters], "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; of another network's state, nothing is taken."""
        given: Sequence[Tensor] = state["parameters"]
        if any(own.shape != other.shape for own, other in zip(self.parameters, given, strict=True)):
            return
        with torch.no_grad():
            for own, other in zip(self.parameters, given, strict=True):
                own.copy_(other)
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": dict(state["moments"])})


def propose(network: Network, clock: Clock | None = None, *, objective: Objective = log_whole) -> Proposal:
    """The best multipliers of some hundred steps down hill.

    Args:
        network: as given.
        clock: its end is looked at before every step; by default none.
        objective: what is to become small.

    Raises:
        SolverError: the output does not depend on the input, or not in the range of float64.
    """
    clock = Clock(None) if clock is None else clock
    reduced = reduce(network, keep_outputs=objective is not log_whole)
    with torch.inference_mode(False), torch.enable_grad():  # callbacks certify in the middle of a validation
        best, status = _descend(reduced.network, clock, objective)
    if best is None:
        raise SolverError("no sweep found multipliers: the output does not depend on the input in float64's range.")
    rho = float(torch.linalg.eigvalsh(best.covariance)[-1]) * (1.0 + SLACK)
    point = reduced.restore(rho, [rho * lam.numpy() for lam in best.multipliers])
    return Proposal(point, "sweep", "sweep", status)


def _descend(network: Network, clock: Clock, objective: Objective) -> tuple[Swept | None, Status]:
    multipliers, blocks = SweptMultipliers(Structure.of(network)), blocks_of(network)
    best, least = None, float("inf")
    start = clock.seconds
    for step in range(STEPS + 1):
        found = multipliers.at(blocks)
        value = None if found is None else objective(found.covariance)
        if found is None or value is None or not bool(value.isfinite()):
            return best, Status.ALMOST_SOLVED
        if float(value.detach()) < least:
            least = float(value.detach())
            best = Swept([lam.detach() for lam in found.multipliers], found.covariance.detach())
        each = (clock.seconds - start) / (step + 1)
        if step < STEPS and not clock.fits(2.0 * each):
            return best, Status.TIME_LIMIT
        multipliers.aim(value)
        multipliers.set_rate(RATE * (1.0 - step / STEPS))
        multipliers.step()
    return best, Status.SOLVED
