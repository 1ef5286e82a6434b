"""A submodule that is held to a bound by its last affine layer alone; of any size, and with any layers before that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from lightning_lipschitz._lightning import LightningModule
from lightning_lipschitz.callbacks._held_weights import HeldWeights
from lightning_lipschitz.extraction import GraphExtractor
from lightning_lipschitz.graph import Convolution
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training import LastLayer, last_layer

_SEARCHED = 1000  # units of a convolutional network whose explicit matrices are optimised over, for every file


def _has_convolutions(module: nn.Module, example: Any) -> bool:
    return any(isinstance(node, Convolution) for node in GraphExtractor(module, example).network().nodes)


class LastLayerWeights(HeldWeights):
    """The weights of one submodule, of which the last affine layer is written. Arguments as for :class:`.HeldWeights`.

    Raises, where it is traced:
        ProjectionError: the submodule does not end in an affine layer.
        LipschitzError: it cannot be read.
    """

    method = "auto"
    _layer: LastLayer | None = None

    def _find(self, model: LightningModule, chosen: nn.Module, example: Any) -> Sequence[str]:
        network = self.submodule.network(model)  # what cannot be certified at all is refused as that
        if isinstance(network, Network) and network.num_units > _SEARCHED and _has_convolutions(chosen, example):
            self.submodule.read_as("composed")  # in seconds what takes minutes on the explicit matrices
        self._layer = last_layer(chosen, example)
        return self._layer.names

    @property
    def layer(self) -> LastLayer:
        """The last affine layer.

        Raises:
            LipschitzError: nothing has been called yet, so nothing is known of the input.
        """
        self.reader  # noqa: B018 - raises then
        return cast(LastLayer, self._layer)
