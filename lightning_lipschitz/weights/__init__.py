"""Parameters of a model <-> its network: what is held to a bound, how it enters, how it is written back."""

from lightning_lipschitz.weights.chain import NotAChainError, chain_weights
from lightning_lipschitz.weights.find import stored_weights
from lightning_lipschitz.weights.graph import graph_weights
from lightning_lipschitz.weights.stored import Store, StoredWeights

__all__ = ["NotAChainError", "Store", "StoredWeights", "chain_weights", "graph_weights", "stored_weights"]
