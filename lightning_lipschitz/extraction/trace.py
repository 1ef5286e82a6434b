"""nn.Module -> a graph of ATen operators.

``torch.export`` (non-strict) runs the module's own Python on fake tensors. Its graph is functional, refers to
parameters and buffers by name, and keeps the number of samples symbolic.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from lightning_lipschitz.errors import ArgumentError, ExtractionError, LipschitzError
from lightning_lipschitz.extraction.execution import Execution, observe
from lightning_lipschitz.extraction.location import users_line
from lightning_lipschitz.extraction.patterns import fuse
from lightning_lipschitz.extraction.reads import Replay
from lightning_lipschitz.extraction.state import kept
from lightning_lipschitz.extraction.undisturbed import clean, computes_in, name_of, quiet_export, refuse_script


@dataclass(frozen=True, eq=False)
class Trace:
    """What one tracing leaves.

    Args:
        nodes: in order of execution; the last one is the output.
        inputs: name of the placeholder of the model's input.
        tensors: placeholder -> dotted name of the parameter, buffer or tensor attribute.
        constants: tensors that exist only in the graph, by placeholder.
        batch: the number of samples to walk the graph with: 2.
        fixed: whether Python took the number of samples for a number (``len(x)``), so that the graph is that of 2.
        shape: of the input, without the batch.
        dtype: of the input: what the model itself computes in.
        registered: the placeholders that are parameters or buffers.
        execution: of the model when it was traced.
    """

    nodes: tuple[torch.fx.Node, ...]
    inputs: str
    tensors: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    batch: int
    fixed: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    registered: frozenset[str]
    execution: Execution


def example(model: torch.nn.Module, given: object) -> torch.Tensor:
    """What to trace with: two samples of zeros of the given shape, on the model's device and in its dtype.

    Raises:
        ArgumentError: not one floating-point tensor with a batch dimension.
    """
    accepted = "a floating-point tensor whose first dimension is the batch"
    if given is None:
        raise ArgumentError("example_input", None, f"given, or be the model's `example_input_array`: {accepted}")
    if not isinstance(given, torch.Tensor):
        hint = " (`torch.from_numpy` makes one of an array)" if isinstance(given, np.ndarray) else ""
        raise ArgumentError("example_input", type(given).__name__, accepted + hint)
    if not given.is_floating_point():
        raise ArgumentError(
            "example_input", f"{given.dtype}", f"{accepted} (after an embedding, certify what follows it)"
        )
    if given.ndim < 2 or given.numel() == 0:
        hint = " (`example_input[None]` is a batch of one sample)" if given.ndim == 1 else ""
        raise ArgumentError("example_input", f"shape {tuple(given.shape)}", accepted + hint)
    like = computes_in(model, given)
    return torch.zeros(2, *given.shape[1:], dtype=like.dtype, device=like.device)


def trace(model: torch.nn.Module, given: Any, weights: Mapping[str, torch.Tensor]) -> Trace:
    """Trace once; the model must be :func:`~.undisturbed.undisturbed`.

    Args:
        model: to trace.
        given: its example input.
        weights: parameters and buffers by name: what its Python reads of them is part of the graph.

    Raises:
        ExtractionError: it cannot be traced; the sentence says where and what to do.
        ArgumentError: the example input.
    """
    x = example(model, given)
    execution = _observed(model, weights, x)
    replay = Replay(execution.reads)
    with kept(model), quiet_export():
        handle = model.register_forward_pre_hook(replay.rewind)
        try:
            with replay:
                exported = torch.export.export(model, (x,), dynamic_shapes=_any_batch(model), strict=False)
            fixed = _has_fixed_batch(model, exported)
            if any(_is_stateful(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})  # thrice the time of the export itself
        except LipschitzError:
            raise
        except Exception as error:
            raise _explained(model, error) from error
        finally:
            handle.remove()
        return _graph(model, exported, x, execution, fixed)


def probe(x: torch.Tensor) -> torch.Tensor:
    """Random numbers of the shape, dtype and device of an example."""
    random = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return random.to(x.device, x.dtype)


def _observed(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> Execution:
    """The model run on random numbers, or on zeros where it refuses those."""
    try:
        return observe(model, weights, probe(x))
    except LipschitzError:
        raise
    except Exception:
        pass
    try:
        return observe(model, weights, x)
    except Exception as error:
        raise _not_run(model, x, error) from error


def _not_run(model: torch.nn.Module, x: torch.Tensor, error: Exception) -> Exception:
    """What the model itself says of such an input."""
    if isinstance(error, LipschitzError):
        return error
    told = str(error).strip().partition("\n")[0]
    where = users_line(traceback.extract_tb(error.__traceback__))
    reason = f"it does not run on an input of shape {tuple(x.shape)}: {type(error).__name__}: {told}{where}."
    advice = "Give an example input that its forward takes; of several inputs a tuple, and name one with `input=`."
    if isinstance(model, torch.fx.GraphModule):
        advice = "An exported module may keep the batch size of its example: give the nn.Module that it was made from."
    return ExtractionError(name_of(model), reason, advice)


def _has_fixed_batch(model: torch.nn.Module, exported: ExportedProgram) -> bool:
    """Whether the graph is that of two samples alone, for Python took their number (``len(x)``).

    Raises:
        ExtractionError: it holds for some numbers of samples only.
    """
    conditions = [each for each in getattr(exported, "_guards_code", None) or () if ".size()" in each]
    if any(each.endswith(".size()[0] == 2") for each in conditions):
        return True
    if conditions:
        raise ExtractionError(
            name_of(model),
            f"what it computes depends on the number of samples ({conditions[0]}).",
            "The model must treat every sample on its own, however many there are.",
        )
    return False


def require_values(model: torch.nn.Module) -> None:
    """Refuse what has no Python to trace or no weights yet.

    Raises:
        ExtractionError: the model is TorchScript, lazy, or on the meta device.
    """
    refuse_script(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ExtractionError(f"`{name}`", "it has no values yet.", "Run the model once, or load its weights.")


def _any_batch(model: torch.nn.Module) -> Any:
    """The first dimension of the one argument is free; ``forward(self, *args)`` wants it one level deeper."""
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    free = ({0: Dim.AUTO},)
    return (free,) if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL else free


def _is_stateful(node: torch.fx.Node) -> bool:
    """Whether the graph has to be made functional: an operation in place, or a context such as autocast."""
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    return node.op not in ("placeholder", "output", "call_function") or isinstance(
        node.target, torch._ops.HigherOrderOperator
    )


def _explained(model: torch.nn.Module, error: Exception) -> ExtractionError:
    """The user's line, what went wrong there, and what to do."""
    name, message = type(error).__name__, str(error).strip()
    if "data-dependent" in message or "DataDependent" in name:
        reason = "its control flow or a Python number depends on the values of the input"
        advice = "Compute with tensors only: a branch on values has no single graph."
    else:
        reason = f"torch.export stopped with {name}: {message.splitlines()[0] if message else 'no message'}"
        advice = (
            "The forward must take one batched tensor and return one; certify a submodule if only a part of it does."
        )
    return ExtractionError(name_of(model), f"{reason}{users_line(traceback.extract_tb(error.__traceback__))}.", advice)


