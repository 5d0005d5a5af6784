"""Which number before training says how good a plan is after it: rank correlations over plans of one predicted time.

    python -m benchmarks.proxies run --net resnet20 --plans 24     # goes on where it was interrupted
    python -m benchmarks.proxies table

Plans: every way of `benchmarks.rivals`, random widths, random branches left out with random widths, and the solver on
perturbed scores. Proxies are looked at on 1,000 training images that recovery does not use. Recovery is that of
`benchmarks.equal_latency` on 5,000 images twice; accuracy is on the whole test set, fp32, one seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.alike import repaired, trained
from benchmarks.cifar10 import cifar10, held_out
from benchmarks.equal_latency import prepared
from benchmarks.kept import changing, not_in, read
from benchmarks.models import NETS
from benchmarks.rivals import STEP, WAYS, Keep, Plans, Subject, by_kl, mean_kl, measured_kl, outputs_of, shares
from benchmarks.tuning import keep_of, kept_to_json
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.channels.rank_agreement import rank_correlation
from deploypruner.errors import BudgetError
from deploypruner.losses import label_parts
from deploypruner.search.losses import kept_share, losses_from_scores, running_importance
from deploypruner.search.measured import MeasuredWorth, losses_from_worth
from deploypruner.search.solve import solve
from deploypruner.search.worth import measure_worth
from deploypruner.train.batches import Batch
from deploypruner.train.validate import top1_percent

RESULTS = Path(__file__).parent / "results" / "proxies.json"
HELD_OUT, _ATTEMPTS = 1000, 10
_TOLERANCE = 0.04  # of predicted times around the goal
PROXIES = {
    "importance kept": 1,
    "MACs kept": 1,
    "sum of measured losses": -1,
    "loss, batch norm": -1,
    "KL, batch norm": -1,
    "loss, reconstruction + batch norm": -1,
    "KL, reconstruction + batch norm": -1,
}
_results = click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)


@click.group()
def main() -> None:
    """Run, then table."""
    torch.set_num_threads(1)


@main.command()
@click.option("--net", type=click.Choice(sorted(NETS)), default="resnet20", show_default=True)
@click.option("--speedup", default=2.0, show_default=True, help="predicted")
@click.option("--plans", default=24, show_default=True)
@click.option("--train-limit", default=5000, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--test-limit", type=int, help="judge on so many test images only: for trying things out")
@_results
def run(
    net: str, speedup: float, plans: int, train_limit: int, epochs: int, test_limit: int | None, results: Path
) -> None:
    """Make plans, look at every proxy, recover each."""
    not_in(RESULTS, test_limit, results)
    key, data = f"{net} {speedup:g}x", cifar10(train_limit, test_limit)
    subject, held = prepared(net, cifar10(), "fp32"), list(held_out(HELD_OUT).epoch(batch_size=250))
    if key not in read(results):
        measured = measure_worth(subject.graph, by_importance(subject.scores), subject.scoring)
        found = {
            name: {"keep": kept_to_json(subject.graph, keep), "predicted": subject.latency.ms(keep)}
            for name, keep in chosen_plans(subject, subject.latency.ms({}) / speedup, plans)
        }
        with changing(results) as rows:
            rows[key] = {"measured": measured.to_json(), "plans": found}
    row = read(results)[key]
    for name, about in row["plans"].items():
        if "percent" in about:
            continue
        begun, keep = time.perf_counter(), keep_of(about)
        about |= without_data(subject, keep, MeasuredWorth.from_json(row["measured"]))
        for how, reconstruction in (("batch norm", False), ("reconstruction + batch norm", True)):
            module = repaired(subject.graph, keep, data.train, reconstruction=reconstruction)
            about |= {f"{what}, {how}": value for what, value in looked_at(subject, module, held).items()}
        trained(subject.graph, module, data.train, epochs=epochs, seed=0)
        about |= {"percent": top1_percent(module, data.val), "seconds": time.perf_counter() - begun}
        with changing(results) as rows:
            rows[key]["plans"][name] = about
        click.echo(f"{key} {name}: {about['percent']:.2f} % in {about['seconds']:.0f} s", err=True)
    click.echo(markdown(read(results)))


@main.command()
@_results
def table(results: Path) -> None:
    """Print what there is."""
    click.echo(markdown(read(results)))


# ---------------------------------------------------------------------- plans


def chosen_plans(subject: Subject, ms: float, count: int) -> Iterator[tuple[str, Keep]]:
    """The ways' own plans, then random ones of three kinds in turn, all predicted within a few percent of `ms`."""
    ways = {name: way(subject)[:1] for name, way in WAYS.items()}
    ways["blocks by KL"] = by_kl(subject, measured_kl(subject.graph, subject.scoring[:4]))
    given, seen = 0, set[bytes]()
    rng = np.random.default_rng(0)
    kinds = (_random_widths, _random_branches, _perturbed)
    named = [(name, _at(plans[0], ms)) for name, plans in ways.items() if plans]
    tries: Iterator[tuple[str, Keep | None]] = iter(named)
    for number in range(_ATTEMPTS * count):
        name, keep = next(tries, ("", None))
        if not name:
            kind = kinds[number % len(kinds)]
            name, keep = f"{kind.__name__.strip('_').replace('_', ' ')} {number}", kind(subject, ms, rng)
        if keep is None or abs(subject.latency.ms(keep) / ms - 1) > _TOLERANCE or given == count:
            continue
        marks = subject.graph.removed(keep).tobytes()
        if marks not in seen:
            seen.add(marks)
            given += 1
            yield name, keep


