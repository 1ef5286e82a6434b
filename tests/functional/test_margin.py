"""Margin losses: what is raised, by how much, and what is left alone."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.functional import certified_radius, margin_cross_entropy, margin_logits
from lightning_lipschitz.functional.margin import scheduled_radius


def bounds(classes, seed=0):
    K = torch.rand(classes, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return (K + K.T).fill_diagonal_(0.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(0, 100), st.floats(0.01, 3.0))
def test_the_target_leads_the_raised_logits_where_it_is_certified(classes, seed, radius):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(32, classes, generator=generator, dtype=torch.float64) * 3.0
    target, K = torch.randint(classes, (32,), generator=generator), bounds(classes, seed)
    certified = certified_radius(logits, K, target)
    leads = margin_logits(logits, target, K, radius).argmax(dim=1) == target
    clear = (certified - radius).abs() > 1e-9
    assert torch.equal((certified > radius)[clear], leads[clear])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_other_classes_are_raised_in_enough_digits(dtype):
    logits, target = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype), torch.tensor([1])
    found = margin_logits(logits, target, bounds(3), 0.5)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(found - logits, (0.5 * bounds(3)[1]).to(found)[None])
    assert found[0, 1] == logits[0, 1]


def test_the_diagonal_is_not_read():
    K = bounds(3) + torch.eye(3, dtype=torch.float64)
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(margin_logits(logits, target, K, 1.0), margin_logits(logits, target, bounds(3), 1.0))


def test_rows_that_the_loss_ignores_stay():
    logits, target = torch.randn(3, 3), torch.tensor([0, -100, 2])
    raised = margin_logits(logits, target, bounds(3), 1.0)
    assert torch.equal(raised[1], logits[1])
    expected = F.cross_entropy(raised, target, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0]))
    found = margin_cross_entropy(
        logits, target, bounds(3), 1.0, label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0])
    )
    assert found == expected


def test_gradients_reach_logits_and_bounds():
    logits, K = torch.randn(5, 3, dtype=torch.float64), bounds(3)
    target = torch.tensor([0, 1, 2, 0, 1])
    inputs = (logits.requires_grad_(), K.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, k: margin_cross_entropy(x, target, k, 0.7), inputs)


@pytest.mark.parametrize(
    ("logits", "target", "K", "error", "said"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2).long(), bounds(3), ShapeError, "`logits`"),
        (torch.zeros(2, 3).long(), torch.zeros(2).long(), bounds(3), ShapeError, "floating-point"),
        (torch.zeros(2, 3), torch.zeros(2, 3), bounds(3), ShapeError, "`target`"),
        (torch.zeros(2, 3), torch.zeros(2), bounds(3), ShapeError, "class number"),
        (torch.zeros(2, 3), torch.zeros(2).long(), bounds(4), ShapeError, r"\(3, 3\)"),
        (torch.zeros(2, 1), torch.zeros(2).long(), torch.zeros(1, 1), ArgumentError, "two classes"),
    ],
)
def test_what_does_not_fit_is_named(logits, target, K, error, said):
    with pytest.raises(error, match=said):
        margin_logits(logits, target, K, 1.0)


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {0.0: 0.3, 0.7: 0.3}),
        ("linear", {0.0: 0.0, 0.25: 0.15, 0.5: 0.3, 1.0: 0.3}),
        ("over", {0.0: 0.3, 0.25: 0.45, 0.5: 0.6, 1.0: 0.6}),
        (lambda t: 2 * t, {0.0: 0.0, 0.5: 0.3}),
    ],
)
def test_schedules(schedule, at):
    for progress, expected in at.items():
        assert scheduled_radius(0.3, schedule, progress) == pytest.approx(expected)
