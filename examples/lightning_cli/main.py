"""LightningCLI: the bound is a line in a YAML file, the program knows nothing of it.

    pip install "lightning-lipschitz[cli,demo]"
    python examples/lightning_cli/main.py fit --config examples/lightning_cli/config.yaml
    lightning-lipschitz verify lightning_logs/version_0/checkpoints/best.ckpt

What the YAML file says of the model can be given on the command line too: --model.hidden=128.
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class DigitsData(pl.LightningDataModule):
    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images / 16, labels, test_size=0.2, random_state=0, stratify=labels)
        x, x_test, y, y_test = map(torch.tensor, parts)
        self.train, self.test = TensorDataset(x.float(), y), TensorDataset(x_test.float(), y_test)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=360)


class Classifier(pl.LightningModule):
    def __init__(self, hidden: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


def main(arguments: list[str] | None = None) -> LightningCLI:
    return LightningCLI(Classifier, DigitsData, args=arguments)


if __name__ == "__main__":
    main()
