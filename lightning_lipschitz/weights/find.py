"""Which weights of a model are held to a bound: those of a chain, or of any graph that is read as explicit matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_lipschitz.errors import ModelSizeError, ProjectionError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.undisturbed import clean, name_of, unwrapped
from lightning_lipschitz.weights.chain import NotAChainError, chain_weights
from lightning_lipschitz.weights.graph import SMALLER, graph_weights
from lightning_lipschitz.weights.stored import StoredWeights


def stored_weights(
    model: nn.Module, example_input: Any = None, *, reader: Callable[[], Extractor] | None = None
) -> StoredWeights:
    """The weights of a model that can be held to a bound.

    Chains of ``nn.Linear`` have methods of their own, which are faster; all other models share one.

    Args:
        model: any module that :class:`~lightning_lipschitz.extraction.Extractor` reads.
        example_input: as there.
        reader: makes the extractor, if there is one already.

    Raises:
        ProjectionError: a layer that cannot be held to a bound, or a model that is too large; names the submodule.
        LipschitzError: as the extractor.
    """
    model = unwrapped(model)
    try:
        extractor = reader() if reader else Extractor(model, example_input)
    except ModelSizeError as error:
        reason = f"explicit matrices would be needed, and {error.what} take {error.size / 2**30:.3g} GiB: not yet."
        raise ProjectionError("", name_of(model), reason, SMALLER) from error
    try:
        try:
            return chain_weights(model, example_input, extractor=extractor)
        except NotAChainError:
            return graph_weights(model, example_input, extractor=extractor)
    except ProjectionError as error:
        raise ProjectionError(clean(error.path), error.layer, error.reason, error.advice) from error
