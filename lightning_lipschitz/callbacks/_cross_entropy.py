"""Calls of ``torch.nn.functional.cross_entropy`` by whoever trains, with other logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode


class RaisedCrossEntropy(TorchFunctionMode):
    """While it is active, cross entropy with class numbers as targets sees raised logits; all else is as it was.

    ``torch.nn.CrossEntropyLoss`` calls that function too. What calls others, such as ``nll_loss``, is not seen, nor is
    what was compiled together with its loss.

    Args:
        raised: (logits, target) -> logits, or None where these are left alone.

    Attributes:
        count: how many calls saw raised logits.
        others: what the arguments of calls looked like that were left alone.
    """

    def __init__(self, raised: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        super().__init__()
        self._raised = raised
        self.count, self.others = 0, set[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.cross_entropy and not torch.compiler.is_compiling():
            given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            logits = self._of(given.get("input"), given.get("target"))
            if logits is not None:
                self.count += 1
                return func(**{**given, "input": logits})
        return func(*args, **kwargs)

    def _of(self, logits: Any, target: Any) -> Tensor | None:
        if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
            return None
        raised = None
        if logits.ndim == 2 and target.shape == logits.shape[:1] and not target.is_floating_point():
            raised = self._raised(logits, target)
        if raised is None:
            self.others.add(f"logits of shape {tuple(logits.shape)} and a target of shape {tuple(target.shape)}")
        return raised


_ARGUMENTS = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
