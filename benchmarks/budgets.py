"""Budgets of time, asked for and checked; and what the same latency costs when widths are chosen another way.

    python -m benchmarks.budgets                       # every request that is missing in results/budgets.json
    python -m benchmarks.budgets torchvision:resnet18  # only of these networks
    python -m benchmarks.budgets --markdown            # print the tables, run nothing

Six networks at 224 x 224, fp32 and int8, two speed-ups each. A request is what `deploypruner compile --speedup` does
until the plan is found: choose, time the layers, solve, export, measure, correct. Then the candidate is timed in
fresh processes beside the dense model. The second table has half the predicted latency three ways: the solver, every
group cut by the same share, and the global budget of MACs. Weights are random but lively, importance is Taylor's on
noise in the first table and magnitude in the second; accuracy is `benchmarks.equal_latency`'s.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.budgets_table import tables
from benchmarks.lively import liven
from benchmarks.zoo_models import untrained
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import criteria
from deploypruner.channels.feasible_widths import by_importance, most_important
from deploypruner.channels.statistics import score_groups
from deploypruner.errors import BudgetError
from deploypruner.graph import Graph, trace
from deploypruner.latency import LatencyModel, build_latency_model, write_candidate
from deploypruner.measure import compare, median_ms, time_artifacts
from deploypruner.recipe.budget import Budget
from deploypruner.records import Artifact, Precision, Setting
from deploypruner.search.latency_search import meet
from deploypruner.search.losses import kept_share, losses_from_scores, running_importance
from deploypruner.search.request import SearchRequest
from deploypruner.search.solve import solve

RESULTS = Path(__file__).parent / "results" / "budgets.json"
# Two speed-ups per network and precision, spread over 1.2x to 3x.
REQUESTS: dict[str, dict[Precision, tuple[float, float]]] = {
    "torchvision:resnet18": {"fp32": (1.5, 3.0), "int8": (1.2, 2.0)},
    "torchvision:resnet50": {"fp32": (1.2, 2.0), "int8": (1.5, 3.0)},
    "torchvision:mobilenet_v2": {"fp32": (1.5, 2.5), "int8": (1.2, 2.0)},
    "torchvision:efficientnet_b0": {"fp32": (1.2, 2.0), "int8": (1.5, 2.5)},
    "torchvision:regnet_y_400mf": {"fp32": (1.5, 3.0), "int8": (1.2, 2.0)},
    "torchvision:vgg16": {"fp32": (1.5, 3.0), "int8": (2.0, 3.0)},
}
RUNTIME, STEP, CRITERION = "openvino", 8, "taylor"
# Of the second table: Taylor's scores of a network that was never trained sit in a handful of channels.
SECOND = "magnitude"
# A fresh measurement takes so long, and at least so many rounds of a model that is slow.
SECONDS, ROUNDS = 12.0, 120


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--markdown", is_flag=True, help="print the tables of what was measured, run nothing")
def main(networks: tuple[str, ...], markdown: bool) -> None:
    """Run the requests of NETWORKS (all by default) that are missing, and print the tables."""
    torch.set_num_threads(1)
    for name in () if markdown else networks or REQUESTS:
        missing = [
            (precision, speedup)
            for precision, speedups in REQUESTS[name].items()
            for speedup in speedups
            if key_of(name, precision, speedup) not in read()
        ]
        if missing or any(f"{name} {precision} same" not in read() for precision in REQUESTS[name]):
            run_network(name, missing)
    click.echo(tables(read()))


def key_of(name: str, precision: str, speedup: float) -> str:
    """Name of a row."""
    return f"{name} {precision} {speedup:g}"


def read() -> dict[str, Any]:
    """Everything measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep_row(key: str, row: dict[str, Any]) -> None:
    """Add one row to the file."""
    rows = read() | {key: row}
    part = RESULTS.with_suffix(".tmp")
    part.write_text(json.dumps(rows, indent=1))
    part.replace(RESULTS)


