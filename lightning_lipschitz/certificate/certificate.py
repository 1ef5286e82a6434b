"""The answer: one frozen object that carries the bound, how it was found and what proves it; and its file."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lipschitz.certificate.encoding import decode, encode
from lightning_lipschitz.certificate.proofs import AnyProof
from lightning_lipschitz.errors import CertificateError
from lightning_lipschitz.written import written_whole

FORMAT = "lightning-lipschitz certificate 2"  # 1 had digests that took some networks for one


class Status(Enum):
    """How the search for the bound ended. The value is the sentence for the user; the bound is verified in each case
    but the last two."""

    SOLVED = "The method reached its tolerance; the bound is verified."
    ALMOST_SOLVED = "The method stopped short of its tolerance; the bound is verified, but a tighter one may exist."
    TIME_LIMIT = "The time limit was reached; the bound is verified, but a tighter one may exist."
    FALLBACK = "The method failed; the bound is verified and comes from a simpler method."
    FAILED = "No method gave a bound that could be verified."
    NOT_A_BOUND = "For reproduction only: the number is not an upper bound."


@dataclass(frozen=True, eq=False)
class Certificate:
    """A proved upper bound of an l2 Lipschitz constant.

    Attributes:
        upper_bound: l2 output change per l2 input change; verified (see :mod:`lightning_lipschitz.certificate.verify`)
            if ``certified``.
        certified: whether the kernel signed it.
        status: how the search ended.
        method: "norm-product", "closed-form", "lipsdp-layer", "lipsdp-neuron", "lipsdp-network" or
            "composed" (of a structured graph, node by node).
        solver: what proposed the multipliers.
        relative_gap: duality gap of the proposal relative to the bound; None where the method has none.
        verification_loss: relative increase of the bound that the proof in floating point cost.
        seconds: wall time of the whole computation.
        epoch, global_step: of the training run it belongs to, None outside of one.
        state: what the solver can start from next time; kept in memory only.
        network_digest: SHA-256 of the network, or of the structured graph, it speaks about.
        proof: what proves the bound; None if not certified.
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

    def at(self, epoch: int, global_step: int) -> Certificate:
        """The same certificate, dated."""
        return replace(self, epoch=epoch, global_step=global_step)

    def summary(self) -> dict[str, Any]:
        """The scalar fields as plain Python values, ready for JSON."""
        scalars = {name: value for name, value in vars(self).items() if name not in ("proof", "state", "status")}
        return scalars | {"status": self.status.name}

    def sentence(self) -> str:
        """One line for a person."""
        kind = "upper bound, verified" if self.certified else "NOT a bound"
        gap = "" if self.relative_gap is None else f", relative gap {self.relative_gap:.1e}"
        how = f"{kind}; {self.method} by {self.solver}{gap}; {self.seconds:.2f} s"
        return f"{self.upper_bound!r}  ({how}). {self.status.value}"

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
        here.

        Raises:
            CertificateError: the file is not a certificate, or is damaged.
            FileNotFoundError: there is none.
        """
        try:
            if not zipfile.is_zipfile(os.fspath(path)) and Path(path).exists():
                raise ValueError("it is not a NumPy archive")
            with np.load(path, allow_pickle=False) as archive:
                return cls._from_arrays({name: archive[name] for name in archive.files})
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise CertificateError(f"{os.fspath(path)} is not a certificate file or is damaged: {error}") from error

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        if self.proof is None:
            raise CertificateError("there is no proof to save.")
        description, values = encode(self.proof)
        header = self.summary() | {"format": FORMAT, "proof": description}
        packed = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        return {"header": packed} | {f"values_{k}": array for k, array in enumerate(values)}

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Certificate:
        header = json.loads(arrays["header"].tobytes().decode())
        if header.pop("format") != FORMAT:
            raise ValueError(f"the format is not {FORMAT!r}")
        proof = decode(header.pop("proof"), [arrays[f"values_{k}"] for k in range(len(arrays) - 1)])
        known = {field.name for field in fields(cls)}
        if unknown := set(header) - known:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        return cls(**{**header, "status": Status[header["status"]], "proof": proof})
