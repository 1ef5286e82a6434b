"""Arrays in a NumPy archive, of which nothing is believed and nothing is read that was not asked for.

A file may claim any size: each is held against the bytes that are there before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

SMALL = 2**24  # bytes that any file may hold
INFLATION = 100  # times its size on the disk that a file may take in memory; deflate could reach 1000
_HEADER = 2**16  # bytes of a member in which NumPy's header has to end


class ArrayHeader(NamedTuple):
    """What a member says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def allowed(path: str | os.PathLike[str]) -> int:
    """Bytes of memory that the numbers in a file may take.

    Raises:
        OSError: there is no such file.
        ValueError: it is no regular file.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    return max(SMALL, INFLATION * found.st_size)


def refuse_beyond(size: int, limit: int) -> None:
    """Refuse numbers that would take more memory than a file of that size holds honestly.

    Raises:
        ValueError: saying so.
    """
    if size > limit:
        told = f"its numbers would take {size / 2**20:.0f} MiB, more than {INFLATION} times the size of the file"
        raise ValueError(f"{told} and than {SMALL // 2**20} MiB. If it is yours, save it without compression")


class Archive:
    """The members of an ``.npz`` file; opened by :func:`opened`."""

    def __init__(self, file: zipfile.ZipFile, limit: int) -> None:
        self._file, self._left = file, limit
        infos = file.infolist()
        self.names = tuple(info.filename.removesuffix(".npy") for info in infos)
        if len(set(self.names)) < len(infos):
            raise ValueError("two arrays in it have the same name")
        self._infos = dict(zip(self.names, infos, strict=True))

    def found(self, name: str) -> ArrayHeader:
        """Shape and dtype of an array, without its numbers.

        Raises:
            ValueError, KeyError: there is none of that name, or it is damaged.
        """
        return self._header(name)[0]

    def read(self, name: str, limit: int | None = None) -> npt.NDArray[Any]:
        """An array, of at most ``limit`` bytes and of what is left of the bytes allowed to the whole file.

        Raises:
            ValueError, KeyError: as :meth:`found`, or it is too large.
        """
        found, start = self._header(name)
        size = math.prod(found.shape) * found.dtype.itemsize
        if start + size != self._infos[name].file_size:
            raise ValueError(f"`{name}` is not as long as its shape {found.shape} says")
        refuse_beyond(size, self._left if limit is None else min(limit, self._left))
        self._left -= size
        with _damage(name), self._file.open(self._infos[name]) as member:
            array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            member.read()  # compares the checksum
        return array

    def _header(self, name: str) -> tuple[ArrayHeader, int]:
        info = self._infos[name]
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"`{name}` is encrypted, or compressed in a way that NumPy does not write")
        with _damage(name), self._file.open(info) as member:
            head = io.BytesIO(member.read(_HEADER))
            version = np.lib.format.read_magic(head)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(head)
        if dtype.hasobject:
            raise ValueError(f"`{name}` holds Python objects, which are not read")
        if any(length < 0 for length in shape):
            raise ValueError(f"`{name}` has the shape {shape}")
        return ArrayHeader(shape, dtype), head.tell()


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Archive]:
    """The archive in a file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError, ValueError: it cannot be read, or is no archive of arrays.
    """
    limit = allowed(path)
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a NumPy archive")
    with contextlib.ExitStack() as stack:
        with _damage("the list of its arrays"):
            archive = Archive(stack.enter_context(zipfile.ZipFile(path)), limit)
        yield archive


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """What zip, deflate and NumPy raise on bytes that are not theirs is of a dozen kinds; here it is one."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} is damaged ({type(error).__name__}: {error})") from error
