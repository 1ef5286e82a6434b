"""``lightning-lipschitz demo``: train on real digits with Lightning, certify every epoch, show what came out."""

from lightning_lipschitz.demo.run import run

__all__ = ["run"]
