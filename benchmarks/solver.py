"""How close the solver comes to the best plan there is, and what simpler ways to choose widths miss.

    python -m benchmarks.solver             # enumerate small random problems, print the table
    python -m benchmarks.solver --large     # ResNet-50 and others under a made-up staircase latency: seconds, rivals

Small problems have 3 to 6 groups of 4 to 6 widths, coupled as a chain, through a residual stream, or densely; each is
asked for three budgets. "greedy" narrows the group with the least worth per millisecond until the plan fits and then
fills up; "uniform" gives every group the same share of its channels. The gap is the share of the best worth missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np
import torch

from deploypruner.channels.feasible_widths import by_importance
from deploypruner.graph import trace
from deploypruner.search.choices import WidthWalk
from deploypruner.search.losses import losses_from_scores, make_choices, running_importance
from deploypruner.search.solve import reach, solve
from deploypruner.search.solver import best_places, fastest
from deploypruner.sources.model import load_model
from tests.small_cases import KINDS, draw
from tests.staircase import Staircase

SHARES = (0.1, 0.3, 0.6)
NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121")
SPEEDUPS = (1.5, 3.0)

Rival = Callable[[WidthWalk, float], tuple[int, ...]]


@click.command()
@click.option("--large", is_flag=True, help="whole networks instead of small problems")
@click.option("--cases", default=100, show_default=True, help="small problems of each kind")
@click.argument("networks", nargs=-1)
def main(large: bool, cases: int, networks: tuple[str, ...]) -> None:
    """Print one of the tables as Markdown."""
    if large:
        for name in networks or NETWORKS:
            whole_network(name)
        return
    print("| coupling | way | exact | mean gap | 95 % | worst | not met |\n|---|---|---|---|---|---|---|")
    for kind in KINDS:
        small(kind, cases)


def small(kind: str, cases: int) -> None:
    """Rows of one kind of coupling."""
    rng = np.random.default_rng(KINDS.index(kind))
    ways: dict[str, Rival] = {"solver": _solver, "greedy": greedy, "uniform": uniform}
    gaps: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(cases):
        case = draw(rng, kind)
        ms, worth = case.everything()
        for share in SHARES:
            budget = float(ms.min() + share * (ms.max() - ms.min()))
            best = float(worth[ms <= budget * (1 + 1e-12)].max())
            for way, choose in ways.items():
                places = choose(WidthWalk(case.choices, case.tally(), case.order), budget)
                met = ms[places] <= budget * (1 + 1e-12)
                gaps[way].append(1 - float(worth[places]) / best if met else np.nan)
    for way, found in gaps.items():
        missed, met = np.isnan(found).mean(), np.array(found)[~np.isnan(found)]
        print(
            f"| {kind} | {way} | {(met < 1e-9).mean():.1%} | {met.mean():.2%} | {np.quantile(met, 0.95):.2%} | "
            f"{met.max():.2%} | {missed:.0%} |",
            flush=True,
        )


def whole_network(name: str) -> None:
    """Seconds and retained importance on one torchvision network, scores log-normal around 1."""
    found = load_model(f"torchvision:{name}?pretrained=0")
    graph = trace(found.module, found.example_inputs)
    generator = torch.Generator().manual_seed(0)
    scores = {g.id: torch.empty(g.size).log_normal_(0, 1, generator=generator) for g in graph.groups}
    model = Staircase(graph)
    least = reach(graph, model.tally)
    order = by_importance(scores)
    running = running_importance(graph, scores, order, normalizer="none")
    total = sum(float(line[-1]) for line in running.values())
    for speedup in SPEEDUPS:
        budget = least.dense_ms / speedup
        begin = time.perf_counter()
        best = solve(graph, scores, model.tally, budget)
        seconds = time.perf_counter() - begin
        choices = make_choices(graph, least.room, losses_from_scores(graph, running))
        rest = total - sum(float(choice.worth[-1]) for choice in choices)
        shares = []
        for choose in (greedy, uniform):
            walk = WidthWalk(choices, model.tally(order), order)
            walk.go(choose(walk, budget))
            shares.append((walk.worth + rest) / total if walk.ms <= budget else np.nan)
        print(
            f"{name} ({len(graph.groups)} groups) {speedup}x: solver keeps {best.importance:.2%} in {seconds:.1f} s "
            f"at {best.predicted_ms / budget:.2%} of the budget, greedy {shares[0]:.2%}, uniform {shares[1]:.2%}",
            flush=True,
        )


def greedy(walk: WidthWalk, budget_ms: float) -> tuple[int, ...]:
    """From the whole model, one step narrower where that costs the least worth per millisecond."""
    walk.go([len(choice.widths) - 1 for choice in walk.choices])
    while walk.ms > budget_ms:
        rates = []
        for number, choice in enumerate(walk.choices):
            here = walk.at[number]
            if here:
                times = walk.times(number)
                saved = max(walk.ms - float(times[here - 1]), 1e-12)
                rates.append(((choice.worth[here] - choice.worth[here - 1]) / saved, number))
        if not rates:
            break
        number = min(rates)[1]
        walk.move(number, walk.at[number] - 1)
    return tuple(walk.at)


def uniform(walk: WidthWalk, budget_ms: float) -> tuple[int, ...]:
    """The largest common share of channels that fits."""
    for share in np.linspace(1, 0, 101):
        walk.go([int(np.abs(c.widths - share * c.widths[-1]).argmin()) for c in walk.choices])
        if walk.ms <= budget_ms:
            break
    return tuple(walk.at)


def _solver(walk: WidthWalk, budget_ms: float) -> tuple[int, ...]:
    places = best_places(walk, budget_ms)
    return fastest(walk) if places is None else places


if __name__ == "__main__":
    main()
