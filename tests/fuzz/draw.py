"""What is drawn anew for every line: numbers, constants, dimensions, modules."""

from __future__ import annotations

import re

from tests.fuzz.steps import POINTWISE

_NUMBERS = ["0.3", "-0.7", "(1 / 0.3081)", "1e-3", "1.3", "-2", "3", "(1 / 3)", "0.1307", "255", "-1e-2", "2.0"]
_SETUPS = ["nn.Parameter({})", "nn.Buffer({})", "nn.Buffer({}, persistent=False)", "{}"]


def lines_of(table):
    """The lines of a table."""
    return [line for line in table.splitlines() if line]


class Draw(dict):
    """A mapping that draws what a key of a line stands for, and remembers which modules the line needs.

    Args:
        rng: the generator.
        shape: of one sample of ``x`` where the line stands.
        count: number of modules made so far.
        work: name of the model's dtype.
    """

    def __init__(self, rng, shape, count=0, work="float32"):
        super().__init__(x="x", work=work)
        self.rng, self.shape, self.count, self.setup = rng, shape, count, []

    def __missing__(self, key):
        return str(getattr(self, f"_{key}")())

    def line(self, template):
        """The text of a line, with names in place of what stands in backticks."""
        return re.sub("`(.*?)`", lambda found: self.kept(found[1]), template.format_map(self))

    def kept(self, made):
        """The name of a module, or of a parameter, that the program keeps."""
        name = f"self.m{self.count}"
        self.count += 1
        if made.startswith("torch.randn("):
            made = self.rng.choice(_SETUPS).format(made)
        self.setup.append(f"{name} = {made}")
        return name

    def _n(self):
        return self.rng.choice(_NUMBERS)

    def _p(self):
        return self.rng.choice([each for each in _NUMBERS if not each.startswith("-") and each != "255"])

    def _f(self):
        return self.rng.choice(lines_of(POINTWISE)).format_map(self)

    def _g(self):
        return self.rng.choice(["relu()", "tanh()", "abs()", "sigmoid()", "sin()", "clamp(-0.3, 0.7)"])

    def _g_of_tail(self):
        return f"x[:, 1:].{self._g()}"

    def _w(self):
        last = self.shape[-1]
        sizes = str(list(self.shape[self.rng.randrange(len(self.shape)) :]))
        return self.rng.choice(
            [
                f"`torch.randn({sizes})`",
                f"`torch.randn({sizes})`",
                f"torch.linspace(-0.3, 1.7, {last})",
                f"torch.full(({last},), 0.3)",
                f"torch.arange({last})",
                f"x.new_full(x.shape[1:], {self._n()})",
            ]
        )

    def _kept(self):
        return "`nn.Buffer(torch.zeros(2))`"

    def _stat(self):
        return f"`torch.randn({self.shape[0]})`"

    def _mask(self):
        return self.rng.choice(
            [
                f"(torch.arange({self.shape[-1]}) % 2 == 0)",
                "torch.ones(x.shape[1:], dtype=torch.bool).tril()",
                f"`torch.arange({self.shape[-1]}).gt(0)`",
            ]
        )

    def _d(self):
        dim = self.rng.randint(1, len(self.shape))
        return self.rng.choice([dim, dim - len(self.shape) - 1])

    def _i(self):
        return self.rng.randint(1, 4)

    def _b(self):
        return self.rng.random() < 0.5

    def _k(self):
        return self.rng.randint(1, 3)

    def _s(self):
        return self.rng.randint(1, 2)

    def _o(self):
        return self.rng.randint(0, 1)

    def _r(self):
        return max(len(self.shape) - 1, 1)

    def _linear(self):
        return repr(["linear", "bilinear", "trilinear"][min(self._r(), 3) - 1])

    def _ch(self):
        return self.shape[0]

    def _second(self):
        return self.shape[-2] if len(self.shape) > 1 else 1

    def _last(self):
        return self.shape[-1]
