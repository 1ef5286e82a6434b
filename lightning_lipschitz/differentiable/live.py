"""The tensors of a traced model as they are now, and what its operators make of them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_lipschitz.differentiable.calls import DEVICE, DTYPE, Call, Values
from lightning_lipschitz.differentiable.cuts import Cut
from lightning_lipschitz.extraction.trace import Trace
from lightning_lipschitz.extraction.undisturbed import computes_in


class Live:
    """Looks up parameters, buffers and tensor attributes by name, at every evaluation.

    Args:
        model: whose tensors they are.
        trace: of the model.
        cut: of the same trace.
    """

    def __init__(self, model: nn.Module, trace: Trace, cut: Cut) -> None:
        self._model, self._cut = model, cut
        self._names = dict(trace.tensors)
        self._constants = trace.constants
        largest = computes_in(model, torch.empty(0))
        self._reference = next(name for name, each in model.named_parameters() if each is largest)
        self._fixed: dict[tuple[torch.device, torch.dtype], Values] = {}

    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._found(self._reference).device

    def one(self, values: Values) -> Tensor:
        """The bound of the input."""
        return torch.ones((), dtype=values[DTYPE], device=values[DEVICE])

    def values(self, variances: Mapping[int, Tensor]) -> Values:
        """By node of the trace, in float64 if the model computes in it and else in float32.

        Args:
            variances: in the place of buffers, by their ``id``.
        """
        reference = self._found(self._reference)
        dtype = torch.float64 if reference.dtype == torch.float64 else torch.float32
        values = self._unchanging(reference.device, dtype).copy()
        for each in self._cut.known:
            if isinstance(each, Call):
                each(values)
            elif each not in values:
                values[each] = self._current(self._names.get(each.name, each.name), dtype, variances)
        return values

    def _unchanging(self, device: torch.device, dtype: torch.dtype) -> Values:
        """Constants of the graph and what depends on shapes alone, moved once."""
        key = device, dtype
        if key not in self._fixed:
            fixed: Values = {DTYPE: dtype, DEVICE: device}
            fixed |= {node: _moved(value, device, dtype) for node, value in self._cut.shaped.items()}
            for node in self._cut.known:
                if isinstance(node, Node) and self._attribute(self._names.get(node.name, node.name)) is None:
                    fixed[node] = _moved(self._constants[node.name], device, dtype)
            self._fixed = {key: fixed}
        return self._fixed[key]

    def _current(self, name: str, dtype: torch.dtype, variances: Mapping[int, Tensor]) -> Tensor:
        tensor = self._found(name)
        tensor = variances.get(id(tensor), tensor)
        if tensor.is_inference() or not (isinstance(tensor, nn.Parameter) or tensor.requires_grad):
            tensor = tensor.clone()  # a buffer that the next forward writes over, before the backward pass
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def _found(self, name: str) -> Tensor:
        found = self._attribute(name)
        if found is None:
            raise AttributeError(f"the model no longer has a tensor named `{name}`")
        return found

    def _attribute(self, name: str) -> Tensor | None:
        path, _, attribute = name.rpartition(".")
        try:
            found = getattr(self._model.get_submodule(path), attribute, None)
        except AttributeError:
            return None
        return found if isinstance(found, Tensor) else None


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
