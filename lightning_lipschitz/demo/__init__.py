"""``lightning-lipschitz demo``: a plain training and three others on real digits, and what is proved of each."""

from lightning_lipschitz.demo.run import run

__all__ = ["run"]
