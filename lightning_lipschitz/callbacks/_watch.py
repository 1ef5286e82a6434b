"""The certified submodule during one fit: found, listened to for an example input, traced once, read every time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, isolate_rng
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.lower import steepest_pair
from lightning_lipschitz.callbacks._inputs import InputCapture
from lightning_lipschitz.callbacks._target import find_target, uncompiled
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.structured import RoutedExtractor, StructuredExtractor
from lightning_lipschitz.extraction.undisturbed import undisturbed
from lightning_lipschitz.network import Network
from lightning_lipschitz.structured import Graph

_READERS = {"auto": RoutedExtractor, "composed": StructuredExtractor}
_SAMPLED, _PAIRS, _ASCENT_STEPS = 64, 8, 30  # 64 climbing 50 steps: five times the time for 2 % more


class Watched:
    """A submodule by name, in the live model or in a copy of it that holds averaged weights.

    Args:
        model: the live model.
        name, owner: as for :func:`~lightning_lipschitz.callbacks._target.find_target`.
        method: of the certification; "auto" and "composed" may read a structured graph, all others a network.

    Raises:
        MisconfigurationException: ``model`` has no such submodule.
    """

    def __init__(self, model: LightningModule, name: str, owner: str = "LipschitzCallback", method: str = "") -> None:
        self.name = name
        self._method = method
        self._owner = owner
        self.inputs = InputCapture()
        self._extractor: Extractor | None = None
        self._traced: nn.Module | None = None
        target = find_target(model, name, owner)
        self._is_whole_model = target is model
        example = getattr(model, "example_input_array", None) if self._is_whole_model else None
        if example is not None:
            self.inputs.take_example(example, model)

    def listen(self, model: LightningModule) -> None:
        """Take the arguments of the next forward as example input."""
        self.inputs.arm(find_target(model, self.name))

    def hear(self, batch: Any) -> None:
        """A training batch went by. If the whole model is meant and was not called, its input is in the batch.

        Raises:
            MisconfigurationException: no example input can be had.
        """
        if not (self._is_whole_model and self.inputs.armed) or self.inputs.take_from_batch(batch):
            return
        if self.inputs.arguments is None:
            raise MisconfigurationException(
                f"`{self._owner}` needs an example input of the model: `forward` was not called in the first batch,"
                f" and the batch, of type `{type(batch).__name__}`, does not start with a tensor. Set"
                f" `example_input_array` in the LightningModule, or name a submodule: `{self._owner}(module=...)`."
            )

    def ask(self, model: LightningModule) -> None:
        """Have the model say what the submodule reads, if it was not called yet and has an ``example_input_array``."""
        example = getattr(model, "example_input_array", None)
        if self.inputs.arguments is not None or example is None:
            return
        example = tree_map(lambda each: each.to(model.device) if isinstance(each, Tensor) else each, example)
        arguments = example if isinstance(example, tuple) else () if isinstance(example, dict) else (example,)
        with isolate_rng(include_cuda=torch.cuda.is_initialized()), undisturbed(model):  # type: ignore[no-untyped-call]
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
        self._extractor = self._traced = None

    def trace(self, root: nn.Module) -> bool:
        """Trace the submodule inside ``root``; False if no example input was seen yet.

        Raises:
            LipschitzError: it cannot be certified, as it is or at all.
        """
        if self.inputs.arguments is not None:
            self.network(root)
        return self.inputs.arguments is not None

    def network(self, root: nn.Module) -> Network | Graph:
        """The submodule inside ``root``, with its weights as they are now."""
        return self.reader(root).network()

    def digest(self, root: nn.Module, state_dict: Mapping[str, Tensor]) -> str | None:
        """Of the network that the submodule inside ``root`` would be with the weights of a file of ``root``; None if
        the file does not hold all of them.

        Raises:
            LipschitzError: it cannot be certified.
        """
        target = uncompiled(find_target(root, self.name))
        path = next(name for name, module in root.named_modules() if module is target)
        prefix = f"{path}." if path else ""
        names = target.state_dict(keep_vars=True).keys()
        if any(prefix + name not in state_dict for name in names):
            return None
        return self.reader(root).extract({name: state_dict[prefix + name] for name in names}).network.digest

    def lower_bound(self, root: nn.Module, time_limit: float) -> float:
        """A sampled lower bound, from the last inputs seen; with random numbers of its own. In so many seconds."""
        clock = Clock(time_limit)
        generator = torch.Generator().manual_seed(0)
        function = self.reader(root).function("cpu")
        return steepest_pair(
            function,
            self.flat_inputs,
            steps=_ASCENT_STEPS,
            pairs=_PAIRS,
            sampled=_SAMPLED,
            generator=generator,
            clock=clock,
        ).value

    @property
    def flat_inputs(self) -> Tensor:
        """The last inputs seen, shape (batch, input_size), on the CPU."""
        flat: Tensor = self.inputs.example.flatten(1).cpu()
        return flat

    def reader(self, root: nn.Module) -> Extractor:
        """What reads the submodule inside ``root``; an example input must have been seen."""
        self.inputs.disarm()  # the trace must not contain our own hook
        target = uncompiled(find_target(root, self.name))
        if self._extractor is None or self._traced is not target:
            self._extractor = _READERS.get(self._method, Extractor)(target, self.inputs.example, name=self.name)
            self._traced = target
        return self._extractor
