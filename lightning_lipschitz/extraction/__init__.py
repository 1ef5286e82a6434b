"""nn.Module -> Network: trace, fold what is constant, compose what is affine, keep the units.

Layers of this folder, each knowing only those before it:

    coefficients, expression, traced    affine maps with their rounding, for one sample, for a batch
    registry, slopes, refusals          which operator has which rule, which slopes, or why none
    rules_*                             the rules
    size                                how much memory explicit matrices may take
    part                                a submodule, one of several inputs, one of several outputs
    patterns, trace                     torch.export, and activations put back together
    interpret, check, extractor         the walk over the graph, its proof by example, and the public class
"""

from lightning_lipschitz.extraction import (  # noqa: F401 - they register the rules
    rules_activation,
    rules_arithmetic,
    rules_convolution,
    rules_group,
    rules_interpolation,
    rules_matrix,
    rules_normalisation,
    rules_pooling,
    rules_shape,
)
from lightning_lipschitz.extraction.extractor import Extractor, extract
from lightning_lipschitz.extraction.part import Input, Output, input_of, part, submodule

__all__ = ["Extractor", "Input", "Output", "extract", "input_of", "part", "submodule"]
