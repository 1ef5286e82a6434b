"""Programs: random lines of ``steps`` and ``layers``, made into a module whose source can be read and run again."""

from __future__ import annotations

import itertools
import linecache
import random
import re
import warnings
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations

from tests.fuzz import bounded, layers, steps
from tests.fuzz.draw import Draw, lines_of

POOLS = {  # table: weight
    steps.POINTWISE: 18,
    steps.ARITHMETIC: 18,
    steps.MATRIX: 14,
    steps.SHAPE: 16,
    steps.CASTS: 4,
    steps.IN_PLACE: 5,
    layers.IMAGES: 12,
    layers.NORMS: 9,
    layers.BY_HAND: 2,
    bounded.BOUNDED: 5,
    bounded.RECURRENT: 1,
    bounded.SCATTERED: 3,
    layers.HOSTILE: 2,
}
_DTYPES = ["float32"] * 7 + ["float64"] * 2 + ["bfloat16", "float16"]
_LARGEST = 40  # entries of one sample
_NAMES = itertools.count()


def stirred(module):
    """A normalisation that has seen data: nothing at its initial value."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.randn_like(tensor) if "var" not in name else torch.rand_like(tensor) + 0.1
    return module


@dataclass(frozen=True)
class Step:
    """Statements of a forward, and the statements of the constructor that they need."""

    setup: tuple[str, ...]
    line: str


@dataclass(frozen=True)
class Program:
    """Source of a module.

    Args:
        seed: of its weights.
        shape: of one input sample.
        dtype: name of the model's.
        batch: of the example input.
        steps: in order.
    """

    seed: int
    shape: tuple[int, ...]
    dtype: str
    batch: int
    steps: tuple[Step, ...]

    def source(self):
        """The class."""
        inits = [f"torch.manual_seed({_seed(self.seed, line)}); {line}" for s in self.steps for line in s.setup]
        lines = [each for step in self.steps for each in step.line.split("; ")]
        body = ["super().__init__()", *inits]
        return (
            "class Model(nn.Module):\n    def __init__(self):\n"
            + "".join(f"        {line}\n" for line in body)
            + "\n    def forward(self, x):\n        h = x\n"
            + "".join(f"        {line}\n" for line in lines)
            + "        return x\n"
        )

    def model(self):
        """The module, in the program's dtype and in evaluation mode."""
        return _made(self.source()).to(getattr(torch, self.dtype)).eval()

    def in_double(self):
        """The same module in float64: what it computes in real arithmetic, but for float64's own rounding.

        A conversion to the model's own dtype or to a wider one is one to float64 here; every other stays as it stands.
        """
        return _made(widened(self.source(), self.dtype)).to(getattr(torch, self.dtype)).double().eval()

    def example(self):
        """Zeros to trace with."""
        return torch.zeros(self.batch, *self.shape, dtype=getattr(torch, self.dtype))

    def without(self, number):
        """The program without one step."""
        return replace(self, steps=self.steps[:number] + self.steps[number + 1 :])


def _seed(seed, line):
    """A seed of its own for every line, so that leaving others out changes nothing in it."""
    return seed + int(re.search(r"\d+", line)[0])


def widened(source, dtype):
    """The source with float64 for every dtype that holds all values of ``dtype``."""
    here = torch.finfo(getattr(torch, dtype))
    for name, method in (("float32", "float"), ("bfloat16", "bfloat16"), ("float16", "half")):
        there = torch.finfo(getattr(torch, name))
        if there.eps <= here.eps and there.max >= here.max:
            source = re.sub(rf"torch\.{name}\b", "torch.float64", source).replace(f".{method}()", ".double()")
    return source


def namespace():
    """What the source of a program refers to."""
    return {"torch": torch, "nn": nn, "F": F, "parametrizations": parametrizations, "stirred": stirred}


def _made(source):
    name, names = f"<program {next(_NAMES)}>", namespace()
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    if len(linecache.cache) > 2000:
        for old in [each for each in linecache.cache if each.startswith("<program")][:1000]:
            del linecache.cache[old]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(source, name, "exec"), names)
        return names["Model"]()


def _sample_shape(rng):
    rank = rng.choice([1, 1, 1, 2, 2, 3, 3, 4])
    longest = (6, 5, 4, 3)[rank - 1]
    return (
        rng.randint(1, 6 if rank == 1 else 3),
        *(rng.randint(1 if rank == 2 else 2, longest) for _ in range(rank - 1)),
    )


def generate(seed, pools=POOLS):
    """The program of this seed, of lines from these tables."""
    rng = random.Random(seed)
    dtype, shape = rng.choice(_DTYPES), _sample_shape(rng)
    made = Program(1000 * seed, shape, dtype, rng.choice([1, 1, 2, 3]), ())
    growing = _Growing(made)
    for _ in range(rng.choice([1, 2, 3, 3, 4, 5])):
        if rng.random() < 0.25:
            growing.take(Step((), "h = x"))
        for _ in range(8):
            (pool,) = rng.choices(list(pools), list(pools.values()))
            draw = Draw(rng, tuple(growing.names["x"].shape[1:]), growing.count, dtype)
            line = draw.line(rng.choice(lines_of(pool)))
            step = Step(tuple(draw.setup), line if pool is steps.IN_PLACE else f"x = {line}")
            if growing.take(step, final=pool is layers.HOSTILE):
                growing.count = draw.count
                break
        if growing.ended:
            break
    return growing.program


class _Growing:
    """A program that is run as it grows, so that every line meets what it can work with."""

    def __init__(self, program):
        self.program, self.count, self.ended = program, 0, False
        self.module = nn.Module().eval()
        generator = torch.Generator().manual_seed(program.seed)
        x = torch.randn(3, *program.shape, generator=generator).to(getattr(torch, program.dtype))
        self.names = namespace() | {"self": self.module, "x": x, "h": x}

    def take(self, step, final=False):
        """Append a step if it runs; whether it did. After a ``final`` one with an unusual result, nothing follows."""
        before = {name: self.names[name].clone() for name in ("x", "h")}
        if self.names["h"] is self.names["x"]:
            before["h"] = before["x"]
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for line in step.setup:
                    exec(line, self.names)
                self.module.to(getattr(torch, self.program.dtype)).eval()
                exec(step.line, self.names)
            usual = self._usual()
        except Exception:
            usual, final = False, False
        if not usual and not (final and isinstance(self.names["x"], torch.Tensor)):
            self.names.update(before)
            return False
        self.ended = not usual
        self.program = replace(self.program, steps=(*self.program.steps, step))
        return True

    def _usual(self):
        x = self.names["x"]
        return x.is_floating_point() and x.ndim > 1 and len(x) == 3 and 0 < x.numel() <= 3 * _LARGEST
