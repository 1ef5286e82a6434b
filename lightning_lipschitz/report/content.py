"""What a report says, gathered from a certificate and whatever else is at hand. Knows no Trainer and no HTML."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar, cast

from torch import Tensor

from lightning_lipschitz.bounds.lower import sampled_slope
from lightning_lipschitz.certificate import Certificate, require_proved
from lightning_lipschitz.errors import CertificateError, LipschitzError
from lightning_lipschitz.extraction.reading import ReadNetwork
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.pairwise import PairwiseBounds, pairwise_bounds
from lightning_lipschitz.report.predictions import Curve, Predictions, accuracy_curve
from lightning_lipschitz.report.tightness import LayerBound, Prefix, layer_bounds

T = TypeVar("T")

MANY_CLASSES = 20  # 190 pairs; beyond, their constants are searched on demand only
LONG = 30.0  # seconds that the certificate took; beyond, the pairs are left to whoever asks for them


@dataclass(frozen=True, eq=False)
class Subject:
    """What a report is about, and what is known of it already.

    Args:
        certificate: proved of ``network``.
        network: explicit, or a graph.
        key: name of the certificate in a checkpoint.
        module: dotted name of the submodule that it speaks about, "" for the model.
        model: name of the model's class, "" where it is not known.
        source: where all this comes from, in words.
        checkpoint: the file, for the commands on the page.
        history: the callback's.
        unreadable: records in the file that are left out of it.
        lower_bound: sampled lower bound of the network.
        extraction: the network with its activations, where there is a module; else no slopes of parts are sampled.
        inputs: shape (batch, input_size), where such samples start.
        predictions: what the network says of labelled data.
        pairs: whether to bound all differences of two outputs; None for where it is a classifier and cheap.
        why_not: reasons why facts are missing, by section.
    """

    certificate: Certificate
    network: Network | Graph
    key: str = "lipschitz"
    module: str = ""
    model: str = ""
    source: str = ""
    checkpoint: str = "last.ckpt"
    history: Sequence[Mapping[str, Any]] = ()
    unreadable: int = 0
    lower_bound: float | None = None
    extraction: ReadNetwork | None = None
    inputs: Tensor | None = None
    predictions: Predictions | None = None
    pairs: bool | None = None
    why_not: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Content:
    """All facts of one page; a section without facts has a sentence in ``why_not``."""

    subject: Subject
    lower_bound: float | None
    layers: tuple[LayerBound, ...]
    pairs: PairwiseBounds | None
    curve: Curve | None
    why_not: Mapping[str, str]
    made: datetime
    versions: Mapping[str, str]


def gather(subject: Subject, *, time_limit: float | None = 60.0) -> Content:
    """Compute what is missing. A section that fails costs a sentence on the page and no other section.

    Args:
        subject: what the report is about.
        time_limit: seconds for the searches, half for the layers and half for the pairs; proving is not limited.

    Raises:
        CertificateError: the certificate is not a certified one, not proved since it was read, or of another network.
    """
    certificate = subject.certificate
    require_proved(certificate, "there is no bound to report")
    if certificate.network_digest != subject.network.digest:
        raise CertificateError("the certificate belongs to another network than the one to be reported. Certify it.")
    why_not = dict(subject.why_not)
    half = None if time_limit is None else 0.5 * time_limit
    layers = _tried("layers", why_not, lambda: _layers(subject, half)) or ()
    pairs = _tried("pairs", why_not, lambda: _pairs(subject, why_not, half))
    curve = _tried("curve", why_not, lambda: _curve(subject, pairs))
    made = datetime.now(timezone.utc).replace(microsecond=0)
    best = _lower_bound(subject, layers)
    layers = (*layers[:-1], *(replace(layer, lower=best) for layer in layers[-1:]))
    return Content(subject, best, layers, pairs, curve, why_not, made, versions())


def _lower_bound(subject: Subject, layers: Sequence[LayerBound]) -> float | None:
    """The best of what was sampled of these weights: given, in the history, or just now."""
    bound = subject.certificate.upper_bound
    recorded = [record.get("lower_bound") for record in subject.history if record.get("upper_bound") == bound]
    sampled = [layers[-1].lower if layers else None, subject.lower_bound, *recorded[-1:]]
    return max((value for value in sampled if value is not None), default=None)


def versions() -> dict[str, str]:
    """Versions of everything that took part."""
    found = {"Python": platform.python_version()}
    for name in ("lightning-lipschitz", "torch", "pytorch-lightning", "lightning", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _tried(section: str, why_not: dict[str, str], work: Callable[[], T]) -> T | None:
    try:
        return work()
    except LipschitzError as error:
        why_not[section] = str(error)
    return None


def _layers(subject: Subject, time_limit: float | None) -> tuple[LayerBound, ...]:
    sample = _sampler(subject.extraction, subject.inputs)
    return layer_bounds(subject.certificate, subject.network, sample=sample, time_limit=time_limit)


def _sampler(extraction: ReadNetwork | None, inputs: Tensor | None) -> Callable[[Prefix], float] | None:
    if extraction is None or inputs is None:
        return None

    def sample(part: Prefix) -> float:
        units = tuple(extraction.units[layer] for layer in part.layers)
        function = ReadNetwork(part.network, units, extraction.resolution).function()
        return sampled_slope(function, inputs)

    return sample


def _pairs(subject: Subject, why_not: dict[str, str], time_limit: float | None) -> PairwiseBounds | None:
    reason = _no_pairs(subject)
    if reason is not None:
        why_not.setdefault("pairs", reason)
        return None
    method = subject.certificate.method
    return pairwise_bounds(
        cast(Network, subject.network),
        method=method if method in ("norm-product", "closed-form", "lipsdp-layer") else "auto",  # type: ignore[arg-type]
        time_limit=time_limit,
        refine=subject.pairs is True,
    )


def _no_pairs(subject: Subject) -> str | None:
    """Why the pairs are not bounded, if they are not."""
    network = subject.network
    if not isinstance(network, Network):
        return "Differences of outputs are bounded on explicit matrices; this model was too large for them."
    if network.output.size < 2:
        return "There is one output, and no difference of two."
    if subject.pairs is not None:
        return None if subject.pairs else "They were not asked for."
    if subject.predictions is None:
        return "Nothing says that this is a classifier: there are no labelled data."
    if network.output.size > MANY_CLASSES or subject.certificate.seconds > LONG:
        return "They would take long here and were not asked for."
    return None


def _curve(subject: Subject, pairs: PairwiseBounds | None) -> Curve | None:
    if subject.predictions is None:
        return None
    matrix = None if pairs is None else pairs.matrix
    return accuracy_curve(subject.predictions, subject.certificate.upper_bound, matrix)
