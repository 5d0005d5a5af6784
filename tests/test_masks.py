"""Soft masks against independent solvers, finite differences, and numbers that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deploypruner.sparsity.masks import (
    TransportMask,
    cubic_ramp,
    linear_ramp,
    pdp_mask,
    pdp_temperature,
    ramped_keep,
    top_mask,
    transport_beta,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_bisection(scores: Tensor, keep: int, eps: float) -> Tensor:
    """`sigmoid((s - mu) / eps)` with the mu that makes the sum `keep`."""
    low, high = scores.min() - 100 * eps, scores.max() + 100 * eps
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if torch.sigmoid((scores - middle) / eps).sum() > keep else (low, middle)
    return torch.sigmoid((scores - low) / eps)


def by_sinkhorn(scores: Tensor, keep: int, eps: float, iterations: int = 5000) -> Tensor:
    """Row and column scalings of the two-column kernel, written as in a textbook."""
    n = len(scores)
    a = torch.full((n,), 1 / n, dtype=torch.float64)
    b = torch.tensor([1 - keep / n, keep / n], dtype=torch.float64)
    kernel = torch.exp(-torch.stack([torch.zeros_like(scores), -scores], dim=1) / eps)
    v = torch.ones(2, dtype=torch.float64)
    for _ in range(iterations):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    return n * (u[:, None] * kernel * v)[:, 1]


def by_plan(scores: list[Tensor], keep: int, beta: float) -> Tensor:
    """The proximal iteration on whole plans `[n, 2]`, in logarithms; an extra half step over the rows."""
    n = len(scores[0])
    a = torch.full((n,), 1 / n, dtype=torch.float64).log()
    b = torch.tensor([1 - keep / n, keep / n], dtype=torch.float64).log()
    plan, v = a[:, None] + b, torch.zeros(2, dtype=torch.float64)
    for s in scores:
        q = plan - torch.stack([torch.zeros_like(s), -s], dim=1) / beta
        u = a - torch.logsumexp(q + v, dim=1)
        v = b - torch.logsumexp(q + u[:, None], dim=0)
        u = a - torch.logsumexp(q + v, dim=1)
        plan = u[:, None] + q + v
    return n * plan[:, 1].exp()


def slope(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function."""
    flat = torch.empty_like(x).reshape(-1)
    for i in range(x.numel()):
        ahead, behind = x.clone().reshape(-1), x.clone().reshape(-1)
        ahead[i] += step
        behind[i] -= step
        flat[i] = (function(ahead.view_as(x)) - function(behind.view_as(x))) / (2 * step)
    return flat.view_as(x)


# ---------------------------------------------------------------------- PDP


def test_pdp_keeps_what_is_larger_than_the_midpoint_of_the_two_entries_at_the_border():
    mask = pdp_mask(torch.tensor([1.0, 4.0, 2.0, 3.0]), 2, 1.0)  # t = 2.5
    wanted = torch.sigmoid(torch.tensor([1 - 6.25, 16 - 6.25, 4 - 6.25, 9 - 6.25]))
    torch.testing.assert_close(mask, wanted)


def test_pdp_rows_are_independent_and_may_keep_different_numbers():
    q, keep = randn(3, 2, 8).abs(), torch.tensor([[0, 3], [8, 1], [5, 7]])
    tau = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    mask = pdp_mask(q, keep, tau)
    for i in range(3):
        for j in range(2):
            assert torch.equal(mask[i, j], pdp_mask(q[i, j], int(keep[i, j]), float(tau[i, j])))
            assert int((mask[i, j] > 0.5).sum()) == int(keep[i, j])


@pytest.mark.parametrize(("n", "keep", "value"), [(1, 0, 0.0), (1, 1, 1.0), (5, 0, 0.0), (5, 5, 1.0), (5, 9, 1.0)])
def test_pdp_keeps_nothing_or_everything_where_it_is_told_to(n, keep, value):
    q = randn(n).abs().requires_grad_()
    mask = pdp_mask(q, keep, 1e-3)
    mask.sum().backward()
    assert mask.tolist() == [value] * n
    assert q.grad.tolist() == [0.0] * n


