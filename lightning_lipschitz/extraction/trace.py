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

from lightning_lipschitz.errors import ArgumentError, ExtractionError, LipschitzError, UnsupportedModuleError
from lightning_lipschitz.extraction.location import display_name, path
from lightning_lipschitz.extraction.patterns import fuse, operator_name
from lightning_lipschitz.extraction.refusals import refusal
from lightning_lipschitz.extraction.undisturbed import clean, name_of, quiet_export, refuse_script, undisturbed


@dataclass(frozen=True, eq=False)
class Graph:
    """What one tracing leaves.

    Args:
        nodes: in order of execution; the last one is the output.
        inputs: name of the placeholder of the model's input.
        tensors: placeholder -> dotted name of the parameter, buffer or tensor attribute.
        constants: tensors that exist only in the graph, by placeholder.
        batch: the number of samples to walk the graph with; 2 wherever the graph holds for any number.
        shape: of the input, without the batch.
        dtype: of the input: what the model itself computes in.
        registered: the placeholders that are parameters or buffers.
    """

    nodes: tuple[torch.fx.Node, ...]
    inputs: str
    tensors: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    batch: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    registered: frozenset[str]


def example(model: torch.nn.Module, given: object) -> torch.Tensor:
    """What to trace with: zeros of the given shape, at least two samples, on the model's device and in its dtype.

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
    like = next((p for p in model.parameters() if p.is_floating_point()), given)
    return torch.zeros(max(2, len(given)), *given.shape[1:], dtype=like.dtype, device=like.device)


def trace(model: torch.nn.Module, given: Any) -> Graph:
    """Trace once.

    Raises:
        ExtractionError: it cannot be traced; the sentence says where and what to do.
        ArgumentError: the example input.
    """
    _refuse_untraceable(model)
    x = example(model, given)
    with undisturbed(model), quiet_export():
        try:
            exported = torch.export.export(model, (x,), dynamic_shapes=_any_batch(model), strict=False)
            if any(_is_stateful(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})  # thrice the time of the export itself
        except LipschitzError:
            raise
        except Exception as error:
            raise _not_run(model, x) or _explained(model, error) from error
        return _graph(model, exported, x)


def _refuse_untraceable(model: torch.nn.Module) -> None:
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


def _not_run(model: torch.nn.Module, x: torch.Tensor) -> ExtractionError | None:
    """What the model itself says of such an input, if it refuses it without any tracing."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model(x)
    except Exception as error:
        told = str(error).strip().partition("\n")[0]
        reason = f"it does not run on zeros of shape {tuple(x.shape)}: {type(error).__name__}: {told}{_where(error)}."
        advice = "Give an example input that its forward takes; of several inputs a tuple, and name one with `input=`."
        return ExtractionError(name_of(model), reason, advice)
    return None


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
    return ExtractionError(name_of(model), f"{reason}{_where(error)}.", advice)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if "/torch/" not in f.filename and "lightning_lipschitz" not in f.filename]
    return f" (at {users[-1].filename}:{users[-1].lineno}: `{users[-1].line}`)" if users else ""


def _refuse_unread(exported: ExportedProgram) -> None:
    """What has no rule for any input or output, before a user is asked to name one."""
    for node in exported.graph.nodes:
        known = refusal(operator_name(node.target)) if node.op == "call_function" else None
        if known is not None and known[0] == "not yet":
            raise UnsupportedModuleError(path(node), display_name(node), *known)


def _graph(model: torch.nn.Module, exported: ExportedProgram, x: torch.Tensor) -> Graph:
    name = name_of(model)
    signature = exported.graph_signature
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    specs = dict(zip(placeholders, signature.input_specs, strict=True))
    users = [node for node, spec in specs.items() if spec.kind is InputKind.USER_INPUT]
    outputs = [spec for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    if len(users) != 1 or len(outputs) != 1 or not exported.call_spec.out_spec.is_leaf():
        _refuse_unread(exported)
        raise ExtractionError(
            name,
            f"it returns {exported.call_spec.out_spec.num_leaves} tensors in a container: several outputs, "
            "and a bound is for one of them.",
            "Name one with `output=` (position, name or a function of them), or output='all' for their joint norm.",
        )
    node, position = exported.graph.output_node(), signature.output_specs.index(outputs[0])
    node.args = (node.args[0][position],)
    fuse(exported.graph)
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
    size = users[0].meta["val"].shape[0]
    batch = size if isinstance(size, int) else 2
    nodes, shape = tuple(exported.graph.nodes), tuple(x.shape[1:])
    registered = frozenset(n.name for n, s in specs.items() if s.kind in (InputKind.PARAMETER, InputKind.BUFFER))
    return Graph(nodes, users[0].name, tensors, constants, batch, shape, x.dtype, registered)
