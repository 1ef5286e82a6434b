"""Operators and options one by one, beyond those of the small models."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.models.building import of, randomized_norm


def zeroed(x):
    x = x.clone()
    x[:, 0].zero_()
    return x


def conv_1d():
    return nn.Conv1d(2, 3, 3)


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
    "linear_of_the_same_size": (of(lambda m, x: F.interpolate(x, scale_factor=1.3, mode="linear"), (2, 3))),
    "bilinear_of_one_size": of(lambda m, x: F.interpolate(x, scale_factor=(1.2, 1.7), mode="bilinear"), (1, 3, 3)),
    "trilinear": of(lambda m, x: F.interpolate(x, scale_factor=(2, 1.5, 1), mode="trilinear"), (1, 2, 4, 2)),
    "global_mean_and_max": of(lambda m, x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), (2, 3, 3)),
    "max_pool_of_vectors": of(lambda m, x: F.max_pool1d(x, 2, 1)),
    "max_pool_of_a_matrix": of(lambda m, x: F.max_pool2d(x, 2, 1, return_indices=True)[0], (3, 4)),
    "avg_pool_of_vectors": of(lambda m, x: F.avg_pool1d(x, 3, 2, 1, ceil_mode=True)),
    "avg_pool_of_a_matrix": of(lambda m, x: F.avg_pool2d(x, 2, 1, divisor_override=3).relu(), (3, 4)),
    "adaptive_pools_of_vectors": of(lambda m, x: F.adaptive_avg_pool1d(x, 2) - F.adaptive_max_pool1d(x, 2)),
    "adaptive_avg_pool_of_a_matrix": of(lambda m, x: F.adaptive_avg_pool2d(x, (2, 3)), (3, 4)),
    "avg_pool_larger_than_the_image": (lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True), (2, 1)),
    "larger_of_two": of(lambda m, x: torch.max(x, 2 * x.flip(1)) - torch.min(torch.linspace(-1, 1, 5), x)),
    "bias_is_a_number": of(lambda m, x: F.linear(x, m.a.weight, m.a.bias.sum()), a=lambda: nn.Linear(5, 3)),
    "convolution": of(
        lambda m, x: torch.convolution(x, m.a.weight, None, [2], [1], [1], False, [0], 1), (2, 5), a=conv_1d
    ),
    "convolution_back": of(
        lambda m, x: torch.convolution(x, m.a.weight, None, [2], [0], [1], True, [1], 1), (3, 5), a=conv_1d
    ),
    "norms_of_matrices": of(
        lambda m, x: torch.linalg.norm(x, dim=(1, 2), keepdim=True) + torch.linalg.norm(x, dim=1)[:, None], (2, 3)
    ),
    "zeros_in_place": of(lambda m, x: zeroed(x).tanh(), (2, 3)),
    "filled_at_positions": of(lambda m, x: x.index_fill(2, torch.tensor([0, 2]), 0.7).tanh(), (2, 3)),
    "padded_by_a_number": (lambda: nn.Sequential(nn.ConstantPad1d((1, 2), 0.7), nn.Tanh()), (2, 3)),
    "nothing_is_left": of(lambda m, x: x.tanh() - x.tanh().mean(1, keepdim=True), (1,)),
    "sync_batch_norm": (lambda: randomized_norm(nn.SyncBatchNorm, 3), (3, 2)),
}


def stepped(m, x):
    h = c = torch.zeros(len(x), 3)
    for t in range(x.shape[1]):
        h, c = m.a(x[:, t], (h, c))
    return torch.cat([h, c], 1)


def columns_written(m, x):
    y = torch.zeros(len(x), 6)
    y[:, [1, 4]] = x[:, :2].tanh()
    y[:, 2:4] += x[:, 2:4]
    return y


def gru_from(start):
    """Of two layers and directions, from a state that is not zero."""
    return of(
        lambda m, x: m.a(x, torch.full((4, len(x), 2), start))[0],
        (3, 2),
        a=lambda: nn.GRU(2, 2, num_layers=2, bidirectional=True, batch_first=True),
    )


ROWS = torch.tensor([0, 2, 2, 1, 0])

# What is Lipschitz because its factors are bounded: its units keep their slopes on what they can read only.
BOUNDED = {
    "gate": of(lambda m, x: m.a(x).tanh() * m.b(x).sigmoid(), a=lambda: nn.Linear(5, 3), b=lambda: nn.Linear(5, 3)),
    "gate_of_channels": of(lambda m, x: x.sin() * x.mean(2, keepdim=True).sigmoid(), (2, 4)),
    "glu_of_bounded": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Softsign(), nn.GLU()), (5,)),
    "powers_of_bounded": of(lambda m, x: x.tanh() ** 3 + x.sigmoid().square() + (x.sin() + 2) ** 1.5),
    "quotient_by_positive": of(lambda m, x: x.sigmoid() / (0.5 + x.sigmoid().sum(1, keepdim=True))),
    "root_and_logarithm": of(lambda m, x: torch.log(x.abs() + 1) + torch.sqrt(x.relu() + 0.1) + torch.log1p(x.abs())),
    "exponentials": of(lambda m, x: torch.exp(-x.abs()) + torch.rsqrt(x.abs() + 1) + x.clamp(-1, 2).sinh()),
    "mixture": of(
        lambda m, x: (m.a(x).softmax(1) * m.b(x).tanh()).sum(1, keepdim=True),
        a=lambda: nn.Linear(5, 3),
        b=lambda: nn.Linear(5, 3),
    ),
}

# Recurrent layers, written out over the steps.
RECURRENT = {
    "rnn": of(lambda m, x: m.a(x)[0], (3, 2), a=lambda: nn.RNN(2, 3, batch_first=True)),
    "rnn_relu_time_first": of(
        lambda m, x: m.a(x.transpose(0, 1))[0][-1], (3, 2), a=lambda: nn.RNN(2, 3, nonlinearity="relu")
    ),
    "gru": gru_from(0.0),
    "gru_started": gru_from(0.4),
    "lstm": of(lambda m, x: m.a(x)[0], (3, 2), a=lambda: nn.LSTM(2, 3, batch_first=True)),
    "lstm_last_cell": of(lambda m, x: m.a(x)[1][1][0], (3, 2), a=lambda: nn.LSTM(2, 2, bias=False, batch_first=True)),
    "lstm_cell": of(stepped, (2, 2), a=lambda: nn.LSTMCell(2, 3)),
    "gru_cell": of(
        lambda m, x: m.b(x[:, 1], m.a(x[:, 0])), (2, 2), a=lambda: nn.GRUCell(2, 3), b=lambda: nn.RNNCell(2, 3)
    ),
}

BOUNDED |= {name: each for name, each in RECURRENT.items() if not name.startswith("rnn")}
OPERATORS |= BOUNDED | RECURRENT

# Written and added at known positions.
OPERATORS |= {
    "index_add": of(lambda m, x: x.new_zeros(len(x), 3, 2).index_add(1, ROWS, x.tanh(), alpha=0.3), (5, 2)),
    "scatter_add": of(lambda m, x: x.scatter_add(1, ROWS[None, :4, None].expand(len(x), 4, 1), x.relu()), (5, 2)),
    "scatter_reduce": of(lambda m, x: x.scatter_reduce(1, ROWS[None].expand(len(x), 5), x.relu(), "sum")),
    "scatter": of(lambda m, x: x.scatter(1, ROWS[None, 1:2].expand(len(x), 1), 0.5).tanh()),
    "index_copy": of(lambda m, x: x.index_copy(1, ROWS[2:4], x[:, 3:].tanh())),
    "columns_written": of(columns_written),
}
