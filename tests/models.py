"""Models that the tests read: name -> (factory, shape of one sample), and those that must be refused."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations

from lightning_lipschitz.errors import ExtractionError, ModelSizeError, UnsupportedModuleError


class Lambda(nn.Module):
    """A forward written as a function of (submodules, x)."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def mlp(activation, inputs=5, hidden=6, outputs=3):
    return nn.Sequential(nn.Linear(inputs, hidden), activation, nn.Linear(hidden, outputs))


def of(function, shape=(5,), **modules):
    return lambda: Lambda(function, **{name: make() for name, make in modules.items()}), shape


def randomized_norm(kind, channels):
    """A batch norm that has seen data: nothing at its initial value."""
    norm = kind(channels)
    generator = torch.Generator().manual_seed(3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data = torch.randn(channels, generator=generator)
    norm.running_var = torch.rand(channels, generator=generator) + 0.1
    return norm


def legacy(wrap, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wrap(module)


def channel_prelu(slopes):
    prelu = nn.PReLU(len(slopes))
    prelu.weight.data = torch.tensor(slopes)
    return prelu


def linear(*size):
    return lambda: nn.Linear(*size)


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

MODELS = {
    **CONVOLUTIONS,
    **{f"activation_{name}": (lambda make=make: mlp(make()), (5,)) for name, make in ACTIVATIONS.items()},
    **{f"function_{name}": (lambda f=f: mlp(Lambda(lambda m, x: f(x))), (5,)) for name, f in FUNCTIONS.items()},
    **AFFINE,
    **SHAPES,
    **STRUCTURES,
}


@dataclass(frozen=True)
class Refused:
    """What a model that cannot be read must answer."""

    make: object
    shape: tuple[int, ...] = (5,)
    error: type[Exception] = UnsupportedModuleError
    verdict: str = ""
    says: str = ""


def refused_function(function, **expected):
    return Refused(lambda: nn.Sequential(nn.Linear(5, 4), Lambda(lambda m, x: function(x))), **expected)


def refused_module(make, says="", verdict="not yet", shape=(5,)):
    return Refused(make, shape, UnsupportedModuleError, verdict, says)


def value_branch(m, x):
    return x + 1 if x.sum() > 0 else x


REFUSED = {
    "hardshrink": refused_module(lambda: mlp(nn.Hardshrink()), "`1`", "never"),
    "threshold": refused_module(lambda: mlp(nn.Threshold(0.1, 20.0)), "value = threshold", "never"),
    "softplus_threshold": refused_module(lambda: mlp(nn.Softplus(threshold=1.0)), "20 or more", "never"),
    "celu_negative": refused_module(lambda: mlp(nn.CELU(-1.0)), "negative alpha", "never"),
    "glu": refused_module(lambda: nn.Sequential(nn.Linear(5, 4), nn.GLU()), "GLU", "never"),
    "exp": refused_function(torch.exp, verdict="never", says="`exp`"),
    "square": refused_function(torch.square, verdict="never", says="`square`"),
    "pow": refused_function(lambda x: x**2, verdict="never", says="`pow`"),
    "product": refused_function(lambda x: x * x.tanh(), verdict="never", says="`mul`"),
    "quotient": refused_function(lambda x: x / (1 + x.abs().sum(1, keepdim=True)), verdict="never", says="`div`"),
    "gram": refused_function(lambda x: x @ x.t(), verdict="never", says="`matmul`"),
    "sign": refused_function(torch.sign, verdict="never", says="`sign`"),
    "round": refused_function(torch.round, verdict="never", says="`round`"),
    "floor_divide": refused_function(lambda x: torch.div(x, 2.0, rounding_mode="floor"), verdict="never", says="`div`"),
    "comparison": refused_function(lambda x: (x > 0).float() + x, verdict="never", says="`gt`"),
    "argmax": refused_function(lambda x: F.one_hot(x.argmax(1), 4).float(), verdict="never", says="`argmax`"),
    "log": refused_function(lambda x: torch.log(x.abs() + 1), verdict="never", says="`log`"),
    "sqrt": refused_function(lambda x: torch.sqrt(x.relu()), verdict="never", says="`sqrt`"),
    "integer_cast": refused_function(lambda x: x.long().float(), verdict="never", says="int64"),
    "attention": refused_module(
        lambda: Lambda(
            lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        "`a`",
        "never",
        (3, 4),
    ),
    "random_dropout": refused_function(lambda x: F.dropout(x), verdict="replace", says="nn.Dropout"),
    "random_weights": refused_function(lambda x: x + torch.rand(4), error=ExtractionError, says="random"),
    "bits": refused_function(lambda x: x.view(torch.int32).view(torch.float32), verdict="not yet", says="cover"),
    "lstm": refused_module(
        lambda: Lambda(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(3, 2, batch_first=True)), "`rnn`", shape=(2, 3)
    ),
    "batch_statistics": refused_module(
        lambda: nn.BatchNorm1d(5, track_running_stats=False), "track_running_stats=True", "replace"
    ),
    "mean_over_the_batch": refused_function(lambda x: x - x.mean(0), error=ExtractionError, says="samples of a batch"),
    "batch_shift": refused_function(lambda x: x + x.roll(1, 0), error=ExtractionError, says="samples of a batch"),
    "first_sample": refused_function(lambda x: x + x[:1], error=ExtractionError, says="samples of a batch"),
    "position_in_batch": refused_function(
        lambda x: x + torch.arange(x.shape[0])[:, None], error=ExtractionError, says="samples of a batch"
    ),
    "batch_size": refused_function(lambda x: x * x.shape[0], error=ExtractionError, says="does not reproduce"),
    "batch_of_one": refused_function(
        lambda x: x * 2 if x.shape[0] > 1 else x, error=ExtractionError, says="does not reproduce"
    ),
    "batch_last": refused_function(lambda x: x.t(), error=ExtractionError, says="first dimension of its output"),
    "branch_on_values": Refused(lambda: Lambda(value_branch), error=ExtractionError, says="models.py"),
    "item": refused_function(lambda x: x * x[0, 0].item(), error=ExtractionError, says="Python number"),
    "torchscript": Refused(
        lambda: nn.Sequential(torch.jit.script(nn.Linear(5, 2))), error=ExtractionError, says="TorchScript"
    ),
    "two_outputs": refused_function(lambda x: (x, x), error=ExtractionError, says="several outputs"),
    "dict_output": refused_function(lambda x: {"logits": x}, error=ExtractionError, says="several outputs"),
    "lazy": Refused(lambda: nn.LazyLinear(3), error=ExtractionError, says="no values yet"),
    "numpy": refused_function(lambda x: torch.as_tensor(x.numpy() * 2), error=ExtractionError, says="models.py"),
}


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


def conv(*arguments, **options):
    return lambda: nn.Conv2d(*arguments, **options)


def sequential(*makers):
    return lambda: nn.Sequential(*(make() for make in makers))


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

# Operators and options one by one, beyond those of CONVOLUTIONS.
OPERATORS = {
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1, dilation=(1, 1, 2), groups=2), (2, 3, 4, 4)),
    "conv1d_same_reflect": (lambda: nn.Conv1d(1, 2, 3, padding="same", padding_mode="reflect"), (1, 5)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, 2, 1, output_padding=1), (2, 4)),
    "conv_transpose_groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, dilation=2), (4, 3, 3)),
    "conv_transpose_cropped": (lambda: nn.ConvTranspose2d(1, 2, (2, 3), padding=(1, 2), bias=False), (1, 4, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2, (1, 2, 1)), (1, 2, 2, 3)),
    "avg_pool_ceil": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 6, 5)),
    "avg_pool_ceil_unpadded": (lambda: nn.AvgPool2d((2, 3), ceil_mode=True), (2, 5, 4)),
    "avg_pool_not_counting": (lambda: nn.AvgPool2d(3, 1, 1, ceil_mode=True, count_include_pad=False), (1, 4, 5)),
    "avg_pool_divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), (1, 4, 5)),
    "avg_pool_3d": (lambda: nn.AvgPool3d(2, 1, 1, count_include_pad=False), (1, 2, 3, 2)),
    "adaptive_uneven": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (2, 5, 3)),
    "adaptive_none": (lambda: nn.AdaptiveAvgPool3d((None, 2, 1)), (1, 2, 3, 2)),
    "max_pool_overlapping": (lambda: nn.MaxPool2d(3, 1), (2, 4, 5)),
    "max_pool_padded": (lambda: nn.MaxPool2d(3, 2, 1), (2, 5, 4)),
    "max_pool_dilated": (lambda: nn.MaxPool2d(2, 1, dilation=2), (1, 5, 4)),
    "max_pool_ceil": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), (1, 6, 5)),
    "max_pool_ceil_dropped": (lambda: nn.MaxPool1d(2, 3, 1, ceil_mode=True), (1, 6)),
    "max_pool_1d": (lambda: nn.MaxPool1d(3), (2, 7)),
    "adaptive_max_pool": (lambda: nn.AdaptiveMaxPool2d((3, 2)), (1, 5, 4)),
    "max_with_dim": of(lambda m, x: x.max(2).values + x.min(2)[0], (2, 3)),
    "amin_amax": of(lambda m, x: x.amax((1, 2), keepdim=True) - x.amin((1, 2), keepdim=True), (2, 3)),
    "topk": of(lambda m, x: x.topk(2, 1).values),
    "sort_descending": of(lambda m, x: torch.sort(x, dim=1, descending=True)[0].cumsum(2), (4, 2)),
    "norm": of(lambda m, x: torch.linalg.vector_norm(x, dim=-1) + x.norm(dim=-1), (2, 3)),
    "softmax2d": (nn.Softmax2d, (3, 2, 2)),
    "softmin": (lambda: nn.Softmin(-1), (2, 3)),
    "log_softmax_of_one": (lambda: nn.LogSoftmax(1), (1,)),
    "layer_norm_2d": (lambda: nn.Sequential(nn.LayerNorm((2, 3)), nn.Tanh()), (2, 3)),
    "layer_norm_plain": (lambda: nn.LayerNorm(3, eps=1e-2, elementwise_affine=False), (2, 3)),
    "group_norm": (lambda: nn.GroupNorm(2, 4, affine=False), (4, 3)),
    "instance_norm_running": (lambda: nn.InstanceNorm1d(2, track_running_stats=True), (2, 3)),
    "reflection_pad": (lambda: nn.ReflectionPad2d((1, 0, 2, 1)), (1, 4, 3)),
    "replication_pad": (lambda: nn.ReplicationPad1d(2), (2, 3)),
    "zero_pad": (lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Tanh()), (1, 2, 2)),
    "circular_pad": (lambda: nn.CircularPad2d(1), (1, 3, 2)),
    "constant_pad_negative": (lambda: nn.ConstantPad1d((-1, 2), 0.5), (2, 4)),
    "pixel_unshuffle": (lambda: nn.PixelUnshuffle(2), (1, 4, 2)),
    "nearest": of(lambda m, x: F.interpolate(x, size=(5, 3)), (2, 3, 2)),
    "nearest_exact": of(lambda m, x: F.interpolate(x, scale_factor=1.7, mode="nearest-exact"), (2, 4)),
    "nearest_3d": (lambda: nn.Upsample(scale_factor=2), (1, 2, 1, 2)),
    "bilinear_down": of(lambda m, x: F.interpolate(x, size=(2, 3), mode="bilinear"), (1, 5, 4)),
    "bilinear_corners": of(lambda m, x: F.interpolate(x, size=(7, 1), mode="bilinear", align_corners=True), (2, 4, 3)),
    "linear_by_factor": of(lambda m, x: F.interpolate(x, scale_factor=2.3, mode="linear"), (2, 5)),
    "trilinear": of(lambda m, x: F.interpolate(x, scale_factor=(2, 1.5, 1), mode="trilinear"), (1, 2, 4, 2)),
    "global_mean_and_max": of(lambda m, x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), (2, 3, 3)),
    "sync_batch_norm": (lambda: randomized_norm(nn.SyncBatchNorm, 3), (3, 2)),
}

