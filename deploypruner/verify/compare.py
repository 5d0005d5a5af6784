"""Two lists of outputs, one verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from deploypruner.records import Check

Array = NDArray[Any]


def flatten_outputs(outputs: object) -> list[Array]:
    """Arrays of a module's output, nested structures flattened, in the order exported files declare them."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf.detach().cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def compare_outputs(
    name: str, got: Sequence[Array], want: Sequence[Array], *, tolerance: float, detail: str = ""
) -> Check:
    """Compare by the largest absolute difference over all outputs.

    Args:
        name: What is compared, in a person's words: "masked = removed (float64)".
        got: Arrays of one form.
        want: Arrays of the other, in the same order.
        tolerance: Largest difference allowed, in the unit of the outputs.
        detail: Remark for a check that can be carried out; a shape mismatch or NaN replaces it.
    """
    return _check(name, got, want, error=_largest_difference, tolerance=tolerance, detail=detail)


def compare_relative(
    name: str, got: Sequence[Array], want: Sequence[Array], *, tolerance: float, detail: str = ""
) -> Check:
    """Compare by the relative error ||got - want|| / ||want|| (L2) of the worst output, dimensionless.

    Zeros in the place of `want` score 1, unrelated values of the same size 1.4. `Check.max_abs_diff` and
    `Check.tolerance` both hold relative errors. Other arguments as in `compare_outputs`.
    """
    return _check(name, got, want, error=relative_error, tolerance=tolerance, detail=detail)


def relative_error(got: Array, want: Array) -> float:
    """||got - want|| / ||want|| (L2) of two arrays of one shape; infinite where only `want` is all zero."""
    difference = float(np.linalg.norm(got.astype(np.float64) - want))
    size = float(np.linalg.norm(want.astype(np.float64)))
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


def _check(
    name: str,
    got: Sequence[Array],
    want: Sequence[Array],
    *,
    error: Callable[[Array, Array], float],
    tolerance: float,
    detail: str,
) -> Check:
    problem = _incomparable(got, want)
    worst = math.nan if problem else max((error(a, b) for a, b in zip(got, want, strict=True)), default=0.0)
    return Check(name, worst, tolerance, passed=worst <= tolerance, detail=problem or detail)


def _largest_difference(got: Array, want: Array) -> float:
    # float64, because unsigned integers wrap and bools do not subtract.
    return float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))


def _incomparable(got: Sequence[Array], want: Sequence[Array]) -> str:
    """Say why the outputs cannot be compared; "" when they can."""
    if not want or len(got) != len(want):
        return f"{len(got)} outputs instead of {len(want)}" if want else "no outputs to compare"
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            return f"output {i} has shape {list(a.shape)} instead of {list(b.shape)}"
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return f"output {i} holds NaN or infinite values"
    return ""