def test_pdp_gradient_is_that_of_finite_differences_with_the_threshold_held():
    w, weights = randn(2, 7), randn(2, 7, seed=3)
    leaf = w.clone().requires_grad_()
    (weights * pdp_mask(leaf.abs(), 3, 0.2) * leaf).sum().backward()
    t2 = 0.25 * (w.abs().sort(descending=True).values[:, 2:4].sum(dim=1, keepdim=True)) ** 2
    held = slope(lambda x: (weights * torch.sigmoid((x**2 - t2) / 0.2) * x).sum(), w)
    torch.testing.assert_close(leaf.grad, held, atol=1e-8, rtol=1e-6)
    m = torch.sigmoid((w**2 - t2) / 0.2)
    torch.testing.assert_close(leaf.grad, weights * (m + 2 * w**2 / 0.2 * m * (1 - m)))  # papers: the boosting term


def test_pdp_masks_harden_when_the_temperature_falls():
    q = randn(64).abs()
    ambiguous = [float((pdp_mask(q, 16, tau) * (1 - pdp_mask(q, 16, tau))).mean()) for tau in (1.0, 0.1, 0.01, 1e-6)]
    assert ambiguous == sorted(ambiguous, reverse=True)
    assert ambiguous[-1] < 1e-6


def test_pdp_temperature_of_normal_weights_is_a_share_of_their_variance():
    w = 0.05 * randn(200_000)
    assert float(pdp_temperature(w.abs())) == pytest.approx(1e-4, rel=0.02)
    assert float(pdp_temperature(10 * w.abs())) == pytest.approx(1e-2, rel=0.02)


def test_equal_magnitudes_have_a_temperature_and_a_mask_of_one_half():
    q = torch.full((4,), 0.3)
    assert pdp_mask(q, 2, pdp_temperature(q)).tolist() == [0.5] * 4


# ---------------------------------------------------------------------- DTP


@pytest.mark.parametrize("beta", [0.5, 3.0, 40.0])
def test_transport_is_the_iteration_on_whole_plans(beta):
    scores = [randn(9, seed=i) for i in range(30)]
    mask = TransportMask((9,), 4, beta, dtype=torch.float64)
    for step, s in enumerate(scores):
        torch.testing.assert_close(mask(s), by_plan(scores[: step + 1], 4, beta), atol=1e-12, rtol=1e-9)


def test_with_constant_scores_step_t_is_the_entropic_plan_of_temperature_beta_over_t():
    scores, beta, keep = randn(24), 50.0, 7
    mask = TransportMask((24,), keep, beta, dtype=torch.float64)
    for step in range(1, 401):
        soft = mask(scores)
        if step in (1, 10, 50, 100, 400):
            torch.testing.assert_close(soft, by_bisection(scores, keep, beta / step), atol=1e-3, rtol=0)
    torch.testing.assert_close(soft, by_bisection(scores, keep, beta / 400), atol=5e-5, rtol=0)


def test_the_closed_form_is_what_a_converged_sinkhorn_gives():
    scores = randn(12)
    torch.testing.assert_close(by_sinkhorn(scores, 5, 0.3), by_bisection(scores, 5, 0.3), atol=1e-12, rtol=0)


def test_transport_gradient_is_that_of_finite_differences_and_nearly_the_implicit_one():
    history, now, g, beta = [randn(11, seed=i) for i in range(6)], randn(11, seed=9), randn(11, seed=10), 4.0

    def after(scores: Tensor) -> Tensor:
        mask = TransportMask((11,), 4, beta, dtype=torch.float64)
        for s in history:
            mask(s)
        return mask(scores)

    leaf = now.clone().requires_grad_()
    m = after(leaf)
    (g * m).sum().backward()
    torch.testing.assert_close(leaf.grad, slope(lambda s: (g * after(s)).sum(), now), atol=1e-8, rtol=1e-6)
    m = m.detach()
    curve = m * (1 - m)
    implicit = curve * (g - (g * curve).sum() / curve.sum()) / beta
    assert float(torch.cosine_similarity(leaf.grad, implicit, dim=0)) > 0.95


def test_transport_masks_sum_to_what_stays_and_end_in_the_largest_scores():
    scores = randn(5, 40)
    keep = torch.tensor([1, 10, 20, 39, 13])
    mask = TransportMask((5, 40), keep, 20.0, dtype=torch.float64)
    for _ in range(2000):
        soft = mask(scores)
    torch.testing.assert_close(soft.sum(dim=1), keep.double(), atol=0.02, rtol=0)
    assert torch.equal(mask.hard(), top_mask(scores, keep))
    assert mask.undecided() < 0.02


