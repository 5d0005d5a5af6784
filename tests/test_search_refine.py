"""The best plan of a pool is improved by changing what its choices are worth, never exchanged for a worse one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from deploypruner.errors import BudgetError
from deploypruner.graph import trace
from deploypruner.recipe.constraints import Constraints
from deploypruner.report.chosen import objective_name
from deploypruner.search.judge import Verdict
from deploypruner.search.objectives import Space, named_objective, objectives, perturbed, proposals, refined
from deploypruner.search.pool import select
from deploypruner.search.proposed import Proposed
from deploypruner.search.refine import refine
from deploypruner.search.saved import Saved
from deploypruner.search.time_limit import TimeLimit
from tests.staircase import Staircase
from tests.test_search_pool import net, space

pytestmark = pytest.mark.slow


class Truth:
    """A judge that knows by which factor each measured loss is wrong, and adds up the right ones.

    A look without repair takes a tenth of the time, and gives `bare` of the loss.
    """

    dense = Verdict("loss", 0.0, None, 100)

    def __init__(self, known: Space, bare: Callable[[float], float]) -> None:
        self.bare = bare
        self.graph, self.losses, self.looks, self.seconds = known.graph, known.measured, [], 0.0
        rng = np.random.default_rng(3)
        self.factors = {name: float(np.exp(rng.normal())) for name in (*self.losses.groups, *self.losses.branches)}

    def clock(self) -> float:
        return self.seconds

    def look(self, keep, *, share: float = 1.0, repaired: bool = True) -> Verdict:
        self.looks.append(share if repaired else "as cut")
        self.seconds += 60 * share * (1 if repaired else 0.1)
        gone = {b.id for b in self.graph.branches if b.id in keep}
        inside = {name for b in self.graph.branches if b.id in gone for name in b.groups}
        lost = {name: self.losses.branches[name] for name in gone}
        lost |= {
            g: float(self.losses.groups[g][len(keep[g])]) for g in self.losses.groups if g in keep
        } | dict.fromkeys(inside, 0.0)
        loss = sum(self.factors[name] * loss for name, loss in lost.items())
        return Verdict("loss", loss if repaired else self.bare(loss), None, 100)


def pool(speed: float = 0.8, count: int = 8, bare: Callable[[float], float] = lambda loss: 7 - loss):
    """A pool of a network of six branches, its judge, and what solves an objective for the same time.

    Without repair the order of plans is the opposite one, where `bare` does not say otherwise.
    """
    graph = trace(net(6), torch.randn(2, 3, 8, 8))
    generator = torch.Generator().manual_seed(0)
    scores = {g.id: torch.empty(g.size).log_normal_(0, 1, generator=generator) for g in graph.groups}
    known = Space(graph, scores, "none", 2, Constraints())
    known = replace(known, measured=known.score_losses)
    model, judge = Staircase(known.graph, block=4, base=0.001), Truth(known, bare)
    target = speed * model.ms({})
    plans = proposals(objectives(known), perturbed(known), model.tally, target, count=count)
    return known, judge, select(plans, judge), lambda way: way.solve(model.tally, target), target


def test_changes_find_better_plans_of_the_same_time_and_the_best_is_first():
    _, judge, selection, solve, target = pool()
    found = refine(selection, judge, solve)
    losses = [entry.loss for entry in found.selection.entries if entry.full]
    assert 0 < found.kept <= found.looks
    assert found.selection.entries[0].loss < selection.entries[0].loss
    assert losses == sorted(losses)
    assert len(found.selection.entries) == len(selection.entries) + min(3, found.kept)
    for plan, entry in zip(found.selection.plans, found.selection.entries, strict=True):
        assert (plan.objective.name, plan.solution.dropped) == (entry.objective, entry.dropped)
        assert plan.solution.predicted_ms <= target * (1 + 1e-9)


def test_quick_looks_find_plans_and_full_ones_judge_the_last_three():
    _, judge, selection, solve, _ = pool()
    judge.looks.clear()
    found = refine(selection, judge, solve)
    full = sum(plan.full for plan in selection.plans)
    assert judge.looks == ["as cut"] * full + [0.25] * (1 + found.looks) + [1.0] * min(3, found.kept)
    assert found.repaired


def test_looks_without_repair_suffice_where_they_order_the_pool_alike():
    _, judge, selection, solve, _ = pool(bare=lambda loss: 3 + 2 * loss)
    judge.looks.clear()
    found = refine(selection, judge, solve)
    assert not found.repaired
    assert 0.25 not in judge.looks
    assert judge.looks.count(1.0) == min(3, found.kept) > 0
    # Full looks decide: what stands there is what the truth says, not what was seen without repair.
    for plan in found.selection.plans:
        assert plan.loss == judge.look(plan.solution.keep).loss


def test_a_plan_that_only_seemed_better_is_not_the_best():
    _, judge, selection, solve, _ = pool()
    honest, worst = judge.look, max(plan.loss for plan in selection.plans if plan.full)
    known = [plan.solution.widths for plan in selection.plans]

    def look(keep, *, share=1.0, repaired=True):
        found = honest(keep, share=share, repaired=repaired)
        new = share == 1 and repaired
        return replace(found, loss=worst + 1) if new else found

    judge.look = look
    found = refine(selection, judge, solve)
    assert found.kept
    assert found.selection.best == selection.best
    assert found.selection.best.solution.widths in known


def test_twelve_looks_in_a_row_without_a_better_plan_end_it():
    _, judge, selection, solve, _ = pool(speed=0.7)
    worst = selection.entries[-1].loss
    judge.look = lambda keep, share=1.0, repaired=True: Verdict("loss", worst, None, 100)
    found = refine(selection, judge, solve)
    assert (found.looks, found.kept) == (12, 0)
    assert found.selection == selection


def test_rules_have_no_prices_to_change_and_no_plan_is_no_better_one():
    _, judge, selection, solve, _ = pool()
    rules = tuple(plan for plan in selection.plans if plan.objective.priced is None)
    only = replace(selection, plans=rules)
    assert rules
    assert refine(only, judge, solve).selection == only

    def never(way):
        raise BudgetError("out of reach")

    assert refine(selection, judge, never).looks == 0


def test_no_look_begins_that_the_time_does_not_allow_and_one_full_look_is_left_for_the_best():
    _, judge, selection, solve, _ = pool()
    judge.seconds = 0.0
    limit = TimeLimit(4, judge.clock)
    found = refine(replace(selection, seconds=60.0), judge, solve, limit=limit)
    assert judge.seconds <= 240
    assert judge.looks[-1] == 1.0
    assert 0 < found.looks < 10
    assert limit.cuts[0] == f"{found.looks} plans near the best one judged"


@pytest.mark.parametrize("base", ["measured worth", "scores", "roots of scores, every branch kept", "perturbed 3"])
def test_a_refined_objective_is_found_again_by_its_name(base):
    known = space()
    known = replace(known, measured=known.score_losses)
    model = Staircase(known.graph, block=4, base=0.001)
    way = refined(refined(named_objective(known, base), 2), 7)
    assert way.name == f"refined 2+7 of {base}"
    again = named_objective(known, way.name)
    assert again.name == way.name
    for target in (0.5 * model.ms({}), 0.7 * model.ms({})):
        assert again.solve(model.tally, target).widths == way.solve(model.tally, target).widths
    rule = named_objective(known, "refined 2 of uniform shares")
    assert rule.name == "uniform shares"


def test_a_change_concerns_a_half_a_quarter_or_a_tenth_of_the_choices():
    known = space()
    many = {f"g{n}": np.array([4.0, 2.0, 0.0]) for n in range(4000)}
    losses = replace(known.score_losses, groups=many, branches={})
    way = replace(objectives(known)[0], priced=(known, losses))
    for number, share in ((1, 0.5), (2, 0.25), (3, 0.1), (4, 0.5)):
        lines = refined(way, number).priced[1].groups
        factors = np.array([lines[name][0] / 4.0 for name in many])
        assert np.mean(factors != 1) == pytest.approx(share, abs=0.03)
        assert all(lines[name][1] == pytest.approx(factor * 2) for name, factor in zip(many, factors, strict=True))
    assert refined(way, 1).priced[1].groups["g0"] is not refined(way, 4).priced[1].groups["g0"]


def test_an_interrupted_search_takes_the_plans_that_it_had_made(tmp_path):
    _, judge, selection, solve, _ = pool()
    saved = partial(Saved, tmp_path / "pool.json", "the same")
    file = Proposed(saved())
    first = refine(selection, judge, lambda way: file.solved(way.name, partial(solve, way)))
    again = Proposed(saved())

    def not_again(way):
        raise AssertionError(f"{way.name} was solved already")

    second = refine(selection, judge, lambda way: again.solved(way.name, partial(not_again, way)))
    assert [e.loss for e in second.selection.entries] == [e.loss for e in first.selection.entries]
    assert (second.looks, second.kept) == (first.looks, first.kept)


def test_the_report_says_where_it_began_and_in_how_many_steps():
    assert objective_name("refined 2+7 of perturbed 3") == "worths changed at random (no. 3), improved in 2 steps"
    assert objective_name("refined 4 of measured worth") == "measured worth, improved in one step"
    assert objective_name("refined 4 of scores, every branch kept") == (
        "scores with every branch kept, improved in one step"
    )
