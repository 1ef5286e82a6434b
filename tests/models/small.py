"""Operators in small models: activations, functions, affine layers, shapes, structures, convolutions."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations

from tests.models.building import Lambda, channel_prelu, legacy, linear, mlp, of, randomized_norm

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu_inplace": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "leaky_relu_steep": lambda: nn.LeakyReLU(3.0),
    "leaky_relu_negative": lambda: nn.LeakyReLU(-0.7),
    "prelu": nn.PReLU,
    "prelu_channels": lambda: channel_prelu([0.1, 1.0, -2.0, 0.0, 1.5, 1.0]),
    "rrelu": nn.RReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "elu": lambda: nn.ELU(1.7),
    "elu_flat": lambda: nn.ELU(0.3),
    "celu": lambda: nn.CELU(0.5),
    "selu": nn.SELU,
    "softplus": lambda: nn.Softplus(beta=2.0),
    "softsign": nn.Softsign,
    "log_sigmoid": nn.LogSigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": lambda: nn.Softshrink(0.3),
    "threshold_at_value": lambda: nn.Threshold(0.2, 0.2),
    "hardshrink_at_zero": lambda: nn.Hardshrink(0.0),
}

FUNCTIONS = {
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "erf": torch.erf,
    "tanh": torch.tanh,
    "expit": torch.special.expit,
    "relu_method": lambda x: x.relu(),
    "relu_inplace": lambda x: (x + 0.0).relu_(),
    "clamp": lambda x: x.clamp(-0.3, 0.9),
    "clamp_min": lambda x: x.clamp(min=0.1),
    "clamp_max": lambda x: torch.clamp_max(x, 0.1),
    "clip": lambda x: torch.clip(x, -1, 1),
    "clamp_tensors": lambda x: torch.clamp(x, torch.linspace(-1, 1, 6), torch.linspace(-0.5, 0.5, 6)),
    "clamp_empty": lambda x: torch.clamp(x, 1.0, 0.0),
    "relu6": F.relu6,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "swish_by_hand": lambda x: x * torch.sigmoid(x),
    "swish_by_hand_reversed": lambda x: torch.sigmoid(x) * x,
    "mish_by_hand": lambda x: x * torch.tanh(F.softplus(x)),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "swish_by_entry": lambda x: x * torch.sigmoid(torch.linspace(-1, 2, 6) * x),
    "leaky_by_entry": lambda x: torch.where(x > 0, x, torch.linspace(-1, 2, 6) * x),
    "gelu_by_hand": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "new_gelu": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))),
    "snake": lambda x: x + torch.sin(x) ** 2,
    "root": lambda x: torch.sqrt(1 + x**2),
    "unit_ball": lambda x: x / torch.clamp(x.norm(dim=1, keepdim=True), min=1.0),
    "l2_pool": lambda x: F.lp_pool1d(F.pad(x, (1, 1))[:, None], 2, 3, 1).flatten(1),
    "maximum_constant": lambda x: torch.maximum(x, torch.tensor(0.2)),
    "minimum_constant": lambda x: torch.minimum(torch.linspace(-1, 1, 6), x),
    "maximum_pair": lambda x: torch.maximum(x, 2 * x.flip(1)),
    "minimum_pair": lambda x: torch.minimum(x, x.roll(1, 1)),
    "logsigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
}

AFFINE = {
    "linear": (linear(5, 3), (5,)),
    "linear_without_bias": (lambda: nn.Linear(5, 3, bias=False), (5,)),
    "two_linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), (5,)),
    "identity": (nn.Identity, (5,)),
    "flatten": (nn.Flatten, (2, 3)),
    "flatten_linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (1, 2, 3)),
    "unflatten": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2)), (5,)),
    "linear_on_last": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (2, 3)),
    "batch_norm_1d": (lambda: mlp(randomized_norm(nn.BatchNorm1d, 6)), (5,)),
    "batch_norm_first": (lambda: randomized_norm(nn.BatchNorm1d, 5), (5,)),
    "batch_norm_1d_channels": (lambda: nn.Sequential(randomized_norm(nn.BatchNorm1d, 2), nn.ReLU()), (2, 3)),
    "batch_norm_2d": (lambda: nn.Sequential(randomized_norm(nn.BatchNorm2d, 2), nn.Flatten()), (2, 3, 2)),
    "batch_norm_3d": (lambda: randomized_norm(nn.BatchNorm3d, 2), (2, 1, 3, 2)),
    "batch_norm_plain": (lambda: nn.BatchNorm1d(5, affine=False), (5,)),
    "dropout": (lambda: mlp(nn.Dropout(0.5)), (5,)),
    "output_is_a_number": (lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), (5,)),
    "scale_and_shift": of(lambda m, x: (2 * x - torch.arange(5.0)) / 3 + 1),
    "reversed_operands": of(lambda m, x: 1 - x + torch.ones(5) * x),
    "negated": of(lambda m, x: -x),
    "alpha": of(lambda m, x: torch.add(x, torch.ones(5), alpha=3) - torch.sub(x, m.a(x), alpha=0.5), a=linear(5, 5)),
    "divide_by_tensor": of(lambda m, x: x / torch.tensor([1.0, 2.0, 3.0, -4.0, 0.7])),
    "addmm": of(lambda m, x: torch.addmm(m.a.bias, x, m.a.weight.t(), beta=2, alpha=0.5), a=linear(5, 3)),
    "matmul": of(lambda m, x: x @ m.a.weight.t() + m.a.bias, a=linear(5, 3)),
    "matmul_vector": of(lambda m, x: x @ m.a.bias, a=linear(1, 5)),
    "matmul_left": of(lambda m, x: m.a.weight @ x, (5, 2), a=linear(5, 3)),
    "matmul_sequence": of(lambda m, x: x.matmul(m.a.weight.t()), (2, 5), a=linear(5, 3)),
    "einsum": of(lambda m, x: torch.einsum("bi,oi->bo", x, m.a.weight), a=linear(5, 3)),
    "einsum_middle": of(lambda m, x: torch.einsum("ot,btf->bfo", m.a.weight, x), (5, 2), a=linear(5, 3)),
    "sum": of(lambda m, x: x.sum(1), (2, 3)),
    "sum_keepdim": of(lambda m, x: x.sum((1, -1), keepdim=True), (2, 3)),
    "mean": of(lambda m, x: x.mean(-1), (2, 3)),
    "mean_all_dims": of(lambda m, x: x.mean((1, 2)), (2, 3)),
    "cumsum": of(lambda m, x: x.cumsum(1)),
    "centred": of(lambda m, x: x - x.mean(1, keepdim=True)),
    "broadcast_sum": of(lambda m, x: x.unsqueeze(1) + x.unsqueeze(2)),
    "cast": of(lambda m, x: x.double().to(torch.float32).type_as(x)),
    "does_not_depend_on_the_input": of(lambda m, x: torch.ones(x.shape[0], 3)),
    "multiplied_by_zero": of(lambda m, x: torch.relu(x * 0 + 1)),
    "filled": of(lambda m, x: x + torch.zeros_like(x) + x.new_ones(x.shape)),
}

SHAPES = {
    "reshape": of(lambda m, x: torch.tanh(x.reshape(len(x), -1)), (2, 3)),
    "view_merging_the_batch": of(lambda m, x: m.a(x.view(-1, 3)).view(x.shape[0], -1), (2, 3), a=linear(3, 2)),
    "permute": of(lambda m, x: torch.relu(m.a(x.permute(0, 2, 1))), (3, 2), a=linear(3, 4)),
    "batch_second": of(lambda m, x: m.a(x.transpose(0, 1)).relu().transpose(0, 1), (2, 3), a=linear(3, 4)),
    "squeeze": of(lambda m, x: x.unsqueeze(1).squeeze(1) + x[:, None, :].squeeze()),
    "no_features": of(lambda m, x: torch.cat([x[:, :0], x.relu()], 1)),
    "slices": of(lambda m, x: torch.relu(x[:, 1:4]) + x[..., :3] - x[:, [0, 4, 2]]),
    "select": of(lambda m, x: torch.tanh(x[:, 0]) + x[:, 1], (2, 3)),
    "chunk": of(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1).tanh(), (4,)),
    "split": of(lambda m, x: x.split([2, 3], 1)[1].relu()),
    "unbind": of(lambda m, x: x.unbind(1)[1] - x.unbind(1)[0].relu(), (2, 3)),
    "stack": of(lambda m, x: torch.stack([x, x.relu(), -x], 1)),
    "cat": of(lambda m, x: m.a(torch.cat([x, x.tanh(), 2 * x], 1)), a=linear(15, 4)),
    "cat_constant": of(lambda m, x: m.a(torch.cat([x, torch.ones(x.shape[0], 2)], 1)).relu(), a=linear(7, 4)),
    "class_token": of(lambda m, x: torch.cat([torch.ones(1, 1, 3).expand(x.shape[0], -1, -1), x], 1).tanh(), (2, 3)),
    "flip_and_roll": of(lambda m, x: x.flip(1).tanh() + x.roll(2, 1)),
    "expand": of(lambda m, x: x[:, :1].expand(-1, 4).tanh()),
    "repeat": of(lambda m, x: x.repeat(1, 2).tanh()),
    "pad": of(lambda m, x: F.pad(x, (1, 2), value=0.5).tanh()),
    "masked_fill": of(lambda m, x: x.masked_fill(torch.tensor([True, False, False, True, False]), 3.0).tanh()),
    "where_constant_mask": of(lambda m, x: torch.where(torch.arange(5) > 2, x.tanh(), -x)),
    "written_in_place": of(lambda m, x: write(x).tanh()),
    "pixel_shuffle": of(lambda m, x: F.pixel_shuffle(x, 2).tanh(), (4, 2, 2)),
    "unfold": of(lambda m, x: x.unfold(1, 3, 1).tanh()),
    "tril_by_index": of(lambda m, x: x[:, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])].tanh(), (2, 2)),
    "one_feature": of(lambda m, x: m.a(x).relu(), (1,), a=linear(1, 2)),
}


def write(x):
    y = x.clone()
    y[:, 0] = 0.5
    y[:, 1:3] = x[:, 3:5] * 2
    return y


def res_block(m, x):
    return x + m.b(torch.relu(m.a(x)))


def nested():
    inner = nn.Sequential(nn.Linear(5, 4), nn.ModuleDict({"act": nn.GELU()})["act"])
    return nn.Sequential(nn.Sequential(inner, nn.Dropout()), nn.ModuleList([nn.Linear(4, 2)])[0])


def shared():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.ReLU(), layer)


def non_contiguous():
    model = mlp(nn.ReLU())
    model[0].weight.data = torch.randn(5, 6).t()
    model[2].weight.data = torch.randn(3, 12)[:, ::2]
    return model


def no_grad(m, x):
    with torch.no_grad():
        return m.b(m.a(x).relu())


def hooked():
    model = mlp(nn.Tanh())
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    model.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def buffers():
    def forward(m, x):
        return torch.relu((x - m.mean) / m.std) * m.plain

    model = Lambda(forward)
    model.register_buffer("mean", torch.arange(5.0))
    model.register_buffer("std", torch.arange(1.0, 6.0), persistent=False)
    model.plain = torch.tensor([1.0, -1.0, 2.0, 0.0, 3.0])
    return model


class Variadic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(nn.ReLU())

    def forward(self, *args, scale=2.0, **kwargs):
        return scale * self.net(*args)


class OptionalMask(nn.Module):
    def forward(self, x, mask=None):
        return x.relu() if mask is None else x * mask


def checkpointed(m, x):
    return torch.utils.checkpoint.checkpoint(m.a, x, use_reentrant=False).relu()


STRUCTURES = {
    "variadic": (Variadic, (5,)),
    "optional_argument": (OptionalMask, (5,)),
    "activation_checkpoint": of(checkpointed, a=linear(5, 4)),
    "residual": of(res_block, a=linear(5, 4), b=linear(4, 5)),
    "residual_difference": of(lambda m, x: m.b(x.relu()) - x.tanh() - x, b=linear(5, 5)),
    "dense_skips": of(lambda m, x: m.b(torch.cat([x, torch.relu(m.a(x))], 1)), a=linear(5, 4), b=linear(9, 3)),
    "nested": (nested, (5,)),
    "shared_weights": (shared, (5,)),
    "non_contiguous": (non_contiguous, (5,)),
    "no_grad_inside": of(no_grad, a=linear(5, 4), b=linear(4, 2)),
    "hooks": (hooked, (5,)),
    "buffers_and_attributes": (buffers, (5,)),
    "unused_branch": of(lambda m, x: (m.a(x).exp(), m.b(x).relu())[1], a=linear(5, 2), b=linear(5, 2)),
    "float16": (lambda: mlp(nn.ReLU()).half(), (5,)),
    "bfloat16": (lambda: mlp(nn.Tanh()).bfloat16(), (5,)),
    "float64": (lambda: mlp(nn.ReLU()).double(), (5,)),
    "weight_norm": (
        lambda: mlp(nn.ReLU()).apply(lambda m: isinstance(m, nn.Linear) and parametrizations.weight_norm(m)),
        (5,),
    ),
    "spectral_norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.ReLU()), (5,)),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 4)), nn.ReLU()), (5,)),
    "legacy_weight_norm": (lambda: nn.Sequential(legacy(nn.utils.weight_norm, nn.Linear(5, 4)), nn.ReLU()), (5,)),
    "legacy_spectral_norm": (lambda: nn.Sequential(legacy(nn.utils.spectral_norm, nn.Linear(5, 4)), nn.ReLU()), (5,)),
    "compiled_submodule": (
        lambda: nn.Sequential(nn.Linear(5, 4), compiled(nn.ReLU()), compiled(nn.Linear(4, 2))),
        (5,),
    ),
    "compiled": (lambda: compiled(mlp(nn.ReLU())), (5,)),
    "compiled_in_place": (lambda: compiled_in_place(mlp(nn.ReLU())), (5,)),
}


def compiled(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(model)


def compiled_in_place(model):
    model.compile()
    return model


CONVOLUTIONS = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (2, 6)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, (2, 1), stride=(2, 1))),
        (2, 4, 3),
    ),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, padding=(0, 1, 0)), (1, 3, 2, 3)),
    "conv_dilated": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2, dilation=(2, 1), bias=False), nn.Tanh()), (1, 4, 4)),
    "conv_same": (lambda: nn.Conv2d(1, 2, (2, 3), padding="same", dilation=2), (1, 4, 4)),
    "conv_valid": (lambda: nn.Conv1d(1, 2, 2, padding="valid"), (1, 4)),
    "conv_groups": (lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.ReLU()), (4, 3, 3)),
    "conv_depthwise": (lambda: nn.Conv2d(3, 3, 2, groups=3, padding=1), (3, 3, 3)),
    "conv_reflected": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 4, 4)),
    "conv_circular": (lambda: nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"), (1, 4)),
    "conv_twice": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2)), (1, 4, 4)),
    "avg_pool": (lambda: nn.Sequential(nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()), (2, 4, 5)),
    "avg_pool_padded": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (2, 4, 5)),
    "avg_pool_1d": (lambda: nn.AvgPool1d(3, 1), (2, 5)),
    "adaptive_avg_pool": (lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten()), (2, 3, 4)),
    "global_avg_pool": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (2, 3, 4)),
}

SMALL = {
    **CONVOLUTIONS,
    **{f"activation_{name}": (lambda make=make: mlp(make()), (5,)) for name, make in ACTIVATIONS.items()},
    **{f"function_{name}": (lambda f=f: mlp(Lambda(lambda m, x: f(x))), (5,)) for name, f in FUNCTIONS.items()},
    **AFFINE,
    **SHAPES,
    **STRUCTURES,
}
