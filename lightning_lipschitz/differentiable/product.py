"""ProductForm: the composed bound of a model as a differentiable number, by power iteration through its operators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_lipschitz.differentiable.batch_statistics import BatchStatistics
from lightning_lipschitz.differentiable.calls import Values
from lightning_lipschitz.differentiable.cuts import Cut, cut
from lightning_lipschitz.differentiable.distances import distances
from lightning_lipschitz.differentiable.live import Live
from lightning_lipschitz.differentiable.pieces import Piece, Source
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.extraction import GraphExtractor
from lightning_lipschitz.extraction.undisturbed import unwrapped

LARGEST_PAIRS = 1000  # outputs: their pairs take outputs^2 times the width of the last layer
_SEED = 0

Place = TypeVar("Place")


class ProductForm:
    r"""The product of the norms of a model's affine pieces and of the constants of its units, sums where paths meet.

    The traced model is cut at the operators that bring units, and where an affine value goes on to several pieces, so
    that convolution, batch norm, pooling and matrix between two activations are one operator with one norm. No matrix
    is formed: every piece keeps a unit vector for each of its sources and moves it by one step of power iteration an
    evaluation. Each norm is approached from below and lags one step behind the weights, so the number is near a bound
    and proves nothing. It can be differentiated once.

    Args:
        model: of one input and one output; its parameters are looked up at every call, its structure must stay.
        example_input: only its shape counts.
        iterations: steps of power iteration in the first evaluation; later ones take one each.
        batch_statistics: whether a batch norm in training mode counts with the variance of its last batch, through
            which the gradient flows, until a backward pass has used it up; else it counts with its running variance.

    Raises:
        ArgumentError: the model has no parameters, or its output does not depend on its input.
        ExtractionError, UnsupportedModuleError: as :class:`~lightning_lipschitz.extraction.Reader`.

    Example:
        >>> form = ProductForm(torch.nn.Linear(2, 2, bias=False), torch.zeros(1, 2))
        >>> form.whole().requires_grad, form.pairs().shape
        (True, torch.Size([2, 2]))
    """

    def __init__(
        self, model: nn.Module, example_input: Tensor, *, iterations: int = 20, batch_statistics: bool = True
    ) -> None:
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ArgumentError("iterations", iterations, "a positive integer")
        self._model = unwrapped(model)
        if not any(each.is_floating_point() for each in self._model.parameters()):
            raise ArgumentError("model", type(model).__name__, "a module with parameters")
        self._example = example_input.new_zeros(()).expand(example_input.shape)
        self._iterations, self._wants_statistics = iterations, batch_statistics
        self._vectors: dict[int, list[Tensor]] = {}  # by the number of the stage
        self._lengths: dict[int, list[Tensor]] = {}  # of the last evaluation, looked at in the next one
        self._generator = torch.Generator().manual_seed(_SEED)
        self._built: tuple[Cut, Live, BatchStatistics | None] | None = None
        self._build()

    def whole(self) -> Tensor:
        """The bound of the map to all outputs: a scalar with a graph, of the parameters' dtype or float32."""
        cut = self._build()[0]
        with self._values() as values:
            return self._bounds(values, len(cut.stages))[cut.output]

    def pairs(self) -> Tensor:
        """K_ij of ``f_i - f_j``, shape (outputs, outputs): sum of L_j |row_i - row_j| over the last piece's sources.

        Where the model ends in units, as a softmax does, every pair has sqrt(2) times the bound of the whole.

        Raises:
            ArgumentError: there are more than 1000 outputs.
        """
        cut = self._build()[0]
        if cut.outputs > LARGEST_PAIRS:
            accepted = f"at most {LARGEST_PAIRS}: pairs of outputs are for classifiers"
            raise ArgumentError("outputs", cut.outputs, accepted)
        last = cut.stages[-1] if cut.stages else None
        with self._values() as values:
            if not (isinstance(last, Piece) and last.end is cut.output):
                whole = self._bounds(values, len(cut.stages))[cut.output]
                return math.sqrt(2.0) * whole * (1.0 - torch.eye(cut.outputs, dtype=whole.dtype, device=whole.device))
            bounds = self._bounds(values, len(cut.stages) - 1)
            given = [bounds[source.node] for source in last.sources]
            rows = last.rows(values, given[0], cut.outputs)
            return torch.stack([L * distances(each) for L, each in zip(given, rows, strict=True)]).sum(0)

    def step(self) -> None:
        """Forget the batch whose statistics were used; the power vectors move with every evaluation."""
        statistics = self._build()[2]
        if statistics is not None:
            statistics.clear()

    def multipliers(self) -> None:
        """None: the product has none."""
        return None

    def close(self) -> None:
        """Take the hooks off the model's batch norms; from then on they count with their running variances."""
        statistics = self._build()[2]
        if statistics is not None:
            statistics.close()

    def state_dict(self) -> dict[str, Any]:
        """The power vectors by number of the piece and of its source, on the CPU; none that has died."""
        self._revive()
        return {
            f"{number}.{k}": vector.detach().cpu().clone()
            for number, vectors in self._vectors.items()
            for k, vector in enumerate(vectors)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ArgumentError: the vectors are those of another model.
        """
        loaded: dict[int, list[Tensor]] = {}
        pieces = {k: each for k, each in enumerate(self._build()[0].stages) if isinstance(each, Piece)}
        for number, piece in pieces.items():
            vectors = [state.get(f"{number}.{k}") for k in range(len(piece.sources))]
            if all(each is None for each in vectors):
                continue
            shapes = [tuple(each.shape) if isinstance(each, Tensor) else None for each in vectors]
            if shapes != [source.shape for source in piece.sources]:
                raise ArgumentError("state", shapes, "power vectors of this model")
            loaded[number] = [each.clone() for each in vectors if each is not None]
        if sum(map(len, loaded.values())) != len(state):
            raise ArgumentError("state", sorted(state), "power vectors of this model")
        self._vectors, self._lengths = loaded, {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the trace and the hooks; a copy makes its own when it is used."""
        self._revive()
        return self.__dict__ | {"_built": None, "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(state["_generator"])

    def _build(self) -> tuple[Cut, Live, BatchStatistics | None]:
        if self._built is None:
            steps = GraphExtractor(self._model, self._example, at_once=False).walked()
            made = cut(steps)
            live = Live(self._model, steps.trace, made)
            self._built = made, live, BatchStatistics(self._model) if self._wants_statistics else None
        return self._built

    @contextmanager
    def _values(self) -> Iterator[Values]:
        """The values of the known nodes, outside of autocast and of inference mode."""
        _, live, statistics = self._build()
        graph = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        device = live.device()
        with torch.inference_mode(False), torch.set_grad_enabled(graph), torch.autocast(device.type, enabled=False):
            yield live.values({} if statistics is None else statistics.variances())

    def _bounds(self, values: Values, stages: int) -> dict[Node, Tensor]:
        """The bounds of the results of the first stages."""
        cut, live, _ = self._build()
        self._revive()
        bounds = {cut.inputs: live.one(values)}
        for number, stage in enumerate(cut.stages[:stages]):
            if isinstance(stage, Piece):
                bounds[stage.end] = self._norm(number, stage, values, [bounds[each.node] for each in stage.sources])
            else:
                given = stage([bounds[each] for each in stage.arguments], values)
                bounds.update(zip(stage.results, given, strict=True))
        return bounds

    def _norm(self, number: int, piece: Piece, values: Values, bounds: list[Tensor]) -> Tensor:
        """The bound of what a piece gives, and its vectors moved on: by many steps when they are new."""
        vectors = self._vectors.get(number)
        if vectors is None:
            vectors = [self._drawn(source, bounds[0]) for source in piece.sources]
            for _ in range(self._iterations - 1):
                step = piece.measure(values, bounds, vectors, graph=False)
                vectors = step.vectors
                for k in _dead(range(len(vectors)), step.lengths):
                    vectors[k] = self._drawn(piece.sources[k], bounds[0])
        vectors = [each.to(bounds[0]) for each in vectors]
        step = piece.measure(values, bounds, vectors, graph=torch.is_grad_enabled())
        self._vectors[number], self._lengths[number] = step.vectors, step.lengths
        return step.value

    def _revive(self) -> None:
        """Draw the vectors anew that died in the last evaluation: what it left is known by now, and nothing waits."""
        places = [(number, k) for number, lengths in self._lengths.items() for k in range(len(lengths))]
        for number, k in _dead(places, [length for lengths in self._lengths.values() for length in lengths]):
            piece, vectors = self._build()[0].stages[number], self._vectors[number]
            if isinstance(piece, Piece):
                vectors[k] = self._drawn(piece.sources[k], vectors[k])
        self._lengths.clear()

    def _drawn(self, source: Source, like: Tensor) -> Tensor:
        """A random unit vector of the first sample."""
        random = torch.randn(source.shape, generator=self._generator, dtype=torch.float64) * source.mask
        length: Tensor = torch.linalg.vector_norm(random)
        return (random / length).to(like)


def _dead(places: Iterable[Place], lengths: Sequence[Tensor]) -> list[Place]:
    """The places of vectors that had no length to divide by, or one that is not finite."""
    found = torch.stack(list(lengths)).cpu().tolist() if lengths else []
    tiny = torch.finfo(torch.float32).tiny
    return [place for place, length in zip(places, found, strict=True) if not tiny < length < math.inf]
