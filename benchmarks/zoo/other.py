"""Flows, Lipschitz layers, critics of GANs, coordinates, sequences, graphs, operators between functions, ONNX."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from zoo.entry import Entry

Made = tuple[nn.Module, Any]


def _flow(batch: Callable[[Any], nn.Module], *shape: int) -> Callable[[], Made]:
    def make() -> Made:
        import normflows

        model, x = batch(normflows), torch.rand(1, *shape)
        with torch.no_grad():
            model.eval()(x)  # some make their buffers in the first forward
        return model, x

    return make


def _torchlip(exported: bool, convolution: bool) -> Callable[[], Made]:
    def make() -> Made:
        from deel import torchlip

        if convolution:
            model = torchlip.Sequential(
                torchlip.SpectralConv2d(1, 8, 3, padding=1), torchlip.GroupSort2(), torchlip.ScaledL2NormPool2d(2),
                nn.Flatten(), torchlip.SpectralLinear(8 * 7 * 7, 10),
            )  # fmt: skip
            x = torch.rand(1, 1, 14, 14)
        else:
            model = torchlip.Sequential(
                torchlip.SpectralLinear(20, 32), torchlip.FullSort(), torchlip.FrobeniusLinear(32, 5)
            )
            x = torch.rand(1, 20)
        model(x)
        return (model.vanilla_export() if exported else model), x

    return make


def _monotonic() -> Made:
    import monotonicnetworks as lmn

    net = nn.Sequential(
        lmn.LipschitzLinear(8, 32, kind="one-inf"), lmn.GroupSort(16), lmn.LipschitzLinear(32, 1, kind="inf")
    )
    return lmn.MonotonicWrapper(net, monotonic_constraints=[1] * 8), torch.rand(1, 8)


def _spectral_critic() -> Made:
    from torch.nn.utils import spectral_norm

    channels = (3, 16, 32, 64)
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        layers += [spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(64 * 16, 1))), torch.rand(1, 3, 32, 32)


def _siren() -> Made:
    from siren_pytorch import SirenNet

    return SirenNet(dim_in=2, dim_hidden=32, dim_out=3, num_layers=3), torch.rand(1, 2)


def _kan() -> Made:
    from kan import KAN

    return KAN(width=[2, 5, 1], grid=3, k=3, auto_save=False), torch.rand(1, 2)


def _tcn() -> Made:
    from pytorch_tcn import TCN

    return TCN(4, [8, 8], kernel_size=3, dropout=0.0, use_norm="weight_norm"), torch.rand(1, 4, 16)


def _mixer() -> Made:
    from mlp_mixer_pytorch import MLPMixer

    return MLPMixer(image_size=32, channels=3, patch_size=8, dim=32, depth=2, num_classes=10), torch.rand(1, 3, 32, 32)


def _fno() -> Made:
    from neuralop.models import FNO

    return FNO(n_modes=(8,), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2), torch.rand(1, 1, 32)


def _rnn(kind: str) -> Callable[[], Made]:
    def make() -> Made:
        return getattr(nn, kind)(4, 8, batch_first=True), torch.rand(1, 6, 4)

    return make


def _graph(layer: str) -> Callable[[], Made]:
    def make() -> Made:
        import torch_geometric.nn as geometric

        nodes, width = 6, 4
        edges = torch.tensor([[0, 1, 2, 3, 4, 5, 1, 0], [1, 2, 3, 4, 5, 0, 0, 3]])

        class OnFixedGraph(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = getattr(geometric, layer)(width, 8), getattr(geometric, layer)(8, 2)
                self.register_buffer("edges", edges)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.second(torch.relu(self.first(x, self.edges)), self.edges).flatten(1)

        return OnFixedGraph(), torch.rand(1, nodes, width)

    return make


def _onnx() -> Made:
    import io

    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnx2torch import convert

    def constant(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((torch.randn(*shape) / shape[-1] ** 0.5).numpy(), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "w", "bias"], ["y"], transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [constant("k", 4, 1, 3, 3), constant("w", 5, 64), constant("bias", 5)],
    )
    buffer = io.BytesIO(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString())
    return convert(onnx.load(buffer)), torch.rand(1, 1, 8, 8)


def _invertible() -> Made:
    import FrEIA.framework as framework
    import FrEIA.modules as modules

    net = framework.SequenceINN(8)
    for _ in range(2):
        net.append(
            modules.GLOWCouplingBlock,
            subnet_constructor=lambda a, b: nn.Sequential(nn.Linear(a, 16), nn.ReLU(), nn.Linear(16, b)),
        )
    return net, torch.rand(1, 8)


ENTRIES = [
    Entry("normflows", "LipschitzMLP", _flow(lambda n: n.nets.LipschitzMLP([4, 16, 16, 4]), 4), small=True),
    Entry(
        "normflows", "LipschitzCNN, 3x8x8", _flow(lambda n: n.nets.LipschitzCNN([3, 8, 3], [3, 3]), 3, 8, 8), small=True
    ),
    Entry(
        "normflows",
        "Residual(LipschitzMLP), its network",
        _flow(
            lambda n: n.flows.Residual(n.nets.LipschitzMLP([4, 16, 16, 4], init_zeros=False), reduce_memory=False), 4
        ),
        {"module": "iresblock.nnet"},
    ),
    Entry(
        "normflows",
        "Residual(LipschitzMLP).forward",
        _flow(
            lambda n: n.flows.Residual(n.nets.LipschitzMLP([4, 16, 16, 4], init_zeros=False), reduce_memory=False), 4
        ),
        {"output": 0},
    ),
    Entry("normflows", "MLP", _flow(lambda n: n.nets.MLP([4, 16, 16, 4]), 4), small=True),
    Entry("normflows", "ResidualNet", _flow(lambda n: n.nets.ResidualNet(4, 4, 16), 4), small=True),
    Entry("FrEIA", "GLOWCouplingBlock x 2", _invertible, {"output": 0}, unbounded="gate"),
    Entry("deel-torchlip", "dense, exported", _torchlip(True, False), small=True),
    Entry("deel-torchlip", "dense, as it is", _torchlip(False, False), small=True),
    Entry("deel-torchlip", "convolution, exported", _torchlip(True, True), small=True),
    Entry("deel-torchlip", "convolution, as it is", _torchlip(False, True), small=True),
    Entry("monotonicnetworks", "MonotonicWrapper", _monotonic, small=True),
    Entry("torch", "spectral_norm critic, 3x32x32", _spectral_critic, small=True),
    Entry("siren-pytorch", "SirenNet", _siren, small=True),
    Entry("pykan", "KAN [2, 5, 1]", _kan, small=True),
    Entry("pytorch-tcn", "TCN", _tcn, small=True),
    Entry("mlp-mixer-pytorch", "MLPMixer, 3x32x32", _mixer, small=True),
    Entry("neuraloperator", "FNO 1-d", _fno, small=True),
    Entry("torch", "RNN, 6 steps", _rnn("RNN"), {"output": 0}),
    Entry("torch", "GRU, 6 steps", _rnn("GRU"), {"output": 0}),
    Entry("torch", "LSTM, 6 steps", _rnn("LSTM"), {"output": 0}),
    Entry("torch-geometric", "GCNConv x 2, fixed graph", _graph("GCNConv"), small=True),
    Entry("torch-geometric", "SAGEConv x 2, fixed graph", _graph("SAGEConv"), small=True),
    Entry("onnx2torch", "convolutional network", _onnx, small=True),
]
