"""The file: whole or absent, no pickle, and nothing in it is believed."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from lightning_lipschitz import Certificate, Status, certify, verify
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import CertificateError
from tests.helpers import TWO_BY_TWO


@pytest.mark.parametrize("method", ["norm-product", "closed-form", "lipsdp-neuron"])
def test_round_trip(tmp_path, method):
    certificate = certify(TWO_BY_TWO, method=method).at(epoch=3, global_step=70)
    certificate.save(tmp_path / "c.npz")
    loaded = Certificate.load(tmp_path / "c.npz")
    assert loaded.summary() == certificate.summary()
    assert (loaded.epoch, loaded.global_step) == (3, 70)
    assert verify(loaded, TWO_BY_TWO) == certificate.upper_bound
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]


def test_the_summary_is_json():
    assert json.loads(json.dumps(certify(TWO_BY_TWO).summary()))["certified"] is True


def test_only_certified_bounds_are_saved(tmp_path):
    certificate = replace(certify(TWO_BY_TWO), certified=False, status=Status.NOT_A_BOUND)
    with pytest.raises(CertificateError, match="not an upper bound"):
        certificate.save(tmp_path / "c.npz")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    certificate = certify(TWO_BY_TWO)
    certificate.save(tmp_path / "c.npz")
    before = (tmp_path / "c.npz").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        certificate.save(tmp_path / "c.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]
    assert (tmp_path / "c.npz").read_bytes() == before


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        Certificate.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no certificate")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("a", "b")
    for name in ("text.npz", "other.npz", "zip.npz"):
        with pytest.raises(CertificateError, match="not a certificate file"):
            Certificate.load(tmp_path / name)


@pytest.mark.parametrize("bytes_cut", [1, 50, 200])
def test_a_truncated_file_is_damaged(tmp_path, bytes_cut):
    path = tmp_path / "c.npz"
    certify(TWO_BY_TWO).save(path)
    path.write_bytes(path.read_bytes()[:-bytes_cut])
    with pytest.raises(CertificateError, match="damaged"):
        Certificate.load(path)


def test_a_file_that_claims_too_much_is_refuted(tmp_path):
    certificate = certify(TWO_BY_TWO)
    too_low = replace(certificate.proof, rho=certificate.proof.rho * (1 - 1e-5))
    for lie in (
        replace(certificate, upper_bound=certificate.upper_bound * (1 - 1e-9)),
        replace(certificate, upper_bound=certificate.upper_bound * (1 - 1e-5), proof=too_low),
        replace(certificate, proof=Multipliers(certificate.proof.rho, (np.array([np.nan, 1.0]),))),
    ):
        lie.save(tmp_path / "lie.npz")
        with pytest.raises(CertificateError, match="does not hold"):
            verify(Certificate.load(tmp_path / "lie.npz"), TWO_BY_TWO)
