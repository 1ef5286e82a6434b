"""Files that are no certificates: one clean error each, and no memory for what they claim."""

import contextlib
import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from lightning_lipschitz import Certificate, certify, verify
from lightning_lipschitz.certificate import Split, prove
from lightning_lipschitz.certificate.pieces import pieces
from lightning_lipschitz.checkpoint_files import from_plain, to_plain
from lightning_lipschitz.cli import main
from lightning_lipschitz.errors import CertificateError
from tests.helpers import TWO_BY_TWO, chain

GOOD = certify(TWO_BY_TWO)


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def claimed(shape, descr="'<f8'", version=1, length=None):
    """The first bytes of an array of that shape."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    form = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, length or len(header)) + header + bytes(16)


def members(certificate=GOOD):
    header, arrays = certificate._arrays().pop("header"), certificate._arrays()
    return json.loads(header.tobytes()), {name: npy(array) for name, array in arrays.items() if name != "header"}


def written(path, header=None, arrays=None, compression=zipfile.ZIP_STORED):
    known, values = members()
    packed = header if isinstance(header, bytes) else json.dumps(known | (header or {})).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("header.npy", npy(np.frombuffer(packed, dtype=np.uint8)))
        for name, content in (values if arrays is None else arrays).items():
            archive.writestr(f"{name}.npy", content)
    return path


FIELDS = {
    "upper_bound": ["2", None, True, [2.0], {}, -1.0, float("nan"), float("inf"), 10**400, 1e-3],
    "certified": ["no", 1, None, False],
    "status": ["NOT_A_BOUND", "FAILED", "solved", None, 1, ["SOLVED"], {}],
    "method": [None, 3, "\x1b[2Jproved", "x" * 1000],
    "solver": [None, {"a": 1}, "one\ntwo"],
    "relative_gap": ["0", [], True],
    "verification_loss": [None, "0", 10**400],
    "seconds": ["x", None, -1.0],
    "network_digest": [None, 5, "", "0" * 63, "é" * 64, ["0" * 64]],
    "epoch": ["1", 1.5, -1, True, 10**30],
    "global_step": ["1", [], -3],
    "format": [None, 2, "lightning-lipschitz certificate 999"],
    "unheard": [1],
    "state": [{}],
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_another_kind(name, tmp_path):
    for value in FIELDS[name]:
        path = written(tmp_path / "c.npz", {name: value})
        with pytest.raises(CertificateError):
            verify(Certificate.load(path), TWO_BY_TWO)
        if name not in ("format", "unheard", "state"):
            with pytest.raises(CertificateError):
                verify(from_plain(to_plain(GOOD) | {name: value}), TWO_BY_TWO)


PROOFS = [
    None,
    [],
    "norms",
    {},
    {"kind": "faith", "arrays": 1},
    {"kind": ["multipliers"], "arrays": 1},
    {"kind": "multipliers", "arrays": 1},
    {"kind": "multipliers", "arrays": 1, "rho": None},
    {"kind": "multipliers", "arrays": 1, "rho": 10**400},
    {"kind": "multipliers", "arrays": 1, "rho": float("nan")},
    {"kind": "multipliers", "arrays": 1, "rho": -1.0},
    {"kind": "multipliers", "arrays": "1", "rho": 1.0},
    {"kind": "multipliers", "arrays": True, "rho": 1.0},
    {"kind": "multipliers", "arrays": -1, "rho": 1.0},
    {"kind": "multipliers", "arrays": 10**12, "rho": 1.0},
    {"kind": "channels", "arrays": 1, "rho": 1.0},
    {"kind": "split", "cuts": [1], "parts": "ab"},
    {"kind": "split", "cuts": None, "parts": [{"kind": "norms", "arrays": 1}]},
    {"kind": "split", "cuts": [10**30], "parts": [{"kind": "norms", "arrays": 1}]},
    {"kind": "split", "cuts": [], "parts": [{"kind": "channels", "arrays": 1, "rho": 1.0}]},
    {"kind": "split", "cuts": [], "parts": [{"kind": "composition", "blocks": [], "parts": []}]},
    {"kind": "composition", "blocks": [], "parts": []},
    {"kind": "composition", "blocks": [[0, 1]], "parts": []},
    {"kind": "composition", "blocks": [[0, 1, 2]], "parts": [{"kind": "norms", "arrays": 0}]},
    {"kind": "composition", "blocks": ["ab"], "parts": [{"kind": "norms", "arrays": 0}]},
]


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: json.dumps(proof)[:60])
def test_descriptions_of_no_proof(proof, tmp_path):
    for path in (written(tmp_path / "c.npz", {"proof": proof}), written(tmp_path / "e.npz", {"proof": proof}, {})):
        with pytest.raises(CertificateError):
            verify(Certificate.load(path), TWO_BY_TWO)
    with pytest.raises(CertificateError):
        verify(from_plain(to_plain(GOOD) | {"proof": proof}), TWO_BY_TWO)


HEADERS = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"format": ' * 50_000, b"9" * 10_000, b"{}" * 2]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: repr(header[:8]))
def test_headers_that_are_none(header, tmp_path):
    with pytest.raises(CertificateError, match="not a certificate file"):
        Certificate.load(written(tmp_path / "c.npz", header))


ARRAYS = {
    "8 TiB": claimed((2**40,)),
    "more than an int": claimed((2**70,)),
    "negative": claimed((-1,)),
    "shape of letters": claimed("'abc'"),
    "two dimensions": npy(np.ones((2, 1))),
    "a number": npy(1.0),
    "shorter than it says": claimed((3,)),
    "longer than it says": claimed((1,)),
    "no dtype": claimed((2,), "'<q9'"),
    "a record": npy(np.zeros(2, dtype=[("a", "<f4"), ("b", "<f4")])),
    "objects": npy(np.array([1.0, None], dtype=object)),
    "complex": npy(np.ones(2, dtype=complex)),
    "long double": npy(np.ones(2, dtype=np.longdouble)),
    "half": npy(np.ones(2, dtype=np.float16)),
    "whole": npy(np.ones(2, dtype=int)),
    "text": npy(np.array(["1", "2"])),
    "times": npy(np.array([1, 2], dtype="m8[s]")),
    "empty width": npy(np.zeros(2, dtype="U0")),
    "header of 4 GiB": claimed((2,), version=2, length=2**32 - 1),
    "no array": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_that_are_none(name, compression, tmp_path):
    path = written(tmp_path / "c.npz", arrays={"values_0": ARRAYS[name]}, compression=compression)
    with pytest.raises(CertificateError, match="not a certificate file"):
        Certificate.load(path)


def test_arrays_of_other_names(tmp_path):
    _, values = members()
    array = values["values_0"]
    for arrays in ({}, {"values_1": array}, values | {"values_1": array}, values | {"extra": array}):
        with pytest.raises(CertificateError, match="not a certificate file"):
            Certificate.load(written(tmp_path / "c.npz", arrays=arrays))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name(tmp_path):
    path = written(tmp_path / "c.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("header.npy", archive.read("header.npy"))
    with pytest.raises(CertificateError, match="same name"):
        Certificate.load(path)


def changed_bytes(content, place, new):
    return content[:place] + new + content[place + len(new) :]


def test_archives_that_numpy_does_not_write(tmp_path):
    path = tmp_path / "c.npz"
    GOOD.save(path)
    content = path.read_bytes()
    entry = content.find(b"PK\x01\x02")
    for place, new in ((8, b"\x01\x00"), (10, b"\x63\x00"), (10, b"\x0e\x00"), (24, b"\xff" * 4), (42, b"\xf0" * 4)):
        path.write_bytes(changed_bytes(content, entry + place, new))
        with pytest.raises(CertificateError):
            Certificate.load(path)
    deflated = written(path, compression=zipfile.ZIP_DEFLATED).read_bytes()
    path.write_bytes(changed_bytes(deflated, deflated.find(b"header.npy") + 20, b"\xff" * 10))
    with pytest.raises(CertificateError, match="damaged"):
        Certificate.load(path)


def test_a_deflated_certificate_is_read(tmp_path):
    path = written(tmp_path / "c.npz", compression=zipfile.ZIP_DEFLATED)
    assert verify(Certificate.load(path), TWO_BY_TWO) == GOOD.upper_bound


def test_what_is_no_regular_file(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "pipe", ".", "empty/c.npz", "a\0b"):
        with pytest.raises(CertificateError):
            Certificate.load(f"{tmp_path}/{name}")
    with pytest.raises(CertificateError):
        Certificate.load("/dev/zero")


def test_the_command_says_one_sentence(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", *map(np.array, TWO_BY_TWO))
    headers = ({"upper_bound": "2"}, {"certified": "no"}, {"unheard\n": 1}, b"[" * 200_000)
    for header in headers:
        path = written(tmp_path / "c.npz", header)
        assert main(["verify", str(path), str(tmp_path / "w.npz")]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert "not a certificate file" in printed.err


LOAD = """
import resource, sys
from lightning_lipschitz import Certificate, errors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Certificate.load(sys.argv[1])
except errors.CertificateError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize("name", ["values_0", "values_1", "header"])
def test_memory_is_not_taken_for_what_is_refused(name, tmp_path):
    """128 MiB of zeros in 128 KiB, under a name that the proof has or has not."""
    header, values = members()
    parts = {"header": npy(np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)), **values}
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for other, content in parts.items():
            if other != name:
                archive.writestr(f"{other}.npy", content)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            member.write(claimed((2**24,))[:-16])
            for _ in range(32):
                member.write(bytes(2**22))
    command = [sys.executable, "-c", LOAD, str(tmp_path / "c.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, _, told = done.stdout.partition(" ")
    assert "not a certificate file" in told
    assert int(taken) * (1 if sys.platform != "darwin" else 1 / 1024) < 40_000  # KiB


def split():
    network = chain((3, 4, 5, 4, 2))
    first, second = pieces(network, (2,))
    proof = Split((2,), (certify(first).proof, certify(second, method="norm-product").proof))
    return network, replace(certify(network), proof=proof, upper_bound=prove(network, proof))


WEIRD = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e308, 5e-324]


@pytest.mark.parametrize("kind", ["multipliers", "norms", "split"])
def test_numbers_changed_at_random_prove_nothing_smaller(kind, tmp_path):
    """Whatever stands in the arrays: a proof of this very bound or a typed refusal."""
    draw = random.Random(0)
    network, certificate = split()
    if kind != "split":
        certificate = certify(network, method="lipsdp-neuron" if kind == "multipliers" else "norm-product")
    for _ in range(60):
        header, values = members(certificate)
        name = draw.choice(sorted(values))
        array = np.load(io.BytesIO(values[name]))
        array[draw.randrange(len(array))] = draw.choice(WEIRD)
        if draw.random() < 0.3:
            array = array[:-1] if draw.random() < 0.5 else np.append(array, 1.0)
        path = written(tmp_path / "c.npz", json.dumps(header).encode(), values | {name: npy(array)})
        with contextlib.suppress(CertificateError):
            assert verify(Certificate.load(path), network) == certificate.upper_bound


def test_bytes_changed_at_random(tmp_path):
    draw = random.Random(1)
    path = written(tmp_path / "c.npz", compression=zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    for _ in range(300):
        path.write_bytes(changed_bytes(content, draw.randrange(len(content)), bytes([draw.randrange(256)])))
        with contextlib.suppress(CertificateError):
            assert verify(Certificate.load(path), TWO_BY_TWO) == GOOD.upper_bound


def test_limits_are_far_from_honest_files(tmp_path):
    """A long proof, and one of equal numbers that somebody compressed."""
    long = replace(GOOD, proof=replace(GOOD.proof, values=(np.ones(2**20),)))
    header, values = members(long)
    path = written(tmp_path / "c.npz", json.dumps(header).encode(), values, zipfile.ZIP_DEFLATED)
    assert Certificate.load(path).proof.values[0].sum() == 2**20
