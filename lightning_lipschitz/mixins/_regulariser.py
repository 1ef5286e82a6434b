"""The pairs of one module, and the term that they add to its loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lipschitz._lightning import MisconfigurationException, rank_zero_warn
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction import part
from lightning_lipschitz.extraction.undisturbed import unwrapped
from lightning_lipschitz.functional.clip import Pairs, ascend, initial_pairs, penalty, quotients
from lightning_lipschitz.lightning_tools.inputs import chosen_input, first_samples, names_of
from lightning_lipschitz.lightning_tools.submodule import find_target
from lightning_lipschitz.mixins._config import ClipConfig
from lightning_lipschitz.mixins._evaluation import OneTensor, evaluating

_OPTIONS = ("p_in", "p_out")


class Regulariser:
    """Plain Python object, no module and no buffers: ``state_dict`` keys and averages of the model stay the user's.

    Args:
        config: the settings.
        rank: number of the process; pairs differ from one to the next.
    """

    def __init__(self, config: ClipConfig, rank: int = 0) -> None:
        self.config, self._rank = config, rank
        self.weight = config.weight
        self._pairs: Pairs | None = None
        self._held: Any = None  # first samples of all inputs, where one of several was chosen
        self._values: Tensor | None = None  # the quotients, as of the last step in which each pair climbed
        self._next = self._draws = self._drawn_at = 0
        self._not_mine = False  # pairs of another rank, good for a lower bound until the next step
        self.last_penalty = 0.0
        self.cooldown = 0

    def term(self, model: nn.Module, inputs: Any, step: int) -> Tensor | None:
        """What to add to the loss in training step ``step``, with a graph; None where no penalty is due.

        Raises:
            MisconfigurationException: ``inputs`` is no batch of floating-point inputs of the submodule, or it does not
                return one tensor, or does not exist.
        """
        config = self.config
        if step % config.every_n_steps:
            return None
        target = find_target(model, config.module, "CLIPMixin")
        parameter = next(_trainable(target), None)
        if parameter is None:
            return None
        pairs = self._current(_batch(self._chosen(target, inputs)), parameter, step)
        options = {name: getattr(config, name) for name in _OPTIONS}
        function = self._function(target)
        with evaluating(model, unwrapped(target), parameter.device.type), torch.enable_grad():
            pairs, values = self._climb(function, pairs)
            found = penalty(function, pairs, values, worst=config.worst, squared=config.squared, **options)
        self.last_penalty = float(found.detach())
        if not math.isfinite(self.last_penalty):
            self._pairs = self._values = None  # drawn anew: what climbs from here stays without a value
            rank_zero_warn(
                f"`CLIPMixin`: the penalty is {self.last_penalty} and was left out. In eval mode the outputs overflow"
                " or are not numbers: look for a diverged run, or running statistics that do not follow the weights."
            )
            return None
        return self.weight * config.every_n_steps * found

    def trained(self, model: nn.Module) -> set[int]:
        """Which parameters the penalty pulls at as things are, by ``id``: an optimizer may have frozen others."""
        return {id(parameter) for parameter in _trainable(find_target(model, self.config.module, "CLIPMixin"))}

    def _chosen(self, target: nn.Module, inputs: Any) -> Any:
        """The input that was chosen; a sample of each is kept for the others."""
        config = self.config
        if not config.is_part:
            return inputs
        arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else inputs
        arguments = arguments if isinstance(arguments, (tuple, dict)) else (arguments,)
        chosen = chosen_input(names_of(target), arguments, config.input)
        if not isinstance(chosen, Tensor):
            raise MisconfigurationException(
                f"`CLIPMixin(clip_input={config.input!r})` names no tensor among the {len(arguments)} inputs that"
                " `clip_inputs(self, batch)` returned. Return all inputs of the forward, as a tuple or by name."
            )
        self._held = first_samples(arguments, 1, chosen)
        return chosen

    def _function(self, target: nn.Module) -> OneTensor:
        """The module as a function of the chosen input, to the chosen output."""
        config = self.config
        if self._held is None:
            return OneTensor(target, config.module)
        try:
            return OneTensor(part(target, self._held, config.input, config.output)[0], config.module, target)
        except LipschitzError as error:
            raise MisconfigurationException(f"`CLIPMixin`: {error}") from error

    def _climb(self, function: Any, pairs: Pairs) -> tuple[Pairs, Tensor]:
        """The next few pairs take a step."""
        config, count = self.config, len(pairs)
        few = count if config.climbing is None or self._values is None else min(config.climbing, count)
        turn = (torch.arange(few, device=pairs.u.device) + self._next) % count
        climbed, values = ascend(
            function, pairs.chosen(turn), p_in=config.p_in, p_out=config.p_out, within=config.within
        )
        self._next = (self._next + few) % count
        known = pairs.u.new_zeros(count) if self._values is None else self._values.to(pairs.u)
        parts = zip((pairs.u, pairs.v, pairs.step), (climbed.u, climbed.v, climbed.step), strict=True)
        self._pairs = Pairs(*(old.index_copy(0, turn, new) for old, new in parts))
        self._values = known.index_copy(0, turn, values)
        return self._pairs, self._values

    def _current(self, inputs: Tensor, like: Tensor, step: int) -> Pairs:
        """The pairs at hand, on the device and in the dtype of the parameters; or new ones, if it is time."""
        again = self.config.reset_every_n_steps
        fits = self._pairs is not None and self._pairs.u.shape[1:] == inputs.shape[1:]
        due = self._not_mine or (again is not None and step - self._drawn_at >= again)
        if self._pairs is None or not fits or due:
            self._pairs, self._values, self._not_mine = self._drawn(inputs.to(like)), None, False
            self._draws, self._drawn_at, self._next = self._draws + 1, step, 0
        if self._pairs.u.dtype != like.dtype or self._pairs.u.device != like.device:
            self._pairs = self._pairs.to(like)
        return self._pairs

    def _drawn(self, inputs: Tensor) -> Pairs:
        config = self.config
        generator = torch.Generator().manual_seed(hash((config.seed, self._draws, self._rank)) % 2**63)
        return initial_pairs(inputs, config.pairs, start=config.start, noise=config.noise, generator=generator)

    @torch.no_grad()
    def lower_bound(self, model: nn.Module) -> float | None:
        """The steepest slope between the pairs with the weights as they are now; None before the first step."""
        if self._pairs is None or (self.config.is_part and self._held is None):
            return None
        target = find_target(model, self.config.module, "CLIPMixin")
        like = next(target.parameters())
        pairs = self._pairs.to(like)
        options = {name: getattr(self.config, name) for name in _OPTIONS}
        with evaluating(model, unwrapped(target), like.device.type):
            return float(quotients(self._function(target), pairs.u, pairs.v, **options).max())

    # State

    def plain(self) -> dict[str, Any]:
        """Tensors and Python scalars only."""
        state: dict[str, Any] = {name: getattr(self, name) for name in ("weight", "cooldown")}
        state |= {name: getattr(self, "_" + name) for name in ("next", "draws", "drawn_at")}
        if self._pairs is not None and self._values is not None:
            state["pairs"] = {name: getattr(self._pairs, name).clone() for name in ("u", "v", "step")}
            state["values"] = self._values.clone()
        if self._held is not None:
            state["held"] = self._held
        return state

    def load(self, plain: dict[str, Any]) -> None:
        """Go on from what :meth:`plain` gave; the pairs are those of rank 0, and other ranks draw new ones."""
        self.weight, self.cooldown = plain["weight"], plain["cooldown"]
        self._next, self._draws, self._drawn_at = (plain[name] for name in ("next", "draws", "drawn_at"))
        self._not_mine = self._rank > 0
        self._held = plain.get("held")
        if "pairs" in plain:
            self._pairs, self._values = Pairs(**plain["pairs"]), plain["values"]


def _trainable(module: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in module.parameters() if p.requires_grad and p.is_floating_point())


def _batch(inputs: Any) -> Tensor:
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim > 1:
        return inputs
    shown = f"a tensor of {inputs.dtype}, shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs)
    raise MisconfigurationException(
        f"`CLIPMixin` needs a batch of floating-point inputs and found {shown}. Override `clip_inputs(self, batch)` to"
        " return them."
    )
