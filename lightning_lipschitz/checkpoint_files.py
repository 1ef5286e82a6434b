"""Certificates in the checkpoints of a Trainer: how they lie there, and their proof of the weights in the same file.

They are tensors and Python scalars, so that ``torch.load(weights_only=True)`` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lightning_lipschitz import api
from lightning_lipschitz.archive import allowed, refuse_beyond
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.certificate.encoding import encode
from lightning_lipschitz.errors import ArgumentError, CertificateError, LipschitzError, WeightFileError
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.real import real_array
from lightning_lipschitz.weight_files import described, load_torch, numbers_of


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
    """The certificate that :func:`to_plain` wrote. What it claims is not checked here.

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
        checkpoint: what ``torch.load`` returned.

    Raises:
        CertificateError: one of them is damaged.

    What they claim is not checked here: pass them to :func:`lightning_lipschitz.verify` with the module.

    Example:
        >>> stamped_certificates({"state_dict": {}, "epoch": 3})
        {}
    """
    stamps = {key: value for key, value in checkpoint.items() if isinstance(key, str) and isinstance(value, Mapping)}
    return {key: from_plain(value) for key, value in stamps.items() if "network_digest" in value and "proof" in value}


@dataclass(frozen=True, eq=False)
class Proved:
    """A certificate of a checkpoint that holds.

    Attributes:
        key: where in the checkpoint it stands, such as "lipschitz" or "admm".
        module: dotted name of the submodule whose matrices it speaks about, "" for all of them.
        certificate: the certificate.
        network: the network that it was proved of.
    """

    key: str
    module: str
    certificate: Certificate
    network: Network

    def described(self, slopes: tuple[float, float]) -> str:
        """What the bound is a bound of: a file shows matrices, and not what a module does with them."""
        place = f"`{self.module}`" if self.module else "the file"
        return described([affine.terms[0].matrix for affine in self.network.affines], slopes, place)


def prove_checkpoint(
    path: str | os.PathLike[str], slopes: tuple[float, float] = (0.0, 1.0), key: str | None = None
) -> list[Proved]:
    """Prove every certificate in a checkpoint of the weight matrices beside it.

    For chains of linear layers: the matrices of the state dict, or of one of its submodules, in their order. Other
    models need the module: ``ll.verify(stamped_certificates(torch.load(path))["lipschitz"], module, inputs)``.

    Args:
        path: a Lightning checkpoint; nothing is unpickled but tensors and plain values.
        slopes: (alpha, beta) of the activations.
        key: name of the only one to prove.

    Raises:
        FileNotFoundError: there is no such file.
        WeightFileError: it is not a checkpoint.
        CertificateError: it holds no certificate, or one that is not of its matrices or does not hold.
    """
    checkpoint = read_checkpoint(path)
    certificates = certificates_of(checkpoint, path)
    networks: dict[str, tuple[str, Network]] = {}
    wanted = {certificate.network_digest for certificate in certificates.values()}
    for module, network in _networks(path, checkpoint["state_dict"], slopes):
        if network.digest in wanted:
            networks.setdefault(network.digest, (module, network))
    return [_prove(found, certificate, networks) for found, certificate in certificates.items() if key in (None, found)]


def certificates_of(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Certificate]:
    """Certificates in a checkpoint, by their keys; at least one.

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
        checkpoint = load_torch(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise WeightFileError(path, f"it cannot be read: {error}") from error
    if not (isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("state_dict"), Mapping)):
        raise WeightFileError(path, "it is not a checkpoint: it has no `state_dict`.")
    return checkpoint


def _networks(
    path: str | os.PathLike[str], state: Mapping[Any, Any], slopes: tuple[float, float]
) -> Iterator[tuple[str, Network]]:
    """The chains that the matrices of the whole and of every submodule form, where they chain."""
    try:
        named = dict(_matrices(state, allowed(path)))
    except ValueError as error:
        raise WeightFileError(path, f"it cannot be read: {error}") from error
    prefixes = {name.rsplit(".", depth)[0] + "." for name in named for depth in range(1, name.count(".") + 1)}
    for prefix in ["", *sorted(prefixes)]:
        weights = [matrix for name, matrix in named.items() if name.startswith(prefix)]
        try:
            yield prefix.rstrip("."), Network.from_weights(weights, slopes=slopes)
        except LipschitzError:
            continue


def _matrices(state: Mapping[Any, Any], limit: int) -> Iterator[tuple[str, Array]]:
    """Matrices that a certificate can be of; whether it is, its digest says."""
    tensors = {
        name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    matrices = {name: value for name, value in tensors.items() if value.ndim == 2}
    refuse_beyond(sum(8 * value.numel() for value in matrices.values()), limit)
    for name, value in matrices.items():
        try:
            yield name, numbers_of(value, name, limit)
        except ArgumentError:  # complex, sparse, quantised: no certificate is of it
            continue


def _prove(key: str, certificate: Certificate, networks: Mapping[str, tuple[str, Network]]) -> Proved:
    module, network = networks.get(certificate.network_digest, ("", None))
    if network is None:
        raise CertificateError(
            f"the certificate under `{key}` is not of the matrices in this file with these slopes. If the model is no"
            " chain of linear layers, call `lightning_lipschitz.verify` with the module."
        )
    api.verify(certificate, network)
    return Proved(key, module, certificate, network)
