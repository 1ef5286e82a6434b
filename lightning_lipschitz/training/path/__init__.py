"""The nearest weights of any graph: a path through the interior of the certified set."""

from lightning_lipschitz.training.path.constraint import Constraint, Place
from lightning_lipschitz.training.path.projection import nearby, nearest
from lightning_lipschitz.training.path.round import advance
from lightning_lipschitz.training.path.start import require_reachable, scaled_inside

__all__ = ["Constraint", "Place", "advance", "nearby", "nearest", "require_reachable", "scaled_inside"]
