"""The report of a checkpoint: from the file alone, or with the model's class and labelled data."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_lipschitz import api
from lightning_lipschitz._lightning import LightningModule, MisconfigurationException
from lightning_lipschitz.certificate import Certificate, Composition
from lightning_lipschitz.checkpoint_files import certificates_of, prove_checkpoint, read_checkpoint
from lightning_lipschitz.errors import ArgumentError, WeightFileError
from lightning_lipschitz.extraction import Extractor, GraphExtractor, input_of, part
from lightning_lipschitz.extraction.reading import ReadNetwork
from lightning_lipschitz.lightning_tools.submodule import Choice, find_target
from lightning_lipschitz.report import (
    PredictionLog,
    Predictions,
    Subject,
    gather,
    predict,
    readable,
    require_libraries,
    write_page,
)

_FIRST = 64  # inputs from which slopes are searched


def report_checkpoint(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] = "report.html",
    *,
    model: type[LightningModule] | str | None = None,
    data: Any = None,
    key: str | None = None,
    module: str | None = None,
    pairs: bool | None = None,
    slopes: tuple[float, float] = (0.0, 1.0),
    time_limit: float | None = 60.0,
) -> Path:
    """Write the report of a certificate in a checkpoint, after proving it again.

    Of the file alone, for chains of linear layers: the bound, its history, what each layer costs, the certificate. With
    the class also other models, and with data lower bounds of the parts, certified accuracy and the pairs of classes.

    Args:
        path: a Lightning checkpoint that was written under one of the callbacks.
        output: file for the page.
        model: the LightningModule's class, or "package.module:Class"; its ``load_from_checkpoint`` is called.
        data: batches ``(x, y)`` of inputs of the certified module and class numbers; a LightningDataModule with a
            ``val_dataloader``; a function or class that makes one of them; or "package.module:name" of any of these.
        key: name of the certificate in the checkpoint; by default "lipschitz", or the first one.
        module: dotted name of the submodule that the certificate speaks about, for files that do not say it.
        pairs: whether to bound all differences of two outputs, with a search for each; None for one search for all,
            where there are data and it is cheap.
        slopes: (alpha, beta) of the activations, where there is no ``model``.
        time_limit: seconds for the searches that only the report needs.

    Returns:
        Where the page is.

    Raises:
        FileNotFoundError, WeightFileError: as :func:`~lightning_lipschitz.checkpoint_files.prove_checkpoint`.
        CertificateError: there is no certificate, or it does not hold of what is in the file.
        ArgumentError: an argument that cannot be used.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_libraries()
    if time_limit is not None and not 0 < time_limit < math.inf:
        raise ArgumentError("time_limit", time_limit, "a number of seconds > 0, or None")
    checkpoint = read_checkpoint(path)
    certificates = certificates_of(checkpoint, path)
    chosen = _chosen(key, certificates)
    state = _state(checkpoint, chosen, certificates[chosen])
    if model is None:
        subject = _from_file(path, chosen, slopes, data)
    else:
        state = state if module is None else replace(state, choice=replace(state.choice, module=module))
        subject = _from_model(path, certificates[chosen], state, _named("model", model), data)
    why_not = subject.why_not if state.history else {**subject.why_not, "training": _no_history(state)}
    subject = replace(
        subject,
        key=chosen,
        source=f"Read from {_name(path)} and proved again{subject.source}",
        checkpoint=_name(path),
        history=state.history,
        unreadable=state.unreadable,
        pairs=pairs,
        why_not=why_not,
    )
    return write_page(gather(subject, time_limit=time_limit), output)


def _name(path: str | os.PathLike[str]) -> str:
    """The file's name as it can be printed: the bytes of a name need not be letters."""
    return os.fsencode(Path(path).name).decode("utf-8", "replace")


def _no_history(state: _CallbackState) -> str:
    if state.unreadable:
        return f"The measurements in the checkpoint cannot be read and are left out: {state.unreadable}."
    return "The checkpoint holds no measurements: it was written before the first one, or with save_weights_only=True."


def _chosen(key: str | None, certificates: Mapping[str, Certificate]) -> str:
    if key is None:
        return "lipschitz" if "lipschitz" in certificates else next(iter(certificates))
    if key not in certificates:
        raise ArgumentError("key", key, f"one of {', '.join(map(repr, certificates))}")
    return key


@dataclass(frozen=True)
class _CallbackState:
    """State of one callback in a checkpoint: the kind of certificates that it writes, its submodule and its history."""

    kind: str
    choice: Choice
    history: Sequence[Mapping[str, Any]]
    unreadable: int = 0
    held: Any = None

    def wrote(self, key: str) -> bool:
        """Whether the certificate may be its own: the first instance of a kind has the plain key."""
        return self.kind == key or f"{self.kind}/{self.choice.label}" == key


def _states(checkpoint: Mapping[str, Any]) -> Iterator[_CallbackState]:
    states = checkpoint.get("callbacks", {})
    for name, state in states.items() if isinstance(states, Mapping) else ():
        if isinstance(name, str) and isinstance(state, Mapping) and isinstance(state.get("history"), list):
            records = readable(state["history"])
            unreadable = len(state["history"]) - len(records)
            kind = _KINDS.get(name.partition("{")[0], "")
            yield _CallbackState(kind, _choice_of(name), records, unreadable, state.get("held"))


