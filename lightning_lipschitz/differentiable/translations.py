r"""Affine pieces of a model that commute with translations, as kernels: read off their responses to impulses.

A piece from an image of ``lengths`` positions to one of ``results`` is a convolution with zeros around the image where

    y[o, q] = sum over c and a of K[o, c, a] x[c, s q + a],      x = 0 outside of the image,

with a stride s and taps ``least <= a <= most``, an axis at a time. An impulse in each of s neighbouring positions shows
every tap. Whether a piece is one is found out once: its values on a random image have to be those of the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lightning_lipschitz.differentiable.calls import DEVICE, DTYPE
from lightning_lipschitz.differentiable.pieces import Piece

Indices = npt.NDArray[np.int64]

_TOLERANCE = 1e-9  # relative, of float64 values on a random image
_NOISE = 0.1  # relative: of what a piece reads, so that weights that are zero by chance do not hide a tap


@dataclass(frozen=True, eq=False)
class Translated:
    """A piece that is a convolution with zeros around the image.

    Attributes:
        piece: of one source.
        channels: of the source and of the result.
        lengths, results: of the images, axis by axis.
        stride: axis by axis.
        base: where the first impulse is put.
        window: the size of the image that it is put on; it may be smaller than the model's.
        answered: the size of the piece's result for that.
        least, most: the first and the last tap, relative to ``stride * q``.
    """

    piece: Piece
    channels: tuple[int, int]
    lengths: tuple[int, ...]
    results: tuple[int, ...]
    stride: tuple[int, ...]
    base: tuple[int, ...]
    window: tuple[int, ...]
    answered: tuple[int, ...]
    least: tuple[int, ...]
    most: tuple[int, ...]

    def responses(self, values: Mapping[Any, Any]) -> Tensor:
        """What the piece gives for impulses, shape (input channels, impulses of each, output channels, *answered)."""
        inputs, impulses = self.channels[0], math.prod(self.stride)
        x = torch.zeros(inputs, impulses, inputs, math.prod(self.window), dtype=values[DTYPE], device=values[DEVICE])
        for number, phase in enumerate(itertools.product(*(range(s) for s in self.stride))):
            place = [b + p for b, p in zip(self.base, phase, strict=True)]
            x[:, number, :, int(np.ravel_multi_index(place, self.window))] = torch.eye(inputs, dtype=x.dtype)
        y = _linear_part(self.piece, values, x.reshape(-1, inputs, *self.window))
        if y.shape[1:] != (self.channels[1], *self.answered):
            raise ValueError(y.shape)
        return y.reshape(inputs, impulses, *y.shape[1:])

    def places(self, taps: Sequence[Indices]) -> Indices:
        """Where in :meth:`responses`, flattened, the taps stand; one behind its end where there is none.

        Args:
            taps: an axis, of any shape.

        Returns:
            Shape (*those of all axes, output channels, input channels).
        """
        inputs, outputs = self.channels
        sizes = (inputs, *self.stride, outputs, *self.answered)
        steps = np.cumprod([1, *sizes[:0:-1]])[::-1]
        dims, missing = len(self.stride), -math.prod(sizes)
        found = np.zeros((), dtype=np.int64)
        for axis, a in enumerate(taps):
            s = self.stride[axis]
            phase = (a - self.base[axis]) % s
            q = (self.base[axis] + phase - a) // s
            own = phase * steps[1 + axis] + q * steps[2 + dims + axis]
            own = np.where((q >= 0) & (q < self.answered[axis]), own, missing * 4)
            found = found.reshape(*found.shape, *[1] * own.ndim) + own
        channels = np.arange(outputs)[:, None] * steps[1 + dims] + np.arange(inputs) * steps[0]
        found = found[..., None, None] + channels
        return np.where(found >= 0, found, -missing)

    def kernel(self, values: Mapping[Any, Any]) -> Tensor:
        """K, shape (output channels, input channels, taps of every axis)."""
        taps = [np.arange(a, b + 1) for a, b in zip(self.least, self.most, strict=True)]
        found = gathered(self.responses(values), torch.as_tensor(self.places(taps), device=values[DEVICE]))
        return found.movedim((-2, -1), (0, 1))

    def convolved(self, kernel: Tensor, x: Tensor) -> Tensor:
        """The results for images x, as a convolution with zeros around them."""
        pads: list[int] = []
        for n, m, s, a, b in zip(self.lengths, self.results, self.stride, self.least, self.most, strict=True):
            pads = [-a, s * (m - 1) + b + 1 - n, *pads]
        run = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(self.lengths)]
        return run(functional.pad(x, pads), kernel, stride=self.stride)


def gathered(responses: Tensor, places: Tensor) -> Tensor:
    """Entries of the responses; zero one behind their end."""
    flat = torch.cat([responses.reshape(-1), responses.new_zeros(1)])
    return flat[places.reshape(-1)].reshape(places.shape)


def translated(piece: Piece, values: Mapping[Any, Any]) -> Translated | None:
    """The piece as a convolution; None where it is none.

    Args:
        piece: of one source.
        values: of the known nodes, float64.
    """
    source, generator = piece.sources[0], torch.Generator().manual_seed(0)
    shape = source.shape[1:]
    of_samples = bool(source.mask[0].all()) and not bool(source.mask[1:].any())
    if not of_samples or len(shape) not in (2, 3, 4):
        return None
    values = _disturbed(piece, values, generator)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(values[DEVICE])
    with torch.no_grad():
        y = _linear_part(piece, values, x)
        if y.ndim != x.ndim or len(y) != 2 or y[0, 0].numel() == 1:  # of one position: a matrix is as good
            return None
        for candidate in _candidates(piece, tuple(x.shape[1:]), tuple(y.shape[1:])):
            found = _measured(candidate, values)
            if found is not None:
                error = torch.dist(found.convolved(found.kernel(values), x), y)
                if float(error) <= _TOLERANCE * float(torch.linalg.vector_norm(y)):
                    return _cropped(found, values)
    return None


def _candidates(piece: Piece, given: tuple[int, ...], result: tuple[int, ...]) -> Iterator[Translated]:
    """With all strides that the sizes allow and the impulses in the middle, on the whole image."""
    lengths, results = given[1:], result[1:]
    strides = [range(1, n // m + 2) for n, m in zip(lengths, results, strict=True)]
    for stride in sorted(itertools.product(*strides), key=lambda each: (len(set(each)), each)):
        base = tuple(max(0, (n - s) // 2) for n, s in zip(lengths, stride, strict=True))
        if all(b + s <= n for b, s, n in zip(base, stride, lengths, strict=True)):
            ends = [(b - s * (m - 1), b + s - 1) for b, s, m in zip(base, stride, results, strict=True)]
            least, most = zip(*ends, strict=True)
            yield Translated(
                piece, (given[0], result[0]), lengths, results, stride, base, lengths, results, least, most
            )


def _measured(candidate: Translated, values: Mapping[Any, Any]) -> Translated | None:
    """With the taps that are there alone; None where the piece gives nothing, or cannot be run on so many images."""
    try:
        kernel = candidate.kernel(values)
    except (RuntimeError, ValueError):
        return None
    least, most = [], []
    for axis, first in enumerate(candidate.least, 2):
        others = [dim for dim in range(kernel.ndim) if dim != axis]
        present = kernel.abs().amax(others).nonzero()
        if not len(present):
            return None
        least.append(first + int(present[0]))
        most.append(first + int(present[-1]))
    return replace(candidate, least=tuple(least), most=tuple(most))


def _cropped(found: Translated, values: Mapping[Any, Any]) -> Translated:
    """On a window no larger than the taps need, where the piece runs on one and says the same there."""
    base = tuple(max(0, b) for b in found.most)
    last = [(b + s - 1 - a) // s for b, s, a in zip(base, found.stride, found.least, strict=True)]
    whole = found.kernel(values)
    for more in range(max(found.lengths)):
        window = tuple(b + s + more for b, s in zip(base, found.stride, strict=True))
        if any(w > n for w, n in zip(window, found.lengths, strict=True)):
            break
        try:
            y = _linear_part(found.piece, values, whole.new_zeros(1, found.channels[0], *window))
            if any(m <= q for m, q in zip(y.shape[2:], last, strict=True)):
                continue
            smaller = replace(found, base=base, window=window, answered=tuple(y.shape[2:]))
            if torch.allclose(smaller.kernel(values), whole, rtol=0.0, atol=_TOLERANCE * float(whole.abs().max())):
                return smaller
        except (RuntimeError, ValueError):
            continue
    return found


def _linear_part(piece: Piece, values: Mapping[Any, Any], x: Tensor) -> Tensor:
    y = piece.run(values, [x])
    return y if piece.linear else y - piece.run(values, [torch.zeros_like(x)])


def _disturbed(piece: Piece, values: Mapping[Any, Any], generator: torch.Generator) -> dict[Any, Any]:
    """Values of what the piece reads that are near the given ones, and not zero; what was positive still is."""
    moved = dict(values)
    for node in piece.knowns:
        value = values[node]
        if isinstance(value, Tensor) and value.is_floating_point():
            shares = torch.rand(2, *value.shape, generator=generator, dtype=torch.float64).to(value.device)
            moved[node] = value.detach() * (1.0 + _NOISE * (shares[0] - 0.5)) + _NOISE * shares[1]
    return moved
