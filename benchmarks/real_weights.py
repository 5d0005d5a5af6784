"""Real weights and 500 unlabelled photographs: EfficientNet-Lite0 pruned to one measured speed-up by several methods.

    python -m benchmarks.real_weights dense                   # top-1, seconds to trace and to score
    python -m benchmarks.real_weights plan --speedup 1.25 --speedup 1.5 --speedup 2      # needs a quiet machine
    python -m benchmarks.real_weights repair                       # without training: least squares
    python -m benchmarks.real_weights repair --mimic 20            # and 20 minutes of mimicking the dense model
    python -m benchmarks.real_weights table

Speed-ups are over the dense int8 model in OpenVINO, one thread. Photographs of even classes repair, without labels;
the 500 of odd classes judge (see `benchmarks.imagenet`): 0.2 points are one image. Batch-norm statistics stay: with
one branch gone, those of 256 photographs left 82.8 % top-1, least squares on 64 alone 89.1 (128 photographs judged).
Of a least-squares correction as much stays as does best on 240 photographs apart: all of it can be worse than none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.alike import judged, mimicked, repaired, written
from benchmarks.cifar10 import WORK
from benchmarks.imagenet import efficientnet_lite0, photographs
from benchmarks.kept import changing, not_in, read
from benchmarks.ours import pool
from benchmarks.rivals import CRITERION, STEP, WAYS, Plans, Subject, by_kl, measured_kl
from benchmarks.tuning import OURS, Track, keep_of, tune_row
from deploypruner.channels.criteria import criteria
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.latency import build_latency_model
from deploypruner.records import Setting
from deploypruner.sources.batches import Data

RESULTS = Path(__file__).parent / "results" / "real_weights.json"
FOLDER = WORK / "real-weights"
_SCORING_BATCHES, _BATCH, _HELD_OUT = 8, 16, 240
_UNTOUCHED = -1
_HOW = {"": "", str(_UNTOUCHED): "nothing", "0": "least squares"}


def blocks(subject: Subject) -> list[Plans]:
    """Residual branches by their measured KL, the smallest first; uniform widths for the rest of the way."""
    return by_kl(subject, measured_kl(subject.graph, subject.scoring))


METHODS = {name: WAYS[name] for name in ("uniform", "macs", "solver", "torch-pruning")} | {"blocks": blocks}
_method = click.option(
    "--method", type=click.Choice([OURS, *METHODS]), multiple=True, help="only these; all that there are by default"
)
_speedup = click.option(
    "--speedup", type=float, multiple=True, default=(1.25, 1.5, 2.0), show_default=True, help="over dense int8"
)
_limit = click.option("--limit", type=int, help="use so many photographs of each half: for trying things out")
_results = click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)


@click.group()
def main() -> None:
    """Dense, plan, repair, table."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)


def traced() -> Graph:
    """The dense model."""
    return trace(efficientnet_lite0(), (torch.zeros(2, 3, 224, 224),))


@main.command()
@_limit
@_results
def dense(limit: int | None, results: Path) -> None:
    """What the dense model gives, and what tracing and scoring take."""
    not_in(RESULTS, limit, results)
    data = photographs(limit)
    begun = time.perf_counter()
    graph = traced()
    found: dict[str, Any] = {"trace s": time.perf_counter() - begun}
    begun = time.perf_counter()
    _scored(graph, data)
    found |= {"score s": time.perf_counter() - begun, "scored images": _SCORING_BATCHES * _BATCH}
    found |= judged(graph.module, graph, data, dense=_dense_file(graph, data))
    with changing(results) as rows:
        rows["dense"] = found
    click.echo(found)


