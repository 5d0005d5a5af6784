"""The most worth within a budget of time: Lagrangian ascent from several starts, then exchanges, then filling up.

For a price of a millisecond, coordinate ascent moves one group after another to the width with the highest
worth - price * time. Bisection finds the price at which the plan just fits. Groups are coupled (a layer's time is
about the product of its input and output width), so that where this ends depends on where it began: it is done from
several starts. The best plans are then improved by what no price can find: one group narrower for another wider
(exchange), and one group at another width, or gone with its branch, with all others fitted to it (turn).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from deploypruner.search.choices import Walk

# Starts of the ascent: whole, narrowest, and at random: so many groups in all of them, but at least a few starts.
_STARTED_GROUPS, _FEW_STARTS = 30, 5
_BISECTIONS = 16
_PASSES = 20
_STEPS = 6
# The best plans found are improved, for this many sweeps in all and at most half of them for one: about a second
# where a sweep takes 100 to 200 us.
_EFFORT = 6_000
_SMALL = 1e-9

Places = tuple[int, ...]


def fastest(walk: Walk) -> Places:
    """The places of least time that single moves lead to from the narrowest widths, wider where that is free."""
    walk.go([0] * len(walk.worths))
    _ascend(walk, np.inf)
    return tuple(walk.at)


def best_places(walk: Walk, budget_ms: float, *, seed: int = 0) -> Places | None:
    """Places of the most worth whose time is within the budget, None where no plan was found that is.

    Args:
        walk: Anywhere; it is moved about.
        budget_ms: Never exceeded.
        seed: Of the random starts.
    """
    whole = tuple(len(worth) - 1 for worth in walk.worths)
    walk.go(whole)
    if walk.ms <= budget_ms:
        return whole
    quick = fastest(walk)
    if walk.ms > budget_ms:
        return None
    found = {quick: walk.worth, **dict(_descents(walk, budget_ms, quick, seed=seed))}
    ranked = sorted(found, key=lambda places: (-found[places], places))
    best, most = ranked[0], -np.inf
    end = walk.sweeps + _EFFORT
    for places in ranked:
        if walk.sweeps >= end:
            break
        walk.go(places)
        _polish(walk, budget_ms, effort=min(_EFFORT // 2, end - walk.sweeps))
        if walk.worth > most + _SMALL:
            best, most = tuple(walk.at), walk.worth
    return best


def _descents(walk: Walk, budget_ms: float, quick: Places, *, seed: int) -> Iterator[tuple[Places, float]]:
    """Plans within the budget, at most one per start."""
    rng, sizes = np.random.default_rng(seed), [len(worth) for worth in walk.worths]
    starts: list[Sequence[int]] = [[size - 1 for size in sizes], quick]
    starts += [rng.integers(sizes).tolist() for _ in range(max(_FEW_STARTS, _STARTED_GROUPS // max(len(sizes), 1)))]
    walk.go(starts[0])
    span = float(sum(np.ptp(worth) for worth in walk.worths))
    price = span / max(walk.ms - budget_ms, _SMALL * walk.ms)
    spread, halvings = 1e4, _BISECTIONS
    for start in starts:
        low, high = price / spread, price * spread
        best: tuple[Places, float] | None = None
        walk.go(start)
        for _ in range(halvings):
            middle = float(np.sqrt(low * high))
            _ascend(walk, middle)
            if walk.ms > budget_ms:
                low = middle
                continue
            high = middle
            if best is None or walk.worth > best[1]:
                best = tuple(walk.at), walk.worth
        if best is not None:
            # The next start ends at a price like this one's.
            price, spread, halvings = high, 4.0, _BISECTIONS // 2
            walk.go(best[0])
            _fill(walk, budget_ms)
            yield tuple(walk.at), walk.worth


def _ascend(walk: Walk, price: float) -> None:
    """Move one choice after another to its best width at this price, until none moves; wider among equals."""
    for _ in range(_PASSES):
        before = list(walk.at)
        for number in range(len(walk.worths)):
            times = walk.times(number)
            value = -times if np.isinf(price) else walk.values(number) - price * times
            here = walk.at[number]
            reached = np.flatnonzero(value >= value.max() - _SMALL * abs(value.max()))
            to = int(reached[-1])
            if value[to] > value[here] or to > here:
                walk.move(number, to)
        if walk.at == before:
            return


def _fill(walk: Walk, budget_ms: float, *, fixed: int = -1) -> None:
    """Widen groups, those with the most worth per millisecond first, until nothing fits any more."""
    while True:
        offers = []
        for number in range(len(walk.worths)):
            offer = _widening(walk, number, budget_ms) if number != fixed else None
            if offer is not None:
                offers.append((*offer, number))
        if not offers:
            return
        for _, _, number in sorted(offers, key=lambda offer: (-offer[0], offer[2])):
            offer = _widening(walk, number, budget_ms)  # the ones before it have taken some of the time
            if offer is not None:
                walk.move(number, offer[1])


def _repair(walk: Walk, budget_ms: float, *, fixed: int) -> None:
    """Narrow groups, those with the least worth per millisecond first, until the budget is kept or none helps."""
    while walk.ms > budget_ms:
        best, least = None, np.inf
        for number in range(len(walk.worths)):
            here = walk.at[number]
            if number == fixed or here == 0:
                continue
            freed = np.minimum(walk.ms - walk.times(number)[:here], walk.ms - budget_ms)
            values = walk.values(number)
            lost = values[here] - values[:here]
            rates = np.where(freed > 0, lost / np.maximum(freed, _SMALL * budget_ms), np.inf)
            if rates.min() < least:
                best, least = (number, int(rates.argmin())), float(rates.min())
        if best is None:
            return
        walk.move(*best)


def _widening(walk: Walk, number: int, budget_ms: float) -> tuple[float, int] | None:
    """The wider place of one choice that fits and brings the most worth per millisecond: (that, place)."""
    values, here = walk.values(number), walk.at[number]
    if here == len(values) - 1:
        return None
    times, gains = walk.times(number)[here + 1 :], values[here + 1 :] - values[here]
    # A wider group is taken for nothing, a branch is not put back for nothing.
    fits = np.flatnonzero((times <= budget_ms) & (gains > 0 if walk.is_gone(number) else gains >= 0))
    if not len(fits):
        return None
    gains = gains[fits]
    rates = gains / np.maximum(times[fits] - walk.ms, _SMALL * budget_ms)
    pick = len(rates) - 1 - int(np.argmax(rates[::-1]))
    return float(rates[pick]), here + 1 + int(fits[pick])


def _polish(walk: Walk, budget_ms: float, *, effort: int) -> None:
    """Fill up, exchange and turn until nothing helps, or for at most `effort` sweeps."""
    end = walk.sweeps + effort
    _fill(walk, budget_ms)
    numbers = range(len(walk.worths))
    while walk.sweeps < end:
        exchanged = sum(walk.sweeps < end and _exchange(walk, n, budget_ms) for n in numbers)
        if not exchanged:
            spans = [float(np.ptp(walk.times(n))) for n in numbers]
            by_weight = sorted(numbers, key=lambda n: -spans[n])
            if not any(walk.sweeps < end and _turn(walk, n, budget_ms) for n in by_weight):
                return


def _turn(walk: Walk, number: int, budget_ms: float) -> bool:
    """Give one group another width and fit all others to it; undo it unless worth is gained.

    A group that meets many others (a residual stream) pays only where several of them move the other way.
    """
    before, worth = list(walk.at), walk.worth
    here = before[number]
    last = len(walk.worths[number]) - 1
    near = range(max(0, here - _STEPS), min(last, here + _STEPS) + 1)
    for to in sorted({*near, 0, last} - {here}, key=lambda place: (abs(place - here), place)):
        walk.move(number, to)
        _repair(walk, budget_ms, fixed=number)
        if walk.ms <= budget_ms:
            _fill(walk, budget_ms, fixed=number)
            if walk.worth > worth + _SMALL * abs(worth):
                _fill(walk, budget_ms)
                return True
        walk.go(before)
    return False


def _exchange(walk: Walk, number: int, budget_ms: float) -> bool:
    """Narrow one group by a few steps and spend what that frees on the others; undo it unless worth is gained."""
    before, worth = list(walk.at), walk.worth
    for down in range(1, min(_STEPS, before[number]) + 1):
        walk.move(number, before[number] - down)
        lost = worth - walk.worth
        best, most = None, lost + _SMALL * abs(worth)
        for other in range(len(walk.worths)):
            here, values = walk.at[other], walk.values(other)
            if other == number or values.max() - values[here] <= most:
                continue
            fits = np.flatnonzero(walk.times(other)[here + 1 :] <= budget_ms)
            if len(fits) and values[here + 1 + fits].max() - values[here] > most:
                to = here + 1 + int(fits[values[here + 1 + fits].argmax()])
                best, most = (other, to), float(values[to] - values[here])
        if best is not None:
            walk.move(*best)
            _fill(walk, budget_ms)
            return True
    walk.go(before)
    return False
