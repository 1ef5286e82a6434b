"""``lightning-lipschitz demo``: plain training, CLIP and ADMM on real digits, and what is proved of each."""

from lightning_lipschitz.demo.run import run

__all__ = ["run"]