def run_network(name: str, missing: Sequence[tuple[Precision, float]]) -> None:
    """Trace and score once, then every request."""
    module, example_inputs = untrained(name)
    liven(module)
    graph = trace(module, example_inputs)
    generator = torch.Generator().manual_seed(0)
    shape = example_inputs[0].shape[1:]
    batches = [((torch.randn(4, *shape, generator=generator),), None) for _ in range(4)]
    scores = score_groups(graph, criteria.get(CRITERION)(), batches, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        for precision in REQUESTS[name]:
            path = Path(folder) / f"dense.{precision}.onnx"
            write_candidate(graph, {}, precision, path)
            dense = Artifact(f"dense {precision}", path, "onnx", precision, "dense")
            if f"{name} {precision} same" not in read():
                keep_row(f"{name} {precision} same", same_latency(graph, dense))
            for wanted, speedup in missing:
                if wanted == precision:
                    key = key_of(name, precision, speedup)
                    keep_row(key, request(graph, scores, dense, speedup))
                    click.echo(f"{key}: {read()[key]['outcome']}", err=True)


def request(graph: Graph, scores: Mapping[str, torch.Tensor], dense: Artifact, speedup: float) -> dict[str, Any]:
    """One row: what was found, and what fresh processes say about it."""
    said: list[str] = []
    asked = SearchRequest(
        graph=graph,
        scores=scores,
        budget=Budget(speedup=speedup),
        jobs=[(dense, RUNTIME)],
        normalizer=criteria.get(CRITERION).normalizer,
        step=STEP,
        say=said.append,
    )
    begun = time.perf_counter()
    try:
        keep, found = meet(asked)
    except BudgetError as error:
        return {
            "outcome": "refused",
            "seconds": time.perf_counter() - begun,
            "message": error.message,
            "reachable": getattr(error, "numbers", {}).get("reachable"),
        }
    seconds = time.perf_counter() - begun
    measured = race(graph, dense, found.setting, {"solver": keep})
    return {
        "outcome": "met" if measured["solver"]["ratio"] >= speedup else "missed",
        "seconds": seconds,
        "rounds": [[line.predicted_ms, line.measured_ms, line.met] for line in found.rounds],
        "table": found.table,
        "plans": {
            "solver": {"macs": graph.costs.macs(graph.removed(keep)) / graph.costs.macs(), **measured["solver"]}
        },
        "dense_ms": measured["dense"]["ms"],
        "said": said,
    }


def same_latency(graph: Graph, dense: Artifact) -> dict[str, Any]:
    """One row of the second table: half the predicted latency, three ways, timed side by side."""
    chosen = criteria.get(SECOND)()
    scores = score_groups(graph, chosen, None, seed=0)
    setting = Setting(RUNTIME, dense.precision)
    model = build_latency_model(graph, setting, step=STEP)
    goal = model.ms({}) / 2
    begun = time.perf_counter()
    solution = solve(graph, scores, model.tally, goal, normalizer=criteria.get(SECOND).normalizer, step=STEP)
    seconds = time.perf_counter() - begun
    plans = {"solver": solution.keep, **rivals(graph, scores, model, solution.predicted_ms, criterion=SECOND)}
    measured = race(graph, dense, setting, plans)
    return {
        "solve_s": seconds,
        "plans": {
            plan: {
                "importance": share_of(graph, scores, kept, criterion=SECOND),
                "macs": graph.costs.macs(graph.removed(kept)) / graph.costs.macs(),
                "predicted": model.ms({}) / model.ms(kept),
                **measured[plan],
            }
            for plan, kept in plans.items()
        },
    }


def share_of(
    graph: Graph, scores: Mapping[str, torch.Tensor], keep: Mapping[str, Any], *, criterion: str = CRITERION
) -> float:
    """Importance that stays, as the solver counts it."""
    order = by_importance(scores)
    running = running_importance(graph, scores, order, normalizer=criteria.get(criterion).normalizer)
    return kept_share(losses_from_scores(graph, running), {group: len(kept) for group, kept in keep.items()})


def rivals(
    graph: Graph, scores: Mapping[str, torch.Tensor], model: LatencyModel, ms: float, *, criterion: str = CRITERION
) -> dict[str, Mapping[str, Any]]:
    """The same predicted latency by one share for all groups, and by the global budget of MACs."""
    order = by_importance(scores)

    def uniform(share: float) -> Mapping[str, Any]:
        widths = {g.id: min(g.size, max(STEP, round(share * g.size / STEP) * STEP)) for g in graph.groups}
        return most_important(order, widths)

    def by_macs(share: float) -> Mapping[str, Any]:
        plan = allocate(
            graph,
            scores,
            Budget(macs=share),
            criterion=criterion,
            normalizer=criteria.get(criterion).normalizer,
            step=STEP,
        )
        return plan.keep

    return {"uniform": _largest(uniform, model, ms), "MACs": _largest(by_macs, model, ms)}


def _largest(plan_of: Callable[[float], Mapping[str, Any]], model: LatencyModel, ms: float) -> Mapping[str, Any]:
    """The plan of the largest share that is predicted within `ms`."""
    low, high, best = 0.02, 1.0, None
    for _ in range(9):
        share = (low + high) / 2
        try:
            keep = plan_of(share)
        except BudgetError:
            low = share
            continue
        if model.ms(keep) <= ms:
            low, best = share, keep
        else:
            high = share
    return best if best is not None else plan_of(high)


def race(
    graph: Graph, dense: Artifact, setting: Setting, plans: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Median, speed-up and interval of each plan, in fresh processes, side by side with the dense model."""
    once = time_artifacts([(dense, setting.runtime)], threads=setting.threads, budget_s=2.0).timings[0]
    with tempfile.TemporaryDirectory() as folder:
        artifacts = [dense]
        for plan, keep in plans.items():
            path = Path(folder) / f"{plan}.onnx"
            write_candidate(graph, keep, setting.precision, path)
            artifacts.append(Artifact(plan, path, "onnx", setting.precision, "channel"))
        measured = time_artifacts(
            [(artifact, setting.runtime) for artifact in artifacts],
            threads=setting.threads,
            budget_s=max(SECONDS, ROUNDS * median_ms(once.samples_ns) / 1e3),
            seed=int(np.random.default_rng().integers(2**31)),
        )
    base, *others = measured.timings
    found: dict[str, dict[str, Any]] = {"dense": {"ms": median_ms(base.samples_ns)}}
    for timing in others:
        against = compare(timing, base, floor=measured.floor)
        found[timing.artifact.name] = {
            "ms": median_ms(timing.samples_ns),
            "ratio": against.ratio,
            "ci": list(against.ratio_ci),
        }
    return found


if __name__ == "__main__":
    main()
