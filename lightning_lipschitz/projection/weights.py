"""LinearWeights: which parameters of a model stand behind the matrices of its Network, and how to write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.trace import example
from lightning_lipschitz.extraction.undisturbed import undisturbed, unwrapped
from lightning_lipschitz.network import Network

_HARMLESS = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "torch.nn.modules.flatten")
_NOT_YET = "Only chains of nn.Linear with activations, dropout and flattening between them can be projected so far."


@dataclass(frozen=True)
class _Plain:
    """The matrix is a parameter."""

    name: str

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.name]

    def encode(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self.name: weight.to(tensors[self.name])}


@dataclass(frozen=True)
class _WeightNorm:
    """The matrix is ``magnitude * direction / |direction|``, slice by slice along ``dim``."""

    magnitude: str
    direction: str
    dim: int

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch._weight_norm(tensors[self.direction], tensors[self.magnitude], self.dim)

    def encode(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Directions of length one; slices of zeros, which have none, keep theirs."""
        norm = torch.norm_except_dim(weight, 2, self.dim)
        unit = weight / torch.where(norm > 0, norm, 1.0)
        direction = torch.where(norm > 0, unit, tensors[self.direction].to(weight))
        return {
            self.magnitude: norm.to(tensors[self.magnitude]),
            self.direction: direction.to(tensors[self.direction]),
        }


