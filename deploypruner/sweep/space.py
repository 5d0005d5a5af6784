"""Recipes of one cost: the width of every group, sampled so that MACs or predicted milliseconds meet a target.

Source: He et al., "Network Pruning Spaces", arXiv:2304.09453. Theirs are the recipe (one pruning ratio for each
layer), the space of all recipes of one cost, and its sub-spaces by the standard deviation of the ratios. Ours, since
the body of the paper was not read: the sampler (normal ratios around a mean that bisection finds), the tolerance, the
limits of the sub-spaces, and one ratio for each *group*, as layers whose outputs are added can only be cut alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from deploypruner.channels.constraints import Limit
from deploypruner.channels.feasible_widths import Room, most_important
from deploypruner.errors import InputError
from deploypruner.graph import Graph, Keep

STD_BUCKETS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Limits of the sub-spaces of `std`, each from one up to the next; ours."""

TOLERANCE = 0.02
"""A recipe may cost so much less than the target, as a share of it."""

_BISECTIONS = 24
# Of one recipe, before another sub-space is tried, or the search for it given up.
_TRIES = 60
_FAR = 2.0

Widths = dict[str, int]


@dataclass(frozen=True)
class SampledRecipe:
    """One recipe.

    Args:
        widths: Group id -> channels that stay, of every group that may be cut.
        std: Standard deviation of the groups' pruning ratios, 0 where all are cut alike.
        cost: In the unit of the target.
    """

    widths: Widths
    std: float
    cost: float


@dataclass(frozen=True)
class PruningSpace:
    """All recipes of one cost.

    Args:
        graph: The traced model.
        room: How far it may be cut.
        cost: Of a plan: MACs, or predicted milliseconds.
        target: In that unit; a recipe costs at most this.
        std: The standard deviation of the ratios is from the first to below the second.
        accepts: A further condition, on the plan.
    """

    graph: Graph
    room: Room
    cost: Callable[[Keep], float]
    target: float
    std: tuple[float, float] = (STD_BUCKETS[0], STD_BUCKETS[-1])
    accepts: Callable[[Keep], bool] = field(default=lambda keep: True)

    def sample(
        self, count: int, *, seed: tuple[int, ...], known: int = 0, fewer: bool = False
    ) -> list[SampledRecipe]:
        """Different recipes, spread over the sub-spaces of `std`; the first ones are the same whatever the count.

        Args:
            count: How many; number i depends on `seed`, i and the recipes before it alone.
            seed: Numbers that decide everything.
            known: Recipes from the beginning that are left out, because the caller has them.
            fewer: Is it all right if there are not so many?

        Raises:
            InputError: There are not so many.
        """
        found: list[SampledRecipe] = []
        seen: set[tuple[int, ...]] = set()
        buckets = self._buckets()
        for number in range(count):
            recipe = self._one(number, seed, buckets, seen)
            if recipe is None and fewer:
                break
            if recipe is None:
                raise self._too_few(count, len(found))
            seen.add(tuple(recipe.widths.values()))
            found.append(recipe)
        return found[known:]

    def widths_allowed(self) -> dict[str, tuple[int, ...]]:
        """Group id -> the widths it may have, ascending, of every group that may be cut."""
        return {
            group.id: (*reversed(list(self._limit(group.id).narrower(group.size))), group.size)
            for group in self.graph.groups
            if self._limit(group.id).narrower(group.size)
        }

    def keep(self, widths: Mapping[str, int]) -> Keep:
        """The plan of these widths: the most important channels stay."""
        return most_important(self.room.order, widths)

    def std_of(self, widths: Mapping[str, int]) -> float:
        """Standard deviation of the groups' pruning ratios."""
        return float(np.std([1 - width / self.graph.group(group).size for group, width in widths.items()]))

    def _limit(self, group: str) -> Limit:
        return self.room.limits[group]

    def _buckets(self) -> list[tuple[float, float]]:
        low, high = self.std
        inner = [edge for edge in STD_BUCKETS if low < edge < high]
        edges = [low, *inner, high]
        return list(pairwise(edges))

    def _one(
        self, number: int, seed: tuple[int, ...], buckets: list[tuple[float, float]], seen: set[tuple[int, ...]]
    ) -> SampledRecipe | None:
        """The recipe of one number: of the sub-space whose turn it is, else of any other."""
        first = number % len(buckets)
        for turn in range(len(buckets)):
            low, high = buckets[(first + turn) % len(buckets)]
            for attempt in range(_TRIES):
                rng = np.random.default_rng([*seed, number, turn, attempt])
                found = self._draw(rng, spread=float(rng.uniform(low, high)))
                if found is None or not low <= found.std < high or tuple(found.widths.values()) in seen:
                    continue
                if self.accepts(self.keep(found.widths)):
                    return found
        return None

    def _draw(self, rng: np.random.Generator, *, spread: float) -> SampledRecipe | None:
        """Ratios scattered by `spread` around the mean at which the cost is met; None where no mean meets it."""
        allowed = self.widths_allowed()
        scatter = dict(zip(allowed, rng.normal(0.0, spread, len(allowed)), strict=True))
        for names in self.room.tied:
            scatter |= {name: scatter[names[0]] for name in names if name in scatter and names[0] in scatter}

        def at(mean: float) -> Widths:
            return {
                group: _nearest(widths, widths[-1] * (1 - min(1.0, max(0.0, scatter[group] + mean))))
                for group, widths in allowed.items()
            }

        low, high = -_FAR, _FAR
        if self.cost(self.keep(at(high))) > self.target:
            return None
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self.cost(self.keep(at(middle))) <= self.target:
                high = middle
            else:
                low = middle
        widths, cost = self._filled(at(high), allowed, rng)
        if cost < (1 - TOLERANCE) * self.target:
            return None
        return SampledRecipe(widths, self.std_of(widths), cost)

    def _filled(
        self, widths: Widths, allowed: Mapping[str, tuple[int, ...]], rng: np.random.Generator
    ) -> tuple[Widths, float]:
        """Groups in random order a step wider while that fits: rounding leaves a part of the target unused."""
        cost = self.cost(self.keep(widths))
        partners = {name: names for names in self.room.tied for name in names}
        for group in rng.permutation(list(allowed)):
            if cost >= (1 - TOLERANCE) * self.target:
                break
            place = allowed[group].index(widths[group]) + 1
            if place == len(allowed[group]):
                continue
            wider = {**widths, **dict.fromkeys(partners.get(group, (str(group),)), allowed[group][place])}
            wider = {name: wider[name] for name in widths}
            after = self.cost(self.keep(wider))
            if after <= self.target:
                widths, cost = wider, after
        return widths, cost

    def _too_few(self, asked: int, found: int) -> InputError:
        low, high = self.std
        return InputError(
            f"{asked} recipes were asked for, and of those within {100 * TOLERANCE:g} % of the target, with a "
            f"standard "
            f"deviation of the ratios from {low:g} to {high:g}, only {found} different ones were found",
            hint=f"ask for {found} with --samples, or allow more widths with a smaller --step"
            if found
            else "allow more widths with a smaller --step, or a wider --ratio-std",
        )


def _nearest(widths: tuple[int, ...], wanted: float) -> int:
    return min(widths, key=lambda width: (abs(width - wanted), -width))
