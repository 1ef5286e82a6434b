"""Matrices of a file, by the reader for its ending."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lightning_lipschitz.archive import opened
from lightning_lipschitz.errors import ArgumentError, LipschitzError, NoChainError, ShapeError, WeightFileError
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.real import real_array
from lightning_lipschitz.weight_files.chains import Listing, chain_of_arrays, chain_of_state_dict
from lightning_lipschitz.weight_files.matlab import matlab_listing
from lightning_lipschitz.weight_files.tensors import safetensors_listing, torch_listing


def read_weights(path: str | os.PathLike[str]) -> list[Array]:
    """The weight matrices of a chain of layers, first layer first, shape (outputs, inputs) each, float64.

    Refused is whatever may be something else than matrices one after the other: a file shows no activations and no skip
    connections. Biases play no part in a global bound and are left out. Numbers in the names give the order: 0, 2, 4 as
    in an ``nn.Sequential``, or fc1, fc2.

    * ``.npz``: matrices, in the order of the file, and biases.
    * ``.mat``: the cell array ``weights`` (LipSDP), or numbered variables.
    * ``.pt``, ``.pth``, ``.ckpt``: a state dict, or a checkpoint with one under ``state_dict``.  * ``.safetensors``.

    Raises:
        FileNotFoundError: there is no such file.
        WeightFileError: another kind of file, damaged, without a matrix, or far larger in memory than on the disk.
        NoChainError: what is no chain of matrices; a WeightFileError.
    """
    return _read(path, _chain)


def read_matrices(path: str | os.PathLike[str]) -> list[Array]:
    """All matrices in a file, in its order or, where it has none, that of the numbers in their names.

    For the proof of a certificate, whose digest says whether they are its own. Raises as :func:`read_weights`, and
    ShapeError for a tensor of more dimensions.
    """
    return _read(path, _matrices)


def _read(path: str | os.PathLike[str], choose: Callable[[Listing], list[str]]) -> list[Array]:
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ArgumentError("WEIGHTS", path.name, f"a file with one of the endings {', '.join(_READERS)}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with reader(path) as listing:
            matrices = [listing.read(name) for name in choose(listing)]
    except NoChainError as error:
        raise error.of(path) from None
    except (ArgumentError, ValueError) as error:
        raise WeightFileError(path, f"it cannot be read: {error}") from error
    except LipschitzError:
        raise
    except Exception as error:  # each library raises its own kinds on a file that is not its format
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightFileError(path, f"it cannot be read: {reason}") from error
    if not matrices:
        raise WeightFileError(path, "it holds no weight matrix.")
    return matrices


def _chain(listing: Listing) -> list[str]:
    return (chain_of_state_dict if listing.module else chain_of_arrays)(listing.shapes, listing.ordered)


def _matrices(listing: Listing) -> list[str]:
    for name, shape in listing.shapes.items():
        if len(shape) > 2:
            raise ShapeError(f"`{name}`", shape, "a matrix; give such a model to `verify` as a module")
    names = [name for name, shape in listing.shapes.items() if len(shape) == 2]
    return names if listing.ordered else sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d{1,9})", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


@contextmanager
def _npz_listing(path: Path) -> Iterator[Listing]:
    with opened(path) as archive:
        shapes = {name: archive.found(name).shape for name in archive.names}
        yield Listing(shapes, lambda name: real_array(archive.read(name), f"`{name}`"))


_READERS: dict[str, Callable[[Path], AbstractContextManager[Listing]]] = {
    ".npz": _npz_listing,
    ".mat": matlab_listing,
    ".pt": torch_listing,
    ".pth": torch_listing,
    ".ckpt": torch_listing,
    ".safetensors": safetensors_listing,
}
