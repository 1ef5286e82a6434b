"""Models that other people published as packages, trained with callback and mixin on."""

import math

import mlp_mixer_pytorch
import monotonicnetworks
import normflows
import pytest
import pytorch_lightning as pl
import pytorch_tcn
import siren_pytorch
import torch
from deel import torchlip
from pytorch_lightning import seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lipschitz.callbacks import LipschitzCallback
from tests.modules import Fitted, Regularised

EPOCHS, BATCH, SAMPLES = 2, 4, 16


def torchlip_dense():
    return torchlip.Sequential(torchlip.SpectralLinear(6, 8), torchlip.FullSort(), torchlip.FrobeniusLinear(8, 3))


def torchlip_image():
    return torchlip.Sequential(
        torchlip.SpectralConv2d(1, 4, 3, padding=1), torchlip.GroupSort2(), torchlip.ScaledL2NormPool2d(2),
        nn.Flatten(), torchlip.SpectralLinear(4 * 3 * 3, 3),
    )  # fmt: skip


def exported(model, *shape):
    model(torch.zeros(1, *shape))
    return model.vanilla_export()


def monotonic():
    first = monotonicnetworks.LipschitzLinear(5, 8, kind="one-inf")
    last = monotonicnetworks.LipschitzLinear(8, 1, kind="inf")
    net = nn.Sequential(first, monotonicnetworks.GroupSort(4), last)
    return monotonicnetworks.MonotonicWrapper(net, monotonic_constraints=[1, 0, 1, -1, 0])


def mixer():
    return mlp_mixer_pytorch.MLPMixer(
        image_size=8, channels=1, patch_size=4, dim=6, depth=1, num_classes=3, dropout=0.1
    )


def tcn(**options):
    return pytorch_tcn.TCN(3, [4, 4], kernel_size=2, dropout=0.1, **options)


def siren(**options):
    return siren_pytorch.SirenNet(dim_in=2, dim_hidden=8, dim_out=3, num_layers=2, w0_initial=3.0, **options)


# name: the model, and the shape of one input
MODELS = {
    "normflows MLP": (lambda: normflows.nets.MLP([4, 8, 8, 4], leaky=0.1), (4,)),
    "normflows ResidualNet": (lambda: normflows.nets.ResidualNet(4, 4, 8, use_batch_norm=True), (4,)),
    "normflows LipschitzMLP": (lambda: normflows.nets.LipschitzMLP([4, 8, 4], init_zeros=False), (4,)),
    "normflows ConvNet2d": (lambda: normflows.nets.ConvNet2d([1, 4, 1], [3, 3], init_zeros=False), (1, 6, 6)),
    "deel-torchlip dense": (torchlip_dense, (6,)),
    "deel-torchlip dense, exported": (lambda: exported(torchlip_dense(), 6), (6,)),
    "deel-torchlip image": (torchlip_image, (1, 6, 6)),
    "monotonicnetworks MonotonicWrapper": (monotonic, (5,)),
    "pytorch-tcn weight_norm": (lambda: tcn(use_norm="weight_norm"), (3, 6)),
    "pytorch-tcn batch_norm": (lambda: tcn(use_norm="batch_norm", use_skip_connections=True), (3, 6)),
    "siren-pytorch SirenNet": (siren, (2,)),
    "siren-pytorch SirenNet, sigmoid": (lambda: siren(final_activation=nn.Sigmoid()), (2,)),
    "mlp-mixer-pytorch MLPMixer": (mixer, (1, 8, 8)),
}


class Logged(pl.Callback):
    """What was logged in each epoch, seen as the next begins and as the fit ends."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            self.keep(trainer)

    def on_train_end(self, trainer, pl_module):
        self.keep(trainer)

    def keep(self, trainer):
        self.epochs.append({key: value.item() for key, value in trainer.callback_metrics.items()})


def fitted(trainer, name, kind, *callbacks):
    """The module after two epochs, its predictions, and the random number that the run would go on with."""
    seed_everything(3, verbose=False)
    make, shape = MODELS[name]
    module = kind(make())
    x = torch.rand(SAMPLES, *shape)
    trainer(*callbacks, max_epochs=EPOCHS).fit(module, DataLoader(TensorDataset(x), BATCH))
    following = torch.rand(1)
    flags = [part.training for part in module.modules()]
    with torch.no_grad():
        return list(module.state_dict()), flags, module.eval()(x), following


@pytest.mark.parametrize("name", MODELS)
def test_attached_to_a_model_that_knows_nothing_of_it(name, trainer):
    keys, flags, predicted, following = fitted(trainer, name, Fitted)
    same = fitted(trainer, name, Fitted, LipschitzCallback(method="closed-form"))
    assert same[:2] == (keys, flags)
    assert torch.equal(same[2], predicted)
    assert torch.equal(same[3], following)
    logged = Logged()
    assert fitted(trainer, name, Regularised, LipschitzCallback(), logged)[:2] == (keys, flags)
    assert len(logged.epochs) == EPOCHS
    for values in logged.epochs:
        assert math.isfinite(values["lipschitz/upper_bound"])
        assert 0 < values["lipschitz/lower_bound"] <= values["lipschitz/upper_bound"]
        # CLIP's quotient is one of float32 numbers.
        assert 0 < values["clip/lower_bound"] <= values["lipschitz/upper_bound"] * (1 + 1e-5)
