"""Numbers near a Lipschitz bound as differentiable functions of the weights, for a loss. They prove nothing."""

from lightning_lipschitz.differentiable.bound import Form
from lightning_lipschitz.differentiable.product import ProductForm

__all__ = ["Form", "ProductForm"]
