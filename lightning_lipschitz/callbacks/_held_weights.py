"""The weights of one submodule that a callback holds to a bound: found, traced, read by their names in files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, isolated_rng
from lightning_lipschitz.callbacks._shared_memory import aliases
from lightning_lipschitz.callbacks._submodule import Submodule
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction import Reader
from lightning_lipschitz.extraction.undisturbed import tensors_of
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.lightning_tools.submodule import Choice

Tensors = Mapping[str, Tensor]

PART = "_certified_part."  # stands before the names of a module that is read in part


class HeldWeights:
    """The weights of one submodule, during one fit. Subclasses say which of them are written.

    Args:
        choice: the submodule, its input and its output, as in the callback's arguments.
        owner: the callback's class, for messages.
        max_lipschitz: the bound, if there is one.
        many: whether other processes do the same, and have to hold other inputs at the same values.

    Attributes:
        submodule: the submodule itself.
        renewed: whether the model has become another one, and what was found for the old one is of no use.
    """

    method = ""  # of the certificates: in which form the submodule is read

    def __init__(self, choice: Choice, owner: str, max_lipschitz: float | None = None, many: bool = False) -> None:
        self._choice, self.submodule = choice, Submodule(choice, owner, self.method)
        self._owner, self._max_lipschitz, self._many = owner, max_lipschitz, many
        self._reader: Reader[Network | Graph] | None = None
        self._part: nn.Module | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._readable: frozenset[str] = frozenset()
        self._prefix = self._mark = ""  # of the model's names, and of those in here
        self._aliases: dict[str, str] = {}
        self._frozen: tuple[bool, ...] = ()
        self._traces = 0
        self._outgrown = False  # a parameter has another shape than when it was traced
        self.renewed = False

    def _find(self, model: LightningModule, chosen: nn.Module, example: Any) -> Sequence[str]:
        """Names in ``chosen`` of the parameters that are written.

        Args:
            model: the whole of it.
            chosen: the submodule as a function of one input and one output.
            example: of that input.

        Raises:
            LipschitzError: some of the weights cannot be held to the bound.
        """
        raise NotImplementedError

    @property
    def traced(self) -> bool:
        return self._reader is not None

    @property
    def reader(self) -> Reader[Network | Graph]:
        """What reads the submodule.

        Raises:
            LipschitzError: nothing has been called yet, so nothing is known of the input.
        """
        if self._reader is None:
            raise LipschitzError(
                f"`{self._owner}` does not know the input of the model, which was not called yet, and cannot certify"
                " weights until then. Set `example_input_array` in the LightningModule."
            )
        self.submodule.follow()
        self._look_up()
        return self._reader

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
        self.submodule.find(model)
        if self._many and self._choice.input is not None:
            self.submodule.ask(model)
        if not self.trace(model):
            self.submodule.listen(model)

    def prepare(self, model: LightningModule) -> None:
        """Make sure that the submodule of this model is traced, in the middle of a fit or outside of it.

        Raises:
            MisconfigurationException: there is no such submodule.
            LipschitzError: as :meth:`trace` and :attr:`reader`.
        """
        self.submodule.find(model)
        if self._reader is None:
            self.submodule.ask(model)
            self.trace(model)
        self.reader  # noqa: B018 - raises where nothing can be certified yet

    def rest(self) -> None:
        """Let go of the model until :meth:`prepare`."""
        self._reader, self._part, self._parameters, self._aliases = None, None, {}, {}
        self.submodule.rest()

    def hear(self, model: LightningModule, batch: Any) -> bool:
        """A training batch is known: trace, if that can be done now; whether it is done. Raises as :meth:`trace`."""
        if self._reader is None:
            self.submodule.hear(model, batch)
        return self.trace(model)

    def trace(self, model: LightningModule) -> bool:
        """Trace, if that is not done and an example input has been seen; whether it is done.

        Raises:
            LipschitzError: the submodule cannot be read, holds layers that cannot be held to a bound, or has no weights
                with the bound.
        """
        if self._reader is None and self.submodule.knows_input:
            with isolated_rng():
                self._reader = self._trace(model)
        return self.traced

    def has_thawed(self, model: LightningModule) -> bool:
        """Whether other layers are frozen than when the submodule was traced; then it is traced anew."""
        if self._reader is None or self._frozen == _frozen(self.submodule.target(model)):
            return False
        self._reader = None
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
        if self._reader is None:
            return
        with isolated_rng():
            reader = self.submodule.reader(model)
            reader.refresh()
            if reader is not self._reader or reader.traces != self._traces:
                self._reader = self._trace(model)
                self.renewed = True

    def _trace(self, model: LightningModule) -> Reader[Network | Graph]:
        target = self.submodule.target(model)
        chosen, example = self.submodule.part(model)
        self._require_alike()
        names = self._find(model, chosen, example)
        reader = self.submodule.reader(model)
        self._frozen = _frozen(target)
        self._prefix = self.submodule.prefix(model)
        self._mark = "" if chosen is target else PART
        self._aliases = aliases(model, [self._named(name) for name in names])
        self._part, self._parameters = chosen, {name: chosen.get_parameter(name) for name in names}
        self._readable = frozenset(self._mark + name for name in tensors_of(target))
        self._traces, self._outgrown = reader.traces, False
        return reader

    def _require_alike(self) -> None:
        """Every process trains by itself, and the weights must stay the same in all of them."""
        if self._many and self.submodule.held is not None and not self.submodule.is_given:
            raise MisconfigurationException(
                f"`{self._owner}(input={self._choice.input!r})` holds the other inputs at the values of one sample, and"
                " each process sees other batches. Set `example_input_array` in the LightningModule to all inputs."
            )

    # Reading

    def part(self, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the submodule reads of a ``state_dict`` of the whole model, by the submodule's own names."""
        found = {name: tensors.get(self._named(name)) for name in self._readable}
        return {name: tensor.detach() for name, tensor in found.items() if tensor is not None}

    def whole(self, tensors: Tensors) -> dict[str, Tensor]:
        """Tensors of the submodule by their names in the whole model, those that are tied to them there included."""
        named = {self._named(name): tensor for name, tensor in tensors.items()}
        return named | {other: named[name] for other, name in self._aliases.items() if name in named}

    def _named(self, name: str) -> str:
        return self._prefix + name.removeprefix(self._mark)

    def of(self, root: nn.Module) -> dict[str, Tensor]:
        """:meth:`part` of a model's own tensors."""
        return self.part(tensors_of(root))

    def network(self, tensors: Tensors | None = None) -> Network | Graph:
        """The network, or graph, with these tensors, or as it is in the live model."""
        return self.reader.extract(tensors).network

    # The live parameters

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that are written, by name."""
        self._look_up()
        return self._parameters

    def is_trained_by(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer trains some of them."""
        trained = trained_by(optimizer)
        return any(id(parameter) in trained for parameter in self._parameters.values())


def trained_by(optimizer: Optimizer) -> frozenset[int]:
    """What the optimizer trains, by identity; it may get more of it at any time."""
    return frozenset(id(p) for group in optimizer.param_groups for p in group["params"])


def _frozen(target: nn.Module) -> tuple[bool, ...]:
    """Which of its parameters are trained; all of them where none is: such a model is at rest, and all may give way."""
    trained = tuple(parameter.requires_grad for parameter in target.parameters())
    return trained if any(trained) else (True,) * len(trained)