ZOO_REFUSED = {
    "GRU cell step": refused_module(lambda: Lambda(lambda m, x: m.c(x), c=nn.GRUCell(3, 4)), "`c`", shape=(3,)),
    "gated step by hand": refused_function(lambda x: torch.sigmoid(x) * x.tanh(), verdict="never", says="`mul`"),
    "transformer encoder": Refused(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (3, 4), verdict="never", says="attention"
    ),
    "too large": Refused(
        lambda: resnet18(64), (3, 32, 32), error=ModelSizeError, says="as explicit matrices it is too large"
    ),
    "unnormalised norm": refused_module(lambda: nn.LayerNorm(5, eps=0.0), "LayerNorm", "never"),
    "RMS norm of the dtype": refused_module(lambda: nn.RMSNorm(5), "eps", "replace"),
    "bicubic": refused_module(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), "Upsample", shape=(1, 3, 3)),
    "squeeze and excitation": refused_function(
        lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)), verdict="never", says="`mul`"
    ),
    "positions of a maximum": refused_function(lambda x: x.max(1).indices.float(), verdict="never", says="Positions"),
}
MODELS |= ZOO | {f"operator_{name}": case for name, case in OPERATORS.items()}
REFUSED |= ZOO_REFUSED


def make(name):
    """The model and the shape of one sample, the same weights on every call."""
    factory, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return factory().eval(), shape
