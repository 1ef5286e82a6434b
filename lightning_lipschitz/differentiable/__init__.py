"""Numbers near a Lipschitz bound as differentiable functions of the weights, for a loss. They prove nothing."""

from lightning_lipschitz.differentiable.bound import BoundMethod, DifferentiableBound

__all__ = ["BoundMethod", "DifferentiableBound"]
