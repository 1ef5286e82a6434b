"""Pure torch: pairs of inputs pushed up-hill, the penalty on the slope that they show; margins, losses that raise them,
and certified radii."""

from lightning_lipschitz.functional.clip import Pairs, ascend, initial_pairs, penalty, quotients
from lightning_lipschitz.functional.margin import margin_cross_entropy, margin_logits
from lightning_lipschitz.functional.robustness import certified_radius, margins

__all__ = [
    "Pairs",
    "ascend",
    "certified_radius",
    "initial_pairs",
    "margin_cross_entropy",
    "margin_logits",
    "margins",
    "penalty",
    "quotients",
]
