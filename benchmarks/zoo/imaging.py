"""Networks for medical images and inverse problems: MONAI and deepinv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.entry import Entry


def _monai(name: str, *shape: int, **arguments: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from monai.networks import nets

        return getattr(nets, name)(**arguments), torch.rand(1, *shape)

    return make


def _deepinv(name: str, *shape: int, level: bool = False, **arguments: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import deepinv

        x = torch.rand(1, *shape)
        return getattr(deepinv.models, name)(**arguments), (x, torch.tensor(0.1)) if level else x

    return make


FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
STEPS = {"channels": (8, 16, 32), "strides": (2, 2)}

MONAI = [
    Entry("monai", "UNet, 1x32x32", _monai("UNet", 1, 32, 32, **FLAT, **STEPS)),
    Entry("monai", "UNet(norm=BATCH), 1x32x32", _monai("UNet", 1, 32, 32, **FLAT, **STEPS, norm="BATCH"), small=True),
    Entry("monai", "BasicUNet(norm=batch), 1x32x32", _monai("BasicUNet", 1, 32, 32, **FLAT, norm="batch"), small=True),
    Entry("monai", "SegResNet, 1x32x32", _monai("SegResNet", 1, 32, 32, **FLAT, init_filters=8), small=True),
    Entry(
        "monai",
        "AutoEncoder(norm=BATCH), 1x32x32",
        _monai("AutoEncoder", 1, 32, 32, **FLAT, channels=(8, 16), strides=(2, 2), norm="BATCH"),
        small=True,
    ),
    Entry(
        "monai",
        "DynUNet(norm=batch), 1x32x32",
        _monai(
            "DynUNet",
            1,
            32,
            32,
            **FLAT,
            kernel_size=[3, 3, 3],
            strides=[1, 2, 2],
            upsample_kernel_size=[2, 2],
            filters=[8, 16, 32],
            norm_name="batch",
        ),
        small=True,
    ),
    Entry("monai", "DenseNet121, 1x32x32", _monai("DenseNet121", 1, 32, 32, **FLAT)),
    Entry(
        "monai",
        "HighResNet, 1x16x16x16",
        _monai("HighResNet", 1, 16, 16, 16, spatial_dims=3, in_channels=1, out_channels=2),
    ),
    Entry("monai", "VNet, 1x32x32", _monai("VNet", 1, 32, 32, **FLAT)),
    Entry(
        "monai",
        "Regressor(norm=BATCH), 1x32x32",
        _monai(
            "Regressor",
            1,
            32,
            32,
            in_shape=(1, 32, 32),
            out_shape=(1,),
            channels=(4, 8, 16),
            strides=(2, 2, 2),
            norm="BATCH",
        ),
        small=True,
    ),
    Entry(
        "monai",
        "Critic, 1x32x32",
        _monai("Critic", 1, 32, 32, in_shape=(1, 32, 32), channels=(4, 8, 16), strides=(2, 2, 2)),
        small=True,
    ),
    Entry(
        "monai",
        "FullyConnectedNet",
        _monai("FullyConnectedNet", 10, in_channels=10, out_channels=2, hidden_channels=[32, 32]),
        small=True,
    ),
    Entry(
        "monai",
        "ResNet(18), 1x16x16x16",
        _monai(
            "resnet18",
            1,
            16,
            16,
            16,
            spatial_dims=3,
            n_input_channels=1,
            num_classes=2,
        ),
    ),
    Entry(
        "monai",
        "SEResNet50, 1x32x32",
        _monai("SEResNet50", 1, 32, 32, spatial_dims=2, in_channels=1, num_classes=2),
        unbounded="squeeze and excitation",
    ),
    Entry(
        "monai", "AttentionUnet, 1x32x32", _monai("AttentionUnet", 1, 32, 32, **FLAT, **STEPS), unbounded="attention"
    ),
    Entry(
        "monai",
        "UNETR, 1x32x32x32",
        _monai("UNETR", 1, 32, 32, 32, in_channels=1, out_channels=2, img_size=(32, 32, 32)),
        unbounded="attention",
    ),
]

DEEPINV = [
    Entry(
        "deepinv",
        "DnCNN, 1x24x24",
        _deepinv("DnCNN", 1, 24, 24, in_channels=1, out_channels=1, pretrained=None),
        small=True,
    ),
    Entry("deepinv", "DnCNN(depth=7), 3x64x64", _deepinv("DnCNN", 3, 64, 64, depth=7, pretrained=None)),
    Entry("deepinv", "UNet, 3x32x32", _deepinv("UNet", 3, 32, 32, in_channels=3, out_channels=3, scales=3), small=True),
    Entry(
        "deepinv",
        "DRUNet, 1x16x16",
        _deepinv("DRUNet", 1, 16, 16, level=True, in_channels=1, out_channels=1, pretrained=None),
        {"input": 0},
    ),
    Entry("deepinv", "AutoEncoder", _deepinv("AutoEncoder", 64, dim_input=64), small=True),
    Entry(
        "deepinv",
        "FFDNet, 1x16x16",
        _deepinv("FFDNet", 1, 16, 16, level=True, img_channels=1, pretrained=None),
        {"input": 0},
    ),
    Entry("deepinv", "DCGANDiscriminator, 3x64x64", _deepinv("DCGANDiscriminator", 3, 64, 64, nc=3)),
    Entry(
        "deepinv",
        "DCGANGenerator",
        _deepinv("DCGANGenerator", 100, 1, 1, output_size=64, nz=100, ngf=16, nc=3),
        small=True,
    ),
    Entry("deepinv", "SRResNet, 3x16x16", _deepinv("SRResNet", 3, 16, 16, pretrained=None), small=True),
    Entry(
        "deepinv",
        "PatchGANDiscriminator, 3x32x32",
        _deepinv("PatchGANDiscriminator", 3, 32, 32, input_nc=3, ndf=16, n_layers=2),
        small=True,
    ),
    Entry("deepinv", "ICNN, 1x16x16", _deepinv("ICNN", 1, 16, 16, in_channels=1, num_filters=8), unbounded="square"),
    Entry("deepinv", "Restormer, 3x16x16", _deepinv("Restormer", 3, 16, 16, pretrained=None), unbounded="attention"),
]

ENTRIES = MONAI + DEEPINV
