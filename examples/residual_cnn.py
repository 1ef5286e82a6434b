"""A residual convolutional network: which bound of it to take, and bounds of its parts.

    python examples/residual_cnn.py [--epochs 5]

The explicit route writes the network as matrices and solves LipSDP on them: the tightest, and for small models only.
The composed route bounds the graph node by node, convolutions as what they are, and reaches models such as ResNet-18.
`method="auto"` chooses between the two by size. `module=` bounds a part: the callbacks watch features and head apart.
"""

import argparse

import pytorch_lightning as pl
import torch
from digits import Digits, loaders, up
from torch import Tensor, nn

import lightning_lipschitz as ll

METHODS = ("norm-product", "closed-form", "composed", "lipsdp-neuron")


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class ResidualCNN(Digits):
    """`Digits`, with another network."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        stem = nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU()
        features = nn.Sequential(*stem, Residual(channels), nn.AvgPool2d(2), nn.Flatten())
        self.net = nn.Sequential()
        self.net.add_module("features", features)
        self.net.add_module("head", nn.Linear(4 * channels, 10))


def main(epochs: int = 5) -> dict[str, ll.Certificate]:
    pl.seed_everything(0, verbose=False)
    train, test = loaders()
    model = ResidualCNN()
    parts = [ll.LipschitzCallback(module=name, prog_bar=False) for name in ("net.features", "net.head")]
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[*parts], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(model, train, test)
    for part in parts:
        print(f"{part.module:13} L <= {up(part.certificate.upper_bound):>6}")

    # Batch norm is the affine map that it is in eval mode: the bound is that of the model as it predicts.
    x, _ = next(iter(test))
    certificates = {method: ll.certify(model, x, method=method) for method in METHODS}
    for method, certificate in certificates.items():
        print(f"{method:13} L <= {up(certificate.upper_bound):>6}  ({certificate.seconds:.1f} s)")
    print(f"{'steepest pair':13} L >= {ll.lower_bound(model, x).value:6.2f}")
    print(f"{trainer.callback_metrics['val_accuracy']:.1%} of the test images are classified right")
    return certificates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    main(parser.parse_args().epochs)
