"""The way of the weights through the interior of the certified set: gradients, steps that stay inside, counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_lipschitz.callbacks._bounded_weights import BoundedWeights
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.training import Interior, Start
from lightning_lipschitz.training.multipliers import squared, widened

_CENTRE_EVERY = 20  # optimizer steps between Newton steps of the multipliers
_COUNTS = ("steps", "shortened", "all_steps", "all_shortened", "highest_rate", "factor")


class InteriorPath:
    """Weights of one fit on their way through the interior, on one rank; every rank walks the same.

    Args:
        weights: those in training, traced.
        max_lipschitz: the bound L.
    """

    def __init__(self, weights: BoundedWeights, max_lipschitz: float) -> None:
        self._weights, self._bound = weights, max_lipschitz
        self._interior: Interior | None = None
        self._before: dict[str, Tensor] | None = None
        self._held = False
        self._handles: list[RemovableHandle] = []
        self.steps = self.shortened = self.all_steps = self.all_shortened = 0
        self.highest_rate, self.factor = 0.0, 1.0

    @property
    def entered(self) -> bool:
        return self._interior is not None

    def inside(self) -> bool:
        """Whether the weights are where a step may start: they were moved there, and nothing has moved them since."""
        return self._interior is not None and self._interior.contains(self._weights.matrices())

    @property
    def interior(self) -> Interior:
        if self._interior is None:
            raise RuntimeError("the weights were not moved inside yet")
        return self._interior

    def _inside(self, multipliers: Sequence[Tensor]) -> Interior:
        stored, wide = self._weights.stored, widened(self._weights.network())
        device = self._weights.matrices()[0].device
        return Interior(stored.map(wide), [lam.to(device) for lam in multipliers], self._bound, wide)

    def resume(self, plain: Mapping[str, Any]) -> bool:
        """Go on from what :meth:`plain` gave; False if these weights are not inside."""
        interior = self._inside(plain["multipliers"])
        if not interior.contains(self._weights.matrices()):
            return False
        self._interior = interior
        for name in _COUNTS:
            setattr(self, name, plain[name])
        return True

    def enter(self, start: Start) -> None:
        """Write the weights of the start, and take its multipliers."""
        if start.moved:
            self._write(self._weights.stored.encode([w.double() for w in start.weights], self._weights.parameters))
        self._interior = self._inside([q.exp() for q in start.log_multipliers])

    def leave(self) -> None:
        """Forget the way so far, for other weights are trained from now on; the counts go on."""
        self._interior = self._before = None

    def watch(self, before_step: Callable[..., None], after_step: Callable[..., None]) -> None:
        """Have these called around the steps of every optimizer, whoever made it and whatever it trains by then."""
        self.close()
        self._handles = [register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def was_held(self) -> bool:
        """Whether a step was kept inside since the last call."""
        held, self._held = self._held, False
        return held

    @property
    def stepping(self) -> bool:
        """Whether it is known where the step that is under way has started."""
        return self._before is not None

    # A step

    def before_step(self, optimizer: Optimizer) -> list[Tensor]:
        """Remember where the step starts; the barrier's gradient there, one a matrix."""
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        self.highest_rate = max(self.highest_rate, rate)
        self.factor = rate / self.highest_rate if self.highest_rate > 0 else 1.0
        self._before = {name: p.detach().clone() for name, p in self._weights.parameters.items()}
        return self.interior.gradient(self._weights.matrices())

    def after_step(self) -> None:
        """Stay inside."""
        before, self._before = self._before, None
        if before is None:
            return
        self._held = True
        shortened = not self.interior.contains(self._weights.matrices())
        if shortened:
            self._shorten(before)
        self.steps, self.all_steps = self.steps + 1, self.all_steps + 1
        self.shortened, self.all_shortened = self.shortened + shortened, self.all_shortened + shortened
        if shortened or self.all_steps % _CENTRE_EVERY == 0:
            self.interior.centre(self._weights.matrices())

    def _shorten(self, before: Mapping[str, Tensor]) -> None:
        after = {name: p.detach().clone() for name, p in self._weights.parameters.items()}
        t = self.interior.largest_step(lambda t: self._weights.stored.read(_between(before, after, t)))
        self._write(_between(before, after, t))

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._weights.parameters[name].copy_(tensor)

    # What it has to say

    def rejected(self) -> float:
        """Share of the steps since the last call that were shortened."""
        share = self.shortened / self.steps if self.steps else 0.0
        self.steps = self.shortened = 0
        return share

    def multipliers(self) -> Multipliers | None:
        """What proves the bound of the weights in training, with slopes widened to contain zero."""
        if self._interior is None:
            return None
        return Multipliers(squared(self._bound), tuple(lam.cpu().numpy() for lam in self._interior.multipliers))

    def plain(self) -> dict[str, Any]:
        """Tensors of the CPU and Python scalars only."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {"multipliers": [lam.to("cpu", copy=True) for lam in self.interior.multipliers], **counts}


def _between(before: Mapping[str, Tensor], after: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    if t == 0.0:
        return dict(before)  # whatever is in `after`, even NaN
    return {name: torch.lerp(before[name], after[name], t) for name in after}
