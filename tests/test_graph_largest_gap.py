"""How far two tensors are apart, by hand."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
import torch

from deploypruner.graph.largest_gap import largest_gap, magnitude, proving_gap


@pytest.mark.parametrize(
    ("got", "wanted", "gap", "largest"),
    [
        ([1.0, -5.0], [1.5, -3.0], 2.0, 3.0),
        ([True, False], [True, True], 1.0, 1.0),
        ([250, 3], [3, 1], 247.0, 3.0),
        ([inf, nan, 1.0], [inf, nan, 4.0], 3.0, 4.0),
        ([inf], [-inf], inf, 0.0),
        ([nan, 1.0], [2.0, 1.0], inf, 2.0),
        ([3 + 4j], [1 - 7j], 11.0, 7.0),
        ([], [], 0.0, 0.0),
    ],
)
def test_by_hand(got: list[float], wanted: list[float], gap: float, largest: float) -> None:
    assert largest_gap(torch.tensor(got), torch.tensor(wanted)) == gap
    assert magnitude(torch.tensor(wanted)) == largest


def test_unsigned_integers_and_halves_do_not_wrap_or_overflow() -> None:
    assert largest_gap(torch.tensor([3], dtype=torch.uint8), torch.tensor([5], dtype=torch.uint8)) == 2
    assert largest_gap(torch.tensor([6e4]).half(), torch.tensor([-6e4]).half()) == pytest.approx(119_936, abs=100)


def test_what_is_not_finite_proves_nothing() -> None:
    number, none = torch.tensor([1.0, 4.0]), torch.tensor([nan, 4.0])
    assert proving_gap(torch.tensor([2.5, 4.0]), number) == 1.5
    assert proving_gap(none, number) == inf
    assert isnan(proving_gap(none, none))
    assert isnan(proving_gap(torch.tensor([inf]), torch.tensor([inf])))
