"""Accuracy of sparse patterns at equal measured latency: what benchmarks.patterns trained, timed as it would run.

    python -m benchmarks.accuracy_at_latency benchmarks/results/patterns_resnet20_*.json

For every pattern and sparsity that was trained, the network is pruned by magnitude to the very number of weights that
each layer kept in training, quantized, made sparse and timed beside the dense int8 network, all in one run (32 x 32,
batch 1, one thread). Which weights stay does not matter for the time, how many of each layer does. Accuracies are the
float network's, as trained. At a latency between two sparsities of a pattern, accuracy is interpolated linearly.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np
import torch

from benchmarks.baseline import baseline
from benchmarks.engines import Engines, ratio, time_files
from deploypruner.build.sparse_model import make_sparse
from deploypruner.export import exporters
from deploypruner.graph.execute.module import get_state
from deploypruner.measure import environment
from deploypruner.quantize import quantize_static
from deploypruner.sparsity.patterns import make_pattern

RESULTS = Path(__file__).parent / "results" / "accuracy_at_latency.json"
WORK = Path(__file__).parent / "work" / "accuracy_at_latency"
_DENSE = "dense"
_SHAPE = (1, 3, 32, 32)

Results = dict[str, Any]


def trained(paths: tuple[Path, ...]) -> dict[str, Results]:
    """ "pattern sparsity" -> kept weights by layer, and accuracies by schedule, over all seeds and files."""
    found: dict[str, Results] = {}
    for path in paths:
        for row in json.loads(path.read_text())["runs"].values():
            name = f"{row['pattern']} {row['sparsity']:.0%}"
            one = found.setdefault(name, {"pattern": row["pattern"], "kept": row["kept"], "percent": {}})
            one["percent"].setdefault(row["schedule"], []).append(row["percent"])
            one["zeros"] = row["zeros"]
    return found


def write_files(net: str, cases: dict[str, Results]) -> dict[str, Path]:
    """int8 files by name, dense first."""
    WORK.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    noise = [[torch.randn(_SHAPE, generator=generator).numpy()] for _ in range(8)]
    files = {}
    for name, case in {_DENSE: None, **cases}.items():
        module = baseline(net)
        if case is not None:
            _prune(module, case)
        stem = WORK / f"{net}-{name}".replace(" ", "-").replace(":", "-").replace("%", "")
        fp32, int8, sparse = (stem.with_name(f"{stem.name}.{kind}.onnx") for kind in ("fp32", "int8", "sparse"))
        exporters.get("onnx")().write(module, (torch.zeros(_SHAPE),), fp32, dynamic_batch=False)
        quantize_static(fp32, int8, calibration=noise)
        made = case is not None and make_sparse(int8, sparse, feeds=noise[:1], threads=1).check is not None
        files[name] = sparse if made else int8
    return files


def _prune(module: torch.nn.Module, case: Results) -> None:
    """Zero all but the largest units, as many of each layer as stayed in training, in place."""
    pattern = make_pattern(case["pattern"])
    for name, kept in case["kept"].items():
        weight = get_state(module, name)
        saliency = weight.detach().square()
        units = pattern.units(saliency)
        stays = round(kept / weight.numel() * units.per_row)
        with torch.no_grad():
            weight.mul_(units.mask(saliency, max(1, stays)))


def measure(files: dict[str, Path], *, rounds: int) -> dict[str, Results]:
    """Milliseconds and speed-up over the dense network, by name."""
    with Engines(WORK / "logs") as engines:
        worker = engines.start("openvino")
        opened = [engines.open(worker, path, name) for name, path in files.items()]
        samples = time_files([file for file in opened if file is not None], rounds=rounds)
        if engines.failures:
            raise click.ClickException("; ".join(engines.failures.values()))
    base = samples[_DENSE]
    return {name: {"ms": float(np.median(s)) / 1e6, **ratio(s, base)} for name, s in samples.items()}


def at_latency(found: Results, schedule: str) -> dict[str, dict[float, float | None]]:
    """Pattern -> speed-up -> accuracy, at every speed-up that some pattern was measured at; None outside its own."""
    points: dict[str, list[tuple[float, float]]] = {}
    for name, case in found["cases"].items():
        if schedule in case["percent"]:
            point = (found["times"][name]["ratio"], mean(case["percent"][schedule]))
            points.setdefault(case["pattern"], []).append(point)
    speeds = sorted({speed for measured in points.values() for speed, _ in measured})
    table: dict[str, dict[float, float | None]] = {}
    for pattern, measured in points.items():
        xs, ys = zip(*sorted(measured), strict=True)
        table[pattern] = {s: float(np.interp(s, xs, ys)) if xs[0] <= s <= xs[-1] else None for s in speeds}
    return table


def markdown(found: Results) -> str:
    """What was measured, then what that means at equal latency."""
    schedules = sorted({name for case in found["cases"].values() for name in case["percent"]})
    lines = [f"| pattern | zeros | us | speed-up over dense int8 | {' | '.join(schedules)} |"]
    lines += [f"|---|--:|--:|--:|{'--:|' * len(schedules)}"]
    lines.append(f"| dense | | {found['times'][_DENSE]['ms'] * 1e3:.0f} | 1 | {' | ' * (len(schedules) - 1)} |")
    for name, case in sorted(found["cases"].items(), key=lambda item: found["times"][item[0]]["ratio"]):
        time = found["times"][name]
        low, high = time["interval"]
        cells = [f"{mean(case['percent'][s]):.2f}" if s in case["percent"] else "" for s in schedules]
        said = f"{time['ratio']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {name} | {case['zeros']:.1%} | {time['ms'] * 1e3:.0f} | {said} | {' | '.join(cells)} |")
    for schedule in schedules:
        table = at_latency(found, schedule)
        speeds = next(iter(table.values()))
        lines += ["", f"Top-1 at equal speed-up, {schedule}:", ""]
        lines += [f"| pattern | {' | '.join(f'{s:.2f}x' for s in speeds)} |", f"|---|{'--:|' * len(speeds)}"]
        for pattern, by_speed in table.items():
            cells = ["" if value is None else f"{value:.2f}" for value in by_speed.values()]
            lines.append(f"| {pattern} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--net", default="resnet20", show_default=True)
@click.option("--rounds", default=20, show_default=True)
@click.option("--out", default=RESULTS, show_default=True, type=click.Path(path_type=Path))
def main(paths: tuple[Path, ...], net: str, rounds: int, out: Path) -> None:
    """Time what PATHS, results of benchmarks.patterns, hold; without any, print the tables of what is there."""
    if paths:
        cases = trained(paths)
        found: Results = {"environment": environment(), "net": net, "cases": cases}
        found["times"] = measure(write_files(net, cases), rounds=rounds)
        out.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(markdown(json.loads(out.read_text())))


if __name__ == "__main__":
    main()
