"""The zoo: classifiers, regressors, policies, small vision models."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.models.architectures import (
    BasicBlock,
    ConvNext,
    MaxMin,
    MixerBlock,
    Policy,
    all_convolutional,
    autoencoder,
    dense_layer,
    densenet,
    digits_cnn,
    double_conv,
    dueling,
    fire,
    group_sort,
    inception,
    inverted_residual,
    lenet,
    maxout,
    pyramid,
    residual_mlp,
    resnet18,
    separable,
    shuffle_unit,
    temporal,
    unet,
)
from tests.models.building import conv, linear, mlp, of, randomized_norm, sequential

# What people train: classifiers, regressors, policies, small vision models.
ZOO = {
    "logistic regression": (lambda: nn.Linear(6, 3), (6,)),
    "regressor": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), (6,)),
    "classifier with dropout and batch norm": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), randomized_norm(nn.BatchNorm1d, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        ),
        (6,),
    ),
    "softmax classifier": (lambda: nn.Sequential(mlp(nn.ReLU()), nn.Softmax(1)), (5,)),
    "log-softmax classifier": (lambda: nn.Sequential(mlp(nn.ReLU()), nn.LogSoftmax(-1)), (5,)),
    "energy": of(lambda m, x: -torch.logsumexp(m.a(x), 1), a=lambda: mlp(nn.SiLU())),
    "margin": of(lambda m, x: m.a(x)[:, 0] - m.a(x)[:, 1:].max(1).values, a=lambda: mlp(nn.ReLU())),
    "LeNet": (lenet, (1, 12, 12)),
    "digits CNN": (digits_cnn, (1, 8, 8)),
    "all-convolutional": (all_convolutional, (1, 8, 8)),
    "strided CNN with padding modes": (
        sequential(
            lambda: nn.Conv2d(2, 3, 3, 2, 1, padding_mode="reflect"),
            nn.Softplus,
            lambda: nn.Conv2d(3, 2, 3, 1, 1, padding_mode="replicate"),
        ),
        (2, 6, 6),
    ),
    "ResNet-18 body": (resnet18, (3, 8, 8)),
    "ResNet block": (lambda: BasicBlock(2, 4, 2), (2, 6, 6)),
    "DenseNet block": of(
        densenet,
        (2, 4, 4),
        a=lambda: dense_layer(2, 2),
        b=lambda: dense_layer(4, 2),
        c=lambda: dense_layer(6, 2),
        transition=conv(8, 3, 1),
    ),
    "U-Net block": of(
        unet,
        (1, 4, 4),
        enter=lambda: double_conv(1, 3),
        middle=lambda: double_conv(3, 4),
        up=lambda: nn.ConvTranspose2d(4, 3, 2, 2),
        leave=lambda: double_conv(6, 2),
    ),
    "MLP-Mixer block": (MixerBlock, (4, 6)),
    "ConvNeXt block": (ConvNext, (3, 4, 4)),
    "autoencoder": (autoencoder, (1, 8, 8)),
    "MobileNet block": of(
        inverted_residual, (2, 4, 4), a=conv(2, 6, 1), b=conv(6, 6, 3, padding=1, groups=6), c=conv(6, 2, 1)
    ),
    "separable convolution": of(separable, (3, 5, 5), depth=conv(3, 3, 3, groups=3), point=conv(3, 4, 1)),
    "Inception block": of(inception, (2, 4, 4), a=conv(2, 2, 1), b=conv(2, 3, 3, padding=1), c=conv(2, 1, 1)),
    "ShuffleNet unit": of(shuffle_unit, (4, 3, 3), a=conv(2, 3, 1), b=conv(3, 2, 3, padding=1)),
    "SqueezeNet fire": of(fire, (3, 4, 4), squeeze=conv(3, 2, 1), one=conv(2, 3, 1), three=conv(2, 3, 3, padding=1)),
    "feature pyramid": of(pyramid, (1, 5, 5), a=conv(1, 2, 3, padding=1), b=conv(1, 2, 3, padding=1)),
    "VGG with overlapping pools": (
        sequential(conv(1, 3, 3, padding=1), nn.ReLU, lambda: nn.MaxPool2d(3, 2), nn.Flatten, lambda: nn.Linear(27, 3)),
        (1, 8, 8),
    ),
    "super-resolution": (
        sequential(conv(1, 8, 3, padding=1), nn.ReLU, lambda: nn.PixelShuffle(2), conv(2, 1, 1)),
        (1, 4, 4),
    ),
    "patch embedding": (
        sequential(
            lambda: nn.PixelUnshuffle(2), conv(4, 5, 1), lambda: nn.Flatten(2), lambda: nn.Linear(4, 3), nn.GELU
        ),
        (1, 4, 4),
    ),
    "upsampling decoder": (
        sequential(
            lambda: nn.Upsample(scale_factor=2),
            conv(2, 3, 3, padding=1),
            nn.ReLU,
            lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"),
        ),
        (2, 3, 3),
    ),
    "audio CNN": (
        sequential(
            lambda: nn.Conv1d(1, 4, 5, 2, 2),
            nn.ReLU,
            lambda: nn.MaxPool1d(3, 2, 1),
            lambda: nn.Conv1d(4, 3, 3, dilation=2),
            nn.ReLU,
            lambda: nn.AdaptiveMaxPool1d(2),
            nn.Flatten,
        ),
        (1, 24),
    ),
    "temporal convolution": of(
        temporal, (3, 6), a=lambda: nn.Conv1d(3, 3, 3), b=lambda: nn.Conv1d(3, 3, 3, dilation=2)
    ),
    "video CNN": (sequential(lambda: nn.Conv3d(1, 2, 3, padding=1), nn.ReLU, lambda: nn.MaxPool3d(2)), (1, 4, 4, 4)),
    "group-normalised CNN": (sequential(conv(1, 4, 3), lambda: nn.GroupNorm(2, 4), nn.ReLU, conv(4, 2, 2)), (1, 5, 5)),
    "style network": (sequential(conv(1, 2, 3), lambda: nn.InstanceNorm2d(2, affine=True), nn.ReLU), (1, 4, 4)),
    "RMS-normalised MLP": (
        sequential(linear(5, 6), lambda: nn.RMSNorm(6, eps=1e-3), nn.SiLU, linear(6, 2)),
        (5,),
    ),
    "layer-normalised MLP": (sequential(linear(5, 6), lambda: nn.LayerNorm(6), nn.ReLU, linear(6, 2)), (5,)),
    "dueling critic": of(dueling, (4,), body=linear(4, 8), value=linear(8, 1), advantage=linear(8, 3)),
    "control policy": (Policy, (4,)),
    "residual MLP": of(residual_mlp, a=linear(5, 8), b=linear(8, 5), c=linear(5, 8), d=linear(8, 5), head=linear(5, 2)),
    "MaxMin network": (sequential(linear(5, 8), MaxMin, linear(8, 6), MaxMin, linear(6, 1)), (5,)),
    "GroupSort network": of(group_sort, a=linear(5, 8), b=linear(8, 2)),
    "maxout network": of(maxout, a=linear(5, 12), b=linear(3, 2)),
    "retrieval over fixed keys": of(
        lambda m, x: F.softmax(m.keys(x) / 2.0, -1) @ m.values.weight, keys=linear(5, 6), values=linear(3, 6)
    ),
}
