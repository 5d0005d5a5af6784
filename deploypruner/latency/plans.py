"""Plans of probe networks: widths scattered so that every size can be told apart, or spread over what is allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from deploypruner.channels.constraints import find_limits
from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.matching import runs
from deploypruner.recipe.constraints import Constraints

# How often a probe cuts what is left whole by default: the smaller of two coupled groups, channels of a layer norm.
_RARELY = 1 / 3
# Attempts at widths that no other group has.
_DRAWS = 200
# Groups below this size may stay whole in a scattered plan: there are few other widths to tell them apart by.
_SMALL = 8
# Scattered plans at most: each is an export.
_MOST = 5
# Every third probe leaves out branches, in turn these shares of them: the fewer operations, the better what an
# inference costs beside them is known. Their widths are of the wider half, which is what fewer blocks pay for.
_DROPPING = 3
_GONE = (1.0, 1 / 3, 2 / 3)
_ALL = Constraints(heads="both", statistics="prune")


def plans_needed(graph: Graph) -> int:
    """How many scattered plans tell all groups apart: two, or more where many groups of one small size are alike."""
    alike = Counter(group.size for group in graph.groups)
    alike.update(len(part) for parts in _parts(graph).values() for part in parts)
    count = 2
    while count < _MOST and any(len(_scattered(size)) ** count < 2 * number for size, number in alike.items()):
        count += 1
    return count


def _parts(graph: Graph) -> dict[str, list[IntArray]]:
    """Group -> channels of its parts, see `Lengths`, where it lies in more than one piece on some axis."""
    place = {atom: (g.id, i) for g in graph.groups for i, atom in enumerate(graph.atoms[g.id].tolist())}
    found: dict[str, set[tuple[int, ...]]] = {}
    for run in runs(graph):
        places = [place.get(atom) for atom in run[:, 0].tolist()]
        if places[0] is not None:
            found.setdefault(places[0][0], set()).add(tuple(one[1] for one in places if one is not None))
    return {
        g.id: [np.array(part) for part in sorted(found.get(g.id, ())) if len(part) < g.size] for g in graph.groups
    }


def _scattered(size: int) -> IntArray:
    """Widths from a third to just below the whole; the whole too where there are few.

    Not 1 where there are others: an exporter writes other operations around an axis of one head or channel, and files
    of other operations have no template.
    """
    return np.arange(max(size // 3, min(2, size - 1), 1), size + 1 if size < _SMALL else size)


def scattered_plans(graph: Graph, count: int, *, seed: int) -> list[Keep]:
    """Plans with widths from a third to just below the whole, for finding out which size follows which group.

    What never changes would be taken for a constant, and what changes alike for one axis: as far as small groups
    allow, every group has widths of its own in each plan, and no two groups, or parts of one, keep the same shares in
    all of them.
    """
    rng = np.random.default_rng([seed, 1])
    drawn: dict[str, list[IntArray]] = {}
    taken: set[tuple[Fraction, ...]] = {(Fraction(1),) * count}
    parts = _parts(graph)
    for group in sorted(graph.groups, key=lambda g: g.size):
        below = _scattered(group.size)
        for _ in range(_DRAWS):
            widths = rng.choice(below, count, replace=len(below) <= count).tolist()
            drawn[group.id] = [
                np.sort(rng.choice(group.size, width, replace=False)) if parts[group.id] else np.arange(width)
                for width in widths
            ]
            whole = [np.arange(group.size), *parts[group.id]]
            shares = [_shares(part, drawn[group.id]) for part in whole]
            if not taken & set(shares) and len(set(shares)) == len(shares):
                break
        taken.update(shares)
    return [_filled(graph, {group: keeps[i] for group, keeps in drawn.items()}) for i in range(count)]


def _shares(part: IntArray, keeps: Sequence[IntArray]) -> tuple[Fraction, ...]:
    """What share of some channels each plan keeps."""
    return tuple(Fraction(int(np.isin(part, keep).sum()), len(part)) for keep in keeps)


def probe_plans(graph: Graph, count: int, *, step: int, seed: int) -> list[Keep]:
    """Plans to be timed: the dense one, the narrowest one, then widths spread evenly over what each group may have.

    Some of them leave out branches.

    Args:
        graph: The traced model.
        count: How many plans, at least 2. The first n of a longer list are spread as evenly as they can be.
        step: As in `allocate`: widths are multiples of it, or whole.
        seed: Seed of which width meets which.
    """
    rng = np.random.default_rng([seed, 2])
    widths = candidate_widths(graph, step)
    default = find_limits(graph, Constraints(), step=step, statistics=False)
    ids = [group.id for group in graph.groups]
    plans = [
        keep_first(graph, {}),
        keep_first(graph, {i: widths[i][-1] if not default[i].whole else widths[i][0] for i in ids}),
    ]
    shifts = {i: rng.uniform() for i in ids}
    for number in range(count - 2):
        chosen = {}
        dropping = bool(graph.branches) and number % _DROPPING == 1
        for i in ids:
            # A golden-ratio sequence stays evenly spread however soon it is cut off; each group has its own start,
            # and a shuffle of every block of eight unties groups from one another.
            place = (shifts[i] + (number + int(rng.integers(8))) * 0.6180339887) % 1.0
            whole = bool(default[i].whole) and rng.uniform() > _RARELY
            place = place / 2 if dropping else place
            chosen[i] = widths[i][0] if whole else widths[i][int(place * len(widths[i]))]
        plans.append({**keep_first(graph, chosen), **(_some_dropped(graph, number, seed=seed) if dropping else {})})
    return plans[:count]


def _some_dropped(graph: Graph, number: int, *, seed: int) -> Keep:
    """A share of the branches gone, at least one."""
    rng = np.random.default_rng([seed, 3, number])
    ids = [branch.id for branch in graph.branches]
    share = _GONE[number // _DROPPING % len(_GONE)]
    gone = rng.choice(len(ids), max(1, round(len(ids) * share)), replace=False)
    return {ids[i]: np.array([], np.int64) for i in sorted(gone)}


def dropping_plans(graph: Graph) -> list[Keep]:
    """Dense plans without some branches, each branch gone in a set of plans that holds no other branch's set.

    An operation that is never executed without a branch is then told from those of every other branch. Sets of half
    of the plans are the most there are (Sperner, Math. Z. 27, 1928).
    """
    count = 1
    while comb(count, count // 2) < len(graph.branches):
        count += 1
    sets = combinations(range(count), max(1, count // 2))
    plans: list[dict[str, NDArray[np.int64]]] = [{} for _ in range(count if graph.branches else 0)]
    for branch, places in zip(graph.branches, sets, strict=False):
        for place in places:
            plans[place][branch.id] = np.array([], np.int64)
    return [plan for plan in plans if plan]


def reference_plan(graph: Graph, step: int) -> Keep:
    """A plan of middling width, whose network is the reference that the others are timed beside."""
    widths = candidate_widths(graph, step)
    default = find_limits(graph, Constraints(), step=step, statistics=False)
    return keep_first(graph, {i: w[0] if default[i].whole else w[len(w) * 5 // 8] for i, w in widths.items()})


def candidate_widths(graph: Graph, step: int) -> dict[str, Sequence[int]]:
    """Group id -> widths it may have, the whole first."""
    limits = find_limits(graph, _ALL, step=step, statistics=True)
    return {g.id: [g.size, *limits[g.id].narrower(g.size)] for g in graph.groups}


def keep_first(graph: Graph, widths: dict[str, int]) -> Keep:
    """The first channels of every group, and those without which some tensor would be left with none."""
    return _filled(graph, {g.id: np.arange(widths.get(g.id, g.size)) for g in graph.groups})


def _filled(graph: Graph, keep: dict[str, IntArray]) -> Keep:
    """A plan with the channels without which some tensor would be left with none."""
    while emptied := graph.emptied(keep):
        for group, channels in emptied.items():
            keep[group] = np.union1d(keep[group], sorted(channels))
    return keep
