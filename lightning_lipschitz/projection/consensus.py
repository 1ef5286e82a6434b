r"""The alternating direction method of multipliers for training under a bound: between two stretches of training.

    minimise loss(W)  subject to  W = W_bar,  M(L^2, lambda; W_bar) >= 0        (or  + mu rho  with rho = L^2 free)

(Pauli, Koch, Berberich, Kohler, Allgöwer, "Training robust neural networks using Lipschitz bounds", L-CSS 2021). With
r the penalty and Y the dual variable, the three steps that repeat are

    W      by training on  loss(W) + <Y, W - W_bar> + r/2 |W - W_bar|^2: the loss's gradient  + Y + r (W - W_bar)
    W_bar  <- the projection of W + Y / r on the certified set of lambda, lambda from LipSDP on W
    Y      <- Y + r (W - W_bar).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point import WarmStart
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.projection.certified_set import CertifiedSet, State
from lightning_lipschitz.projection.multipliers import solve_multipliers, widened, with_weights
from lightning_lipschitz.projection.regularized import regularized

_RTOL_MULTIPLIERS = 1e-2  # of LipSDP between rounds: the set moves more than that before the next one
_MOVED = 0.15  # relative distance that weights move before their multipliers are solved for again
_RTOL_PROJECTION = 1e-2
_LEAST_MULTIPLIER = 1e-3  # of the largest in its layer
_SMALLEST_BOUND = 1e-6  # a free bound starts no lower
_IMBALANCE, _FACTOR = 3.0, 2.0  # residual balancing of Boyd et al. 2011, section 3.4.1, where 10 and 2 stand


@dataclass(frozen=True)
class Problem:
    """What does not change from round to round.

    Attributes:
        max_lipschitz: L, or None where it is free.
        weight: mu, in units of loss per squared bound, where the bound is free.
        balance: whether the penalty follows the residuals.
    """

    max_lipschitz: float | None
    weight: float | None = None
    balance: bool = False


@dataclass(frozen=True, eq=False)
class Consensus:
    """The variables beside the weights in training. Tensors float64, on the device of the weights.

    Attributes:
        weights: W_bar, shape (n_k, n_{k-1}) a layer.
        duals: Y, of the same shapes.
        penalty: r.
        bound: the bound that W_bar meets: L, or the root of the rho that was found.
        primal_residual: |W - W_bar| relative to the larger of |W| and |W_bar|, as the round found them.
        dual_residual: r |W_bar - W_bar of the round before| relative to |Y|.
        multipliers: lambda of the last LipSDP.
        solved_at: the weights it was for.
        state, warm_start: where the next projection and the next LipSDP start.
    """

    weights: list[Tensor]
    duals: list[Tensor]
    penalty: float
    bound: float = math.inf
    primal_residual: float = 0.0
    dual_residual: float = 0.0
    multipliers: Multipliers | None = field(default=None, repr=False)
    solved_at: list[Tensor] = field(default_factory=list, repr=False)
    state: State | None = None
    warm_start: WarmStart | None = field(default=None, repr=False)

    @classmethod
    def start(cls, weights: Sequence[Tensor], penalty: float) -> Consensus:
        """W_bar = W, Y = 0.

        Example:
            >>> Consensus.start([torch.eye(2)], 0.1).pull([2 * torch.eye(2)])[0].tolist()
            [[0.10000000149011612, 0.0], [0.0, 0.10000000149011612]]
        """
        doubles = [w.detach().to(torch.float64, copy=True) for w in weights]
        return cls(doubles, [torch.zeros_like(w) for w in doubles], penalty)

    def pull(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """``Y + r (W - W_bar)``, the gradient of the augmented Lagrangian's terms, in the dtype of the weights."""
        dtypes = [torch.promote_types(w.dtype, torch.float32) for w in weights]
        constants = [self._constant(k, dtype) for k, dtype in enumerate(dtypes)]
        return [c.add(w.detach(), alpha=self.penalty).to(w.dtype) for w, c in zip(weights, constants, strict=True)]

    def _constant(self, k: int, dtype: torch.dtype) -> Tensor:
        """Y - r W_bar of one layer, formed in float64; mixed precision would cost every step half a millisecond."""
        if (k, dtype) not in self._constants:
            self._constants[k, dtype] = (self.duals[k] - self.penalty * self.weights[k]).to(dtype)
        return self._constants[k, dtype]

    @cached_property
    def _constants(self) -> dict[tuple[int, torch.dtype], Tensor]:
        return {}

    def to(self, device: torch.device) -> Consensus:
        """The same on another device; itself where it is there."""
        if all(tensor.device == device for tensor in self.weights):
            return self
        state = self.state and replace(self.state, dual=self.state.dual.to(device))
        lists = (self.weights, self.duals, self.solved_at)
        weights, duals, solved_at = ([t.to(device) for t in tensors] for tensors in lists)
        return replace(self, weights=weights, duals=duals, solved_at=solved_at, state=state)

    def plain(self) -> dict[str, Any]:
        """Tensors of the CPU and Python scalars only."""
        scalars = ("penalty", "bound", "primal_residual", "dual_residual")
        plain: dict[str, Any] = {name: getattr(self, name) for name in scalars}
        for name in ("weights", "duals", "solved_at"):
            plain[name] = [t.to("cpu", copy=True) for t in getattr(self, name)]
        if self.state is not None:
            plain["state"] = {"dual": self.state.dual.to("cpu", copy=True), "penalty": self.state.penalty}
        if self.warm_start is not None:
            path = self.warm_start.path
            plain["path"] = [_plain(point) for point in path]
        if self.multipliers is not None:
            plain["multipliers"] = _plain(self.multipliers)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Consensus:
        """The inverse of :meth:`plain`."""
        rest = dict(plain)
        state, path, last = rest.pop("state", None), rest.pop("path", ()), rest.pop("multipliers", None)
        points = tuple(_multipliers(point) for point in path)
        return cls(
            **rest,
            multipliers=None if last is None else _multipliers(last),
            state=None if state is None else State(**state),
            warm_start=WarmStart(points) if points else None,
        )


