"""Models whose graphs are looked at: name -> (factory, shape of one sample)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.models import mlp, of, randomized_norm


def seq(*modules):
    return nn.Sequential(*modules)


class Residual(nn.Module):
    """conv, norm, relu, conv, norm, plus the input or its projection, relu."""

    def __init__(self, columns, rows, stride=1):
        super().__init__()
        self.first = nn.Conv2d(columns, rows, 3, stride, 1, bias=False)
        self.first_norm = randomized_norm(nn.BatchNorm2d, rows)
        self.second = nn.Conv2d(rows, rows, 3, 1, 1, bias=False)
        self.second_norm = randomized_norm(nn.BatchNorm2d, rows)
        self.relu = nn.ReLU(inplace=True)
        plain = stride == 1 and columns == rows
        projected = seq(nn.Conv2d(columns, rows, 1, stride, bias=False), randomized_norm(nn.BatchNorm2d, rows))
        self.skip = nn.Identity() if plain else projected

    def forward(self, x):
        out = self.relu(self.first_norm(self.first(x)))
        return self.relu(self.second_norm(self.second(out)) + self.skip(x))


def small_resnet(classes=3):
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
    return seq(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), Residual(4, 4), Residual(4, 6, 2), *head)


def lenet():
    features = (nn.Conv2d(1, 4, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), nn.Tanh())
    return seq(*features, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def dense_block(m, x):
    x = torch.cat([x, F.relu(m.a(x))], 1)
    return m.c(torch.cat([x, F.relu(m.b(x))], 1))


def u_net(m, x):
    down = F.relu(m.down(x))
    inner = F.relu(m.inner(F.max_pool2d(down, 2)))
    return m.out(torch.cat([F.relu(m.up(inner)), down], 1))


def mixer(m, x):
    x = x.flatten(2).transpose(1, 2)
    x = x + m.tokens(x.transpose(1, 2)).transpose(1, 2)
    return (x + m.channels(x)).mean(1)


def norms(*modules, shape=(4, 5, 5)):
    return lambda: seq(*(make() for make in modules)), shape


MODELS = {
    "small_resnet": (small_resnet, (2, 6, 6)),
    "lenet": (lenet, (1, 8, 8)),
    "dense_block": of(
        dense_block,
        (2, 5, 5),
        a=lambda: nn.Conv2d(2, 3, 3, padding=1),
        b=lambda: nn.Conv2d(5, 3, 3, padding=1),
        c=lambda: nn.Conv2d(8, 2, 1),
    ),
    "u_net": of(
        u_net,
        (1, 6, 6),
        down=lambda: nn.Conv2d(1, 2, 3, padding=1),
        inner=lambda: nn.Conv2d(2, 3, 3, padding=1),
        up=lambda: nn.ConvTranspose2d(3, 2, 2, stride=2),
        out=lambda: nn.Conv2d(4, 1, 1),
    ),
    "mixer": of(mixer, (3, 2, 2), tokens=lambda: mlp(nn.GELU(), 4, 5, 4), channels=lambda: mlp(nn.GELU(), 3, 6, 3)),
    "autoencoder": (
        lambda: seq(
            nn.Conv1d(2, 3, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1),
            nn.Sigmoid(),
        ),
        (2, 8),
    ),
    "all_convolutional": (
        lambda: seq(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AvgPool2d(3), nn.Flatten()),
        (1, 7, 7),
    ),
    "conv_3d": (lambda: seq(nn.Conv3d(1, 2, 2, stride=2), nn.ReLU(), nn.Conv3d(2, 1, 1)), (1, 4, 4, 4)),
    "conv_same": (lambda: nn.Conv2d(1, 2, (2, 3), padding="same", dilation=2), (1, 5, 5)),
    "conv_groups": (lambda: seq(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=6)), (4, 5, 5)),
    "conv_circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 4)),
    "conv_circular_mixed": (lambda: nn.Conv2d(2, 3, (3, 1), padding=(1, 0), padding_mode="circular"), (2, 5, 4)),
    "conv_circular_wide": (lambda: nn.Conv1d(1, 2, 5, padding=2, padding_mode="circular"), (1, 4)),
    "conv_reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 4)),
    "conv_replicate": (lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="replicate"), (2, 5, 4)),
    "transposed_dilated": (
        lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, output_padding=1, groups=2, dilation=2),
        (2, 3, 4),
    ),
    "transposed_norm": (
        lambda: seq(nn.ConvTranspose2d(2, 4, 3, 2, groups=2), randomized_norm(nn.BatchNorm2d, 4)),
        (2, 3, 4),
    ),
    "linear_norm": (lambda: mlp(randomized_norm(nn.BatchNorm1d, 6)), (5,)),
    "max_pool_overlap": (lambda: seq(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 2)), (1, 5, 5)),
    "max_pool_1d": (lambda: nn.MaxPool1d(3, 1, dilation=2, padding=1), (2, 8)),
    "max_pool_ceil": (lambda: nn.MaxPool2d(2, ceil_mode=True), (2, 5, 5)),
    "adaptive_max_pool": (lambda: nn.AdaptiveMaxPool2d((2, 3)), (2, 5, 5)),
    "avg_pool_ceil": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 6, 6)),
    "avg_pool_inside": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (1, 6, 6)),
    "avg_pool_divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), (1, 6, 6)),
    "adaptive_avg_uneven": (lambda: nn.AdaptiveAvgPool2d((2, None)), (2, 5, 3)),
    "nearest": (lambda: nn.Upsample(scale_factor=2), (2, 3, 2)),
    "nearest_size": (lambda: nn.Upsample(size=(5, 7)), (2, 3, 2)),
    "bilinear": (lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"), (2, 4, 2)),
    "bilinear_corners": (lambda: nn.Upsample(size=(5, 4), mode="bilinear", align_corners=True), (2, 4, 2)),
    "trilinear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), (1, 2, 2, 3)),
    "linear_interpolation": (lambda: nn.Upsample(size=5, mode="linear"), (1, 3)),
    "layer_norm": norms(lambda: nn.LayerNorm([4, 5, 5]), nn.Flatten),
    "group_norm": norms(lambda: nn.GroupNorm(2, 4), nn.ReLU),
    "instance_norm": norms(lambda: nn.InstanceNorm2d(4, affine=True)),
    "rms_norm": norms(lambda: nn.RMSNorm(5, eps=1e-3)),
    "softmax": norms(nn.Flatten, lambda: nn.Linear(100, 3), lambda: nn.Softmax(1)),
    "log_softmax": norms(nn.Flatten, lambda: nn.Linear(100, 3), lambda: nn.LogSoftmax(-1)),
    "pixel_shuffle": (lambda: seq(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2), nn.PixelUnshuffle(2)), (1, 4, 4)),
    "channel_prelu": (lambda: seq(nn.Conv1d(1, 3, 2), nn.PReLU(3)), (1, 5)),
    "maximum": of(lambda m, x: torch.maximum(x, 2 * x.flip(1)) - torch.minimum(x, x)),
    "constant_pad": of(lambda m, x: m.c(F.pad(x, (1, 2, 0, 1), value=0.5)), (1, 3, 3), c=lambda: nn.Conv2d(1, 2, 2)),
    "constants_joined": of(lambda m, x: torch.cat([x, torch.ones_like(x[:, :1])], 1).relu(), (2, 3)),
    "split_and_join": of(
        lambda m, x: torch.cat([x[:, :1].relu(), m.a(x[:, 1:])], 1), (3, 4), a=lambda: nn.Conv1d(2, 2, 1)
    ),
    "constant_output": of(lambda m, x: torch.ones(x.shape[0], 3)),
    "frames": of(
        lambda m, x: m.b(F.max_pool2d(m.a(x.flatten(0, 1)).relu(), 2, 1, 1)).unflatten(0, (-1, 3)).sum(1),
        (3, 2, 4, 4),
        a=lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2),
        b=lambda: nn.ConvTranspose2d(4, 2, 2, 2),
    ),
    "frames_resampled": of(
        lambda m, x: F.interpolate(F.avg_pool1d(x.flatten(0, 1), 2), scale_factor=2, mode="linear").reshape(len(x), -1),
        (2, 3, 6),
    ),
    "frames_on_a_circle": of(
        lambda m, x: m.a(x.flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1),
        (2, 1, 5),
        a=lambda: nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"),
    ),
    "time_first": of(
        lambda m, x: F.pad(m.a(x.transpose(0, 1)).softmax(-1), (0, 0, 0, 0, 1, 0), value=0.5).transpose(0, 1),
        (3, 4),
        a=lambda: nn.Linear(4, 5),
    ),
    "where_of_both": of(
        lambda m, x: torch.where(torch.arange(6) % 2 == 0, m.a(x).relu(), x.flip(1)), (6,), a=lambda: nn.Linear(6, 6)
    ),
    "chosen_of_the_chosen": of(lambda m, x: F.pad(x[:, [3, 1]], (1, 1), value=2.0)[:, [0, 1, 2]].relu(), (4,)),
    "twice_the_same": of(lambda m, x: m.a(x) + m.a(x.flip(-1)) + x, (2, 4), a=lambda: nn.Conv1d(2, 2, 3, padding=1)),
}


def make(name):
    """The model and the shape of one sample, the same weights on every call."""
    factory, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return factory().eval(), shape
