"""Classifiers and segmentation networks for photographs: torchvision, timm, pytorchcv, segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.entry import Entry


def _torchvision(name: str, size: int, **arguments: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=10, **arguments), torch.rand(1, 3, size, size)

    return make


def _timm(name: str, size: int) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import timm

        return timm.create_model(name, num_classes=10), torch.rand(1, 3, size, size)

    return make


def _pytorchcv(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from pytorchcv.model_provider import get_model

        return get_model(name, pretrained=False), torch.rand(1, 3, 32, 32)

    return make


def _smp(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import segmentation_models_pytorch as smp

        model = getattr(smp, name)("resnet18", encoder_weights=None, classes=2)
        return model, torch.rand(1, 3, 64, 64)

    return make


SQUEEZE = "squeeze and excitation"
ATTENTION = "attention"

TORCHVISION = [
    Entry("torchvision", "alexnet, 3x64x64", _torchvision("alexnet", 64)),
    Entry("torchvision", "vgg11, 3x32x32", _torchvision("vgg11", 32)),
    Entry("torchvision", "vgg11_bn, 3x32x32", _torchvision("vgg11_bn", 32)),
    Entry("torchvision", "squeezenet1_1, 3x32x32", _torchvision("squeezenet1_1", 32), small=True),
    Entry("torchvision", "googlenet, 3x32x32", _torchvision("googlenet", 32, aux_logits=False, init_weights=False)),
    Entry("torchvision", "densenet121, 3x32x32", _torchvision("densenet121", 32)),
    Entry("torchvision", "mobilenet_v2, 3x32x32", _torchvision("mobilenet_v2", 32), small=True),
    Entry("torchvision", "mobilenet_v3_small, 3x32x32", _torchvision("mobilenet_v3_small", 32), unbounded=SQUEEZE),
    Entry("torchvision", "mnasnet0_5, 3x32x32", _torchvision("mnasnet0_5", 32), small=True),
    Entry("torchvision", "efficientnet_b0, 3x32x32", _torchvision("efficientnet_b0", 32), unbounded=SQUEEZE),
    Entry("torchvision", "shufflenet_v2_x0_5, 3x32x32", _torchvision("shufflenet_v2_x0_5", 32), small=True),
    Entry("torchvision", "resnet18, 3x32x32", _torchvision("resnet18", 32), small=True),
    Entry("torchvision", "resnet18, 3x224x224", _torchvision("resnet18", 224)),
    Entry("torchvision", "resnet50, 3x32x32", _torchvision("resnet50", 32)),
    Entry("torchvision", "wide_resnet50_2, 3x32x32", _torchvision("wide_resnet50_2", 32)),
    Entry("torchvision", "resnext50_32x4d, 3x32x32", _torchvision("resnext50_32x4d", 32)),
    Entry("torchvision", "regnet_x_400mf, 3x32x32", _torchvision("regnet_x_400mf", 32)),
    Entry("torchvision", "regnet_y_400mf, 3x32x32", _torchvision("regnet_y_400mf", 32), unbounded=SQUEEZE),
    Entry("torchvision", "convnext_tiny, 3x32x32", _torchvision("convnext_tiny", 32)),
    Entry(
        "torchvision", "inception_v3, 3x96x96", _torchvision("inception_v3", 96, aux_logits=False, init_weights=False)
    ),
    Entry("torchvision", "vit_b_16, 3x224x224", _torchvision("vit_b_16", 224), unbounded=ATTENTION),
    Entry("torchvision", "swin_t, 3x64x64", _torchvision("swin_t", 64), unbounded=ATTENTION),
    Entry(
        "torchvision",
        "fcn_resnet50, 3x32x32",
        _torchvision("fcn_resnet50", 32, weights_backbone=None),
        {"output": "out"},
    ),
    Entry(
        "torchvision",
        "deeplabv3_mobilenet_v3_large, 3x32x32",
        _torchvision("deeplabv3_mobilenet_v3_large", 32, weights_backbone=None),
        {"output": "out"},
        unbounded=SQUEEZE,
    ),
]

TIMM = [
    Entry("timm", "test_resnet", _timm("test_resnet", 64), small=True),
    Entry("timm", "test_convnext", _timm("test_convnext", 64), small=True),
    Entry("timm", "test_efficientnet", _timm("test_efficientnet", 64), unbounded=SQUEEZE),
    Entry("timm", "test_byobnet", _timm("test_byobnet", 64), unbounded=SQUEEZE),
    Entry("timm", "test_nfnet", _timm("test_nfnet", 64), unbounded=SQUEEZE),
    Entry("timm", "test_vit", _timm("test_vit", 160), unbounded=ATTENTION),
    Entry("timm", "repvgg_a0, 3x32x32", _timm("repvgg_a0", 32)),
    Entry("timm", "convmixer_768_32, 3x28x28", _timm("convmixer_768_32", 28)),
    Entry("timm", "mixer_s32_224", _timm("mixer_s32_224", 224)),
    Entry("timm", "resmlp_12_224", _timm("resmlp_12_224", 224)),
    Entry("timm", "gmlp_s16_224", _timm("gmlp_s16_224", 224), unbounded="gate"),
    Entry("timm", "resnet10t, 3x32x32", _timm("resnet10t", 32), small=True),
    Entry("timm", "seresnet18, 3x32x32", _timm("legacy_seresnet18", 32), unbounded=SQUEEZE),
    Entry("timm", "resnetblur18, 3x64x64", _timm("resnetblur18", 64)),
    Entry("timm", "res2net50_26w_4s, 3x32x32", _timm("res2net50_26w_4s", 32)),
    Entry("timm", "skresnet18, 3x32x32", _timm("skresnet18", 32), unbounded="attention"),
    Entry("timm", "darknet17, 3x64x64", _timm("darknet17", 64), small=True),
    Entry("timm", "cspresnet50, 3x64x64", _timm("cspresnet50", 64)),
    Entry("timm", "dla34, 3x64x64", _timm("dla34", 64)),
    Entry("timm", "hardcorenas_a, 3x32x32", _timm("hardcorenas_a", 32), unbounded=SQUEEZE),
    Entry("timm", "ese_vovnet19b_dw, 3x64x64", _timm("ese_vovnet19b_dw", 64), unbounded=SQUEEZE),
    Entry("timm", "poolformer_s12, 3x64x64", _timm("poolformer_s12", 64)),
    Entry("timm", "resnetv2_50d_gn, 3x32x32", _timm("resnetv2_50d_gn", 32)),
    Entry("timm", "resnetv2_50x1_bit, 3x32x32", _timm("resnetv2_50x1_bit", 32)),
]

OTHERS = [
    Entry("pytorchcv", "resnet20_cifar10", _pytorchcv("resnet20_cifar10"), small=True),
    Entry("pytorchcv", "preresnet20_cifar10", _pytorchcv("preresnet20_cifar10"), small=True),
    Entry("pytorchcv", "densenet40_k12_cifar10", _pytorchcv("densenet40_k12_cifar10")),
    Entry("pytorchcv", "wrn16_10_cifar10", _pytorchcv("wrn16_10_cifar10")),
    Entry("pytorchcv", "nin_cifar10", _pytorchcv("nin_cifar10"), small=True),
    Entry("pytorchcv", "shakeshakeresnet20_2x16d_cifar10", _pytorchcv("shakeshakeresnet20_2x16d_cifar10")),
    Entry("segmentation_models_pytorch", "Unet(resnet18), 3x64x64", _smp("Unet")),
    Entry("segmentation_models_pytorch", "FPN(resnet18), 3x64x64", _smp("FPN")),
    Entry("segmentation_models_pytorch", "Linknet(resnet18), 3x64x64", _smp("Linknet")),
]

ENTRIES = TORCHVISION + TIMM + OTHERS
