"""The demo: what it prints and what it leaves behind."""

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_lipschitz import Certificate, verify
from lightning_lipschitz.demo import run
from lightning_lipschitz.demo.data import load_digits
from lightning_lipschitz.demo.model import Classifier
from lightning_lipschitz.errors import ArgumentError, WeightFileError

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")


def test_a_short_run(tmp_path, capsys):
    rows = run(epochs=2, output=tmp_path)
    assert [row.epoch for row in rows] == [0, 1]
    assert all(0 < row.lower <= row.certified <= row.product for row in rows)
    printed = capsys.readouterr().out
    assert f"{rows[-1].certified:.2f}" in printed
    assert "Proved again" in printed
    assert (tmp_path / "demo.png").read_bytes()[:4] == b"\x89PNG"

    (checkpoint,) = tmp_path.glob("tensorboard/version_0/checkpoints/*.ckpt")
    model = Classifier.load_from_checkpoint(checkpoint, weights_only=True)
    certificate = Certificate.load(tmp_path / "certificate.npz")
    assert verify(certificate, model) == rows[-1].certified

    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload()
    logged = [event.value for event in events.Scalars("lipschitz/upper_bound")]
    assert logged == pytest.approx([row.certified for row in rows])


def test_digits_are_real_and_held_out():
    data = load_digits()
    assert len(data.train[1]) + len(data.test[1]) == 1797
    assert data.train[0].max() == 1.0
    assert torch.bincount(data.test[1]).min() > 30


def write_idx(path, values):
    shape = np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(b"\0\0\x08" + bytes([values.ndim]) + shape + values.astype(np.uint8).tobytes())


def test_idx_files(tmp_path):
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2)
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(5))
    data = load_digits(tmp_path)
    assert data.name == "MNIST"
    assert torch.equal(data.train[0][1], torch.arange(4, 8) / 255.0)
    assert data.test[1].tolist() == [0, 1, 2, 3, 4]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightFileError, match="cut short"):
        load_digits(tmp_path)
    path.unlink()
    with pytest.raises(WeightFileError, match="missing"):
        load_digits(tmp_path)


def test_bad_epochs(tmp_path):
    with pytest.raises(ArgumentError, match="`epochs`"):
        run(epochs=0, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()