@main.command()
@_speedup
@_method
@_results
@click.option("--seconds", default=6.0, show_default=True, help="of measuring, per candidate and round")
@click.option("--busy", is_flag=True, help="measure although other programs compute: for trying things out")
def plan(speedup: Sequence[float], method: Sequence[str], results: Path, seconds: float, busy: bool) -> None:
    """Bring every method to the same measured speed-up."""
    data, graph = photographs(), traced()
    scoring, scores = _scored(graph, data)
    latency = build_latency_model(graph, Setting("openvino", "int8"), step=STEP)
    subject = Subject(efficientnet_lite0(), graph, scores, latency, scoring)
    ours = pool(data.train, FOLDER, batch=_BATCH, held_out=_HELD_OUT, augment=False)
    for asked in speedup:
        key = f"{asked:g}x"
        row = read(results).get(key) or {"asked": asked, "plans": {}}
        track = Track(FOLDER, seconds, busy)
        tune_row(subject, row, method or (OURS, *METHODS), ways=METHODS, ours=ours, track=track)
        with changing(results) as rows:
            rows[key] = row
    click.echo(markdown(read(results)))


@main.command()
@_speedup
@_method
@_limit
@_results
@click.option("--mimic", default=0, show_default=True, help="minutes of learning the dense model's features")
def repair(speedup: Sequence[float], method: Sequence[str], limit: int | None, results: Path, mimic: int) -> None:
    """Repair every plan alike, without labels; what is there already is kept."""
    not_in(RESULTS, limit, results)
    data, graph = photographs(limit), traced()
    file = _dense_file(graph, data)
    for asked in speedup:
        key = f"{asked:g}x"
        plans = read(results)[key]["plans"]
        for name in method or plans:
            for minutes in dict.fromkeys((_UNTOUCHED, 0, mimic)):
                if str(minutes) in plans[name]["runs"]:
                    continue
                begun, keep = time.perf_counter(), keep_of(plans[name])
                steps = 0
                if minutes == _UNTOUCHED:
                    module = graph.cut(graph.removed(keep)).eval()
                else:
                    module = repaired(graph, keep, data.train, statistics=False, augment=False, held_out=_HELD_OUT)
                if minutes > 0:
                    steps = mimicked(graph, keep, module, data.train, minutes=minutes)
                run = {
                    "seconds": time.perf_counter() - begun,
                    "steps": steps,
                    **judged(module, graph, data, dense=file),
                }
                with changing(results) as rows:
                    rows[key]["plans"][name]["runs"][str(minutes)] = run
                click.echo(f"{key} {name}, {minutes} minutes: {run}", err=True)
    click.echo(markdown(read(results)))


@main.command()
@_results
def table(results: Path) -> None:
    """Print what there is."""
    click.echo(markdown(read(results)))


def markdown(rows: dict[str, Any]) -> str:
    """One line per plan and length of repair."""
    lines = ["| over dense int8 | method | measured | blocks gone | MACs | repair | fp32 | int8 | agreement, int8 |"]
    lines.append("|---|---|--:|--:|--:|---|--:|--:|--:|")
    for key, row in rows.items():
        if key == "dense":
            lines.append(f"| 1 | dense | | 0 | 100 % | | {_judged(row)} |")
            continue
        for name, found in row["plans"].items():
            doubt = "?" if found["doubt"] else ""
            about = (
                f"| {key} | {name} | {found['ratio']:.2f}x{doubt} | {len(found['dropped'])} | {found['macs']:.1%} |"
            )
            for minutes, run in found["runs"].items() or [("", None)]:
                how = _HOW.get(minutes, f"least squares, {minutes} min of mimicking")
                lines.append(f"{about} {how} | {'| | ' if run is None else _judged(run)} |")
    return "\n".join(lines)


def _judged(run: dict[str, Any]) -> str:
    return f"{run['fp32']:.1f} | {run['int8']:.1f} | {run['int8 agreement']:.1%}"


def _scored(graph: Graph, data: Data) -> tuple[list[Any], dict[str, torch.Tensor]]:
    scoring = list(islice(data.train.epoch(batch_size=_BATCH, seed=0, shuffle=True), _SCORING_BATCHES))
    return scoring, score_groups(graph, criteria.get(CRITERION)(), scoring, seed=0)


def _dense_file(graph: Graph, data: Data) -> Path:
    """The dense fp32 model for any batch size, which agreement is with."""
    folder = FOLDER / "dense"
    if not (folder / "int8.onnx").exists():
        folder.mkdir(exist_ok=True)
        written(graph.module, graph, data.train, folder)
    return folder / "fp32.onnx"


if __name__ == "__main__":
    main()
