"""What a plan may be chosen by under a budget of time: measured worth, scores in several currencies, fixed rules.

No single one of them finds the best plan of every network, so that they propose and `search.pool` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
from torch import Tensor

from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import Normalizer
from deploypruner.channels.depth import held_branches
from deploypruner.channels.feasible_widths import Order, by_importance
from deploypruner.errors import BudgetError, InputError
from deploypruner.graph import Graph
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints
from deploypruner.search.choices import TallyOf
from deploypruner.search.losses import Losses, kept_share, losses_from_scores, running_importance
from deploypruner.search.solve import Solution, solve

# Spread of the logarithm of the factor on each choice's loss, and the part of them that one change concerns.
_SPREAD = 0.7
_CHANGED = (0.5, 0.25, 0.1)
_PERTURBED, _REFINED = "perturbed", "refined"
_DEEP = ", every branch kept"
# Bisection of the share of multiply-adds that a fixed rule may leave.
_BISECTIONS = 10


@dataclass(frozen=True)
class Space:
    """Everything that the objectives choose from.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep; they order the channels of each group.
        normalizer: Makes scores of different groups comparable.
        step: Widths become multiples of this.
        constraints: What may be cut, and how far.
        measured: Measured losses of widths and branches, None without data.
        seed: Of the solver's restarts and of the perturbations.
    """

    graph: Graph
    scores: Mapping[str, Tensor]
    normalizer: Normalizer
    step: int
    constraints: Constraints
    measured: Losses | None = None
    seed: int = 0

    @cached_property
    def held(self) -> Mapping[str, str]:
        """Branch id -> why it stays, "" where it may go."""
        return held_branches(self.graph, self.constraints)

    @property
    def drops(self) -> bool:
        """May any branch go?"""
        return not all(self.held.values())

    @cached_property
    def order(self) -> Order:
        """Group id -> its channels, the most important first."""
        return by_importance(self.scores)

    @cached_property
    def score_losses(self) -> Losses:
        """The importance that goes with channels and branches, as the normalizer makes it comparable."""
        return self.losses_by(self.scores, self.normalizer)

    def losses_by(self, scores: Mapping[str, Tensor], normalizer: Normalizer) -> Losses:
        """The importance that goes in another currency, the channels in the same order."""
        running = running_importance(self.graph, scores, self.order, normalizer=normalizer)
        return losses_from_scores(self.graph, running)


SolveFor = Callable[[TallyOf, float], Solution]


@dataclass(frozen=True)
class Objective:
    """One way to choose a plan.

    Args:
        name: In a person's words: "measured worth".
        solve: (tally, milliseconds) -> the plan predicted within them; raises BudgetError where there is none.
        priced: What it keeps small, and the space that it chooses from; None for a rule without prices.
    """

    name: str
    solve: SolveFor
    priced: tuple[Space, Losses] | None = None


def objectives(space: Space) -> list[Objective]:
    """Every objective that applies, the likeliest first; `perturbed` gives more of the first kind.

    Source:
        |Taylor| is HALP's worth, arXiv:2110.10811; LAMP, arXiv:2010.07611; isomorphic, arXiv:2407.04616. The measured
        loss of single replacements is Puzzletron's and LayerMerge's, arXiv:2406.12837; the pool is ours.
    """
    scores = space.score_losses
    rooted = space.losses_by({g: s.double().clamp_min(0).sqrt() for g, s in space.scores.items()}, space.normalizer)
    found = []
    if space.measured is not None:
        found.append(_by_losses("measured worth", space, space.measured))
        if space.drops:
            found.append(_by_losses(f"measured worth{_DEEP}", _deep(space), space.measured))
    found.append(_by_losses("scores", space, scores))
    found.append(_by_losses("roots of scores", space, rooted))
    if space.drops:
        found.append(_by_losses(f"scores{_DEEP}", _deep(space), scores))
        found.append(_by_losses(f"roots of scores{_DEEP}", _deep(space), rooted))
        found.append(_by_losses("branches alone", _whole(space), space.measured or scores))
    found.append(_by_losses("lamp", _deep(space), space.losses_by(space.scores, "lamp")))
    found += [_by_rule(name, space, scope) for name, scope in _RULES.items()]
    return found


_RULES = {"uniform shares": "uniform", "multiply-adds": "global", "isomorphic": "isomorphic"}


def perturbed(space: Space) -> Iterator[Objective]:
    """Losses with a random factor on every choice, without end.

    Source: SPDY, arXiv:2201.13096, sec. 3.3, which searches such factors; `refined` does that here.
    """
    losses, number = space.measured or space.score_losses, 0
    while True:
        number += 1
        yield _by_losses(f"{_PERTURBED} {number}", space, _changed(losses, space.seed, number))


def refined(objective: Objective, number: int) -> Objective:
    """The same losses with a random factor on some of the choices; it can be refined further.

    Args:
        objective: One that has prices.
        number: Of the change, from 1: another one has other factors, on a half, a quarter or a tenth of the choices.

    Source: SPDY's local search, arXiv:2201.13096, sec. 3.3. It begins there with the best of random factors for layer
        costs that follow a square law, here with the best of a pool for measured ones.
    """
    assert objective.priced is not None, f"'{objective.name}' is a rule"
    space, losses = objective.priced
    numbers, base = _refinements(objective.name)
    name = f"{_REFINED} {'+'.join(map(str, (*numbers, number)))} of {base}"
    share = _CHANGED[(number - 1) % len(_CHANGED)]
    return _by_losses(name, space, _changed(losses, space.seed, number, share=share))


def base_name(name: str) -> str:
    """The objective that one was refined from, or its own name."""
    return _refinements(name)[1]


def _refinements(name: str) -> tuple[tuple[int, ...], str]:
    """Numbers of the changes, and the name of what they began with."""
    first, _, rest = name.partition(" ")
    numbers, _, base = rest.partition(" of ")
    if first != _REFINED or not numbers.replace("+", "").isdigit():
        return (), name
    return tuple(map(int, numbers.split("+"))), base


def _changed(losses: Losses, seed: int, number: int, *, share: float | None = None) -> Losses:
    """With random factors on every choice, or on a share of them."""
    rng = np.random.default_rng([seed, number] if share is None else [seed, number, round(1 / share)])

    def factor() -> float:
        found = float(np.exp(_SPREAD * rng.normal()))
        return found if share is None or rng.random() < share else 1.0

    return Losses(
        {name: line * factor() for name, line in losses.groups.items()},
        {name: loss * factor() for name, loss in losses.branches.items()},
    )


def named_objective(space: Space, name: str) -> Objective:
    """The objective of this name, also a perturbed or a refined one; the likeliest where there is none of that name.

    Where no branch may go all objectives keep every branch, and are named without saying so.
    """
    numbers, base = _refinements(name)
    if numbers:
        found = named_objective(space, base)
        for change in numbers if found.priced else ():
            found = refined(found, change)
        return found
    known, name = objectives(space), name if space.drops else name.removesuffix(_DEEP)
    kind, _, number = name.partition(" ")
    if kind == _PERTURBED and number.isdigit():
        return next(islice(perturbed(space), int(number) - 1, None))
    return next((objective for objective in known if objective.name == name), known[0])


def distance(left: Mapping[str, int], right: Mapping[str, int]) -> int:
    """Hamming distance: in how many groups and branches two plans differ.

    Args:
        left: Group id -> width; branch id -> 0 where it goes.
        right: The same.
    """
    return sum(left.get(name, 1) != right.get(name, 1) for name in {*left, *right})


# ---------------------------------------------------------------------- ways to solve


def _deep(space: Space) -> Space:
    return replace(space, constraints=replace(space.constraints, depth="keep"))


def _whole(space: Space) -> Space:
    """Every group whole, so that only branches are left to choose."""
    return replace(space, constraints=replace(space.constraints, max_cut=0.0))


def _by_losses(name: str, space: Space, losses: Losses) -> Objective:
    def solved(tally: TallyOf, budget_ms: float) -> Solution:
        return solve(
            space.graph,
            space.scores,
            tally,
            budget_ms,
            losses=losses,
            normalizer=space.normalizer,
            step=space.step,
            constraints=space.constraints,
            seed=space.seed,
        )

    return Objective(name, solved, (space, losses))


def _by_rule(name: str, space: Space, scope: str) -> Objective:
    """The most multiply-adds that a scope may leave so that the plan is predicted within the time."""
    graph, losses = space.graph, space.score_losses

    def solved(tally: TallyOf, budget_ms: float) -> Solution:
        predicted = _predictor(graph, tally)
        dense_ms, best = predicted({}), None
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            try:
                plan = allocate(
                    graph,
                    space.scores,
                    Budget(macs=middle),
                    criterion=name,
                    scope=scope,
                    normalizer="per_mac" if scope == "global" else space.normalizer,
                    step=space.step,
                    constraints=space.constraints,
                )
            except BudgetError:
                low = middle
                continue
            ms = predicted(plan.keep)
            if ms > budget_ms:
                high = middle
                continue
            low, best = middle, (plan, ms)
        if best is None:
            raise BudgetError(f"{name} cannot reach {budget_ms:.3g} ms", hint="ask for more time")
        plan, ms = best
        widths = {g.id: len(g.keep) for g in plan.groups}
        share = kept_share(losses, widths)
        return Solution(widths, plan.keep, ms, share, float("nan"), dense_ms, ms)

    return Objective(name, solved)


def _predictor(graph: Graph, tally_of: TallyOf) -> Callable[[Mapping[str, np.ndarray]], float]:
    whole = {g.id: np.arange(g.size) for g in graph.groups} | {b.id: np.zeros(1, np.int64) for b in graph.branches}
    tally = tally_of(whole)

    def predicted(keep: Mapping[str, np.ndarray]) -> float:
        for name, channels in whole.items():
            tally.keep(name, np.asarray(keep.get(name, channels)))
        return tally.ms

    return predicted


def proposals(
    objectives_: Sequence[Objective], more: Iterator[Objective], tally: TallyOf, budget_ms: float, *, count: int
) -> list[tuple[Objective, Solution]]:
    """Different plans for the same predicted time, at most `count`.

    Args:
        objectives_: Asked first, in this order; one that cannot reach the time is passed over.
        more: Asked after that.
        tally: Predicts.
        budget_ms: For each plan.
        count: How many.

    Raises:
        BudgetError: None of the first can reach it.
    """
    found: list[tuple[Objective, Solution]] = []
    failed: BudgetError | None = None
    for objective in objectives_:
        try:
            solution = objective.solve(tally, budget_ms)
        except (BudgetError, InputError) as error:
            failed = failed or (error if isinstance(error, BudgetError) else None)
            continue
        if _is_new(solution, found, least=1):
            found.append((objective, solution))
    if not found:
        raise failed or BudgetError(f"no plan reaches {budget_ms:.3g} ms", hint="ask for more time")
    misses = 0
    while len(found) < count and misses < count:
        objective = next(more)
        solution = objective.solve(tally, budget_ms)
        if _is_new(solution, found, least=2):
            found.append((objective, solution))
        else:
            misses += 1
    return found


def _is_new(solution: Solution, found: Sequence[tuple[Objective, Solution]], *, least: int) -> bool:
    return all(distance(solution.widths, other.widths) >= least for _, other in found)
