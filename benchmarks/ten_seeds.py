"""Published means over ten seeds: one logit of small classifiers of scikit-learn's digits.

What was trained, and which logit was taken, is not told with the published figures. Here it is what scikit-learn does
by default: standardised inputs, `train_test_split`, `MLPClassifier` (Adam, at most 200 epochs); every seed draws the
split and the weights.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from common import markdown, parser, publish
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

import lightning_lipschitz as ll

SEEDS = 10
PUBLISHED = {(32,): (3.99, np.nan, 5.275, 7.23), (32, 32): (5.95, np.nan, 8.55, 14.94)}  # sampled, -, LipSDP, product


def train(hidden: tuple[int, ...], seed: int) -> tuple[MLPClassifier, np.ndarray]:
    """A classifier and its training inputs."""
    x, y = load_digits(return_X_y=True)
    x, _, y, _ = train_test_split(x, y, random_state=seed)
    x = StandardScaler().fit_transform(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 epochs are the default
        return MLPClassifier(hidden, random_state=seed).fit(x, y), x


def logit(classifier: MLPClassifier, k: int) -> nn.Sequential:
    """One row of the last layer, with everything before it."""
    weights, biases = [*classifier.coefs_], [*classifier.intercepts_]
    weights[-1], biases[-1] = weights[-1][:, k : k + 1], biases[-1][k : k + 1]
    modules: list[nn.Module] = []
    for w, b in zip(weights, biases, strict=True):
        linear = nn.Linear(*w.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.tensor(w.T), torch.tensor(b)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def measure(classifier: MLPClassifier, x: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Steepest gradient at a training input, steepest pair found, LipSDP, product of spectral norms."""
    model, inputs = logit(classifier, k), torch.tensor(x, requires_grad=True)
    (gradients,) = torch.autograd.grad(model(inputs).sum(), inputs)
    inputs = inputs.detach()
    bounds = [ll.certify(model, inputs, method=m, rtol=1e-5).upper_bound for m in ("lipsdp-neuron", "norm-product")]
    return float(gradients.norm(dim=1).max()), ll.lower_bound(model, inputs).value, bounds[0], bounds[1]


def main() -> None:
    options = parser(__doc__).parse_args()
    rows = []
    for hidden, published in PUBLISHED.items():
        trained = [train(hidden, seed) for seed in range(2 if options.quick else SEEDS)]
        for k in range(10):
            values = np.array([measure(classifier, x, k) for classifier, x in trained])
            means, errors = values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5
            within = ~(abs(means - published) > 2 * errors)
            cells = [f"{m:.2f} ± {e:.2f}" + ("" if w else " *") for m, e, w in zip(means, errors, within, strict=True)]
            rows.append(("-".join(map(str, (64, *hidden, 1))), k, *cells))
        rows.append(("", "published", *("" if np.isnan(value) else f"{value:.2f}" for value in published)))
    header = ("network", "logit", "steepest gradient at a training input", "steepest pair found", "LipSDP", "product")
    note = f"{SEEDS} seeds, mean ± standard error; `*`: more than two standard errors from the published mean."
    publish(
        "ten_seeds",
        markdown("Digits, ten seeds", header, rows, f"{__doc__.split(chr(10), 2)[2]}\n{note}"),
        options.write,
    )


if __name__ == "__main__":
    main()
