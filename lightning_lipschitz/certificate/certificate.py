"""The answer: one frozen object that carries the bound, how it was found and what proves it; and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightning_lipschitz.archive import Archive, opened
from lightning_lipschitz.certificate.encoding import arrays_of, decode, encode
from lightning_lipschitz.certificate.proofs import AnyProof
from lightning_lipschitz.certificate.scalars import SCALARS, Status, read_scalars
from lightning_lipschitz.errors import CertificateError
from lightning_lipschitz.written import written_whole

FORMAT = "lightning-lipschitz certificate 2"  # 1 had digests that took some networks for one
_LONGEST_HEADER = 2**24  # bytes; that of a proof of a thousand parts has a hundred thousand


@dataclass(frozen=True, eq=False)
class Certificate:
    """A proved upper bound of an l2 Lipschitz constant.

    Attributes:
        upper_bound: l2 output change per l2 input change; verified (see :mod:`lightning_lipschitz.certificate.verify`)
            if ``certified``.
        certified: whether the kernel signed it; of one that was read from a file, whether the file says so.
        status: how the search ended.
        method: "norm-product", "closed-form", "sweep", "lipsdp-layer", "lipsdp-neuron", "lipsdp-network" or
            "composed" (of a graph, node by node).
        solver: what proposed the multipliers.
        relative_gap: duality gap of the proposal relative to the bound; None where the method has none.
        verification_loss: relative increase of the bound that the proof in floating point cost.
        seconds: wall time of the whole computation.
        epoch, global_step: of the training run it belongs to, None outside of one.
        state: what the solver can start from next time; kept in memory only.
        network_digest: SHA-256 of the network, or of the graph, it speaks about.
        proof: what proves the bound; None if not certified.
        unverified: whether it was read from a file or a checkpoint and not proved since, by
            :func:`lightning_lipschitz.verify`. Until then it is a claim, and no radius and no report comes from it.
    """

    upper_bound: float
    certified: bool
    status: Status
    method: str
    solver: str
    relative_gap: float | None
    verification_loss: float
    seconds: float
    network_digest: str
    proof: AnyProof | None
    epoch: int | None = None
    global_step: int | None = None
    state: Any = field(default=None, repr=False)
    unverified: bool = field(default=False, repr=False)

    def at(self, epoch: int, global_step: int) -> Certificate:
        """This certificate, dated."""
        return replace(self, epoch=epoch, global_step=global_step)

    def summary(self) -> dict[str, Any]:
        """The scalar fields as plain Python values, ready for JSON."""
        return {name: getattr(self, name) for name in SCALARS} | {"status": self.status.name}

    def sentence(self, of: str = "") -> str:
        """One line for a person; ``of`` says whose bound it is."""
        standing = "read from a file and NOT proved since" if self.unverified else "verified"
        kind = f"upper bound{of and ' of '}{of}, {standing}" if self.certified else "NOT a bound"
        gap = "" if self.relative_gap is None else f", relative gap {self.relative_gap:.1e}"
        how = f"{kind}; {self.method} by {self.solver}{gap}; {self.seconds:.2f} s"
        return f"{self.upper_bound!r}  ({how}). {self.status.value}"

    def __repr__(self) -> str:
        return f"Certificate({self.sentence()})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file, whole or not at all: a NumPy ``.npz`` archive of plain arrays, no pickle.

        Entries: ``header`` (UTF-8 JSON as bytes: format, the scalar fields, a description of the proof), then
        ``values_0``, ``values_1`` ... (the arrays that the description names, in order).

        Raises:
            CertificateError: the certificate is not a certified one.
            OutputError: it cannot be written there.
        """
        if not self.certified:
            raise CertificateError(
                f"only a certified bound can be saved as a certificate; this one is not: {self.status.value}"
            )
        with written_whole(path) as part, open(part, "wb") as file:
            np.savez(file, **self._arrays())  # type: ignore[arg-type]  # its `allow_pickle` would be saved as an array by NumPy 1

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a file written by :meth:`save`. What it claims is checked by :func:`lightning_lipschitz.verify`, not
        here: until then it is ``unverified``.

        Raises:
            CertificateError: the file is not a certificate, or is damaged.
            FileNotFoundError: there is none.
        """
        try:
            with opened(path) as archive:
                header = _header(archive)
                if arrays_of(header["proof"]) != len(archive.names) - 1:
                    raise ValueError("there are more or fewer arrays than the proof names")
                names = (f"values_{k}" for k in range(len(archive.names) - 1))
                found = cls.from_record(header, [archive.read(name) for name in names])
            if not found.certified:
                raise ValueError(f"it says of itself that it proves nothing: {found.status.value}")
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, RecursionError) as error:
            told = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise CertificateError(f"{os.fspath(path)} is not a certificate file or is damaged: {told}") from error
        return found

    @classmethod
    def from_record(cls, record: Mapping[str, Any], arrays: Sequence[Any]) -> Certificate:
        """The certificate that files and checkpoints hold: its scalars and, under ``proof``, a description of arrays.

        Raises:
            ValueError, KeyError: not such a record. Whether the proof holds is not asked.
        """
        scalars = read_scalars(record)
        proof = decode(record["proof"], arrays) if "proof" in record else None
        if scalars["certified"] and proof is None:
            raise ValueError("it is certified and has no proof")
        return cls(**scalars, proof=proof, unverified=True)

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        if self.proof is None:
            raise CertificateError("there is no proof to save.")
        description, values = encode(self.proof)
        header = self.summary() | {"format": FORMAT, "proof": description}
        packed = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        return {"header": packed} | {f"values_{k}": array for k, array in enumerate(values)}


def _header(archive: Archive) -> dict[str, Any]:
    packed = archive.read("header", _LONGEST_HEADER)
    header = json.loads(packed.tobytes().decode()) if packed.dtype == np.uint8 else None
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise ValueError(f"the format is not {FORMAT!r}")
    if unknown := set(header) - {*SCALARS, "proof"}:
        raise ValueError(f"unknown entries {sorted(unknown)[:3]}")
    return header