class LinearWeights:
    """The matrices of a chain of ``nn.Linear``, first layer first, and the parameters they are made of.

    Plain weights and weight norm (of ``torch.nn.utils`` and of its ``parametrizations``) can be read and written.
    Nothing is kept but
    names: the parameters are looked up when they are needed.

    Args:
        model: any module that :class:`~lightning_lipschitz.extraction.Extractor` reads.
        example_input: as there.
        extractor: of the same model, if there is one already.

    Raises:
        ProjectionError: a matrix of the network is not the weight of an ``nn.Linear``, or cannot be written; names
            the submodule.
        LipschitzError: as the extractor.

    Example:
        >>> weights = LinearWeights(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
        >>> weights.names, [tuple(matrix.shape) for matrix in weights.read()]
        (('0', '2'), [(3, 2), (1, 3)])
    """

    def __init__(self, model: nn.Module, example_input: Any = None, *, extractor: Extractor | None = None) -> None:
        self._model = unwrapped(model)
        self.extractor = extractor or Extractor(self._model, example_input)
        visited = _visited(self._model, example_input)
        linear = [(path, module) for path, module in visited if isinstance(module, nn.Linear)]
        self.names = tuple(path for path, _ in linear)
        network = self.network()
        self._codes = [_code(path, module) for path, module in linear]
        _check_frozen(linear)
        self._check(network, visited)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Of every parameter involved, as in the model's ``state_dict``."""
        return tuple(self.encode([w.double() for w in self.read()]))

    def network(self) -> Network:
        """The network with the weights of this moment."""
        return self.extractor.network()

    def read(self, tensors: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The matrices, detached, in their own dtype and on their own device.

        Args:
            tensors: a ``state_dict`` to read in place of the model's own; it may hold more.
        """
        return [weight.detach().clone() for weight in self.differentiable(tensors)]

    def differentiable(self, tensors: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The matrices as functions of the parameters."""
        own = self._tensors() if tensors is None else tensors
        return [code.decode(own) for code in self._codes]

    def encode(self, weights: Sequence[Tensor], tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """New tensors for a ``state_dict`` whose matrices are ``weights`` (float64), up to the rounding of the
        parameters' dtype."""
        own = self._tensors() if tensors is None else tensors
        new: dict[str, Tensor] = {}
        for code, weight in zip(self._codes, weights, strict=True):
            new |= {name: tensor.detach() for name, tensor in code.encode(weight, own).items()}
        return new

    def realise(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """What :meth:`read` gives after :meth:`write` of the same weights. On the CPU, as the extractor computes it."""
        own = {name: tensor.detach().cpu() for name, tensor in self._tensors().items()}
        stored = own | self.encode([weight.detach().cpu() for weight in weights], own)
        return [code.decode(stored).to(weight.device) for code, weight in zip(self._codes, weights, strict=True)]

    @torch.no_grad()
    def write(self, weights: Sequence[Tensor]) -> None:
        """Write the matrices (float64) into the parameters, in place."""
        own = self._tensors()
        new = self.encode([weight.detach().cpu() for weight in weights], {n: t.detach().cpu() for n, t in own.items()})
        for name, tensor in new.items():
            own[name].copy_(tensor)

    def _tensors(self) -> dict[str, Tensor]:
        wanted = {name for code in self._codes for name in vars(code).values()}
        found = ((name, p) for name, p in self._model.named_parameters(remove_duplicate=False) if name in wanted)
        return dict(found)

    def _check(self, network: Network, visited: Sequence[tuple[str, nn.Module]]) -> None:
        """Every matrix of the network is the weight of the linear layer of the same place, entry by entry."""
        tied = len({id(parameter) for parameter in self._tensors().values()}) < len(self._tensors())
        repeated = next((name for name in self.names if self.names.count(name) > 1), None)
        if repeated is not None or tied:
            reason = "its weight is used more than once, which is not supported yet."
            raise ProjectionError(repeated or self.names[0], "Linear", reason, "Give every place a layer of its own.")
        if network.is_chain and len(network.affines) == len(self._codes):
            pairs = zip(network.affines, self.read(), strict=True)
            if all(np.array_equal(a.terms[0].matrix, w.double().cpu().numpy()) for a, w in pairs):
                return
        path, name = next(
            ((p, type(m).__name__) for p, m in visited if not _harmless(m)), ("", type(self._model).__name__)
        )
        raise ProjectionError(path, name, "it is not supported yet.", _NOT_YET)


def _visited(model: nn.Module, example_input: Any) -> list[tuple[str, nn.Module]]:
    """Linear layers and modules without children, in the order in which they are called."""
    calls: list[tuple[str, nn.Module]] = []
    handles = []
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        if isinstance(module, nn.Linear) or not any(module.children()):
            handles.append(module.register_forward_pre_hook(lambda m, _, path=path: calls.append((path, m))))
    try:
        with undisturbed(model):
            model(example(model, example_input))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _code(path: str, module: nn.Linear) -> _Plain | _WeightNorm:
    """How the weight is stored."""
    prefix = f"{path}." if path else ""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            raise _fixed_norm(path, "spectral_norm")
        if isinstance(hook, WeightNorm):
            return _WeightNorm(f"{prefix}weight_g", f"{prefix}weight_v", hook.dim)
    if not parametrize.is_parametrized(module, "weight"):
        return _Plain(f"{prefix}weight")
    chain = list(module.get_submodule("parametrizations.weight").children())
    kind = type(chain[0])
    if len(chain) == 1 and kind is parametrizations._WeightNorm:
        stem = f"{prefix}parametrizations.weight.original"
        return _WeightNorm(f"{stem}0", f"{stem}1", int(chain[0].dim))  # type: ignore[arg-type]
    raise _fixed_norm(path, kind.__name__)


def _fixed_norm(path: str, name: str) -> ProjectionError:
    reason = f"the parametrization `{name}` decides its weight, so that other values cannot be written into it."
    return ProjectionError(path, "Linear", reason, "Remove it: the projection keeps the bound by itself.")


def _check_frozen(linear: Sequence[tuple[str, nn.Module]]) -> None:
    """A wholly frozen model is one at rest; a partly frozen one says that some weights must stay."""
    frozen = [not any(p.requires_grad for n, p in module.named_parameters() if "bias" not in n) for _, module in linear]
    if any(frozen) and not all(frozen):
        path = linear[frozen.index(True)][0]
        raise ProjectionError(
            path, "Linear", "its weight is frozen.", "Set requires_grad to True, or freeze all layers."
        )


def _harmless(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Identity)) or type(module).__module__ in _HARMLESS
