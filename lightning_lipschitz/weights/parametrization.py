"""How a matrix is stored in the parameters of a module: as it is, or by weight norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as WeightNormHook

from lightning_lipschitz.errors import ProjectionError


@dataclass(frozen=True)
class Plain:
    """The matrix is a parameter.

    Attributes:
        name: in the model's ``state_dict``.
        aliases: other names of the same parameter, where it is shared.
    """

    name: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors involved."""
        return (self.name, *self.aliases)

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The matrix that the tensors stand for."""
        return tensors[self.name]

    def encode(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that stand for a matrix, in the dtypes of those given."""
        value = weight.to(tensors[self.name])
        return dict.fromkeys(self.names, value)


@dataclass(frozen=True)
class WeightNorm:
    """The matrix is ``magnitude * direction / |direction|``, slice by slice along ``dim``."""

    magnitude: str
    direction: str
    dim: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors involved."""
        return self.magnitude, self.direction

    def decode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The matrix that the tensors stand for, float64, as the extraction computes it."""
        return torch._weight_norm(tensors[self.direction].double(), tensors[self.magnitude].double(), self.dim)

    def encode(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Directions of length one; slices of zeros, which have none, keep theirs."""
        norm = torch.norm_except_dim(weight, 2, self.dim)
        unit = weight / torch.where(norm > 0, norm, 1.0)
        direction = torch.where(norm > 0, unit, tensors[self.direction].to(weight))
        return {
            self.magnitude: norm.to(tensors[self.magnitude]),
            self.direction: direction.to(tensors[self.direction]),
        }


Parametrization: TypeAlias = Plain | WeightNorm


def parametrization_of(path: str, module: nn.Module, tensor: str = "weight") -> Parametrization:
    """How a tensor of a module is stored.

    Raises:
        ProjectionError: a parametrization decides its values.
    """
    prefix = f"{path}." if path else ""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm) and hook.name == tensor:
            raise _fixed_norm(path, module, "spectral_norm")
        if isinstance(hook, WeightNormHook) and hook.name == tensor:
            return WeightNorm(f"{prefix}{tensor}_g", f"{prefix}{tensor}_v", hook.dim)
    if not parametrize.is_parametrized(module, tensor):
        return Plain(f"{prefix}{tensor}")
    chain = list(module.get_submodule(f"parametrizations.{tensor}").children())
    kind = type(chain[0])
    if len(chain) == 1 and kind is parametrizations._WeightNorm:
        stem = f"{prefix}parametrizations.{tensor}.original"
        return WeightNorm(f"{stem}0", f"{stem}1", int(chain[0].dim))  # type: ignore[arg-type]
    raise _fixed_norm(path, module, kind.__name__)


def owner(model: nn.Module, parameter: str) -> tuple[str, nn.Module, str]:
    """Path of the module that holds a parameter, the module, and the name of the tensor that it stands behind."""
    path, _, tensor = parameter.rpartition(".")
    parts = path.split(".")
    if "parametrizations" in parts:
        at = parts.index("parametrizations")
        path, tensor = ".".join(parts[:at]), parts[at + 1]
    module = model.get_submodule(path)
    hooked = next((name for name in _hooked(module) if tensor.startswith(f"{name}_")), tensor)
    return path, module, hooked


def _hooked(module: nn.Module) -> Iterator[str]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (SpectralNorm, WeightNormHook)):
            yield hook.name


def _fixed_norm(path: str, module: nn.Module, name: str) -> ProjectionError:
    reason = f"the parametrization `{name}` decides its weight, so that other values cannot be written into it."
    kind = type(module).__name__.removeprefix("Parametrized")
    return ProjectionError(path, kind, reason, "Remove it: the projection keeps the bound by itself.")
