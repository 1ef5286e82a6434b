"""DifferentiableBound: a number near the Lipschitz bound of a model, with a graph to its parameters."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.settings import require_choice
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.differentiable.form import Form
from lightning_lipschitz.differentiable.product import ProductForm
from lightning_lipschitz.differentiable.swept import SweptForm
from lightning_lipschitz.differentiable.torus import NotOnTorusError, TorusForm
from lightning_lipschitz.errors import ArgumentError, ModelSizeError
from lightning_lipschitz.extraction import GraphExtractor, Input, Output, input_of, part, submodule
from lightning_lipschitz.extraction.units import NotLinearisedError
from lightning_lipschitz.graph.parts import measure

BoundMethod = Literal["auto", "sweep", "product"]

WIDEST = 1024  # units of a layer that "auto" sweeps: each step takes a factorisation of that size
LARGEST = 1000  # inputs and units of a model that is no chain of linear layers: its matrices are formed anew each step
LARGEST_WORK = 1e10  # operations of a sweep over frequencies that "auto" takes: half a second on one core


class DifferentiableBound:
    r"""A number near the certified bound of a model, as a function of its weights with a graph: for a loss.

    It proves nothing; :func:`lightning_lipschitz.certify` does. It has no parameters and no buffers, so that neither
    ``state_dict`` keys nor optimizers see it, and it draws no global random numbers. It is of the model in evaluation
    mode and uses the parameters of the moment when it is called, on their device, outside of autocast.

    * "sweep": LipSDP's matrix inequality with multipliers that are feasible by construction and follow the weights, one
      step for each :meth:`step`. From above but for rounding. For models with explicit matrices: a factorisation of
      each layer's width a step. For larger ones that are a chain of convolutions (batch norm, average pooling, padding
      with zeros and elementwise activations with slopes from 0 up among them) and linear layers behind: the same with
      one multiplier a channel, at the frequencies of a torus that the images are parts of; batch norms count with
      their running statistics.
    * "product": norms of the affine pieces between activations, by power iteration through the model's own operators,
      and sums where paths meet. From below but for what composing norms loses. For models of any size.

    Args:
        model: any module that :func:`lightning_lipschitz.certify` reads.
        example_input: as there.
        method: "sweep", "product", or "auto": "sweep" for chains of linear layers of up to 1,024 units, for other
            models of up to 1,000 inputs and units together, and for chains of convolutions that take about half a
            second a step or less.
        module: as there.
        input: as there.
        output: as there.

    Attributes:
        method: "sweep" or "product".

    Raises:
        ArgumentError, LipschitzError: as :func:`lightning_lipschitz.certify`; a method that this model has not.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> bound = DifferentiableBound(net, torch.zeros(1, 4))
        >>> bound().backward()  # and a step of the optimizer, then:
        >>> bound.step()
        >>> net[0].weight.grad.shape, bound.pairs().shape
        (torch.Size([8, 4]), torch.Size([3, 3]))
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any = None,
        *,
        method: BoundMethod = "auto",
        module: str = "",
        input: Input = None,
        output: Output = None,
    ) -> None:
        require_choice("method", method, get_args(BoundMethod))
        given = getattr(model, "example_input_array", None) if example_input is None else example_input
        if given is None:
            raise ArgumentError("example_input", None, "one batch of inputs of the model")
        if module and example_input is None:
            given = input_of(model, module, given)
        self._part, example = part(submodule(model, module), given, input, output)
        self.method, self._form = _form(self._part, example, method)

    def __call__(self) -> Tensor:
        """The bound of the map to all outputs: a scalar, output units per input unit."""
        with self._exact():
            return self._form.whole()

    def pairs(self) -> Tensor:
        """K_ij for ``f_i - f_j``, shape (outputs, outputs), zeros on the diagonal: for :func:`.margin_cross_entropy`.

        Raises:
            ArgumentError: more outputs than pairs are made for.
        """
        with self._exact():
            return self._form.pairs()

    def step(self) -> None:
        """Let what is no weight follow: once for each step of the optimizer."""
        with self._exact(), torch.enable_grad():
            self._form.step()

    def multipliers(self) -> Multipliers | None:
        """A proposal that the kernel can prove, ``warm_start`` of :func:`lightning_lipschitz.pairwise_bounds`; None
        where the method has none."""
        with self._exact():
            return self._form.multipliers()

    def state_dict(self) -> dict[str, Any]:
        """What goes on from here: tensors of the CPU and plain values."""
        return {"method": self.method, "form": self._form.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; of the state of another method, nothing is taken."""
        if state["method"] == self.method:
            self._form.load_state_dict(state["form"])

    def close(self) -> None:
        """Take off the model whatever listens there: "product" hears the statistics of batch norms in training."""
        self._form.close()

    @contextlib.contextmanager
    def _exact(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for device in {"cpu", *(p.device.type for p in self._part.parameters())}:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield


def _form(model: nn.Module, example: Tensor, method: BoundMethod) -> tuple[BoundMethod, Form]:
    swept = None if method == "product" else _swept(model, example, forced=method == "sweep")
    return ("product", ProductForm(model, example)) if swept is None else ("sweep", swept)


def _swept(model: nn.Module, example: Tensor, *, forced: bool) -> Form | None:
    """The form for explicit matrices where they are small, else that of convolutions, else None or, if it is forced,
    the one for explicit matrices of any size."""
    explicit, refusal = None, None
    if forced or _is_narrow(model, example):
        try:
            explicit = SweptForm(model, example)
        except (NotLinearisedError, ModelSizeError) as error:
            refusal = error
    if explicit is not None and explicit.size <= LARGEST:
        return explicit
    convolutional = _on_torus(model, example, math.inf if forced else LARGEST_WORK)
    if convolutional is not None or not forced:
        return convolutional
    if isinstance(refusal, NotLinearisedError):
        raise ArgumentError("method", "sweep", f"'product' for a model with `{refusal.operator}`") from refusal
    if refusal is not None:
        raise refusal
    return explicit


def _on_torus(model: nn.Module, example: Tensor, most: float) -> TorusForm | None:
    """The form of chains of convolutions; None for other models, and where an evaluation takes more work."""
    try:
        form = TorusForm(model, example)
    except NotOnTorusError:
        return None
    return form if form.work <= most else None


def _is_narrow(model: nn.Module, example: Tensor) -> bool:
    """Whether no layer of explicit matrices would be wider than what is swept."""
    size = measure(GraphExtractor(model, example).network())
    return size is not None and max(size.widths, default=0) <= WIDEST


__all__ = ["BoundMethod", "DifferentiableBound"]
