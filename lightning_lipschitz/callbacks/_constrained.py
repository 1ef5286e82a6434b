"""The weights that are held to a bound: where they are in the module, what they read, how they are pulled and moved."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, isolate_rng
from lightning_lipschitz.callbacks._choice import Choice
from lightning_lipschitz.callbacks._inputs import Arguments
from lightning_lipschitz.callbacks._target import find_target
from lightning_lipschitz.callbacks._ties import aliases
from lightning_lipschitz.callbacks._watch import Watched
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction.undisturbed import tensors_of, unwrapped
from lightning_lipschitz.network import Network
from lightning_lipschitz.training import require_reachable
from lightning_lipschitz.weights import StoredWeights, stored_weights

Tensors = Mapping[str, Tensor]

PART = "_certified_part."  # stands before the names of a module that is read in part


class ConstrainedWeights:
    """The weights of one submodule, during one fit.

    Args:
        choice: the submodule, its input and its output, as in the callback's arguments.
        owner: the callback's class, for messages.
        max_lipschitz: the bound, if there is one.
        many: whether other processes do the same, and have to hold other inputs at the same values.
    """

    def __init__(self, choice: Choice, owner: str, max_lipschitz: float | None = None, many: bool = False) -> None:
        self._choice, self._name = choice, choice.module
        self._owner, self._max_lipschitz, self._many = owner, max_lipschitz, many
        self._held: Arguments | None = None
        self._watched: Watched | None = None
        self._linear: StoredWeights | None = None
        self._part: nn.Module | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._readable: frozenset[str] = frozenset()
        self._prefix = self._mark = ""  # of the model's names, and of those in here
        self._aliases: dict[str, str] = {}
        self._frozen: tuple[bool, ...] = ()
        self._traces = 0
        self._outgrown = False  # a parameter has another shape than when it was traced
        self.renewed = False  # the model has become another one, and what was found for the old one is of no use

    @property
    def traced(self) -> bool:
        return self._linear is not None

    @property
    def linear(self) -> StoredWeights:
        """What reads and writes the matrices.

        Raises:
            LipschitzError: nothing has been called yet, so nothing is known of the input.
        """
        if self._linear is None:
            raise LipschitzError(
                f"`{self._owner}` does not know the input of the model, which was not called yet, and cannot certify"
                " weights until then. Set `example_input_array` in the LightningModule."
            )
        if self._watched is not None:
            self._watched.follow()
        self._look_up()
        return self._linear

    def _look_up(self) -> None:
        """The parameters may be other objects by now: of a model that was moved to some devices, or with new ones."""
        part = self._part
        for name in self._parameters if part is not None else ():
            with contextlib.suppress(AttributeError):
                found = part.get_parameter(name)  # type: ignore[union-attr]
                self._outgrown = self._outgrown or found.shape != self._parameters[name].shape
                self._parameters[name] = found

    def start(self, model: LightningModule) -> None:
        """Find the submodule; trace it if its input is known, else listen for the first call.

        Raises:
            MisconfigurationException: there is no such submodule.
            LipschitzError: as :meth:`trace`.
        """
        watched = self._watch(model)
        if self._many and self._choice.input is not None:
            watched.ask(model)
        if not self.trace(model):
            watched.listen(model)

    def prepare(self, model: LightningModule) -> None:
        """Make sure that the submodule of this model is traced, in the middle of a fit or outside of it.

        Raises:
            MisconfigurationException: there is no such submodule.
            LipschitzError: as :meth:`trace` and :attr:`linear`.
        """
        watched = self._watch(model)
        if self._linear is None:
            watched.ask(model)
            self.trace(model)
        self.linear  # noqa: B018 - raises where nothing can be certified yet

    def _watch(self, model: LightningModule) -> Watched:
        if self._watched is None:
            self._watched = Watched(model, self._choice, self._owner)
            self._watched.hold(self._held)
        return self._watched

    @property
    def held(self) -> Arguments | None:
        """What other inputs than the chosen one are held at, for a checkpoint; None where there are none."""
        return self._held if self._watched is None else self._watched.plain_held

    @held.setter
    def held(self, arguments: Arguments | None) -> None:
        self._held = arguments

    def rest(self) -> None:
        """Let go of the model until :meth:`prepare`."""
        self._linear, self._part, self._parameters, self._aliases = None, None, {}, {}
        if self._watched is not None:
            self._watched.rest()

    def hear(self, model: LightningModule, batch: Any) -> bool:
        """A training batch is known: trace, if that can be done now; whether it is done. Raises as :meth:`trace`."""
        if self._linear is None and self._watched is not None:
            self._watched.hear(model, batch)
        return self.trace(model)

    def stop_listening(self) -> None:
        if self._watched is not None:
            self._watched.inputs.disarm()

    def trace(self, model: LightningModule) -> bool:
        """Trace, if that is not done and an example input has been seen; whether it is done.

        Raises:
            LipschitzError: the submodule cannot be read, holds layers that cannot be projected, or has no weights with
                the bound.
        """
        watched = self._watched
        if self._linear is None and watched is not None and watched.knows_input:
            with isolate_rng(include_cuda=torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
                self._linear = self._trace(model, watched)
        return self.traced

    def has_thawed(self, model: LightningModule) -> bool:
        """Whether other layers are frozen than when the submodule was traced; then it is traced anew."""
        if self._linear is None or self._frozen == _frozen(find_target(model, self._name, self._owner)):
            return False
        self._linear = None
        return self.trace(model)

    def fit_in(self, model: LightningModule) -> None:
        """:meth:`refresh`, where it is plain without a look at the whole model: parameters have other shapes."""
        self._look_up()
        if self._outgrown:
            self.refresh(model)

    def refresh(self, model: LightningModule) -> None:
        """Read the submodule anew if it is no longer what was traced: another layer, activation or number.

        Raises:
            LipschitzError: as :meth:`trace`.
        """
        watched, linear = self._watched, self._linear
        if linear is None or watched is None:
            return
        with isolate_rng(include_cuda=torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
            reader = watched.reader(model)
            reader.refresh()
            if reader is not linear.extractor or reader.traces != self._traces:
                self._linear = self._trace(model, watched)
                self.renewed = True

    def _trace(self, model: LightningModule, watched: Watched) -> StoredWeights:
        target = unwrapped(find_target(model, self._name, self._owner))
        chosen, example = watched.part(model)
        self._require_alike(watched)
        linear = stored_weights(chosen, example, reader=lambda: watched.reader(model))
        if self._max_lipschitz is not None:
            require_reachable(linear, self._max_lipschitz)
        self._frozen = _frozen(target)
        path = next(name for name, module in model.named_modules() if module is target)
        self._prefix = f"{path}." if path else ""
        self._mark = "" if chosen is target else PART
        self._aliases = aliases(model, [self._named(name) for name in linear.parameter_names])
        self._part, self._parameters = chosen, {name: chosen.get_parameter(name) for name in linear.parameter_names}
        self._readable = frozenset(self._mark + name for name in tensors_of(target))
        self._traces, self._outgrown = linear.extractor.traces, False
        return linear

    def _require_alike(self, watched: Watched) -> None:
        """Every process trains by itself, and the weights must stay the same in all of them."""
        if self._many and watched.held is not None and not watched.is_given:
            raise MisconfigurationException(
                f"`{self._owner}(input={self._choice.input!r})` holds the other inputs at the values of one sample, and"
                " each process sees other batches. Set `example_input_array` in the LightningModule to all inputs."
            )

    # Reading

    def part(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of a ``state_dict`` of the whole model: what the submodule reads, by its names there."""
        found = {name: tensors.get(self._named(name)) for name in self._readable}
        return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}

    def whole(self, tensors: Tensors) -> dict[str, Tensor]:
        """The inverse: names of the submodule as names of the whole model, and whatever else is tied to them there."""
        named = {self._named(name): tensor for name, tensor in tensors.items()}
        return named | {other: named[name] for other, name in self._aliases.items() if name in named}

    def _named(self, name: str) -> str:
        return self._prefix + name.removeprefix(self._mark)

    def of(self, root: nn.Module) -> dict[str, Tensor]:
        """:meth:`part` of a model's own tensors."""
        return self.part(dict(root.named_parameters(remove_duplicate=False)) | dict(root.named_buffers()))

    def matrices(self) -> list[Tensor]:
        """Of the live model, detached; not copies where they are parameters."""
        return [weight.detach() for weight in self.linear.differentiable(self._parameters)]

    def network(self, tensors: Tensors | None = None) -> Network:
        """The network with these tensors, or as it is in the live model."""
        return self.linear.extractor.extract(tensors).network

    # Moving

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The live parameters behind the matrices."""
        self._look_up()
        return self._parameters

    def is_trained_by(self, optimizer: Optimizer) -> bool:
        trained = _trained(optimizer)
        return any(id(parameter) in trained for parameter in self._parameters.values())

    def add_gradient(self, optimizer: Optimizer, directions: Sequence[Tensor], scale: float) -> None:
        """Add ``scale * directions``, one a matrix, to the gradients of the parameters that ``optimizer`` trains.

        Nothing happens where none of its parameters has a gradient: then no loss was computed, and no step is meant.
        """
        if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            return
        trained = _trained(optimizer)
        for parameter, gradient in self._pulled_back(directions):
            if id(parameter) not in trained or not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = gradient * scale
            else:
                parameter.grad.add_(gradient, alpha=scale)

    def _pulled_back(self, directions: Sequence[Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
        """Directions of matrices as directions of parameters."""
        with torch.enable_grad():
            matrices = self.linear.differentiable(self._parameters)
        if all(isinstance(matrix, nn.Parameter) for matrix in matrices):
            return list(zip(matrices, directions, strict=True))  # type: ignore[arg-type]
        pairs = [(m, d) for m, d in zip(matrices, directions, strict=True) if m.requires_grad]
        parameters = list(dict.fromkeys(p for p in self._parameters.values() if p.requires_grad))  # shared ones once
        outputs, seeds = [m for m, _ in pairs], [d for _, d in pairs]
        gradients = torch.autograd.grad(outputs, parameters, seeds, allow_unused=True)
        return [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]


def _trained(optimizer: Optimizer) -> frozenset[int]:
    """What the optimizer trains, by identity; it may get more of it at any time."""
    return frozenset(id(p) for group in optimizer.param_groups for p in group["params"])


def _frozen(target: nn.Module) -> tuple[bool, ...]:
    """Of its parameters in order; all trained, where none is: such a model is at rest, and all of it may give way."""
    trained = tuple(parameter.requires_grad for parameter in target.parameters())
    return trained if any(trained) else (True,) * len(trained)
