"""Rules for recurrent layers, written out over the steps of the example input.

A hidden state is a product of a gate in [0, 1] and of what is bounded after a number of steps, so that the constant is
finite: the cell of an LSTM grows by at most one a step, the state of a GRU lies between its last state and [-1, 1]. It
is the constant for sequences of this length, from the initial state that the model uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from lightning_lipschitz.extraction.intervals import interval
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.activation import activation
from lightning_lipschitz.extraction.rules.linear import add, linear, mul, sub
from lightning_lipschitz.extraction.rules.movement import cat, lifted, stack
from lightning_lipschitz.extraction.value import Value

State: TypeAlias = tuple[Value, ...]
#: Of what the gates get from the input, what they get from the last output, and the last state.
Step: TypeAlias = Callable[[Context, Value, Value, State], State]


def _parts(x: Value, count: int) -> list[Value]:
    return [x.moved(each) for each in x.index.chunk(count, dim=-1)]


def lstm_step(context: Context, given: Value, last: Value, state: State) -> State:
    """``c' = f c + i g``, ``h' = o tanh(c')`` (Hochreiter and Schmidhuber 1997, with the forget gate of Gers 2000)."""
    i, f, g, o = _parts(add(context, given, last), 4)
    i, f, o = (activation(context, "sigmoid", gate) for gate in (i, f, o))
    cell = add(context, mul(context, f, state[1]), mul(context, i, activation(context, "tanh", g)))
    return mul(context, o, activation(context, "tanh", cell)), cell


def gru_step(context: Context, given: Value, last: Value, state: State) -> State:
    """``h' = (1 - z) n + z h`` (Cho et al. 2014): between n and h."""
    (r, z, n), (last_r, last_z, last_n) = _parts(given, 3), _parts(last, 3)
    r, z = (activation(context, "sigmoid", add(context, *both)) for both in ((r, last_r), (z, last_z)))
    n = activation(context, "tanh", add(context, n, mul(context, r, last_n)))
    made = add(context, mul(context, sub(context, 1.0, z), n), mul(context, z, state[0]))
    builder = context.builder
    (low, high), (least, most) = (interval(builder, each.node) for each in (made, state[0]))
    builder.intervals[made.node] = np.maximum(low, min(-1.0, least.min())), np.minimum(high, max(1.0, most.max()))
    return (made,)


def _plain_step(operator: str) -> Step:
    def step(context: Context, given: Value, last: Value, state: State) -> State:
        return (activation(context, operator, add(context, given, last)),)

    return step


_STEPS: dict[str, Step] = {
    "rnn_tanh": _plain_step("tanh"),
    "rnn_relu": _plain_step("relu"),
    "gru": gru_step,
    "lstm": lstm_step,
}


def _direction(
    context: Context, step: Step, x: Value, state: State, parameters: Sequence[Any], backwards: bool
) -> tuple[Value, State]:
    """The outputs of one layer in one direction, shape (batch, steps, units), and the last state."""
    w_input, w_state, *biases = parameters
    b_input, b_state = biases or (None, None)
    given = linear(context, x, w_input, b_input)
    outputs = []
    steps = range(x.shape[1])
    for t in reversed(steps) if backwards else steps:
        now = given.moved(given.index.select(1, t))
        state = step(context, now, linear(context, state[0], w_state, b_state), state)
        outputs.append(state[0])
    return stack(context, outputs[::-1] if backwards else outputs, 1), state


def _started(context: Context, initial: Any, like: Value) -> Value:
    return initial if isinstance(initial, Value) else lifted(context, initial, like)


def _several(initial: Any) -> list[Any]:
    return list(initial) if isinstance(initial, (list, tuple)) else [initial]


def _of_layer(initial: Any, number: int) -> Any:
    return initial.moved(initial.index[number]) if isinstance(initial, Value) else initial[number]


def _layers(
    context: Context, step: Step, x: Value, initial: Any, weights: Sequence[Sequence[Any]], directions: int
) -> tuple[Value, list[State]]:
    """The outputs of the last layer, shape (batch, steps, directions * units), and the last states of all.

    Args:
        context: where they stand.
        step: of their kind.
        x: shape (batch, steps, inputs).
        initial: the first states, shape (layers * directions, batch, units) each.
        weights: one a layer and direction.
        directions: one, or two.
    """
    ends = []
    for first in range(0, len(weights), directions):
        like, outputs = x.moved(x.index[:, 0]), []
        for number in range(first, first + directions):
            state = tuple(_started(context, _of_layer(each, number), like) for each in _several(initial))
            made, end = _direction(context, step, x, state, weights[number], backwards=number > first)
            outputs.append(made)
            ends.append(end)
        x = cat(context, outputs, 2)
    return x, ends


def _register(operator: str, step: Step) -> None:
    @rule(operator)
    def recurrent(
        context: Context,
        x: Any,
        initial: Any,
        parameters: Any,
        has_biases: Any,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: Any = None,
    ) -> tuple[Value, ...]:
        """All steps of all layers: outputs, last states."""
        if batch_first is None or not isinstance(x, Value):
            raise context.unsupported("not yet", "Packed sequences have no rule; give a tensor of sequences.")
        if train and dropout:
            raise context.unsupported("replace", "Its dropout draws random numbers in training mode: call eval().")
        each, directions = (4 if has_biases else 2), (2 if bidirectional else 1)
        if len(parameters) != each * directions * num_layers:
            raise context.unsupported("not yet", "A projection of the hidden state (proj_size) has no rule.")
        weights = [parameters[start : start + each] for start in range(0, len(parameters), each)]
        given = x if batch_first else x.moved(x.index.transpose(0, 1))
        made, ends = _layers(context, step, given, initial, weights, directions)
        last = tuple(stack(context, list(states), 0) for states in zip(*ends, strict=True))
        return (made if batch_first else made.moved(made.index.transpose(0, 1)), *last)

    @rule(f"{operator}_cell")
    def cell(
        context: Context, x: Any, initial: Any, w_input: Any, w_state: Any, b_input: Any = None, b_state: Any = None
    ) -> Any:
        """One step."""
        given = [x, *_several(initial)]
        like = next(each for each in given if isinstance(each, Value))
        x, *state = (_started(context, each, like) for each in given)
        last = linear(context, state[0], w_state, b_state)
        made = step(context, linear(context, x, w_input, b_input), last, tuple(state))
        return made if len(made) > 1 else made[0]


for _operator, _step in _STEPS.items():
    _register(_operator, _step)
