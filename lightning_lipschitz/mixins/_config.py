"""How CLIPMixin is set, and where the settings of a module come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.functional.clip import Start
from lightning_lipschitz.lightning_tools.arguments import (
    require,
    require_choice,
    require_count,
    require_flag,
    require_positive,
)
from lightning_lipschitz.lightning_tools.submodule import Choice

_OWNER = "CLIPMixin"
PREFIX = "clip_"


@dataclass(frozen=True)
class ClipConfig:
    """Settings of :class:`~lightning_lipschitz.mixins.CLIPMixin`.

    Attributes:
        weight: lambda, in units of loss per unit of slope; where a schedule starts, if there is one.
        pairs: kept from step to step.
        climbing: pairs that take an ascent step before each penalty, in turn; None for all.
        every_n_steps: training steps (batches, or groups of accumulated ones) between penalties, which are multiplied
            by it: the same pull on average.
        worst: the penalty is the largest quotient; else the mean of all.
        squared: the penalty is the quotient's square.
        start: "noise", "halves" or "random", see :func:`~lightning_lipschitz.functional.initial_pairs`.
        noise: standard deviation of the noise between the ends of a new pair, in units of the inputs.
        reset_every_n_steps: pairs are drawn anew from the batch after so many training steps; None for never.
        p_in, p_out: norms of the quotient's denominator and numerator, from 1 to infinity.
        within: range that inputs are clamped to, or None.
        module: dotted name of the submodule whose slope counts; "" for ``forward``, or the only child if there is none.
        input: position or name of the one of several inputs whose slope counts; the others are held at the values of
            the batch's first sample. ``clip_inputs`` returns all of them then: by default as many of the batch's
            tensors as the forward takes.
        output: position or name of one of several outputs, "all" for all as one vector, or a function of them.
        metric: logged key that the weight follows, by the discrepancy principle; None for a fixed weight.
        target: the weight rises while the metric is better than this, and falls while it is worse.
        mode: "max" where more is better, as for accuracy; "min", as for a loss.
        factor: quotient by which the weight rises and falls.
        warmup_epochs: before the first change.
        cooldown_epochs: between changes.
        seed: start of the pairs' own random numbers.
        prog_bar: whether to show the lower bound in the progress bar.
    """

    weight: float = 0.02
    pairs: int = 64
    climbing: int | None = 16
    every_n_steps: int = 1
    worst: bool = True
    squared: bool = False
    start: Start = "noise"
    noise: float = 0.1
    reset_every_n_steps: int | None = 2000
    p_in: float = 2.0
    p_out: float = 2.0
    within: tuple[float, float] | None = None
    module: str = ""
    input: Input = None
    output: Output = None
    metric: str | None = None
    target: float | None = None
    mode: Literal["max", "min"] = "max"
    factor: float = 1.1
    warmup_epochs: int = 1
    cooldown_epochs: int = 0
    seed: int = 0
    prog_bar: bool = False

    def __post_init__(self) -> None:
        for name in ("weight", "noise"):
            require_positive(_OWNER, PREFIX + name, getattr(self, name))
        for name in ("pairs", "every_n_steps"):
            require_count(_OWNER, PREFIX + name, getattr(self, name))
        for name in ("climbing", "reset_every_n_steps"):
            if getattr(self, name) is not None:
                require_count(_OWNER, PREFIX + name, getattr(self, name))
        for name in ("worst", "squared", "prog_bar"):
            require_flag(_OWNER, PREFIX + name, getattr(self, name))
        for name in ("p_in", "p_out"):
            value = getattr(self, name)
            require(isinstance(value, (int, float)) and value >= 1, _OWNER, PREFIX + name, value, "a number >= 1")
        for name in ("warmup_epochs", "cooldown_epochs", "seed"):
            value = getattr(self, name)
            require(type(value) is int and value >= 0, _OWNER, PREFIX + name, value, "an int >= 0")
        require_choice(_OWNER, PREFIX + "start", self.start, ("noise", "halves", "random"))
        require_choice(_OWNER, PREFIX + "mode", self.mode, ("max", "min"))
        require(self.factor > 1 and math.isfinite(self.factor), _OWNER, "clip_factor", self.factor, "a number > 1")
        Choice(self.module, self.input, self.output).check(_OWNER, PREFIX)
        both = (self.metric is None) == (self.target is None)
        require(both, _OWNER, "clip_target", self.target, "given together with `clip_metric`, a key that is logged")
        within = self.within
        ordered = within is None or (len(within) == 2 and within[0] < within[1])
        require(ordered, _OWNER, "clip_within", within, "None or (low, high) with low < high")

    @property
    def is_part(self) -> bool:
        """Whether one of several inputs, or of several outputs, was chosen."""
        return self.input is not None or self.output is not None


NAMES = tuple(field.name for field in fields(ClipConfig))


def configured(module: Any) -> ClipConfig:
    """Settings in ``clip_...`` attributes of the module or its classes, and on top of them ``configure_clip()``.

    Raises:
        MisconfigurationException: a name that is no setting, or a value out of range.
    """
    found = {name: getattr(module, PREFIX + name) for name in NAMES if hasattr(module, PREFIX + name)}
    config = ClipConfig(**found)
    given = module.configure_clip()
    if given is None or isinstance(given, ClipConfig):
        return given or config
    if not isinstance(given, Mapping):
        raise MisconfigurationException(
            f"`configure_clip` must return None, a `ClipConfig` or a dict of its settings, got {type(given).__name__}."
        )
    check_names(given)
    return replace(config, **given)


def check_names(names: Any) -> None:
    """Refuse settings that do not exist.

    Raises:
        MisconfigurationException: naming them, and those that do.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise MisconfigurationException(
            f"`CLIPMixin` has no setting {', '.join(map(repr, unknown))}; there are {', '.join(NAMES)}."
        )
