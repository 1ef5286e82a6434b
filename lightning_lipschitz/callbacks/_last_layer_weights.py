"""A submodule that is held to a bound by its last affine layer alone; of any size, and with any layers before that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from lightning_lipschitz._lightning import LightningModule
from lightning_lipschitz.callbacks._held_weights import HeldWeights
from lightning_lipschitz.training import LastLayer, last_layer


class LastLayerWeights(HeldWeights):
    """The weights of one submodule, of which the last affine layer is written. Arguments as for :class:`.HeldWeights`.

    Raises, where it is traced:
        ProjectionError: the submodule does not end in an affine layer.
        LipschitzError: it cannot be read.
    """

    method = "auto"
    _layer: LastLayer | None = None

    def _find(self, model: LightningModule, chosen: nn.Module, example: Any) -> Sequence[str]:
        self.submodule.reader(model).refresh()  # what cannot be certified at all is refused as that
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
