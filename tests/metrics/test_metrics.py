"""The metrics: against the functions, merged, reset, pickled, synchronised, logged; what they accept and refuse."""

import math
import pickle
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torchmetrics import MetricCollection

import lightning_lipschitz as ll
from lightning_lipschitz.errors import ArgumentError, CertificateError, ShapeError
from lightning_lipschitz.functional import certified_radius

generator = torch.Generator().manual_seed(0)
LOGITS = torch.randn(40, 3, generator=generator)
TARGET = torch.randint(3, (40,), generator=generator)
INPUTS = torch.randn(40, 5, generator=generator)
RADII = certified_radius(LOGITS, 0.3, TARGET)

METRICS = {
    "accuracy": (lambda: ll.CertifiedAccuracy(0.5, 0.3), (LOGITS, TARGET), (RADII > 0.5).float().mean()),
    "mean radius": (lambda: ll.CertifiedRadius("mean", 0.3), (LOGITS, TARGET), RADII.mean()),
    "quantile": (lambda: ll.CertifiedRadius(0.9, 0.3), (LOGITS, TARGET), RADII.sort().values[35]),
    "lower bound": (
        ll.LipschitzLowerBound,
        (INPUTS, LOGITS),
        max((torch.pdist(LOGITS[k : k + 10]) / torch.pdist(INPUTS[k : k + 10])).max() for k in range(0, 40, 10)),
    ),
}


def batches(data):
    return list(zip(*(part.split(10) for part in data), strict=True))


@pytest.mark.parametrize("name", METRICS)
def test_batches_reset_merge_and_pickle(name):
    make, data, expected = METRICS[name]
    metric, other = make(), make()
    for k, batch in enumerate(batches(data)):
        metric.update(*batch)
        (other if k % 2 else metric).forward(*batch)
    metric.reset()
    other.reset()
    for k, batch in enumerate(batches(data)):
        (metric if k % 2 else other).update(*batch)
    metric = pickle.loads(pickle.dumps(metric))
    metric.merge_state(other)
    torch.testing.assert_close(metric.compute().double(), expected.double(), rtol=1e-5, atol=0)
    assert not metric.state_dict()


def work(rank, path, names, queue):
    dist.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results = {}
    for name in names:
        make, data, _ = METRICS[name]
        metric = make()
        for batch in batches(data)[rank::2]:
            metric.update(*batch)
        results[name] = metric.compute().item()
        if name == "quantile":
            results["curve"] = metric.curve([0.0, 1.0])[1].tolist()
    queue.put(results)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.start_processes(work, (tmp_path / "store", list(METRICS), queue), nprocs=2)
    for results in (queue.get(), queue.get()):
        for name, (_, _, expected) in METRICS.items():
            assert results[name] == pytest.approx(expected.item(), rel=1e-5)
        assert results["curve"] == pytest.approx([RADII.gt(r).double().mean().item() for r in (0.0, 1.0)])


def test_what_gives_the_constant():
    weights = [np.eye(5)[:4], np.ones((3, 4)) / 2]
    certificate, pairs = ll.certify(weights), ll.pairwise_bounds(weights)
    metric = ll.CertifiedRadius("mean", certificate)
    assert metric.lipschitz.item() == certificate.upper_bound
    metric.lipschitz = pairs
    assert np.array_equal(metric.lipschitz.numpy(), pairs.matrix)
    metric.lipschitz = 0.1
    assert metric.lipschitz.item() == 0.1  # and not float32's, which is larger here and may be smaller
    metric.lipschitz = None
    with pytest.raises(ArgumentError, match="set before the first batch"):
        metric.update(LOGITS, TARGET)
    with pytest.warns(UserWarning, match="NOT an upper bound"), pytest.raises(CertificateError, match="proves nothing"):
        metric.lipschitz = ll.certify(weights, method="lipsdp-network")


@pytest.mark.parametrize("bad", [-1.0, math.nan, "L", torch.ones(2, 3)], ids=str)
def test_bad_constants(bad):
    with pytest.raises(ArgumentError, match="lipschitz"):
        ll.CertifiedAccuracy(0.5, bad)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ll.CertifiedAccuracy(-1.0), "radius"),
        (lambda: ll.CertifiedAccuracy(math.inf), "radius"),
        (lambda: ll.CertifiedAccuracy(1.0, scale=0.0), "scale"),
        (lambda: ll.CertifiedAccuracy(1.0, scale=[]), "scale"),
        (lambda: ll.CertifiedAccuracy(1.0, logit_error=-1.0), "logit_error"),
        (lambda: ll.CertifiedRadius("mode"), "reduction"),
        (lambda: ll.CertifiedRadius(1.5), "reduction"),
    ],
)
def test_bad_arguments(make, name):
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        make()


