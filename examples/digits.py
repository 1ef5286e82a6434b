"""A classifier of handwritten digits, certified while it trains, and what the certificate is worth on the test set.

    pip install "lightning-lipschitz[demo]"
    python examples/digits.py [--epochs 15]

The module is an ordinary one. Two things are added: `LipschitzCallback` in the Trainer, and after training
`CertifiedAccuracy`: the share of images that are classified right, and stay so whatever changes them by up to RADIUS.
"""

import argparse
from decimal import ROUND_CEILING, Decimal

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll

RADIUS = 0.2  # l2; the images have 64 grey values in [0, 1]


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def loaders() -> tuple[DataLoader, DataLoader]:
    """Training and test images of scikit-learn's digits."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.2, random_state=0, stratify=labels)
    x, x_test, y, y_test = map(torch.tensor, parts)
    train, test = TensorDataset(x.float(), y), TensorDataset(x_test.float(), y_test)
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=360)


def up(bound: float) -> str:
    """Two decimals, never below: what is printed as a bound is one."""
    return str(Decimal(bound).quantize(Decimal("0.01"), ROUND_CEILING))


def main(epochs: int = 15) -> tuple[Digits, ll.Certificate]:
    pl.seed_everything(0, verbose=False)
    train, test = loaders()
    model = Digits()
    watch = ll.LipschitzCallback(certified_radii=[RADIUS])
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[watch], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(model, train, test)

    for record in watch.history:
        lower, upper = record["lower_bound"], record["upper_bound"]
        print(f"epoch {record['epoch']:2}: the certified bound is {up(upper)}, the steepest pair found {lower:.2f}")

    # One constant bounds the whole map to the logits. A constant for every pair of classes gives larger radii, and
    # larger ones still without `refine=False`, which saves a search for each of the 45 pairs.
    model.eval()
    x, _ = next(iter(test))
    pairs = ll.pairwise_bounds(model, x, refine=False)
    for name, bounds in ("one constant", watch.certificate), ("a constant for each pair", pairs):
        metric = ll.CertifiedAccuracy(RADIUS, bounds)
        with torch.no_grad():
            for x, y in test:
                metric.update(model(x), y)
        print(f"{metric.compute():.1%} of the test images are right within {RADIUS:g}, proved by {name}")
    print(f"{trainer.callback_metrics['val_accuracy']:.1%} are right as they are")
    return model, watch.certificate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    main(parser.parse_args().epochs)