def _graph(
    model: torch.nn.Module, exported: ExportedProgram, x: torch.Tensor, execution: Execution, fixed: bool
) -> Trace:
    name = name_of(model)
    signature = exported.graph_signature
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    specs = dict(zip(placeholders, signature.input_specs, strict=True))
    users = [node for node, spec in specs.items() if spec.kind is InputKind.USER_INPUT]
    outputs = [spec for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    if len(users) != 1 or len(outputs) != 1 or not exported.call_spec.out_spec.is_leaf():
        count = exported.call_spec.out_spec.num_leaves
        raise ExtractionError(
            name,
            "it returns its one output in a container."
            if count == 1
            else f"it returns {count} tensors in a container: several outputs, and a bound is for one of them.",
            "Name one with `output=` (position, name or a function of them), or output='all' for their joint norm.",
        )
    node, position = exported.graph.output_node(), signature.output_specs.index(outputs[0])
    node.args = (node.args[0][position],)
    exported.graph.eliminate_dead_code()
    fuse(exported.graph, users[0])
    stateful = {n for n, s in specs.items() if s.target in signature.buffers_to_mutate.values() and n.users}
    if stateful:
        raise ExtractionError(
            name,
            f"its output depends on a buffer that its forward changes, `{clean(str(specs[stateful.pop()].target))}`.",
            "In evaluation mode the same input must give the same output.",
        )
    tensors = {
        n.name: spec.target for n, spec in specs.items() if spec.kind is not InputKind.USER_INPUT and spec.target
    }
    constants = {n: exported.constants[target] for n, target in tensors.items() if target in exported.constants}
    nodes, shape = tuple(exported.graph.nodes), tuple(x.shape[1:])
    registered = frozenset(n.name for n, s in specs.items() if s.kind in (InputKind.PARAMETER, InputKind.BUFFER))
    return Trace(nodes, users[0].name, tensors, constants, len(x), fixed, shape, x.dtype, registered, execution)
