"""Accuracy at one measured speed-up: every method's plan tuned to it, every plan recovered alike, several seeds.

    python -m benchmarks.baseline --net resnet20 --epochs 4 --amp bf16         # once: the dense model
    python -m benchmarks.equal_latency plan --net resnet20 --speedup 2         # needs a quiet machine
    python -m benchmarks.equal_latency train --net resnet20 --speedup 2 --seeds 3
    python -m benchmarks.equal_latency train --recovery long --method ours --method macs
    python -m benchmarks.equal_latency table                                   # markdown; runs nothing

`plan` asks `ours` first. Its measured speed-up is then what every rival is tuned to, within 2 %; a second call tunes
only what is missing or off. `train` reconstructs 256 images by least squares, sets the batch norms anew, trains with
half the loss from the dense model (short: 10,000 images twice; long: all of them 15 times), and judges on the whole
test set in OpenVINO. Each result is kept as soon as it is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.alike import RECOVERIES, Recovery, judged, repaired, trained
from benchmarks.baseline import baseline
from benchmarks.cifar10 import WORK, cifar10
from benchmarks.equal_latency_table import markdown
from benchmarks.kept import changing, not_in, read
from benchmarks.models import NETS
from benchmarks.ours import pool
from benchmarks.rivals import CRITERION, STEP, WAYS, Keep, Subject
from benchmarks.tuning import OURS, Track, keep_of, tune_row
from deploypruner.channels.criteria import criteria
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.latency import build_latency_model
from deploypruner.records import Precision, Setting
from deploypruner.sources.batches import Data

RESULTS = Path(__file__).parent / "results" / "equal_latency.json"
_SCORING_BATCHES, _BATCH = 16, 32

_net = click.option("--net", type=click.Choice(sorted(NETS)), multiple=True, default=("resnet20",), show_default=True)
_speedup = click.option("--speedup", type=float, multiple=True, default=(2.0,), show_default=True)
_precision = click.option("--precision", type=click.Choice(("fp32", "int8")), default="fp32", show_default=True)
_method = click.option(
    "--method", type=click.Choice([OURS, *WAYS]), multiple=True, help="only these; all that there are by default"
)
_test_limit = click.option("--test-limit", type=int, help="judge on so many test images only: for trying things out")
_results = click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)


@click.group()
def main() -> None:
    """Plan, train, table."""
    torch.set_num_threads(1)


@main.command()
@_net
@_speedup
@_precision
@_method
@_test_limit
@_results
@click.option("--seconds", default=6.0, show_default=True, help="of measuring, per candidate and round")
@click.option("--busy", is_flag=True, help="measure although other programs compute: for trying things out")
def plan(
    net: Sequence[str],
    speedup: Sequence[float],
    precision: Precision,
    method: Sequence[str],
    test_limit: int | None,
    results: Path,
    seconds: float,
    busy: bool,
) -> None:
    """Bring every method to the same measured speed-up."""
    not_in(RESULTS, test_limit, results)
    for name in net:
        data = cifar10(None, test_limit)
        subject = prepared(name, data, precision)
        folder = WORK / f"equal-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        ours = pool(data.train, folder, batch=_BATCH, held_out=1024, augment=True)
        for goal in speedup:
            key = f"{name} {precision} {goal:g}x"
            row = read(results).get(key) or {
                "asked": goal,
                "dense": judged(subject.graph.module, subject.graph, data),
                "plans": {},
            }
            tune_row(subject, row, method or (OURS, *WAYS), ways=WAYS, ours=ours, track=Track(folder, seconds, busy))
            with changing(results) as rows:
                rows[key] = row
            click.echo(markdown(read(results)))


def prepared(net: str, data: Data, precision: Precision) -> Subject:
    """The fine-tuned network, traced, scored and timed."""
    model = baseline(net)
    graph = trace(model, (torch.zeros(2, 3, 32, 32),))
    epoch = data.train.epoch(batch_size=_BATCH, seed=0, shuffle=True)
    batches = [batch for batch, _ in zip(epoch, range(_SCORING_BATCHES), strict=False)]
    scores = score_groups(graph, criteria.get(CRITERION)(), batches, seed=0)
    latency = build_latency_model(graph, Setting("openvino", precision), step=STEP)
    return Subject(model, graph, scores, latency, batches)


@main.command()
@_net
@_speedup
@_precision
@_method
@_test_limit
@_results
@click.option("--recovery", type=click.Choice(sorted(RECOVERIES)), default="short", show_default=True)
@click.option("--seeds", default=1, show_default=True, help="runs of each plan")
def train(
    net: Sequence[str],
    speedup: Sequence[float],
    precision: Precision,
    method: Sequence[str],
    test_limit: int | None,
    results: Path,
    recovery: str,
    seeds: int,
) -> None:
    """Recover every plan alike; the first seed of all of them first, what is there already is kept."""
    not_in(RESULTS, test_limit, results)
    chosen = RECOVERIES[recovery]
    for name in net:
        model = baseline(name)
        graph, data = trace(model, (torch.zeros(2, 3, 32, 32),)), cifar10(chosen.images, test_limit)
        for seed in range(seeds):
            for goal in speedup:
                key = f"{name} {precision} {goal:g}x"
                plans = read(results)[key]["plans"]
                for which in method or plans:
                    if str(seed) in plans[which]["runs"].get(recovery, {}):
                        continue
                    run = _run(graph, keep_of(plans[which]), data, chosen, seed=seed)
                    with changing(results) as rows:
                        rows[key]["plans"][which]["runs"].setdefault(recovery, {})[str(seed)] = run
                    click.echo(f"{key} {which} {recovery} seed {seed}: {run}", err=True)
    click.echo(markdown(read(results)))


def _run(graph: Graph, keep: Keep, data: Data, recovery: Recovery, *, seed: int) -> dict[str, Any]:
    """Recover one plan once; JSON-able."""
    begun = time.perf_counter()
    module = repaired(graph, keep, data.train, seed=seed)
    before = judged(module, graph, data)
    module = trained(graph, module, data.train, epochs=recovery.epochs, seed=seed)
    return {"before": before, **judged(module, graph, data), "seconds": time.perf_counter() - begun}


@main.command()
@_results
def table(results: Path) -> None:
    """Print what there is."""
    click.echo(markdown(read(results)))


if __name__ == "__main__":
    main()
