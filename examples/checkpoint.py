"""A checkpoint that exists already: load it, certify it, say what that is worth, and prove the file again from disk.

    python examples/checkpoint.py [digits.ckpt]

Without an argument one is trained first, by plain Lightning. A bound that is found too large is then put right without
training: `project` moves the weights to the nearest ones found that meet a smaller bound.
"""

import argparse
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from digits import Digits, loaders, up  # the project that the checkpoint is of
from torch.utils.data import DataLoader

import lightning_lipschitz as ll

RADIUS = 0.2


def trained(path: Path, epochs: int) -> Path:
    """What somebody did last year, without this package."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Digits(), loaders()[0])
    trainer.save_checkpoint(path)
    return path


@torch.no_grad()
def report(name: str, model: Digits, test: DataLoader, certificate: ll.Certificate) -> None:
    x, _ = next(iter(test))
    pairs = ll.pairwise_bounds(model, x.double(), refine=False)  # True takes longer and gives larger radii
    accuracy, certified = ll.CertifiedAccuracy(0.0, pairs), ll.CertifiedAccuracy(RADIUS, pairs)
    for x, y in test:
        logits = model(x.double())
        accuracy.update(logits, y)
        certified.update(logits, y)
    shares = f"{accuracy.compute():.1%} right, {certified.compute():.1%} right within {RADIUS:g}"
    print(f"{name:9}  L <= {up(certificate.upper_bound)}  {shares}")


def main(checkpoint: Path | None, folder: Path, epochs: int = 15) -> Path:
    """Returns the certificate's file."""
    checkpoint = checkpoint or trained(folder / "digits.ckpt", epochs)
    _, test = loaders()
    x, _ = next(iter(test))

    model = Digits.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval().double()
    certificate = ll.certify(model, x.double())
    print(certificate.sentence())
    report("as it is", model, test, certificate)

    # The certificate's file and the checkpoint are all that anybody needs to prove the bound again.
    file = folder / "digits.lipschitz.npz"
    certificate.save(file)
    again = Digits.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    print(f"proved again from disk: {ll.verify(ll.Certificate.load(file), again, x)!r}")

    smaller = ll.project(model, certificate.upper_bound / 2, x.double())  # in place
    report("projected", model, test, smaller)
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    with tempfile.TemporaryDirectory() as scratch:
        main(parser.parse_args().checkpoint, Path(scratch))
