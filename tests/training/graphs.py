"""Models beyond chains of nn.Linear: name -> (factory, shape of one sample)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.models import Lambda, randomized_norm


def residual(width=8):
    def forward(m, x):
        h = torch.relu(m.first(x))
        h = h + torch.tanh(m.second(h))
        return m.last(h)

    return Lambda(forward, first=nn.Linear(6, width), second=nn.Linear(width, width), last=nn.Linear(width, 3))


def concatenation():
    def forward(m, x):
        return m.last(torch.cat([torch.relu(m.one(x)), torch.tanh(m.two(x)), x], 1))

    return Lambda(forward, one=nn.Linear(6, 5), two=nn.Linear(6, 4), last=nn.Linear(15, 3))


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        randomized_norm(nn.BatchNorm2d, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


class UnitRows(nn.Linear):
    """Rows of norm 1, which zero weights have not."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


class Standardised(nn.Conv1d):
    """Weight standardisation; with a small constant in the quotient, zero weights have the quotient zero."""

    def forward(self, x):
        centred = self.weight - self.weight.mean((1, 2), keepdim=True)
        return self._conv_forward(x, centred / (centred.std((1, 2), keepdim=True) + 1e-5), self.bias)


class AlmostOrthogonal(nn.Linear):
    """Prach and Lampert 2022."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight * (self.weight.mT @ self.weight).abs().sum(1).rsqrt(), self.bias)


def sdp_based_layer():
    """Araujo et al. 2023: |f(x) - f(y)| <= |x - y| for all weights but zero."""

    def forward(m, x):
        h, q = m.inner(x), m.q.exp()
        scale = (m.inner.weight @ m.inner.weight.mT * q / q[:, None]).abs().sum(1)
        return m.last(x - 2 * (torch.relu(h) / scale) @ m.inner.weight)

    return Lambda(forward, inner=nn.Linear(5, 9), last=nn.Linear(5, 3), q=nn.Parameter(torch.randn(9) / 2))


GRAPHS = {
    "residual": (residual, (6,)),
    "concatenation": (concatenation, (6,)),
    "skip": (lambda: Lambda(lambda m, x: x + torch.relu(m.a(x)), a=nn.Linear(5, 5)), (5,)),
    "tied": (tied, (6,)),
    "used twice": (lambda: Lambda(lambda m, x: m.a(torch.relu(m.a(x))), a=nn.Linear(6, 6)), (6,)),
    "cnn": (cnn, (1, 4, 4)),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), randomized_norm(nn.BatchNorm1d, 8), nn.ReLU(), nn.Linear(8, 3)),
        (6,),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv1d(1, 3, 3, stride=2), nn.LeakyReLU(0.1), nn.ConvTranspose1d(3, 2, 3)),
        (1, 9),
    ),
    "weight norm": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv1d(1, 3, 3)), nn.GELU(), nn.Flatten(), nn.Linear(21, 3)
        ),
        (1, 9),
    ),
    "3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(16, 2)), (1, 3, 3, 3)),
    "softmax": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.Softmax(1)),
        (1, 6),
    ),
    "larger of two": (
        lambda: Lambda(lambda m, x: torch.maximum(m.one(x), m.other(x)), one=nn.Linear(6, 5), other=nn.Linear(6, 5)),
        (6,),
    ),
    "smaller of two": (
        lambda: Lambda(lambda m, x: m.b(torch.minimum(m.a(x), x)), a=nn.Linear(6, 6), b=nn.Linear(6, 2)),
        (6,),
    ),
    "max pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(8, 3)
        ),
        (1, 5, 5),
    ),
    "maxima": (
        lambda: Lambda(lambda m, x: m.b(m.a(x).unflatten(1, (4, 3)).amax(2)), a=nn.Linear(6, 12), b=nn.Linear(4, 2)),
        (6,),
    ),
    "one convolution": (lambda: nn.Conv1d(1, 2, 3), (1, 9)),
    "functional": (lambda: Lambda(lambda m, x: torch.relu(x) @ m.a.weight.T, a=nn.Linear(6, 3)), (6,)),
    "wide input": (
        lambda: Lambda(lambda m, x: m.b(x[:, :4] + torch.relu(m.a(x))), a=nn.Linear(40, 4), b=nn.Linear(4, 2)),
        (40,),
    ),
    "double": (lambda: residual().double(), (6,)),
    "rows of norm 1": (lambda: nn.Sequential(UnitRows(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "almost orthogonal": (lambda: nn.Sequential(AlmostOrthogonal(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,)),
    "standardised": (
        lambda: nn.Sequential(Standardised(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(21, 3)),
        (1, 9),
    ),
    "SDP-based": (sdp_based_layer, (5,)),
    "frozen": (lambda: residual().requires_grad_(False), (6,)),
}


def build(name):
    """The model, with the same weights every time, and an example input."""
    torch.manual_seed(0)
    make, shape = GRAPHS[name]
    model = make()
    return model, torch.zeros(2, *shape, dtype=next(model.parameters()).dtype)
