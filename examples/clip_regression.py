"""A curve through noisy points, with and without CLIP: python examples/clip_regression.py [--figure FILE]

After the regression example of Bungert et al., "CLIP: cheap Lipschitz training of neural networks", SSVM 2021, with a
function and settings of our own. A network with far more weights than points follows the noise; the same class with
`CLIPMixin` in front stays flatter. The slopes that were sampled are a lower bound of the constant, the certificate,
printed beside them, an upper one.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll

POINTS, NOISE, EPOCHS = 40, 0.3, 800


class Regression(pl.LightningModule):
    """One input, one output."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


class Clipped(ll.CLIPMixin, Regression, clip_weight=0.02):
    """The same, and nothing else."""


@dataclass(frozen=True)
class Fit:
    """A trained network.

    Attributes:
        model: on the CPU.
        error: root mean square distance from the noiseless function on [-1, 1].
        lower, upper: bounds of the Lipschitz constant, sampled and certified.
    """

    model: Regression
    error: float
    lower: float
    upper: float


def truth(x: Tensor) -> Tensor:
    return torch.sin(3.0 * x)


def points(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy values at random places, shape (points, 1) each."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(POINTS, 1, generator=generator) - 1.0
    return x, truth(x) + NOISE * torch.randn(x.shape, generator=generator)


def fitted(kind: type[Regression], data: tuple[Tensor, Tensor], epochs: int = EPOCHS) -> Fit:
    pl.seed_everything(0, verbose=False)
    model = kind()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(*data), POINTS))
    model.eval()
    grid = torch.linspace(-1.0, 1.0, 201)[:, None]
    with torch.no_grad():
        error = float((model(grid) - truth(grid)).square().mean().sqrt())
    upper = ll.certify(model.net, torch.zeros(2, 1)).upper_bound
    return Fit(model, error, ll.lower_bound(model.net, grid).value, upper)


@torch.no_grad()
def draw(fits: dict[str, Fit], data: tuple[Tensor, Tensor], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    grid = torch.linspace(-1.0, 1.0, 401)[:, None]
    axes.plot(grid, truth(grid), "--", color="grey", label="noiseless function")
    for (name, fit), colour in zip(fits.items(), ("tab:red", "tab:blue"), strict=True):
        label = f"{name}: error {fit.error:.2f}, certified Lipschitz bound {fit.upper:.1f}"
        axes.plot(grid, fit.model(grid), color=colour, label=label)
    axes.plot(*data, "k.", label=f"{POINTS} noisy points")
    axes.set(xlabel="x", ylabel="y")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.45 * (high - low))  # room for the legend
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(file)


def main(arguments: list[str] | None = None) -> dict[str, Fit]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, default=Path("clip_regression.png"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    chosen = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for advice in ("does not have many workers", "smaller than the logging interval", "treespec, LeafSpec"):
        warnings.filterwarnings("ignore", f".*{advice}")
    data = points()
    fits = {name: fitted(kind, data, chosen.epochs) for name, kind in {"plain": Regression, "CLIP": Clipped}.items()}
    for name, fit in fits.items():
        print(f"{name:>6}: error {fit.error:.3f}, Lipschitz constant between {fit.lower:.2f} and {fit.upper:.2f}")
    draw(fits, data, chosen.figure)
    return fits


if __name__ == "__main__":
    main()
