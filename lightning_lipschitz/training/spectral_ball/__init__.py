"""The nearest weights of a chain: for fixed multipliers, a point of a spectral ball seen through a linear map."""

from lightning_lipschitz.training.spectral_ball.certified_set import CertifiedSet, Projected
from lightning_lipschitz.training.spectral_ball.projection import nearby, nearest, scaled
from lightning_lipschitz.training.spectral_ball.regularized import Regularized, regularized
from lightning_lipschitz.training.spectral_ball.round import advance

__all__ = ["CertifiedSet", "Projected", "Regularized", "advance", "nearby", "nearest", "regularized", "scaled"]
