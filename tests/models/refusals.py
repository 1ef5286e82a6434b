"""Models that must be refused, and what the answer must say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lightning_lipschitz.errors import ExtractionError, ModelSizeError, UnsupportedModuleError
from tests.models.architectures import resnet18
from tests.models.building import Lambda, mlp


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
    "glu": refused_module(lambda: nn.Sequential(nn.Linear(5, 4), nn.GLU()), "GLU", "bounded inputs"),
    "exp": refused_function(torch.exp, verdict="not yet", says="`exp`"),
    "square": refused_function(torch.square, verdict="not yet", says="`square`"),
    "pow": refused_function(lambda x: x**2, verdict="not yet", says="`pow`"),
    "product": refused_function(lambda x: x * x.tanh(), verdict="bounded inputs", says="`mul`"),
    "quotient": refused_function(lambda x: x / (1 + x.abs().sum(1, keepdim=True)), verdict="not yet", says="`div`"),
    "gram": refused_function(lambda x: x @ x.t(), verdict="bounded inputs", says="`matmul`"),
    "sign": refused_function(torch.sign, verdict="not yet", says="`sign`"),
    "round": refused_function(torch.round, verdict="not yet", says="`round`"),
    "floor_divide": refused_function(
        lambda x: torch.div(x, 2.0, rounding_mode="floor"), verdict="not yet", says="`div`"
    ),
    "comparison": refused_function(lambda x: (x > 0).float() + x, verdict="not yet", says="`gt`"),
    "argmax": refused_function(lambda x: F.one_hot(x.argmax(1), 4).float(), verdict="not yet", says="`argmax`"),
    "log": refused_function(lambda x: torch.log(x.abs()), verdict="not yet", says="`log`"),
    "sqrt": refused_function(lambda x: torch.sqrt(x.relu()), verdict="not yet", says="`sqrt`"),
    "integer_cast": refused_function(lambda x: x.long().float(), verdict="never", says="int64"),
    "attention": refused_module(
        lambda: Lambda(
            lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        "`a`",
        "bounded inputs",
        (3, 4),
    ),
    "random_dropout": refused_function(lambda x: F.dropout(x), verdict="replace", says="nn.Dropout"),
    "random_weights": refused_function(lambda x: x + torch.rand(4), error=ExtractionError, says="random"),
    "bits": refused_function(lambda x: x.view(torch.int32).view(torch.float32), verdict="never", says="int32"),
    "lstm with a projection": refused_module(
        lambda: Lambda(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(3, 2, proj_size=1, batch_first=True)),
        "proj_size",
        shape=(2, 3),
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
    "convolution without a batch": refused_function(
        lambda x: F.conv1d(x, torch.ones(3, len(x), 2)), error=ExtractionError, says="samples of a batch"
    ),
    "transposed convolution without a batch": refused_function(
        lambda x: F.conv_transpose1d(x, torch.ones(len(x), 3, 2)), error=ExtractionError, says="samples of a batch"
    ),
    "largest of all samples": refused_function(lambda x: x - x.max(), error=ExtractionError, says="samples of a batch"),
    "spectral norm of values": refused_function(
        lambda x: torch.linalg.norm(x[:, None], 2, dim=(1, 2)), verdict="not yet", says="Frobenius"
    ),
    "products with what is known": refused_function(
        lambda x: torch.kron(x, torch.ones(1, 2)), verdict="not yet", says="known tensor"
    ),
    "stack of known matrices": refused_function(
        lambda x: torch.bmm(x[:, None], torch.ones(len(x), 4, 2)), verdict="not yet", says="known tensor"
    ),
    "inner product with what is known": refused_function(
        lambda x: torch.inner(x, torch.ones(4)), verdict="not yet", says="known tensor"
    ),
    "product of stacks": refused_function(
        lambda x: torch.bmm(x[:, None], x[:, :, None]), verdict="bounded inputs", says="`bmm`"
    ),
    "batch_size": refused_function(lambda x: x * x.shape[0], error=ExtractionError, says="does not reproduce"),
    "batch_of_one": refused_function(
        lambda x: x * 2 if x.shape[0] > 1 else x, error=ExtractionError, says="does not reproduce"
    ),
    "batch_merged": refused_function(lambda x: x.flatten(0, 1), error=ExtractionError, says="first dimension of its"),
    "batch_last": refused_function(lambda x: x.t(), error=ExtractionError, says="first dimension of its output"),
    "branch_on_values": Refused(lambda: Lambda(value_branch), error=ExtractionError, says="refusals.py"),
    "item": refused_function(lambda x: x * x[0, 0].item(), error=ExtractionError, says="Python number"),
    "torchscript": Refused(
        lambda: nn.Sequential(torch.jit.script(nn.Linear(5, 2))), error=ExtractionError, says="TorchScript"
    ),
    "two_outputs": refused_function(lambda x: (x, x), error=ExtractionError, says="several outputs"),
    "dict_output": refused_function(
        lambda x: {"logits": x}, error=ExtractionError, says="its one output in a container"
    ),
    "lazy": Refused(lambda: nn.LazyLinear(3), error=ExtractionError, says="no values yet"),
    "numpy": refused_function(lambda x: torch.as_tensor(x.numpy() * 2), error=ExtractionError, says="refusals.py"),
}


# Of the kinds in the zoo.
REFUSED |= {
    "gated step by hand": refused_function(
        lambda x: torch.sigmoid(x) * (1 + x), verdict="bounded inputs", says="`mul`"
    ),
    "transformer encoder": Refused(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        (3, 4),
        verdict="bounded inputs",
        says="attention",
    ),
    "too large": Refused(
        lambda: resnet18(64), (3, 32, 32), error=ModelSizeError, says="as explicit matrices it is too large"
    ),
    "unnormalised norm": refused_module(lambda: nn.LayerNorm(5, eps=0.0), "LayerNorm", "never"),
    "RMS norm of the dtype": refused_module(lambda: nn.RMSNorm(5), "eps", "replace"),
    "bicubic": refused_module(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), "Upsample", shape=(1, 3, 3)),
    "squeeze and excitation": refused_function(
        lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)), verdict="bounded inputs", says="two numbers"
    ),
    "positions of a maximum": refused_function(lambda x: x.max(1).indices.float(), verdict="never", says="Positions"),
}
