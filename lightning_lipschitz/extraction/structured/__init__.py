"""nn.Module -> structured graph, for models whose explicit matrices do not fit.

The same trace as for the explicit route, walked with a registry of its own:

    value, builder      which entry of which node lies where; the graph as it grows
    registry, rules_*   the rules: an operator makes a node, or moves data
    fold                normalisations into the convolution before them
    walk, extraction    the walk over the trace, and a graph that can be run
    extractor           the public classes
"""

from lightning_lipschitz.extraction.structured import (  # noqa: F401 - they register the rules
    rules_bounded,
    rules_convolution,
    rules_group,
    rules_linear,
    rules_movement,
    rules_resampling,
    rules_units,
)
from lightning_lipschitz.extraction.structured.extractor import RoutedExtractor, StructuredExtractor

__all__ = ["RoutedExtractor", "StructuredExtractor"]