def test_raw_units():
    """The least std of the channels: a raw change of r moves the normalised input by at most r / min(std)."""
    mean, std = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.25])
    weight = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = weight
    raw = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    logits = model((raw - mean) / std).detach()
    target = logits.argmax(1)
    metric = ll.CertifiedRadius("mean", ll.certify([weight.numpy()]), scale=std)
    metric.update(logits, target)
    composed = certified_radius(logits, ll.certify([(weight / std).numpy()]).upper_bound, target)
    for got, whole in zip(metric.radii[0].tolist(), composed.tolist(), strict=True):
        assert got <= whole * (1 + 1e-6)  # the bound of model and normalisation together is at least as good
    unscaled = certified_radius(logits, ll.certify([weight.numpy()]).upper_bound, target)
    assert all(Fraction(a) <= Fraction(b) / 4 for a, b in zip(metric.radii[0].tolist(), unscaled.tolist(), strict=True))


def test_curve_and_plots():
    import matplotlib

    matplotlib.use("Agg")
    metric = ll.CertifiedRadius("mean", 0.3)
    metric.update(LOGITS, TARGET)
    radii, accuracy = metric.curve()
    assert radii[0] == 0
    assert accuracy[-1] == 0
    assert (accuracy.diff() <= 0).all()
    assert metric.quantile(1.0) == RADII.max()
    for made in (metric, ll.CertifiedAccuracy(0.5, 0.3)):
        if made is not metric:
            made.update(LOGITS, TARGET)
        figure, _ = made.plot()
        matplotlib.pyplot.close(figure)


def test_lower_bound_is_below_the_certificate_and_skips_equal_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs = torch.cat([INPUTS, INPUTS[:3], INPUTS[:3] + 1e-7])
    metric = ll.LipschitzLowerBound()
    metric.update(inputs, model(inputs))
    assert 0.1 < metric.compute().item() / ll.certify(model, INPUTS).upper_bound < 1
    metric.update(INPUTS[:1], LOGITS[:1])
    with pytest.raises(ShapeError):
        metric.update(INPUTS, LOGITS[:2])


def test_logged_by_lightning(tmp_path):
    import pytorch_lightning as pl

    from tests.modules import Classifier, loader

    class Module(Classifier):
        def __init__(self):
            super().__init__()
            self.certified = ll.CertifiedAccuracy(0.05)

        def on_validation_epoch_start(self):
            self.certified.lipschitz = ll.certify(self.net, torch.zeros(2, 4))

        def validation_step(self, batch, batch_idx):
            self.certified.update(self(batch[0]), batch[1])
            self.log("certified", self.certified)

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    import warnings

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader(), loader(8))
    x, y = loader(8).dataset.tensors
    radii = certified_radius(module(x), ll.certify(module.net, x).upper_bound, y)
    assert trainer.callback_metrics["certified"].item() == pytest.approx((radii > 0.05).float().mean().item())


def test_a_collection_keeps_metrics_apart_that_agree_on_the_first_batch():
    """torchmetrics lets the metrics of a collection share states that are equal then."""
    metrics = {
        "near": ll.CertifiedAccuracy(0.5, 1.0),
        "far": ll.CertifiedAccuracy(1.0, 1.0),
        "steep": ll.CertifiedAccuracy(0.5, 2.0),
        "radius": ll.CertifiedRadius("mean", 1.0),
        "steep radius": ll.CertifiedRadius("mean", 2.0),
    }
    alone = {name: metric.clone() for name, metric in metrics.items()}
    collection = MetricCollection(metrics)
    same, apart = torch.tensor([[0.0, 5.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [1.6, 0.0], [5.0, 0.0]])
    for logits in (same, apart):
        target = torch.zeros(len(logits), dtype=torch.long)
        collection.update(logits, target)
        for metric in alone.values():
            metric.update(logits, target)
    assert collection.compute() == {name: metric.compute() for name, metric in alone.items()}
    assert len({float(value) for value in collection.compute().values()}) >= 4


@pytest.mark.parametrize("wrong", [1, 3, 1000])
def test_shares_are_rounded_down(wrong):
    """Counts beyond 2^24: float32 would round the share up to one."""
    accuracy, radius = ll.CertifiedAccuracy(0.5, 1e-6), ll.CertifiedRadius("mean", 1e-6)
    right, total = 40_000_000, 40_000_000 + wrong
    accuracy.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    accuracy.certified += right - 1
    accuracy.total += total - 1
    found = accuracy.compute().item()
    assert Fraction(found) <= Fraction(right, total)
    assert 1 - found < 2 * wrong / total + 1e-7
    logits = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    radius.update(logits, torch.tensor([0, 0, 1]))
    assert Fraction(radius.curve([0.0])[1].item()) <= Fraction(2, 3)
    assert Fraction(radius.compute().item()) * 3 <= sum(map(Fraction, radius.radii[0].tolist()))
    accuracy.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    accuracy.certified += wrong
    assert accuracy.compute() == 1
