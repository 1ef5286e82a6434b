"""The variables of the alternating direction method of multipliers beside the weights in training; see :mod:`.admm`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_lipschitz.bounds.interior_point import WarmStart
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.training.result import State


@dataclass(frozen=True)
class ConsensusProblem:
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
        """These variables on another device; themselves where they are there."""
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


def _plain(point: Multipliers) -> dict[str, Any]:
    return {"rho": point.rho, "values": [torch.tensor(value) for value in point.values]}


def _multipliers(plain: Mapping[str, Any]) -> Multipliers:
    return Multipliers(plain["rho"], tuple(value.cpu().numpy() for value in plain["values"]))


def norm(tensors: Sequence[Tensor]) -> float:
    """l2, all of them together."""
    return math.sqrt(sum(float(t.square().sum()) for t in tensors))
