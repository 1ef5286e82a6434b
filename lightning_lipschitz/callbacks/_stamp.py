"""Certificates inside checkpoints: tensors and Python scalars, so that ``torch.load(weights_only=True)`` reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any
from weakref import WeakMethod, ref

import torch

from lightning_lipschitz._lightning import LightningModule
from lightning_lipschitz.certificate import Certificate, Multipliers, Norms, Proof, Status

Checkpoint = dict[str, Any]

_SCALARS = tuple(field.name for field in fields(Certificate) if field.name not in ("status", "proof", "state"))


def to_plain(certificate: Certificate) -> dict[str, Any]:
    """The certificate's scalars under their own names, ``status`` by name, and the proof as float64 tensors.

    The proof is ``rho`` and ``multipliers``, one tensor a layer, or ``norms``, one tensor an affine map.
    """
    plain = {name: getattr(certificate, name) for name in _SCALARS} | {"status": certificate.status.name}
    if isinstance(certificate.proof, Multipliers):
        plain |= {"rho": certificate.proof.rho, "multipliers": _tensors(certificate.proof.values)}
    elif isinstance(certificate.proof, Norms):
        plain |= {"norms": _tensors(certificate.proof.values)}
    return plain


def from_plain(plain: Mapping[str, Any]) -> Certificate:
    """The inverse of :func:`to_plain`. What it claims is not checked here.

    Example:
        >>> norms = Norms(((2.0,),))
        >>> mine = Certificate(2.0, True, Status.SOLVED, "norm-product", "", None, 0.0, 0.1, "digest", norms)
        >>> from_plain(to_plain(mine)).proof.values
        ((2.0,),)
    """
    proof: Proof | None = None
    if "multipliers" in plain:
        proof = Multipliers(plain["rho"], tuple(values.numpy() for values in plain["multipliers"]))
    elif "norms" in plain:
        proof = Norms(tuple(tuple(values.tolist()) for values in plain["norms"]))
    scalars = {name: plain[name] for name in _SCALARS}
    return Certificate(**scalars, status=Status[plain["status"]], proof=proof)


def _tensors(values: tuple[Any, ...]) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


class SaveGate:
    """Wraps ``on_save_checkpoint`` of one LightningModule instance: the only hook that every save passes.

    ``save_weights_only=True`` skips the state and the hooks of callbacks. The gate calls what was there before, then
    ``on_save(module, checkpoint)``. It holds weak references only, and a copy or a pickle of the module gets the plain
    method of its class back, so the module can be copied and saved as if the gate were not there.

    Args:
        module: whose checkpoints are meant.
        on_save: a bound method; held weakly.
    """

    def __init__(self, module: LightningModule, on_save: Callable[[LightningModule, Checkpoint], None]) -> None:
        self._module = ref(module)
        self._on_save: WeakMethod[Callable[[LightningModule, Checkpoint], None]] | None = WeakMethod(on_save)
        self._inner = module.__dict__.get("on_save_checkpoint")

    def install(self) -> None:
        module = self._module()
        if module is not None:
            module.on_save_checkpoint = self  # type: ignore[method-assign]

    def remove(self) -> None:
        """Put back what was there; under another wrapper, stay as a mere passage."""
        self._on_save = None
        module = self._module()
        if module is None or module.__dict__.get("on_save_checkpoint") is not self:
            return
        if self._inner is None:
            del module.__dict__["on_save_checkpoint"]
        else:
            module.on_save_checkpoint = self._inner  # type: ignore[method-assign]

    def __call__(self, checkpoint: Checkpoint) -> None:
        module = self._module()
        if self._inner is not None:
            self._inner(checkpoint)
        elif module is not None:
            type(module).on_save_checkpoint(module, checkpoint)
        on_save = None if self._on_save is None else self._on_save()
        if on_save is not None and module is not None:
            on_save(module, checkpoint)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Reached while the module is being copied: its copy is still bare, so this is the method of the class.
        return getattr, (self._module(), "on_save_checkpoint")
