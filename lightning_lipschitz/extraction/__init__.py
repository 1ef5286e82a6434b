"""nn.Module -> Graph, and the explicit matrices of it where they fit.

The files of this folder, each knowing only those before it:

    part, undisturbed, state            one of several inputs and outputs; a model left as it was found
    patterns, trace                     torch.export, and activations put back together
    value, builder, registry            which entry of which node lies where; the graph as it grows; the rules' context
    slopes, functions, refusals         the table of activations; why an operator has no rule
    rules/                              the rules: an operator adds nodes, or moves data
    fold, reading                       scalings into the maps before them; a graph or a network that can be run
    walk, linearised, check, extractor  the walk over the trace, its derivative, its proof by example, and the classes
"""

from lightning_lipschitz.extraction.extractor import (
    Extractor,
    GraphExtractor,
    Reader,
    RoutedExtractor,
    extract,
    reader_for,
)
from lightning_lipschitz.extraction.part import Input, Output, input_of, part, submodule

__all__ = [
    "Extractor",
    "GraphExtractor",
    "Input",
    "Output",
    "Reader",
    "RoutedExtractor",
    "extract",
    "input_of",
    "part",
    "reader_for",
    "submodule",
]
