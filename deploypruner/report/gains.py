"""What a speed-up is made of: the runtime, int8, pruning, sparse kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deploypruner.records import Row

EAGER = "torch"
"""Runtime of the row that shows what the user runs today; nothing is compared with it where others were measured."""


def best_dense(rows: Sequence[Row]) -> Row | None:
    """The fastest dense fp32 row: what a user gets without this program, by choosing among the runtimes.

    That of torch eager only where pruned models were measured there too, or nothing else was.
    """
    dense = [row for row in rows if (row.pattern, row.precision) == ("dense", "fp32")]
    asked = [row for row in dense if row is not eager(rows)]
    return min(asked or dense, key=lambda row: row.median_ms, default=None)


def eager(rows: Sequence[Row]) -> Row | None:
    """The dense model in torch eager, where it was measured for comparison alone."""
    there = [row for row in rows if row.runtime == EAGER]
    return there[0] if len(there) == 1 < len(rows) and there[0].pattern == "dense" else None


def gains(base: Row, best: Row, rows: Sequence[Row]) -> str:
    """ "int8 3.5x, pruning 1.7x": factors of medians whose product is the whole gain.

    Args:
        base: The dense fp32 row that is compared with.
        best: The recommended row.
        rows: Of the same run; steps between the two whose rows are missing are one factor.
    """
    return ", ".join(
        f"{name} {_factor(before.median_ms / after.median_ms)}" for name, before, after in _steps(base, best, rows)
    )


def _steps(base: Row, best: Row, rows: Sequence[Row]) -> Iterator[tuple[str, Row, Row]]:
    """Name of each step, the row before it and the row after it."""
    here = [row for row in rows if (row.runtime, row.threads) == (best.runtime, best.threads)]
    dense = {row.precision: row for row in here if row.pattern == "dense"}
    path: list[tuple[str, Row]] = []
    if best.runtime != base.runtime and "fp32" in dense:
        path.append((f"{best.runtime} instead of {base.runtime}", dense["fp32"]))
    if best.precision != base.precision and best.precision in dense:
        path.append((best.precision, dense[best.precision]))
    without = next((row for row in here if row.name == "pruned int8"), None)
    if best.name == "sparse int8" and without is not None:
        path.append(("pruning", without))
    before, left = base, []
    for name, row in path:
        yield name, before, row
        before = row
    if before is best:
        return
    if best.runtime != base.runtime and "fp32" not in dense:
        left.append(f"{best.runtime} instead of {base.runtime}")
    if best.precision != base.precision and best.precision not in dense:
        left.append(best.precision)
    if best.name == "sparse int8" and without is not None:
        left.append("sparse kernels")
    elif best.pattern != "dense":
        left.append("pruning")
    yield " and ".join(left), before, best


def _factor(value: float) -> str:
    return f"{value:.1f}x" if value >= 1.15 else f"{value:.2f}x"
