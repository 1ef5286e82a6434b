"""Certificates inside checkpoints: tensors and Python scalars, so that ``torch.load(weights_only=True)`` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.certificate.encoding import encode
from lightning_lipschitz.errors import CertificateError
from lightning_lipschitz.real import real_array


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
