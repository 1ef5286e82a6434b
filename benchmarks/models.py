"""Convolutional and residual models: time to read them, bounds of both routes, and the product of norms.

Route (a) is LipSDP on the explicit matrices, route (b) the composition, which never forms them. The product is that of
all norms of the model as written, every normalisation with a factor of its own, sums for residual additions.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F  # noqa: N812
from common import markdown, parser, publish
from sklearn.datasets import load_digits
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.extraction import GraphExtractor, RoutedExtractor
from lightning_lipschitz.graph.network import Network

ROUTE_A_UNITS = 1_200  # above this the matrix inequality is not tried


class Residual(nn.Module):
    """The basic block of He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016."""

    def __init__(self, columns: int, rows: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(columns, rows, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(rows, rows, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(rows), nn.BatchNorm2d(rows)])
        same = stride == 1 and columns == rows
        projection = (nn.Conv2d(columns, rows, 1, stride, bias=False), nn.BatchNorm2d(rows))
        self.skip = nn.Identity() if same else nn.Sequential(*projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(inner)) + self.skip(x))


def resnet(widths: tuple[int, ...], blocks: int, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """A residual network for small images; widths 64, 128, 256, 512 with two blocks each are ResNet-18."""
    layers = [nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for number, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Residual(before, width, 2 if number and not block else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def lenet() -> nn.Sequential:
    """LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998, with ReLU."""
    features = (nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU())
    head = (nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
    return nn.Sequential(*features, nn.AvgPool2d(2), nn.Flatten(), *head)


def digits_cnn(width: int = 4, outputs: int = 10) -> nn.Sequential:
    first = (nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
    return nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(32 * width, outputs))


def digits_deep_cnn(width: int = 4) -> nn.Sequential:
    first = (nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
    then = (nn.ReLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*first, *then, nn.Linear(32 * width, 32), nn.ReLU(), nn.Linear(32, 10))


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def trained(model: nn.Module, epochs: int = 60) -> nn.Module:
    """On scikit-learn's digits, in [0, 1], 1,297 of them, the others for the accuracy that is printed."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1297).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    accuracy = float((model(images[1297:]).argmax(1) == labels[1297:]).float().mean())
    print(f"trained on digits: {100 * accuracy:.1f} % on the 500 others")
    return model


CASES = {
    "digits CNN, 2 conv": (digits_cnn, (1, 8, 8)),
    "digits CNN, 2 conv, trained": (lambda: trained(digits_cnn()), (1, 8, 8)),
    "digits CNN, 3 conv, trained": (lambda: trained(digits_deep_cnn()), (1, 8, 8)),
    "digits ResNet 4-8, trained": (lambda: trained(resnet((4, 8), 1, channels=1)), (1, 8, 8)),
    "LeNet 28 x 28": (lenet, (1, 28, 28)),
    "VGG-like 32 x 32": (vgg, (3, 32, 32)),
    "ResNet 16-32-64 (20 layers)": (lambda: resnet((16, 32, 64), 3), (3, 32, 32)),
    "ResNet-18 32 x 32": (lambda: resnet((64, 128, 256, 512), 2), (3, 32, 32)),
}
QUICK = 4


def route_a(model: nn.Module, x: torch.Tensor) -> tuple[str, float | None]:
    network = RoutedExtractor(model, x).network()
    if not isinstance(network, Network) or network.num_units > ROUTE_A_UNITS:
        return "-", None
    start = time.perf_counter()
    bound = ll.certify(network, rtol=1e-4).upper_bound
    return f"{bound:.5g} ({time.perf_counter() - start:.1f} s)", bound


def row(name: str) -> tuple[object, ...]:
    make, shape = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(8, *shape)
    start = time.perf_counter()
    extractor = GraphExtractor(model, x)
    reading = time.perf_counter() - start
    start = time.perf_counter()
    composed = ll.certify(model, x, method="composed")
    seconds = time.perf_counter() - start
    product = certify_graph(extractor.unfolded(), Settings(method="norm-product")).upper_bound
    explicit, bound = route_a(model, x)
    sampled = ll.lower_bound(model, x, steps=20, pairs=8).value
    parameters = sum(p.numel() for p in model.parameters())
    best = min(composed.upper_bound, bound or float("inf"))
    return (
        name,
        f"{parameters:,}",
        f"{reading:.2f}",
        f"{sampled:.3g}",
        explicit,
        f"{composed.upper_bound:.5g} ({seconds:.1f} s)",
        f"{product:.5g}",
        f"{product / best:.2f}",
    )


def main() -> None:
    options = parser(__doc__).parse_args()
    GraphExtractor(nn.Linear(1, 1), torch.zeros(1, 1))  # PyTorch loads what it traces with, once a process
    rows = []
    for name in list(CASES)[: QUICK if options.quick else None]:
        rows.append(row(name))
        print(rows[-1], flush=True)
    header = (
        "model",
        "parameters",
        "reading (s)",
        "sampled, from below",
        "route (a)",
        "route (b)",
        "product",
        "product / best",
    )
    publish("models", markdown("Models", header, rows, __doc__.partition("\n\n")[2]), options.write)


if __name__ == "__main__":
    main()
