"""Operators on images, which also take one image without a batch: (channels, *lengths)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lightning_lipschitz.extraction.value import SampleMixing

Rule = Callable[..., Any]


def each_channel(dims: int, rule: Rule) -> Rule:
    """A rule for operators that treat every channel on its own, made to take tensors without a batch too.

    What torch takes for channels there is mostly the batch of vectors; with a channel put in after it, it is one.

    Args:
        dims: lengths of an image.
        rule: for (batch, channels, *lengths).
    """

    @functools.wraps(rule)
    def any_rank(context: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if x.index.ndim != dims + 1:
            return rule(context, x, *args, **kwargs)
        made = rule(context, replace(x, index=x.index.unsqueeze(1)), *args, **kwargs)
        if isinstance(made, tuple):
            return tuple(each if each is None else _without(each) for each in made)
        return _without(made)

    return any_rank


def _without(x: Any) -> Any:
    return replace(x, index=x.index.squeeze(1))


def require_batch(index: torch.Tensor, kernel: torch.Tensor) -> None:
    """Refuse a convolution of one image: what torch takes for its channels counts samples.

    Raises:
        SampleMixing: there is no dimension besides the channels and the lengths.
    """
    if index.ndim < kernel.ndim:
        raise SampleMixing


def spread(value: Any, dims: int) -> list[Any]:
    """One number for every dimension."""
    values = [value] if value is None or isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