def _at(plans: Plans, ms: float) -> Keep | None:
    place = plans.near(ms)
    return None if place is None else plans.at(place)


def _random_widths(subject: Subject, ms: float, rng: np.random.Generator) -> Keep | None:
    return _at(shares(subject, weights=_weights(subject, rng)), ms)


def _random_branches(subject: Subject, ms: float, rng: np.random.Generator) -> Keep | None:
    ids = [branch.id for branch in subject.graph.branches]
    if not ids:
        return None
    gone = rng.choice(ids, rng.integers(1, len(ids) + 1), replace=False).tolist()
    while gone and subject.latency.ms(dict.fromkeys(gone, np.array([], np.int64))) < ms:
        gone.pop()
    return _at(shares(subject, gone, weights=_weights(subject, rng)), ms) if gone else None


def _weights(subject: Subject, rng: np.random.Generator) -> dict[str, float]:
    return {group.id: float(np.exp(rng.normal(0, 0.7))) for group in subject.graph.groups}


def _perturbed(subject: Subject, ms: float, rng: np.random.Generator) -> Keep | None:
    """The solver, free to leave branches out, on scores of which each group's are multiplied by a random factor."""
    scores = {name: score * float(np.exp(rng.normal(0, 1.0))) for name, score in subject.scores.items()}
    try:
        return solve(subject.graph, scores, subject.latency.tally, ms, step=STEP).keep
    except BudgetError:
        return None


# ---------------------------------------------------------------------- proxies


def without_data(subject: Subject, keep: Keep, measured: MeasuredWorth) -> dict[str, float]:
    """Importance and MACs that stay, and the sum of the measured losses, as the solver counts them."""
    graph, order = subject.graph, by_importance(subject.scores)
    by_score = losses_from_scores(graph, running_importance(graph, subject.scores, order, normalizer="none"))
    by_worth = losses_from_worth(graph, measured, subject.scores, order)
    dropped = [branch for branch in graph.branches if branch.id in keep and not len(keep[branch.id])]
    inside = {group for branch in dropped for group in branch.groups}
    widths = {g.id: g.size if g.id in inside else len(keep.get(g.id, range(g.size))) for g in graph.groups}
    return {
        "importance kept": kept_share(by_score, widths | dict.fromkeys((branch.id for branch in dropped), 0)),
        "MACs kept": graph.costs.macs(graph.removed(keep)) / graph.costs.macs(),
        "sum of measured losses": sum(by_worth.branches[branch.id] for branch in dropped)
        + sum(float(by_worth.groups[name][width]) for name, width in widths.items()),
    }


def looked_at(subject: Subject, module: nn.Module, held: Sequence[Batch]) -> dict[str, float]:
    """Label loss, and KL to the dense outputs."""
    return {
        "loss": _loss(module, held),
        "KL": mean_kl(outputs_of(subject.graph.module, held), outputs_of(module, held)),
    }


def _loss(module: nn.Module, batches: Sequence[Batch]) -> float:
    labels = torch.cat([part for _, labels in batches for part in label_parts(labels)])
    return float(cross_entropy(outputs_of(module, batches), labels))


# ---------------------------------------------------------------------- table


def markdown(rows: dict[str, Any]) -> str:
    """Spearman with the accuracy after recovery, and what it costs to trust a proxy's first choice."""
    lines = ["| net | plans | proxy | Spearman | with branches gone | points lost by its first choice |"]
    lines.append("|---|--:|---|--:|--:|--:|")
    for key, row in rows.items():
        done = [about for about in row["plans"].values() if "percent" in about]
        percent = [about["percent"] for about in done]
        dropped = [about for about in done if any(not len(kept) for kept in about["keep"].values())]
        for proxy, sign in PROXIES.items() if len(done) > 1 else ():
            first = max(done, key=lambda about: sign * about[proxy])
            lines.append(
                f"| {key} | {len(done)} | {proxy} | {_correlation(done, proxy, sign)} | "
                f"{_correlation(dropped, proxy, sign)} ({len(dropped)}) | {max(percent) - first['percent']:.1f} |"
            )
    return "\n".join(lines)


def _correlation(plans: Sequence[Mapping[str, float]], proxy: str, sign: int) -> str:
    values: list[Tensor] = [torch.tensor([about[what] for about in plans]) for what in (proxy, "percent")]
    found = rank_correlation(sign * values[0], values[1]) if len(plans) > 2 else None
    return "" if found is None else f"{found:.2f}"


if __name__ == "__main__":
    main()
