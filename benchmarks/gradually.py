"""One shot against channels and branches that go while training, at one measured speed-up and with equal training.

    python -m benchmarks.gradually run --net resnet20 --speedup 2 --learn-epochs 5     # needs a quiet machine
    python -m benchmarks.gradually table                                               # runs nothing

One shot: the plan of the pool, recovered for as long as the others train in all. Iterative: Taylor's scores anew at
up to 30 steps on the way to the time of that plan, by the same objective. pdp, dtp: its widths and branches, other
channels. Then all plans are raced side by side; each is reconstructed, its batch norms set anew, and trained on. Each
result is kept as soon as it is there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.alike import RECOVERIES, Recovery, judged, repaired, trained
from benchmarks.cifar10 import WORK, cifar10
from benchmarks.equal_latency import prepared
from benchmarks.kept import changing, read
from benchmarks.models import NETS
from benchmarks.ours import measured_losses, searched
from benchmarks.rivals import CRITERION, STEP, Keep, Subject
from benchmarks.tuning import Track, kept_to_json, race
from deploypruner.channels.criteria import criteria
from deploypruner.channels.learned import ChannelRegime, Shrinking, learn, learned_regime
from deploypruner.channels.plan import make_plan
from deploypruner.recipe.constraints import Constraints
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.learn import LearnSettings
from deploypruner.search.found import SearchResult
from deploypruner.search.gradual import Gradual
from deploypruner.search.objectives import Space
from deploypruner.sources.batches import Data

RESULTS = Path(__file__).parent / "results" / "gradually.json"
ONE_SHOT, ITERATIVE = "one shot", "iterative"
_HELD_OUT = 1024
METHODS = (ONE_SHOT, ITERATIVE, "pdp", "dtp")


@click.group()
def main() -> None:
    """Run, table."""
    torch.set_num_threads(1)


@main.command()
@click.option("--net", type=click.Choice(sorted(NETS)), default="resnet20", show_default=True)
@click.option("--speedup", type=float, default=2.0, show_default=True)
@click.option("--method", type=click.Choice(METHODS), multiple=True, default=METHODS, show_default=True)
@click.option("--learn-epochs", default=2, show_default=True, help="of training while channels go")
@click.option("--recovery", type=click.Choice(sorted(RECOVERIES)), default="short", show_default=True)
@click.option("--seed", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--plans", default=16, show_default=True, help="size of the pool")
@click.option("--test-limit", type=int, help="judge on so many test images only: for trying things out")
@click.option("--seconds", default=6.0, show_default=True, help="of measuring, per plan")
@click.option("--busy", is_flag=True, help="measure although other programs compute: for trying things out")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def run(
    net: str,
    speedup: float,
    method: Sequence[str],
    learn_epochs: int,
    recovery: str,
    seed: Sequence[int],
    plans: int,
    test_limit: int | None,
    seconds: float,
    busy: bool,
    results: Path,
) -> None:
    """Choose by every method, race what they chose, and train on."""
    chosen, folder = RECOVERIES[recovery], WORK / f"gradually-{net}"
    data = cifar10(chosen.images, test_limit)
    folder.mkdir(parents=True, exist_ok=True)
    subject = prepared(net, data, "fp32")
    held_out = min(_HELD_OUT, (data.train.samples or _HELD_OUT) // 2)
    keep, found = searched(subject, speedup, data.train, folder, held_out=held_out, plans=plans)
    key = f"{net} {speedup:g}x, {learn_epochs} epochs, {recovery}"
    about = {"objective": found.objective, "dense": judged(subject.graph.module, subject.graph, data)}
    with changing(results) as rows:
        rows.setdefault(key, about | {"runs": {}})
    for number in seed:
        chose = {name: _choose(name, subject, data, (keep, found), (learn_epochs, number, folder)) for name in method}
        track = Track(folder, seconds, busy)
        raced = race(subject, {name: plan for name, (plan, _) in chose.items()}, track, times=2)
        for name, (plan, weights) in chose.items():
            epochs = chosen.epochs + (learn_epochs if name == ONE_SHOT else 0)
            after = _recover(subject, plan, weights, data, Recovery(chosen.images, epochs), seed=number)
            line = {"ratio": raced[name]["ratio"], "keep": kept_to_json(subject.graph, plan), **after}
            with changing(results) as rows:
                rows[key]["runs"].setdefault(name, {})[str(number)] = line
            click.echo(f"{name}, seed {number}: {raced[name]['ratio']:.3f}x {after}", err=True)
    click.echo(markdown(read(results)))


def _choose(
    name: str, subject: Subject, data: Data, one_shot: tuple[Keep, SearchResult], how: tuple[int, int, Path]
) -> tuple[Keep, Mapping[str, Tensor]]:
    """What stays, and the weights to remove the rest from; none of its own for one shot."""
    (keep, found), (epochs, seed, folder), graph = one_shot, how, subject.graph
    if name == ONE_SHOT:
        return keep, {}
    plan = make_plan(graph, keep, criterion=CRITERION, scope="latency", step=STEP)
    regime: ChannelRegime
    if name == ITERATIVE:
        assert found.measured_ms is not None, "the search measured its plan"
        model = subject.latency.calibrated(keep, found.measured_ms)
        measured = measured_losses(subject, folder)
        space = Space(graph, subject.scores, "none", STEP, Constraints(), measured=measured)
        gradual = Gradual(space, found.objective, plan, model.tally, found.measured_ms)
        regime = Shrinking(
            graph,
            plan,
            criteria.get(CRITERION)(),
            schedule="iterative",
            settings=LearnSettings(),
            narrow=gradual.narrow,
            before=dict(subject.scores),
        )
    else:
        regime = learned_regime(graph, plan, criteria.get(name)())
    settings = FinetuneSettings(epochs=epochs, lr=0.02, amp="auto", channels_last=True, seed=1000 * seed)
    learned = learn(graph, data.train, regime, settings)
    return learned.plan.keep, learned.weights


def _recover(
    subject: Subject, keep: Keep, weights: Mapping[str, Tensor], data: Data, recovery: Recovery, *, seed: int
) -> dict[str, Any]:
    """Recover one plan; JSON-able."""
    begun, graph = time.perf_counter(), subject.graph
    module = repaired(graph, keep, data.train, seed=seed, weights=weights)
    before = judged(module, graph, data)
    module = trained(graph, module, data.train, epochs=recovery.epochs, seed=seed)
    return {"before": before, **judged(module, graph, data), "seconds": time.perf_counter() - begun}


def markdown(rows: Mapping[str, Any]) -> str:
    """A line for every method: mean top-1 over the seeds, each of them, and how fast its plans are."""
    lines = ["| | method | speed-up | top-1 fp32 | int8 | each fp32 |", "|---|---|--:|--:|--:|---|"]
    for key, row in rows.items():
        for name, runs in row["runs"].items():
            found = list(runs.values())
            ratio, fp32, int8 = (sum(one[k] for one in found) / len(found) for k in ("ratio", "fp32", "int8"))
            each = ", ".join(f"{one['fp32']:.2f}" for one in found)
            lines.append(f"| {key} | {name} | {ratio:.2f}x | {fp32:.2f} | {int8:.2f} | {each} |")
    return "\n".join(lines)


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def table(results: Path) -> None:
    """Print what there is."""
    click.echo(markdown(read(results)))


if __name__ == "__main__":
    main()
