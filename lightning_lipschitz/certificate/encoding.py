"""A proof as a JSON-able description and a flat list of arrays, for files and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lightning_lipschitz.certificate.proofs import (
    AnyProof,
    Array,
    Channels,
    Composition,
    Multipliers,
    Norms,
    Proof,
    Split,
)

Description = dict[str, Any]


def encode(proof: AnyProof | Channels) -> tuple[Description, list[Array]]:
    """The description names the kind and how many arrays belong to it; parts of a split follow each other.

    Example:
        >>> encode(Norms(((2.0,), (1.0, 3.0))))
        ({'kind': 'norms', 'arrays': 2}, [array([2.]), array([1., 3.])])
    """
    if isinstance(proof, Composition):
        parts = [encode(part) for _, _, part in proof.blocks]
        ends = [[start, end] for start, end, _ in proof.blocks]
        description: Description = {"kind": "composition", "blocks": ends, "parts": [part for part, _ in parts]}
        return description, [np.array(proof.norms)] + [array for _, arrays in parts for array in arrays]
    if isinstance(proof, Split):
        parts = [encode(part) for part in proof.parts]
        description = {"kind": "split", "cuts": list(proof.cuts), "parts": [part for part, _ in parts]}
        return description, [array for _, arrays in parts for array in arrays]
    arrays = [np.array(values, dtype=np.float64) for values in proof.values]
    if isinstance(proof, (Multipliers, Channels)):
        kind = "multipliers" if isinstance(proof, Multipliers) else "channels"
        return {"kind": kind, "rho": proof.rho, "arrays": len(arrays)}, arrays
    return {"kind": "norms", "arrays": len(arrays)}, arrays


def decode(description: Description, arrays: Sequence[Array]) -> AnyProof:
    """The inverse of :func:`encode`.

    Raises:
        ValueError, KeyError, TypeError: not such a description, or not as many arrays as it names.
    """
    stream = iter(arrays)
    kind = description["kind"]
    proof = _decode_composition(description, stream) if kind == "composition" else _decode(description, stream)
    if next(stream, None) is not None:
        raise ValueError("there are more arrays than the proof names")
    return proof


def _decode_composition(description: Description, stream: Iterator[Array]) -> Composition:
    norms = next(stream, None)
    if norms is None:
        raise ValueError("there are fewer arrays than the proof names")
    pairs = zip(description["blocks"], description["parts"], strict=True)
    blocks = (
        (start, end, _channels(part, stream) if part["kind"] == "channels" else _decode(part, stream))
        for (start, end), part in pairs
    )
    return Composition(norms, tuple(blocks))


def _channels(description: Description, stream: Iterator[Array]) -> Channels:
    return Channels(description["rho"], _taken(description, stream))


def _taken(description: Description, stream: Iterator[Array]) -> tuple[Array, ...]:
    values = tuple(array for _, array in zip(range(description["arrays"]), stream, strict=False))
    if len(values) != description["arrays"]:
        raise ValueError("there are fewer arrays than the proof names")
    return values


def _decode(description: Description, stream: Iterator[Array]) -> Proof:
    kind = description["kind"]
    if kind == "split":
        return Split(tuple(description["cuts"]), tuple(_decode(part, stream) for part in description["parts"]))
    values = _taken(description, stream)
    if kind == "multipliers":
        return Multipliers(description["rho"], values)
    if kind == "norms":
        return Norms(tuple(tuple(row.tolist()) for row in values))
    raise ValueError(f"a proof of the unknown kind {kind!r}")
