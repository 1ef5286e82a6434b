"""Certificates in the checkpoints of a Trainer, proved again of the weights in the same file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_lipschitz import api
from lightning_lipschitz.callbacks import stamped_certificates
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.errors import CertificateError, LipschitzError, WeightFileError
from lightning_lipschitz.network import Network

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Proved:
    """A certificate of a checkpoint that holds.

    Attributes:
        key: where in the checkpoint it stands, such as "lipschitz" or "admm".
        module: dotted name of the submodule whose matrices it speaks about, "" for all of them.
        certificate: the certificate.
        network: that it was proved of.
    """

    key: str
    module: str
    certificate: Certificate
    network: Network


def prove_checkpoint(
    path: str | os.PathLike[str], slopes: tuple[float, float] = (0.0, 1.0), key: str | None = None
) -> list[Proved]:
    """Prove every certificate in a checkpoint of the weight matrices beside it.

    For chains of linear layers: the matrices of the state dict, or of one of its submodules, in their order. Other
    models need the module: ``ll.verify(stamped_certificates(torch.load(path))["lipschitz"], module, inputs)``.

    Args:
        path: of a Lightning checkpoint; nothing is unpickled but tensors and plain values.
        slopes: (alpha, beta) of the activations.
        key: of the only one to prove.

    Raises:
        FileNotFoundError: there is no such file.
        WeightFileError: it is not a checkpoint.
        CertificateError: it holds no certificate, or one that is not of its matrices or does not hold.
    """
    checkpoint = read_checkpoint(path)
    certificates = certificates_of(checkpoint, path)
    networks = dict(_networks(checkpoint["state_dict"], slopes))
    return [_prove(found, certificate, networks) for found, certificate in certificates.items() if key in (None, found)]


def certificates_of(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Certificate]:
    """Those stamped on it, by their keys; at least one.

    Raises:
        CertificateError: there is none.
    """
    certificates = stamped_certificates(checkpoint)
    if not certificates:
        raise CertificateError(f"{os.fspath(path)} holds no certificate; it was written without one of the callbacks.")
    return certificates


def read_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The content of a Lightning checkpoint, on the CPU. Raises as :func:`prove_checkpoint`."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises several kinds on a file that is not its format
        raise WeightFileError(path, f"it cannot be read: {str(error).partition(chr(10))[0]}") from error
    if not (isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("state_dict"), Mapping)):
        raise WeightFileError(path, "it is not a checkpoint: it has no `state_dict`.")
    return checkpoint


def _networks(state: Mapping[str, torch.Tensor], slopes: tuple[float, float]) -> Iterator[tuple[str, Network]]:
    """The chains that the matrices of the whole and of every submodule form, where they chain."""
    named = {name: tensor.double().numpy() for name, tensor in state.items() if tensor.ndim == 2}
    prefixes = {name.rsplit(".", depth)[0] + "." for name in named for depth in range(1, name.count(".") + 1)}
    for prefix in ["", *sorted(prefixes)]:
        weights = [matrix for name, matrix in named.items() if name.startswith(prefix)]
        try:
            yield prefix.rstrip("."), Network.from_weights(weights, slopes=slopes)
        except LipschitzError:
            continue


def _prove(key: str, certificate: Certificate, networks: Mapping[str, Network]) -> Proved:
    for module, network in networks.items():
        if network.digest == certificate.network_digest:
            api.verify(certificate, network)
            return Proved(key, module, certificate, network)
    raise CertificateError(
        f"the certificate under `{key}` is not of the matrices in this file with these slopes. If the model is no chain"
        " of linear layers, call `lightning_lipschitz.verify` with the module."
    )