@torch.no_grad()
def advance(consensus: Consensus, weights: Sequence[Tensor], network: Network, problem: Problem) -> Consensus:
    """One round: lambda, W_bar, Y, and the penalty if it is to follow the residuals.

    Args:
        consensus: of the round before.
        weights: W, as training left them.
        network: the chain; its slopes are used, not its matrices.
        problem: the bound, or its price.

    Raises:
        SolverError, NonFiniteError: LipSDP failed; weights that are not finite.
    """
    doubles = [w.detach().to(torch.float64, copy=True) for w in weights]
    chain = with_weights(widened(network), doubles)
    current = consensus if _is_recent(consensus, doubles, problem) else _solve(consensus, doubles, chain, problem)
    if current.multipliers is None:
        raise RuntimeError("multipliers are solved for in the first round")
    ball = CertifiedSet.of(chain, current.multipliers)
    shifted = [w + y / consensus.penalty for w, y in zip(doubles, consensus.duals, strict=True)]
    nearest, bound, state = _project(ball, shifted, consensus, problem)
    moved = replace(current, weights=nearest, bound=bound, state=state)
    return update_duals(moved, doubles, consensus.weights, problem.balance)


def _is_recent(consensus: Consensus, weights: Sequence[Tensor], problem: Problem) -> bool:
    """Whether the multipliers at hand are those of nearly these weights. Where the bound is free they follow it."""
    if consensus.multipliers is None or problem.max_lipschitz is None:
        return False
    moved = _norm([w - before for w, before in zip(weights, consensus.solved_at, strict=True)])
    return moved <= _MOVED * _norm(weights)


def _solve(consensus: Consensus, weights: list[Tensor], chain: Network, problem: Problem) -> Consensus:
    target = problem.max_lipschitz or _free_bound(chain, consensus)
    solved = solve_multipliers(chain, target, rtol=_RTOL_MULTIPLIERS, warm_start=consensus.warm_start)
    kept = solved.warm_start if isinstance(solved.warm_start, WarmStart) else None
    return replace(consensus, multipliers=_evened(solved.multipliers), solved_at=weights, warm_start=kept)


def _evened(multipliers: Multipliers) -> Multipliers:
    """With a floor under the multipliers of each layer. Any lambda > 0 stands for a set of certified weights.

    A unit that the last projection silenced needs none, and would be held silent by a lambda near zero: the set is
    flat there, and projections on it do not converge.
    """
    values = tuple(np.maximum(value, _LEAST_MULTIPLIER * value.max()) for value in multipliers.values)
    return replace(multipliers, values=values)


def _plain(point: Multipliers) -> dict[str, Any]:
    return {"rho": point.rho, "values": [torch.tensor(value) for value in point.values]}


def _multipliers(plain: Mapping[str, Any]) -> Multipliers:
    return Multipliers(plain["rho"], tuple(value.cpu().numpy() for value in plain["values"]))


def _free_bound(chain: Network, consensus: Consensus) -> float:
    """Where the search for a free bound starts: at the last one, or at that of the weights."""
    known = math.isfinite(consensus.bound)
    bound = consensus.bound if known else solve_multipliers(chain, 1.0, rtol=_RTOL_MULTIPLIERS).bound
    return max(bound, _SMALLEST_BOUND)


def _project(
    ball: CertifiedSet, shifted: list[Tensor], consensus: Consensus, problem: Problem
) -> tuple[list[Tensor], float, State | None]:
    if problem.weight is None:
        projected = ball.project(shifted, consensus.state, rtol=_RTOL_PROJECTION)
        return projected.weights, ball.multipliers.rho**0.5, projected.state
    free = regularized(ball, shifted, weight=problem.weight, penalty=consensus.penalty, state=consensus.state)
    return free.weights, free.rho**0.5, free.state


def update_duals(new: Consensus, weights: Sequence[Tensor], before: Sequence[Tensor], balance: bool) -> Consensus:
    """Y after W_bar has moved, and the residuals."""
    gaps = [w - wbar for w, wbar in zip(weights, new.weights, strict=True)]
    duals = [y + new.penalty * gap for y, gap in zip(new.duals, gaps, strict=True)]
    moves = [a - b for a, b in zip(new.weights, before, strict=True)]
    primal = _ratio(_norm(gaps), max(_norm(weights), _norm(new.weights)))
    dual = _ratio(new.penalty * _norm(moves), _norm(duals))
    penalty = new.penalty * (_balance(primal, dual) if balance else 1.0)
    return replace(new, duals=duals, penalty=penalty, primal_residual=primal, dual_residual=dual)


def _balance(primal: float, dual: float) -> float:
    if primal > _IMBALANCE * dual:
        return _FACTOR
    return 1.0 / _FACTOR if dual > _IMBALANCE * primal else 1.0


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
