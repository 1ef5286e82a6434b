"""Files written whole or not at all, for every room that writes one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lightning_lipschitz.errors import OutputError

_PATIENCE = 2.0  # seconds for somebody to come and read from a pipe
_DESCRIPTOR = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)")


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], make_folder: bool = False) -> Iterator[Path]:
    """A path to write a file to, which takes the place of ``path`` when the block ends, and vanishes if it raises.

    A file that is replaced keeps its permissions, a new one has those of the umask; of a link, the target is replaced.
    Into what is no regular file, such as a device, a pipe or ``/dev/stdout``, the bytes are written at the end.

    Raises:
        OutputError: there is no such folder, ``path`` is a directory, or writing is not permitted.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with written_whole(path) as part:
        ...     _ = part.write_text("whole")
        >>> path.read_text(), [file.name for file in path.parent.iterdir()]
        ('whole', ['note.txt'])
    """
    target = Path(path)
    try:
        if make_folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        found = _stat(target)
        special = found is not None and (not stat.S_ISREG(found.st_mode) or _descriptor(target) is not None)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise OutputError(path, "it is a directory; name a file in it")
    except (OSError, ValueError) as error:
        raise _reason(path, error) from error
    with _into_special(target, path) if special else _beside(Path(os.path.realpath(target)), path, found) as part:
        yield part


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _beside(target: Path, path: str | os.PathLike[str], found: os.stat_result | None) -> Iterator[Path]:
    part = target.parent / f".{target.name[:32]}.{secrets.token_hex(4)}.part"
    try:
        try:
            if found is not None and not os.access(target, os.W_OK):
                raise PermissionError("the file is write-protected")
            with open(part, "xb") as new:  # its permissions are those of the umask
                mode = os.fstat(new.fileno()).st_mode if found is None else found.st_mode
        except OSError as error:
            raise _reason(path, error) from error
        yield part
        with open(part, "rb") as complete:
            os.fsync(complete.fileno())
        if found is not None:
            with contextlib.suppress(PermissionError):  # only root gives a file to somebody
                os.chown(part, found.st_uid, found.st_gid)
        os.chmod(
            part, stat.S_IMODE(mode)
        )  # after the owner, who takes some bits along; a library may have moved it here
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _into_special(target: Path, path: str | os.PathLike[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        yield part
        try:
            with open(part, "rb") as complete, _opened(target) as file:
                shutil.copyfileobj(complete, file)
        except OSError as error:
            raise _reason(path, error) from error


def _opened(target: Path) -> BinaryIO:
    descriptor = _descriptor(target)
    if descriptor is not None:
        return os.fdopen(os.dup(descriptor), "wb")  # goes on where the process is writing
    return _pipe(target) if stat.S_ISFIFO(os.stat(target).st_mode) else open(target, "wb")


def _pipe(target: Path) -> BinaryIO:
    """To open a pipe that nobody reads would wait for ever: after a while it is /dev/null, with a warning."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        else:
            os.set_blocking(descriptor, True)
            return os.fdopen(descriptor, "wb")
        if time.monotonic() > end:
            warnings.warn(f"nobody reads the pipe {target}: what was written to it is lost.", stacklevel=2)
            return open(os.devnull, "wb")
        time.sleep(0.02)


def _descriptor(path: Path) -> int | None:
    """The number of an open file of this very process that ``path`` stands for, as /dev/stdout does for 1."""
    for _ in range(40):  # links that a system follows
        found = _DESCRIPTOR.fullmatch(str(Path(os.path.realpath(path.parent)) / path.name))
        if found is not None:
            return int(found[2]) if int(found[1]) == os.getpid() else None
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return None


def _reason(path: str | os.PathLike[str], error: Exception) -> OutputError:
    if isinstance(error, OutputError):
        return error
    reasons: dict[type[Exception], str] = {
        FileNotFoundError: f"the folder {os.fspath(Path(path).parent)!r} does not exist; make it first",
        FileExistsError: "what should be its folder is a file",
        NotADirectoryError: "what should be its folder is a file",
        PermissionError: "writing there is not permitted",
    }
    return OutputError(path, reasons.get(type(error), str(error)))
