"""torchmetrics of what a Lipschitz bound is worth: certified accuracy, certified radii, and a slope that was seen."""

from lightning_lipschitz.metrics.certified_accuracy import CertifiedAccuracy
from lightning_lipschitz.metrics.certified_radius import CertifiedRadius
from lightning_lipschitz.metrics.lower_bound import LipschitzLowerBound

__all__ = ["CertifiedAccuracy", "CertifiedRadius", "LipschitzLowerBound"]
