"""Whatever is written is written whole, and what lies there already keeps its nature."""

import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from lightning_lipschitz import Certificate, certify
from lightning_lipschitz.callbacks._atomic import AtomicCheckpointIO
from lightning_lipschitz.cli import main
from lightning_lipschitz.errors import OutputError
from lightning_lipschitz.written import written_whole

CERTIFICATE = certify([[[1.0, 2.0], [1.0, -2.0]], [[1.0, 1.0]]])


def note(path, text="new"):
    with written_whole(path) as part:
        part.write_text(text)


WRITERS = {
    "certificate": CERTIFICATE.save,
    "checkpoint": lambda path: AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path),
    "text": note,
}


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def test_new_files_have_the_permissions_of_the_umask(write, tmp_path, umask):
    write(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o640


def test_files_keep_their_permissions(write, tmp_path):
    (tmp_path / "old").write_text("old")
    os.chmod(tmp_path / "old", 0o604)
    write(tmp_path / "old")
    assert mode(tmp_path / "old") == 0o604
    assert (tmp_path / "old").read_bytes() != b"old"


@pytest.mark.parametrize("there", [True, False])
def test_links_stay_links(write, there, tmp_path):
    target, link, second = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "second"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to("folder/target")
    second.symlink_to("link")
    write(second)
    assert link.is_symlink()
    assert second.is_symlink()
    assert target.read_bytes() not in (b"", b"old")
    assert [file.name for file in target.parent.iterdir()] == ["target"]


def test_pipes_carry_the_bytes(write, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(10)
    assert len(heard[0]) > 2
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_a_pipe_without_a_reader_is_said_and_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_lipschitz.written._PATIENCE", 0.0)
    os.mkfifo(tmp_path / "pipe")
    with pytest.warns(UserWarning, match="nobody reads the pipe"):
        CERTIFICATE.save(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_devices_are_written_into(write, tmp_path):
    (tmp_path / "sink").symlink_to(os.devnull)
    write(tmp_path / "sink")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("as_file", [True, False])
def test_standard_output_gets_the_certificate_and_nothing_else(as_file, tmp_path):
    np.savez(tmp_path / "w.npz", np.eye(2))
    command = [sys.executable, "-m", "lightning_lipschitz", "certify", "w.npz", "--output", "/dev/stdout"]
    with open(tmp_path / "c.npz", "wb") as file:
        file.write(b"")
        done = subprocess.run(
            command, cwd=tmp_path, stdout=file if as_file else subprocess.PIPE, stderr=subprocess.PIPE
        )
    assert done.returncode == 0, done.stderr
    if not as_file:
        (tmp_path / "c.npz").write_bytes(done.stdout)
    assert Certificate.load(tmp_path / "c.npz").upper_bound == pytest.approx(1.0)
    assert b"upper bound" in done.stderr


def test_what_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "read-only").write_text("old")
    os.chmod(tmp_path / "read-only", 0o444)
    np.savez(tmp_path / "w.npz", np.eye(2))
    wrong = {"none/c.npz": "does not exist", "": "is a directory", "file/c.npz": "is a file"}
    if os.getuid():
        wrong["read-only"] = "not permitted"
    for name, says in wrong.items():
        with pytest.raises(OutputError, match=says):
            CERTIFICATE.save(tmp_path / name)
        assert main(["certify", str(tmp_path / "w.npz"), "--output", str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert says in printed.err
        assert printed.err.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "read-only", "w.npz"]


def _stop(path, error):
    with written_whole(path) as part:
        part.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, OSError])
@pytest.mark.parametrize("before", [None, "old"])
def test_nothing_is_left_behind(error, before, tmp_path):
    if before is not None:
        (tmp_path / "note").write_text(before)
    with pytest.raises(error):
        _stop(tmp_path / "note", error)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({"note": before} if before else {})


def test_long_names_are_written(tmp_path):
    name = "ä" * 120 + ".npz"
    note(tmp_path / name)
    assert (tmp_path / name).read_text() == "new"
