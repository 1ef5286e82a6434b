"""Networks and blocks that people train."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.models.building import randomized_norm


class BasicBlock(nn.Module):
    """ResNet's, with a projection where the shape changes."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = randomized_norm(nn.BatchNorm2d, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = randomized_norm(nn.BatchNorm2d, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), randomized_norm(nn.BatchNorm2d, outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return self.relu(y)


def resnet18(width=2, classes=3):
    stages = [(width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)]
    blocks, inputs = [], width
    for outputs, stride in stages:
        blocks += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs)]
        inputs = outputs
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), randomized_norm(nn.BatchNorm2d, width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def lenet(side=12):
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 2), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4 * ((side - 2) // 2 // 2) ** 2, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


def digits_cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 10)),
    )


def all_convolutional():
    layers = [nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 10, 1)]
    return nn.Sequential(*[each for c in layers for each in (c, nn.ReLU())], nn.AdaptiveAvgPool2d(1), nn.Flatten())


def dense_layer(inputs, growth):
    return nn.Sequential(
        *(randomized_norm(nn.BatchNorm2d, inputs), nn.ReLU(), nn.Conv2d(inputs, 2 * growth, 1, bias=False)),
        *(randomized_norm(nn.BatchNorm2d, 2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, padding=1)),
    )


def densenet(m, x):
    for layer in (m.a, m.b, m.c):
        x = torch.cat([x, layer(x)], 1)
    return F.avg_pool2d(m.transition(F.relu(x)), 2)


def double_conv(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1))


def unet(m, x):
    skip = m.enter(x)
    inner = m.middle(F.max_pool2d(skip, 2))
    return m.leave(torch.cat([skip, m.up(inner)], 1))


class MixerBlock(nn.Module):
    def __init__(self, tokens=4, channels=6):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 5), nn.GELU(), nn.Linear(5, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 5), nn.GELU(), nn.Linear(5, channels))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def autoencoder():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, 2, 1), nn.ELU(), nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(16, 3)),
        *(nn.Linear(3, 16), nn.ELU(), nn.Unflatten(1, (4, 2, 2))),
        *(nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1), nn.ELU(), nn.ConvTranspose2d(3, 1, 4, 2, 1)),
        nn.Sigmoid(),
    )


def separable(m, x):
    return m.point(F.relu6(m.depth(x)))


def inverted_residual(m, x):
    return x + m.c(F.hardswish(m.b(F.hardswish(m.a(x)))))


def inception(m, x):
    return torch.cat([m.a(x), m.b(x), m.c(F.avg_pool2d(x, 3, 1, 1)), F.max_pool2d(x, 3, 1, 1)], 1)


def shuffle_unit(m, x):
    left, right = x.chunk(2, 1)
    return nn.ChannelShuffle(2)(torch.cat([left, m.b(F.relu(m.a(right)))], 1))


def fire(m, x):
    x = F.relu(m.squeeze(x))
    return torch.cat([F.relu(m.one(x)), F.relu(m.three(x))], 1)


def pyramid(m, x):
    fine, coarse = m.a(x), m.b(F.max_pool2d(x, 3, 2, 1))
    return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)


def dueling(m, x):
    h = F.relu(m.body(x))
    advantage = m.advantage(h)
    return m.value(h) + advantage - advantage.mean(1, keepdim=True)


def policy(m, x):
    return m.high * torch.tanh(m.out(F.silu(m.body(x)))) + 0.5


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("high", torch.tensor([2.0, 0.5]))

    forward = policy


class MaxMin(nn.Module):
    """GroupSort with groups of two."""

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


def group_sort(m, x):
    return m.b(m.a(x).unflatten(1, (2, 4)).sort(-1).values.flatten(1))


def maxout(m, x):
    return m.b(m.a(x).unflatten(1, (3, 4)).amax(-1))


def residual_mlp(m, x):
    x = x + m.b(F.relu(m.a(x)))
    return m.head(x + m.d(F.relu(m.c(x))))


def convnext(m, x):
    y = m.norm(m.depth(x).permute(0, 2, 3, 1))
    return x + m.gamma * m.down(F.gelu(m.up(y))).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 6), nn.Linear(6, channels)
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    forward = convnext


def temporal(m, x):
    """A causal block of dilated convolutions."""
    y = F.relu(m.a(F.pad(x, (2, 0))))
    return F.relu(m.b(F.pad(y, (4, 0))) + x)
