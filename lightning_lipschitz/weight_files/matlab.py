"""Matrices in MATLAB files: LipSDP's cell array ``weights``, or numbered variables."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lipschitz.archive import allowed, refuse_beyond
from lightning_lipschitz.real import real_array
from lightning_lipschitz.weight_files.chains import Listing

_COMPRESSED = 15  # kind of an element of a file of version 5
_CHUNK = 2**16
_ADVICE = "`weights` must be one matrix, or a cell array of one row whose cells are the matrices, first layer first"


@contextmanager
def matlab_listing(path: Path) -> Iterator[Listing]:
    """The cells of ``weights`` as ``weights{1}``, ``weights{2}`` ...; or every variable, in no order."""
    from scipy.io import loadmat, whosmat

    _refuse_bombs(path)
    try:
        variables = whosmat(path, appendmat=False)
    except NotImplementedError as error:
        raise ValueError("it is a MATLAB file of version 7.3; save it with `save('-v7', ...)`") from error
    names = [name for name, *_ in variables]
    if len(set(names)) < len(names):
        raise ValueError("two variables in it have the same name")
    if "weights" in names:
        cells = _cells(loadmat(path, appendmat=False, variable_names=["weights"])["weights"])
        yield Listing({name: cell.shape for name, cell in cells.items()}, lambda name: real_array(cells[name], name))
        return
    kinds = {name: kind for name, _, kind in variables}
    for name, kind in kinds.items():
        _refuse_kind(name, kind)
    shapes = {name: tuple(shape) for name, shape, _ in variables}
    refuse_beyond(sum(8 * math.prod(shape) for shape in shapes.values()), allowed(path))

    def read(name: str) -> Any:
        value = loadmat(path, appendmat=False, variable_names=[name])[name]
        _refuse_values(name, value)
        return real_array(value, f"`{name}`")

    yield Listing(shapes, read, ordered=False)


def _refuse_kind(name: str, kind: str) -> None:
    if kind not in ("double", "single") and not kind.startswith(("int", "uint")):
        raise ValueError(f"`{name}` is of MATLAB's kind {kind}, not a matrix of numbers. {_ADVICE}")


def _refuse_values(name: str, value: Any) -> None:
    """Whatever else a cell may hold."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, np.ndarray) and not value.dtype.names and kind in "fiu":
        return
    what = {"O": "a cell array", "V": "a struct", "U": "text", "c": "a complex matrix", "b": "a logical matrix"}
    found = what.get(kind, type(value).__name__) if isinstance(value, np.ndarray) else "a sparse matrix, or no matrix"
    raise ValueError(f"`{name}` is {found}. {_ADVICE}, real and full")


def _cells(weights: Any) -> dict[str, Any]:
    """The matrices in ``weights`` by their names."""
    if not (isinstance(weights, np.ndarray) and weights.dtype.kind == "O"):
        _refuse_values("weights", weights)
        if weights.ndim != 2 or not weights.size:
            raise ValueError(f"`weights` has the shape {weights.shape}. {_ADVICE}")
        return {"weights": weights}
    if weights.ndim > 2 or min(weights.shape) > 1 or not weights.size:
        held = "numbers" if all(np.size(cell) == 1 for cell in weights.ravel()) else "matrices"
        raise ValueError(f"`weights` is a cell array of shape {weights.shape} of {held}. {_ADVICE}{_HOW}")
    cells = {f"weights{{{number}}}": cell for number, cell in enumerate(weights.ravel(), 1)}
    for name, cell in cells.items():
        _refuse_values(name, cell)
        if cell.ndim != 2 or not cell.size:
            raise ValueError(f"`{name}` has the shape {cell.shape}. {_ADVICE}")
    if len(cells) > 1 and all(cell.size == 1 for cell in cells.values()):
        raise ValueError(f"`weights` is a cell array of shape {weights.shape} of single numbers. {_ADVICE}{_HOW}")
    return cells


_HOW = (
    ". NumPy makes such cells of `np.array(matrices, dtype=object)` where shapes agree: fill them one by one,"
    " `cells = np.empty((1, n), dtype=object); cells[0, k] = matrix`"
)


def _refuse_bombs(path: Path) -> None:
    """Inflate a file of version 5, keeping nothing, up to what it may take in memory."""
    limit, total = allowed(path), 0
    with open(path, "rb") as file:
        head = file.read(128)
        order = {b"IM": "little", b"MI": "big"}.get(head[126:128])
        while order is not None and len(tag := file.read(8)) == 8:
            kind, size = (int.from_bytes(tag[k : k + 4], order) for k in (0, 4))  # type: ignore[arg-type]
            if kind != _COMPRESSED:
                file.seek(size, 1)
                continue
            inflate, end = zlib.decompressobj(), file.tell() + size
            while not inflate.eof and total <= limit:
                given = inflate.unconsumed_tail or file.read(min(_CHUNK, end - file.tell()))
                if not given:
                    break
                total += len(inflate.decompress(given, _CHUNK))
            refuse_beyond(total, limit)
            file.seek(end)
