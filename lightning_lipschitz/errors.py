"""Exceptions that own their sentence, and the warning of reduced accuracy.

Each class takes facts and writes the sentence the user reads: what is wrong, what was found, what would do.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["never", "bounded inputs", "not yet", "replace"]


class LipschitzError(Exception):
    """Base of everything this package raises on purpose."""


class ArgumentError(LipschitzError, ValueError):
    """An argument that cannot be used.

    Args:
        name: the argument.
        found: what was given.
        accepted: what would do.
    """

    def __init__(self, name: str, found: object, accepted: str) -> None:
        super().__init__(f"`{name}` must be {accepted}; got {found!r}.")
        self.name, self.found, self.accepted = name, found, accepted


class NonFiniteError(LipschitzError, ValueError):
    """A tensor that holds NaN or an infinite value."""

    def __init__(self, tensor: str, count: int, size: int) -> None:
        super().__init__(
            f"{tensor} holds {count} NaN or infinite values among {size}; a Lipschitz bound needs finite weights. "
            "Look for a diverged training run or a corrupted file."
        )
        self.tensor = tensor


class ShapeError(LipschitzError, ValueError):
    """Matrices that do not chain, or arrays of the wrong length."""

    def __init__(self, what: str, found: object, expected: object) -> None:
        super().__init__(f"{what} has shape {found}; expected {expected}.")


class EmptyNetworkError(LipschitzError, ValueError):
    """No layer at all."""

    def __init__(self) -> None:
        super().__init__("the network has no layer; give at least one weight matrix (a single affine layer is enough).")


class ExtractionError(LipschitzError):
    """A model that could not be read as a network of affine maps and activations."""

    def __init__(self, model: str, reason: str, advice: str) -> None:
        super().__init__(f"{model} cannot be certified: {reason} {advice}".strip())


class UnsupportedModuleError(ExtractionError):
    """An operation that has no rule.

    Args:
        path: dotted name of the submodule ("" for the model itself).
        operator: the operator found there.
        verdict: "never" (no finite constant exists), "bounded inputs" (none for all inputs, but one where the input is
            bounded), "not yet" (a rule is missing) or "replace" (an equivalent works).
        advice: the reason, or what to use in its place.
    """

    def __init__(self, path: str, operator: str, verdict: Verdict, advice: str) -> None:
        where = f"`{path}`" if path else "the model"
        meaning = {
            "never": "has no finite Lipschitz constant",
            "bounded inputs": "has a finite Lipschitz constant on bounded inputs only",
            "not yet": "is not supported yet",
            "replace": "is not supported, but an equivalent is",
        }[verdict]
        super().__init__(where, f"`{operator}` {meaning}.", advice)
        self.path, self.operator, self.verdict = path, operator, verdict


class ModelSizeError(ExtractionError):
    """A model whose explicit matrices would need more memory than the extraction allows itself.

    Args:
        what: the matrices.
        size: bytes that they would need.
        limit: bytes allowed.
    """

    def __init__(self, what: str, size: int, limit: int) -> None:
        reason = f"as explicit matrices it is too large: {what} need {size / 2**30:.3g} GiB"
        super().__init__(
            "the model",
            f"{reason}, more than the {limit / 2**30:.3g} GiB allowed.",
            'With method="auto" or "composed" the structure of convolutions is kept and no such matrix formed.',
        )
        self.what, self.size, self.limit = what, size, limit


class CertificateError(LipschitzError):
    """A certificate that is another network's, is damaged, or whose proof does not hold."""


class SolverError(LipschitzError):
    """A bound method that failed, or produced nothing that could be verified.

    Args:
        message: what failed.
        certificate: the best bound of a simpler method, where there is one.
    """

    def __init__(self, message: str, certificate: object = None) -> None:
        super().__init__(message)
        self.certificate = certificate


class TimeLimitError(SolverError):
    """What was to be done next would not have ended within the time limit."""

    def __init__(self) -> None:
        super().__init__("the time limit was reached.")


class NotABoundWarning(UserWarning):
    """A number that is not an upper bound was asked for."""

    def __init__(self) -> None:
        super().__init__(
            "lipsdp-network is NOT an upper bound and is offered for reproduction only: its coupled multipliers are "
            "not valid. relu(x + 1) - relu(x - 1) has Lipschitz constant 1, and it returns 0 for it. "
            "Use method='lipsdp-neuron' for a bound."
        )


class NumericalWarning(UserWarning):
    """A result that is right but less accurate than was asked for."""


class WeightFileError(LipschitzError):
    """A weight file that cannot be used."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class NoChainError(WeightFileError):
    """A file of weights that are not, or may not be, the matrices of a chain of layers.

    Args:
        name: what in it says so.
        shape: of that, where it has one.
        reason: what it is.
        path: the file.
    """

    def __init__(self, name: str, shape: tuple[int, ...] | None, reason: str, path: object = "the file") -> None:
        of = "" if shape is None else f" of shape {shape}"
        super().__init__(
            path,
            f"`{name}`{of} {reason}. So this may be no chain of matrices, and what its module computes is not in the"
            " file: give the module to `lightning_lipschitz.certify`.",
        )
        self._facts = (name, shape, reason)

    def of(self, path: object) -> NoChainError:
        """What is wrong with a file, by its name."""
        return NoChainError(*self._facts, path=path)


class OutputError(LipschitzError, OSError):
    """A file that cannot be written."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path} cannot be written: {reason}.")


class MissingExtraError(LipschitzError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(f"{purpose} needs {package}: `pip install lightning-lipschitz[{extra}]`.")


class ProjectionError(LipschitzError):
    """A layer whose weights cannot be moved to certified ones.

    Args:
        path: dotted name of the submodule ("" for the model itself).
        layer: its class.
        reason: what is in the way.
        advice: what would do.
    """

    def __init__(self, path: str, layer: str, reason: str, advice: str) -> None:
        where = f"`{path}` ({layer})" if path else f"`{layer}`"
        super().__init__(f"the weights of {where} cannot be projected: {reason} {advice}".strip())
        self.path, self.layer, self.reason, self.advice = path, layer, reason, advice
