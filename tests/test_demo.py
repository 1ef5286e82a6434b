"""The demo: what it prints and what it leaves behind."""

import contextlib
import io
import re

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_lipschitz import Certificate, verify
from lightning_lipschitz.demo import run
from lightning_lipschitz.demo.data import load_digits
from lightning_lipschitz.demo.model import Classifier
from lightning_lipschitz.demo.training import MAX_LIPSCHITZ, RADII
from lightning_lipschitz.errors import ArgumentError, WeightFileError
from lightning_lipschitz.report.numbers import hundredths_down, hundredths_up

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def short(folder):
    """A short run, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = run(epochs=4, output=folder)
    return found, printed.getvalue()


def test_the_epochs_of_plain_training(short):
    found, printed = short
    assert [row.epoch for row in found.epochs] == [0, 1, 2, 3]
    assert all(0 < row.lower <= row.certified <= row.product for row in found.epochs)
    (last,) = re.findall(r"^\W+3 +\W.*$", printed, flags=re.MULTILINE)
    *_, lower, certified, product = map(float, re.findall(r"[\d.]+", last))
    row = found.epochs[-1]
    assert row.lower - 0.01 < lower <= row.lower
    assert row.certified <= certified < row.certified + 0.01
    assert row.product <= product < row.product + 0.01


def test_the_trainings_side_by_side(short):
    found, printed = short
    plain, margin, scale, clip = found.outcomes
    assert [outcome.name for outcome in found.outcomes] == ["plain", "margin", "scale", "CLIP"]
    assert margin.certified_accuracy(0.3) > plain.certified_accuracy(0.3)
    assert clip.certificate.upper_bound < 0.8 * plain.certificate.upper_bound
    assert scale.certificate.upper_bound <= MAX_LIPSCHITZ < plain.certificate.upper_bound
    assert max(scale.history) <= MAX_LIPSCHITZ
    assert plain.accuracy > 0.85
    for outcome in found.outcomes:
        assert 0 < outcome.lower <= outcome.certificate.upper_bound
        assert len(outcome.history) == 4
        shares = [outcome.accuracy, *map(outcome.certified_accuracy, (0.0, *RADII))]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > 0.5  # it learns
        (row,) = [line for line in printed.splitlines() if re.match(rf"\W+{outcome.name}\b.*%", line)]
        assert re.findall(r"[\d.]+", row) == [
            f"{100 * outcome.accuracy:.1f}",
            hundredths_down(outcome.lower),
            hundredths_up(outcome.certificate.upper_bound),
            *(f"{100 * outcome.certified_accuracy(radius):.1f}" for radius in RADII),
            f"{outcome.seconds:.1f}",
        ]


def test_what_it_leaves_behind(short, folder):
    found, printed = short
    assert (folder / "demo.png").read_bytes()[:4] == b"\x89PNG"
    for outcome in found.outcomes:
        log = folder / "tensorboard" / outcome.name / "version_0"
        (checkpoint,) = log.glob("checkpoints/*.ckpt")
        model = Classifier.load_from_checkpoint(checkpoint, weights_only=True)
        certificate = Certificate.load(folder / f"{outcome.name}.lipschitz.npz")
        assert verify(certificate, model) == outcome.certificate.upper_bound
        assert f"{outcome.name}.lipschitz.npz: |f(x) - f(y)| <= {certificate.upper_bound!r}" in printed
        events = EventAccumulator(str(log)).Reload()
        key = "scale/upper_bound" if outcome.name == "scale" else "lipschitz/upper_bound"
        assert [event.value for event in events.Scalars(key)][:4] == pytest.approx(outcome.history)


def test_radii_hold_against_a_search(short):
    """No step along the gradient of the margin, as long as the radius, changes the class."""
    x, y = load_digits().test
    for outcome in short[0].outcomes:
        inputs = x.double().requires_grad_()
        logits = outcome.model(inputs)
        own = logits.gather(1, y[:, None])
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)
        (gradient,) = torch.autograd.grad((others - own).sum(), inputs)
        step = outcome.radii[:, None] * gradient / gradient.norm(dim=1, keepdim=True)
        sure = outcome.radii > 0
        assert bool((outcome.model(inputs + 0.999 * step).argmax(1) == y)[sure].all())
        assert sure.double().mean() == pytest.approx(outcome.accuracy)


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
