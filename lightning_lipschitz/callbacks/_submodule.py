"""The certified submodule during one fit: found, listened to for an example input, traced once, read every time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, isolated_rng
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.lower import sampled_slope
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction import Reader, reader_for
from lightning_lipschitz.extraction import part as part_of
from lightning_lipschitz.extraction.undisturbed import computes_in, undisturbed, unwrapped
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.lightning_tools.inputs import (
    Arguments,
    InputCapture,
    chosen_input,
    names_of,
    needs_more,
    plain,
)
from lightning_lipschitz.lightning_tools.submodule import Choice, find_target


class Submodule:
    """A submodule by name, in the live model or in a copy of it that holds averaged weights.

    Args:
        choice: the submodule, and which of its inputs and outputs. Other inputs are held at the values of the first
            sample that was seen, for as long as this object lives.
        owner: the callback's class, for messages.
        method: method of the certification; "auto" and "composed" may read a graph, all others a network.
    """

    def __init__(self, choice: Choice, owner: str, method: str = "") -> None:
        self.name, self._choice = choice.module, choice
        self._method = method
        self._owner = owner
        self.inputs = InputCapture(choice.input)
        self.held: Arguments | None = None  # of one call: other inputs than the chosen one keep these values
        #: whether the input is the same in every process: it was given, and not heard in a batch
        self.is_given = False
        self._names: tuple[str, ...] | None = None  # of its inputs, once it was found
        self._is_whole_model = False
        self._extractor: Reader[Network | Graph] | None = None
        self._traced: nn.Module | None = None
        self._part: nn.Module | None = None

    def find(self, model: LightningModule) -> None:
        """Look it up in the live model, and its input in ``example_input_array``. Only the first call does anything.

        Raises:
            MisconfigurationException: ``model`` has no such submodule, or that no such input.
        """
        if self._names is not None:
            return
        target = find_target(model, self.name, self._owner)
        self._choice.check_input(unwrapped(target), self._owner)
        self._names = names_of(unwrapped(target))
        self._is_whole_model = target is model
        example = getattr(model, "example_input_array", None) if self._is_whole_model else None
        if example is not None:
            self.inputs.take_example(example, model)
            self.is_given = True

    def target(self, root: nn.Module) -> nn.Module:
        """The submodule inside ``root``, without what ``torch.compile`` put around it."""
        return unwrapped(find_target(root, self.name, self._owner))

    def prefix(self, root: nn.Module) -> str:
        """What stands before the names of its tensors in ``root``."""
        target = self.target(root)
        path = next(name for name, module in root.named_modules() if module is target)
        return f"{path}." if path else ""

    def listen(self, model: LightningModule) -> None:
        """Take the arguments of the next forward as example input."""
        self.inputs.arm(find_target(model, self.name, self._owner))

    def hear(self, model: nn.Module, batch: Any) -> None:
        """A training batch went by. If the whole model is meant and was not called, its input is in the batch.

        Raises:
            MisconfigurationException: no example input can be had.
        """
        if not (self._is_whole_model and self.inputs.armed):
            return
        several = self.inputs.arguments is None and needs_more(unwrapped(model))
        if not several and self.inputs.take_from_batch(batch, model):
            return
        if self.inputs.arguments is None:
            shown = f"the batch, of type `{type(batch).__name__}`, does not start with a tensor"
            why = "it takes more inputs than a batch shows" if several else shown
            raise MisconfigurationException(
                f"`{self._owner}` needs an example input of the model: `forward` was not called in the first batch,"
                f" and {why}. Set `example_input_array` in the LightningModule,"
                f" or name a submodule: `{self._owner}(module=...)`."
            )

    def ask(self, model: LightningModule) -> None:
        """Have the model say what the submodule reads, if it was not called yet and has an ``example_input_array``."""
        example = getattr(model, "example_input_array", None)
        if self.inputs.arguments is not None or example is None:
            return
        example = tree_map(lambda each: each.to(model.device) if isinstance(each, Tensor) else each, example)
        arguments = example if isinstance(example, tuple) else () if isinstance(example, dict) else (example,)
        self.is_given = True
        with isolated_rng(), undisturbed(model):
            self.listen(model)
            try:
                model(*arguments, **(example if isinstance(example, dict) else {}))
            except Exception as error:
                what = f"the `example_input_array` of `{type(model).__name__}` is not what its `forward` takes"
                raise LipschitzError(f"{what}: {type(error).__name__}: {error}") from error
            finally:
                self.inputs.disarm()

    def rest(self) -> None:
        """Let go of the model; its input stays known."""
        self.inputs.disarm()
        self._extractor = self._traced = self._part = None

    def trace(self, root: nn.Module) -> bool:
        """Trace the part inside ``root``; False if no example input was seen yet.

        Raises:
            LipschitzError: it cannot be certified, as it is or at all.
        """
        if self.knows_input:
            self.network(root)
        return self.knows_input

    def network(self, root: nn.Module) -> Network | Graph:
        """The submodule inside ``root``, with its weights as they are now."""
        return self.reader(root).network()

    def digest(self, root: nn.Module, state_dict: Mapping[str, Tensor]) -> str | None:
        """Digest of the network that the submodule inside ``root`` would be with the weights of a file of ``root``;
        None if the file does not hold all of them.

        Raises:
            LipschitzError: it cannot be certified.
        """
        prefix, own = self.prefix(root), self.target(root).state_dict(keep_vars=True)
        found = {name: _in_file(state_dict, prefix + name) for name in own}
        held = {name: value for name, value in found.items() if value is not None}
        return self.reader(root).extract(held).network.digest if len(held) == len(found) else None

    def lower_bound(self, root: nn.Module, time_limit: float) -> float:
        """A sampled lower bound, from the last inputs seen; with random numbers of its own. In so many seconds."""
        return sampled_slope(self.reader(root).function("cpu"), self.flat_inputs, Clock(time_limit))

    @property
    def knows_input(self) -> bool:
        """Whether it was found, and an example input was seen or given."""
        return self._names is not None and (self.inputs.arguments is not None or self.held is not None)

    def hold(self, arguments: Arguments | None) -> None:
        """Go on with what an earlier fit, or another process, holds other inputs at."""
        if arguments is not None:
            self.held, self.is_given = arguments, True

    @property
    def plain_held(self) -> Arguments | None:
        """:attr:`held`, for a checkpoint; None where nothing is held."""
        return self.held if self._names is None else plain(self.held, self._chosen(self.held))

    def _chosen(self, arguments: Arguments | None) -> Any:
        return None if arguments is None else chosen_input(self._names or (), arguments, self._choice.input)

    @property
    def flat_inputs(self) -> Tensor:
        """The last values of the chosen input seen, shape (batch, input_size), on the CPU."""
        seen = self.held if self.inputs.arguments is None else self.inputs.arguments
        values = self._chosen(seen)
        if not isinstance(values, Tensor):
            raise RuntimeError("asked for inputs before the trace")
        flat: Tensor = values.flatten(1).cpu()
        return flat

    @property
    def example(self) -> Any:
        """What the trace is made with: of several inputs always the same."""
        seen = self.inputs.arguments
        if self.held is None and (isinstance(seen, dict) or (seen is not None and len(seen) > 1)):
            self.held = seen
        return self.inputs.example if self.held is None else self.held

    def part(self, root: nn.Module) -> tuple[nn.Module, Any]:
        """The submodule inside ``root`` as a function of the chosen input that returns the chosen output, and an
        example of that input; the submodule itself where it has no others. An example input must have been seen.

        Raises:
            LipschitzError: there is no such input or output.
        """
        return part_of(self.target(root), self.example, self._choice.input, self._choice.output)

    def reader(self, root: nn.Module) -> Reader[Network | Graph]:
        """What reads :meth:`part` of ``root``; an example input must have been seen."""
        self.inputs.disarm()  # the trace must not contain our own hook
        target = self.target(root)
        if self._extractor is None or self._part is None or self._traced is not target:
            self._part, example = self.part(root)
            self._extractor = reader_for(self._method)(self._part, example, name=self.name, at_once=False)
            self._traced = target
        self.follow()
        return self._extractor

    def read_as(self, method: str) -> None:
        """From now on, in the form that another method bounds."""
        self._method, self._extractor, self._traced = method, None, None

    def follow(self) -> None:
        """Held inputs, to where the weights are now: whoever moves the model does not know of them."""
        if self._part is not None and self._part is not self._traced:
            _follow(self._part)


def _follow(part: nn.Module) -> None:
    for name, value in list(part.named_buffers(recurse=False)):
        like = computes_in(part, value)
        setattr(part, name, value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device))


def _in_file(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The tensor of that name. A pruned weight may be there as it is used, which is what ModelPruning saves."""
    if name in state or not name.endswith(("_orig", "_mask")):
        return state.get(name)
    weight = state.get(name[:-5])
    return weight if weight is None or name.endswith("_orig") else torch.ones_like(weight)
