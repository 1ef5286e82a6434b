"""One function an operator, registered on import; see ``registry`` for how to add one."""

from lightning_lipschitz.extraction.rules import (  # noqa: F401 - they register the rules
    activation,
    bounded,
    convolution,
    interpolation,
    linear,
    movement,
    normalisation,
    pooling,
    recurrent,
    scatter,
    vectors,
)