def test_transport_keeps_nothing_or_everything_where_it_is_told_to():
    scores = randn(3, 1, seed=1).expand(3, 6).clone().requires_grad_()
    mask = TransportMask((3, 6), torch.tensor([0, 6, 3]), 1.0, dtype=torch.float64)
    for _ in range(50):
        soft = mask(scores)
    soft.sum().backward()
    assert soft[0].tolist() == [0.0] * 6
    assert soft[1].tolist() == [1.0] * 6
    assert torch.isfinite(scores.grad).all()
    assert mask.hard().sum(dim=1).tolist() == [0, 6, 3]
    single = TransportMask((2, 1), torch.tensor([0, 1]), 1.0)
    assert single(torch.zeros(2, 1)).tolist() == [[0.0], [1.0]]


def test_transport_rows_are_independent_and_relabelling_entries_relabels_masks():
    scores = [randn(2, 10, seed=i) for i in range(20)]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([3, 6])
    both = TransportMask((2, 10), keep, 5.0, dtype=torch.float64)
    alone = TransportMask((10,), 6, 5.0, dtype=torch.float64)
    moved = TransportMask((2, 10), keep, 5.0, dtype=torch.float64)
    for s in scores:
        soft, one, other = both(s), alone(s[1]), moved(s[:, order])
        torch.testing.assert_close(soft[1], one)
        torch.testing.assert_close(soft[:, order], other)


def test_very_large_logits_stay_finite():
    mask = TransportMask((8,), 3, 1e-4)
    scores = torch.arange(8.0).requires_grad_()
    for _ in range(100):
        soft = mask(scores)
    soft.sum().backward()
    assert torch.isfinite(soft).all()
    assert torch.isfinite(scores.grad).all()
    assert mask.hard().tolist() == [False] * 5 + [True] * 3


def test_transport_goes_on_from_its_state_to_the_bit():
    scores = [randn(2, 6, seed=i).float() for i in range(10)]
    whole, first, second = (TransportMask((2, 6), 2, 3.0) for _ in range(3))
    for s in scores:
        wanted = whole(s)
    for s in scores[:4]:
        first(s)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    for s in scores[4:]:
        got = second(s)
    assert torch.equal(wanted, got)
    assert torch.equal(second.soft(), got)


def test_a_lower_beta_only_hardens_sooner():
    scores = randn(50)
    plain, lowered = (TransportMask((50,), 20, 200.0, dtype=torch.float64) for _ in range(2))
    for step in range(200):
        if step == 120:
            lowered.beta /= 2
        plain(scores)
        lowered(scores)
    assert lowered.undecided() < plain.undecided()
    assert torch.equal(lowered.hard(), plain.hard())


def test_masks_with_the_default_beta_are_hard_after_half_of_the_steps():
    scores = torch.where(torch.arange(20) < 5, 0.3, -0.3).double()
    mask = TransportMask((20,), 5, transport_beta(100, gap=0.3), dtype=torch.float64)
    undecided = []
    for _ in range(100):
        mask(scores)
        undecided.append(mask.undecided())
    assert undecided[9] == 1.0
    assert undecided[49] == 0.0


# ---------------------------------------------------------------------- what they share


def test_of_equal_values_the_first_stay():
    assert top_mask(torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), torch.tensor([2, 3])).tolist() == [
        [False, True, True, False],
        [True, True, True, False],
    ]


def test_ramps_by_hand():
    assert [linear_ramp(p, start=0.2, end=0.7) for p in (0.0, 0.2, 0.45, 0.7, 1.0)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    assert [cubic_ramp(p, start=0.0, end=0.5) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, 0.875, 1, 1])


def test_ramped_widths_are_rounded_and_end_exactly():
    assert ramped_keep(1000, 100, 0.9).item() == 190  # papers 0.7: never the floor of a float product
    assert ramped_keep(16, torch.tensor([4, 16, 0]), 0.5).tolist() == [10, 16, 8]
    assert ramped_keep(16, torch.tensor([4, 16, 0]), 1.0).tolist() == [4, 16, 0]
