"""Pure torch: pairs of inputs pushed up-hill, and the penalty on the slope that they show."""

from lightning_lipschitz.functional.clip import Pairs, ascend, initial_pairs, penalty, quotients

__all__ = ["Pairs", "ascend", "initial_pairs", "penalty", "quotients"]
