"""An ordinary classifier, as a user would have it: nothing in it knows of Lipschitz constants; the same with CLIP."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_lipschitz._lightning import LightningModule
from lightning_lipschitz.mixins import CLIPMixin


class Classifier(LightningModule):
    """A ReLU network trained with cross entropy and Adam."""

    def __init__(self, sizes: tuple[int, ...], learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        self.example_input_array = torch.zeros(2, sizes[0])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        accuracy = multiclass_accuracy(logits, y, num_classes=logits.shape[1], average="micro")
        self.log("val_accuracy", accuracy, prog_bar=True, batch_size=len(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


class ClippedClassifier(CLIPMixin, Classifier):
    """A :class:`Classifier` with CLIP, and nothing else."""