def _state(checkpoint: Mapping[str, Any], key: str, certificate: Certificate) -> _CallbackState:
    """State of the callback that wrote the certificate: whose last bound it is, or the only one of its kind."""
    states = list(_states(checkpoint))
    last = [
        state for state in states if state.history and state.history[-1].get("upper_bound") == certificate.upper_bound
    ]
    kind = [state for state in states if state.wrote(key)]
    found = [state for state in last if state in kind] or last or (kind if len(kind) == 1 else [])
    return found[0] if found else _CallbackState("", Choice(key.partition("/")[2]), ())


_KINDS = {
    "LipschitzCallback": "lipschitz",
    "LipschitzADMM": "admm",
    "LipschitzBarrier": "barrier",
    "LipschitzScale": "scale",
}


def _choice_of(state_key: str) -> Choice:
    """Lightning writes a callback's arguments behind its name: ``LipschitzCallback{'module': 'net'}``."""
    try:
        found = ast.literal_eval(state_key[state_key.index("{") :])
        return Choice(str(found["module"]), found.get("input"), found.get("output")).check("the checkpoint")
    except (
        ValueError,
        SyntaxError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
    ):  # a name of somebody else's
        return Choice()


def _from_file(path: str | os.PathLike[str], key: str, slopes: tuple[float, float], data: Any) -> Subject:
    if data is not None:
        raise ArgumentError("data", data, "given together with `model`: weights alone make no predictions")
    proved = prove_checkpoint(path, slopes, key)[0]
    why_not = {"curve": "The weights alone make no predictions: it takes the model's class and labelled data."}
    of = f" of {proved.described(slopes)}"
    return Subject(proved.certificate, proved.network, module=proved.module, source=of, why_not=why_not)


def _from_model(
    path: str | os.PathLike[str], certificate: Certificate, state: _CallbackState, made: Any, data: Any
) -> Subject:
    whole, module = _loaded(path, made), state.choice.module
    target = _target(whole, module)
    batches = None if data is None else _batches(_named("data", data))
    first = None if batches is None else _pair(next(batches, None))
    given = state.held if state.held is not None else _example(whole, module) if first is None else first[0][:_FIRST]
    target, example = part(target, given, state.choice.input, state.choice.output)
    example = example if first is None else first[0][:_FIRST]
    reader = GraphExtractor if isinstance(certificate.proof, Composition) else Extractor
    extraction: Any = reader(target, example, name=module).extract()
    api.verify(certificate, extraction.network)
    subject = Subject(certificate, extraction.network, module=module, model=type(whole).__name__)
    if first is None or batches is None:
        return replace(subject, why_not={"curve": "No labelled data were given."})
    return replace(
        subject,
        extraction=extraction if isinstance(extraction, ReadNetwork) else None,
        inputs=example.flatten(1),
        lower_bound=api.lower_bound(target, example).value,
        predictions=_predictions(target, chain([first], batches), certificate),
    )


def _target(whole: nn.Module, module: str) -> nn.Module:
    try:
        return find_target(whole, module, "report")
    except MisconfigurationException as error:
        raise ArgumentError("module", module, f"the part that the certificate is of ({error})") from error


def _loaded(path: str | os.PathLike[str], made: Any) -> nn.Module:
    if not (isinstance(made, type) and issubclass(made, nn.Module) and hasattr(made, "load_from_checkpoint")):
        raise ArgumentError("model", made, "the class of a LightningModule")
    known = inspect.signature(made.load_from_checkpoint).parameters
    safe = {"weights_only": True} if "weights_only" in known else {}  # since Lightning 2.6
    try:
        model: nn.Module = made.load_from_checkpoint(path, map_location="cpu", **safe)
    except Exception as error:  # the user's constructor runs here
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise WeightFileError(path, f"`{made.__name__}.load_from_checkpoint` cannot read it. {told}") from error
    return model


def _named(argument: str, value: Any) -> Any:
    """What "package.module:name" stands for; the folder one works in is searched too. Anything else is itself.

    Raises:
        ArgumentError: there is no such thing.
    """
    if not isinstance(value, str):
        return value
    package, _, name = value.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError, ValueError) as error:
        accepted = f'"package.module:name" of something that can be imported ({error})'
        raise ArgumentError(argument, value, accepted) from error
    finally:
        sys.path.remove(os.getcwd())


def _batches(data: Any) -> Iterator[Any]:
    made = data() if callable(data) else data
    if hasattr(made, "val_dataloader"):
        made.prepare_data()
        made.setup("validate")
        made = made.val_dataloader()
    if not isinstance(made, Iterable):
        raise ArgumentError("data", type(made).__name__, "batches (x, y), a LightningDataModule, or what makes them")
    return iter(made)


def _example(whole: nn.Module, module: str) -> Any:
    given = getattr(whole, "example_input_array", None)
    if given is None:
        raise ArgumentError("data", None, "given, because the model has no `example_input_array`")
    return input_of(whole, module, given) if module else given


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise ArgumentError("data", type(batch).__name__, "batches (x, y) of two tensors")


def _predictions(target: nn.Module, batches: Iterable[Any], certificate: Certificate) -> Predictions | None:
    log = PredictionLog()
    for batch in batches:
        x, y = _pair(batch)
        try:
            log.add(predict(target, x), y)
        except TypeError as error:
            raise ArgumentError("data", "a model of which", f"left out: {error}") from error
        if log.full:
            break
    return log.predictions("inputs", certificate.network_digest)
