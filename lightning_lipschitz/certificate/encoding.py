"""A proof as a JSON-able description and a flat list of arrays, for files and checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_lipschitz.certificate.proofs import AnyProof, Channels, Composition, Multipliers, Norms, Proof, Split
from lightning_lipschitz.certificate.scalars import count, number
from lightning_lipschitz.graph.arrays import Array

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


def arrays_of(description: Any) -> int:
    """How many arrays a description names.

    Raises:
        ValueError: it is no description of a proof.

    Example:
        >>> arrays_of({"kind": "norms", "arrays": 2})
        2
    """
    kind, parts = _kind(description), description.get("parts")
    if kind in ("composition", "split"):
        return (kind == "composition") + sum(map(arrays_of, _listed(parts, "parts")))
    return _whole(description.get("arrays"), "arrays")


def decode(description: Any, arrays: Sequence[Any]) -> AnyProof:
    """The inverse of :func:`encode`.

    Raises:
        ValueError: not such a description, or not the arrays that it names.
    """
    named = arrays_of(description)
    if len(arrays) != named:
        raise ValueError(f"there are {'more' if len(arrays) > named else 'fewer'} arrays than the proof names")
    for array in arrays:
        if not (isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.itemsize == 8 and array.ndim == 1):
            raise ValueError("the numbers of a proof must be float64 arrays of one dimension")
    proof = _decode(description, iter(arrays))
    if isinstance(proof, Channels):
        raise ValueError("a proof of channels is one of a part only")
    return proof


def _decode(description: Description, stream: Iterator[Array]) -> AnyProof | Channels:
    kind = _kind(description)
    if kind == "composition":
        return _decode_composition(description, stream)
    if kind == "split":
        cuts = (_whole(cut, "cuts") for cut in _listed(description.get("cuts"), "cuts"))
        return Split(tuple(cuts), tuple(_part(part, stream) for part in description["parts"]))
    values = tuple(itertools.islice(stream, description["arrays"]))
    if kind == "norms":
        return Norms(tuple(tuple(row.tolist()) for row in values))
    try:
        rho = number(description.get("rho"))
    except (TypeError, OverflowError):
        raise ValueError("`rho` of a proof must be a number") from None
    return (Multipliers if kind == "multipliers" else Channels)(rho, values)


def _decode_composition(description: Description, stream: Iterator[Array]) -> Composition:
    norms, ends, parts = next(stream), _listed(description.get("blocks"), "blocks"), description["parts"]
    if len(ends) != len(parts) or any(not isinstance(pair, list) or len(pair) != 2 for pair in ends):
        raise ValueError("`blocks` of a composition must be as many pairs as there are parts")
    blocks = [
        (_whole(start, "blocks"), _whole(end, "blocks"), _decode(part, stream))
        for (start, end), part in zip(ends, parts, strict=True)
    ]
    if any(isinstance(part, Composition) for *_, part in blocks):
        raise ValueError("a composition is no part of another")
    return Composition(norms, tuple(blocks))  # type: ignore[arg-type]


def _part(description: Description, stream: Iterator[Array]) -> Proof:
    part = _decode(description, stream)
    if isinstance(part, (Composition, Channels)):
        raise ValueError("a split consists of multipliers, norms and splits")
    return part


def _kind(description: Any) -> str:
    kind = description.get("kind") if isinstance(description, Mapping) else None
    if kind not in ("composition", "split", "multipliers", "channels", "norms"):
        raise ValueError(f"a proof of the unknown kind {kind!r:.60}")
    return str(kind)


def _listed(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"`{name}` of a proof must be a list")
    return value


def _whole(value: Any, name: str) -> int:
    try:
        return count(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` of a proof must hold whole numbers >= 0") from None
