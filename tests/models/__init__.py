"""Models that the tests read: name -> (factory, shape of one sample), and those that must be refused."""

import torch

from tests.models.building import Lambda, mlp, of, randomized_norm
from tests.models.operators import OPERATORS
from tests.models.refusals import REFUSED
from tests.models.small import SMALL, compiled
from tests.models.zoo import ZOO

MODELS = SMALL | ZOO | {f"operator_{name}": case for name, case in OPERATORS.items()}

__all__ = ["MODELS", "OPERATORS", "REFUSED", "ZOO", "Lambda", "compiled", "make", "mlp", "of", "randomized_norm"]


def make(name):
    """The model and the shape of one sample, the same weights on every call."""
    factory, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return factory().eval(), shape
