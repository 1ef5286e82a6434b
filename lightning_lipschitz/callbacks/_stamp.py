"""Certificates inside checkpoints: tensors and Python scalars, so that ``torch.load(weights_only=True)`` reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakMethod, ref

import torch

from lightning_lipschitz._lightning import LightningModule
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.certificate.encoding import encode
from lightning_lipschitz.errors import CertificateError
from lightning_lipschitz.real import real_array

Checkpoint = dict[str, Any]


def to_plain(certificate: Certificate) -> dict[str, Any]:
    """The certificate's scalars under their own names, ``status`` by name; the proof as a description and tensors.

    ``proof`` and ``arrays`` are those of :mod:`lightning_lipschitz.certificate.encoding`, as in certificate files.
    """
    plain = certificate.summary()
    if certificate.proof is not None:
        description, arrays = encode(certificate.proof)
        plain |= {"proof": description, "arrays": [torch.tensor(array) for array in arrays]}
    return plain


def from_plain(plain: Mapping[str, Any]) -> Certificate:
    """The inverse of :func:`to_plain`. What it claims is not checked here.

    Raises:
        CertificateError: it is no certificate, or damaged.

    Example:
        >>> from lightning_lipschitz import certify
        >>> mine = certify([[[2.0]]])
        >>> from_plain(to_plain(mine)).proof.values == mine.proof.values
        True
    """
    try:
        return Certificate.from_record(plain, _arrays(plain.get("arrays", ())))
    except (ValueError, KeyError, RecursionError) as error:
        told = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise CertificateError(f"the certificate in the checkpoint is damaged: {told}.") from error


def _arrays(tensors: Any) -> list[Any]:
    if not isinstance(tensors, (list, tuple)):
        raise ValueError("`arrays` must be a list of tensors")
    return [real_array(tensor, "`arrays`") for tensor in tensors]


def stamped_certificates(checkpoint: Mapping[str, Any]) -> dict[str, Certificate]:
    """The certificates in a checkpoint by their keys: "lipschitz", "admm", "barrier", or these with a submodule's name.

    Args:
        checkpoint: as ``torch.load`` returns it.

    Raises:
        CertificateError: one of them is damaged.

    What they claim is not checked here: pass them to :func:`lightning_lipschitz.verify` with the module.

    Example:
        >>> stamped_certificates({"state_dict": {}, "epoch": 3})
        {}
    """
    stamps = {key: value for key, value in checkpoint.items() if isinstance(key, str) and isinstance(value, Mapping)}
    return {key: from_plain(value) for key, value in stamps.items() if "network_digest" in value and "proof" in value}


class SaveGate:
    """Wraps ``on_save_checkpoint`` of one LightningModule instance: the only hook that every save passes.

    ``save_weights_only=True`` skips the state and the hooks of callbacks. The gate calls what was there before, then
    ``on_save(module, checkpoint)``. It holds weak references only, and a copy or a pickle of the module gets the plain
    method of its class back, so the module can be copied and saved as if the gate were not there.

    Args:
        module: whose checkpoints are meant.
        action: a bound method; held weakly.
    """

    hook = "on_save_checkpoint"
    last = True  # what the module's own hook leaves is what is written

    def __init__(self, module: LightningModule, action: Callable[[LightningModule, Checkpoint], None]) -> None:
        self._module = ref(module)
        self._action: WeakMethod[Callable[[LightningModule, Checkpoint], None]] | None = WeakMethod(action)
        self._inner = module.__dict__.get(self.hook)

    def install(self) -> None:
        module = self._module()
        if module is not None:
            setattr(module, self.hook, self)

    def remove(self) -> None:
        """Put back what was there; under another wrapper, stay as a mere passage."""
        self._action = None
        module = self._module()
        if module is None or module.__dict__.get(self.hook) is not self:
            return
        inner = self._inner
        while isinstance(inner, SaveGate) and inner._action is None:  # removed before, while this one stood in front
            inner = inner._inner
        if inner is None:
            del module.__dict__[self.hook]
        else:
            setattr(module, self.hook, inner)

    def __call__(self, checkpoint: Checkpoint) -> None:
        steps = (self._call_inner, self._act) if self.last else (self._act, self._call_inner)
        for step in steps:
            step(checkpoint)

    def _call_inner(self, checkpoint: Checkpoint) -> None:
        module = self._module()
        if self._inner is not None:
            self._inner(checkpoint)
        elif module is not None:
            getattr(type(module), self.hook)(module, checkpoint)

    def _act(self, checkpoint: Checkpoint) -> None:
        action = None if self._action is None else self._action()
        module = self._module()
        if action is not None and module is not None:
            action(module, checkpoint)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Reached while the module is being copied: its copy is still bare, so this is the method of the class.
        return getattr, (self._module(), self.hook)


class LoadGate(SaveGate):
    """The same around ``on_load_checkpoint``, before the module's own hook and before any weight is loaded."""

    hook = "on_load_checkpoint"
    last = False
