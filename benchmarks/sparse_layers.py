"""Sparse int8 layers against OpenVINO's dense int8 and DeepSparse: pairs of 1x1 convolutions, all in one run.

    python -m benchmarks.sparse_layers --threads 1 --threads 2
    python -m benchmarks.sparse_layers --pair '64<->256 @3136' --density 0.1    # a quick look
    python -m benchmarks.sparse_layers --prepare                                # only write the files
    python -m benchmarks.sparse_layers --markdown                               # only print what is there

Times are of a pair narrow -> wide -> narrow (`layer_chains`). Engines take turns, block by block, in one run; a
time is the first decile of its calls, and the interval of a ratio (95 %) is over rounds. "kernels" are the kernels
called directly, what is left when OpenVINO's dispatch is taken away; DeepSparse gets the unstructured zeros, which is
what it was made for. The inner loop is what more weights cost: the slope of the kernels' time over their steps,
from the sparsest chain to the densest of a pattern, so that requantization, the same in all of them, falls out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
import numpy as np

from benchmarks.engines import Engines, File, Samples, time_files
from benchmarks.layer_chains import DENSE, LONG, PAIRS, SHORT, Pair, write_chains
from benchmarks.roofline import STEP, measure_peak
from deploypruner.errors import MeasureError
from deploypruner.measure import environment

RESULTS = Path(__file__).parent / "results" / "sparse_layers.json"
WORK = Path(__file__).parent / "work" / "sparse_layers"
PATTERNS = ("4x4", "2x4", "nm64", "1x4", "unstructured")
DENSITIES = (0.3, 0.2, 0.1, 0.05)
ENGINES = {"openvino": "sparse", "kernels": "sparse", "deepsparse": "deepsparse"}
BASE = "openvino dense"
_LENGTHS = (LONG, SHORT)
_RESAMPLES = 400
_QUANTILE = 0.1

Results = dict[str, Any]


def variants(densities: Sequence[float]) -> list[tuple[str, str, float]]:
    """Engine, pattern and density of everything that is compared with OpenVINO's dense layers."""
    found = [(engine, DENSE, 1.0) for engine in ENGINES]
    for engine, pattern, density in product(ENGINES, PATTERNS, densities):
        if engine != "deepsparse" or pattern == "unstructured":
            found.append((engine, pattern, density))
    return sorted(found, key=lambda one: list(ENGINES).index(one[0]))


def prepare(pair: Pair, densities: Sequence[float]) -> dict[tuple[str, float], dict[str, dict[int, Path]]]:
    """Files by pattern and density."""
    wanted = [(DENSE, 1.0), *product(PATTERNS, densities)]
    return {one: write_chains(WORK, pair, *one) for one in wanted}


def measure_pair(pair: Pair, densities: Sequence[float], *, threads: int, rounds: int) -> Results:
    """All engines on one pair."""
    files = prepare(pair, densities)
    with Engines(WORK / "logs", threads) as engines:
        workers = {}
        for engine in ENGINES:
            if engine == "kernels" and threads > 1:
                continue  # the bindings have no threads
            try:
                workers[engine] = engines.start(engine)
            except MeasureError as error:
                engines.failures[engine] = error.message
        opened: dict[str, dict[int, File]] = {BASE: {}}
        jobs = [(BASE, "openvino", files[DENSE, 1.0]["openvino"])]
        for engine, pattern, density in variants(densities):
            jobs.append((f"{engine} {pattern} {density:g}", engine, files[pattern, density][ENGINES[engine]]))
        for name, engine, by_length in jobs:
            # "openvino dense" is OpenVINO's own; "openvino dense 1" our operator with weights that are all there.
            if engine in workers:
                made = {n: engines.open(workers[engine], by_length[n], f"{name} {n}") for n in _LENGTHS}
                opened[name] = {n: file for n, file in made.items() if file is not None}
        ready = {name: by_length for name, by_length in opened.items() if len(by_length) == len(_LENGTHS)}
        flat = [file for by_length in ready.values() for file in by_length.values()]
        samples = time_files(flat, rounds=rounds)
        failures = dict(engines.failures)
    found = {name: {n: samples[file.name] for n, file in by_length.items()} for name, by_length in ready.items()}
    rows = {name: _row(by_length, found[BASE]) for name, by_length in found.items()}
    for name, row in rows.items():
        settings = ready[name][LONG].settings
        row |= {key: settings[key] for key in ("fraction_of_supported_ops", "steps", "bytes") if key in settings}
        if "steps" in settings:
            row["steps_per_s"] = _steps_per_s(ready[name], found[name])
    return {"pair": str(pair), "threads": threads, "rows": rows, "failures": failures}


def _row(own: dict[int, Samples], base: dict[int, Samples]) -> Results:
    """Microseconds of a pair, and its speed-up over OpenVINO's dense pair with a 95 % interval over rounds."""
    rounds = min(len(samples) for by_length in (own, base) for samples in by_length.values())
    rng = np.random.default_rng(0)
    picks = [rng.integers(0, rounds, rounds) for _ in range(_RESAMPLES)]
    ratios = [pair_ns(base, rows) / pair_ns(own, rows) for rows in picks]
    return {
        "us": pair_ns(own) / 1e3,
        "ratio": pair_ns(base) / pair_ns(own),
        "interval": np.quantile(ratios, [0.025, 0.975]).tolist(),
    }


def pair_ns(by_length: dict[int, Samples], rows: np.ndarray | None = None) -> float:
    """Nanoseconds of a pair: the difference of the chains' first deciles, in some rounds or in all.

    What disturbs a call only ever makes it longer, and a difference of two medians would carry it twice.
    """
    taken = {n: samples if rows is None else samples[rows] for n, samples in by_length.items()}
    long, short = (float(np.quantile(taken[n], _QUANTILE)) for n in _LENGTHS)
    return (long - short) / (LONG - SHORT)


def _steps_per_s(files: dict[int, File], samples: dict[int, Samples]) -> float:
    """VPDPBUSD a second over the whole chain, requantization included."""
    steps = {n: int(files[n].settings["steps"]) for n in _LENGTHS}
    vectors = -(-int(files[LONG].settings["pixels"]) // 16)
    return (steps[LONG] - steps[SHORT]) * vectors / (pair_ns(samples) * (LONG - SHORT)) * 1e9


def table(found: Results, threads: int) -> str:
    """Markdown: pairs down; microseconds of OpenVINO's dense pair, then speed-ups over it."""
    runs = {run["pair"]: run["rows"] for run in found["runs"].values() if run["threads"] == threads}
    names = list(dict.fromkeys(name for rows in runs.values() for name in rows if name != BASE))
    lines = []
    for engine in ENGINES:
        own = [name for name in names if name.startswith(f"{engine} ")]
        if not own:
            continue
        heads = [name.removeprefix(f"{engine} ").replace(" 1", "") for name in own]
        lines += [f"{engine}, {threads} thread{'s' * (threads > 1)}: speed-up over OpenVINO's dense int8 pair", ""]
        lines += [f"| pair | dense us | {' | '.join(heads)} |", f"|---|--:|{'--:|' * len(own)}"]
        for pair, rows in runs.items():
            cells = [f"{rows[name]['ratio']:.2f}" if name in rows else "" for name in own]
            lines.append(f"| {pair} | {rows[BASE]['us']:.1f} | {' | '.join(cells)} |")
        means = []
        for name in own:
            ratios = [rows[name]["ratio"] for rows in runs.values() if name in rows]
            means.append(f"**{geometric_mean(ratios):.2f}**" if min(ratios) > 0 else "")
        lines += [f"| geometric mean of {len(runs)} | | {' | '.join(means)} |", ""]
    return "\n".join(lines)


def roofline_table(found: Results) -> str:
    """Markdown: steps a second of the kernels alone as a share of what the instructions can do."""
    peak = found["peak"]
    lines = ["| ceiling of one core | a second |", "|---|--:|"]
    lines += [f"| {name} | {rate / 1e9:.2f} G |" for name, rate in peak.items()]
    runs = [run for run in found["runs"].values() if run["threads"] == 1]
    names = [n for n in dict.fromkeys(n for r in runs for n in r["rows"]) if n.startswith("kernels ")]
    heads = [name.removeprefix("kernels ") for name in names]
    lines += ["", f"Steps a second, requantization included, as a share of {STEP}:", ""]
    lines += [f"| pair | {' | '.join(heads)} |", f"|---|{'--:|' * len(names)}"]
    for run in runs:
        rates = [run["rows"].get(name, {}).get("steps_per_s") for name in names]
        cells = ["" if rate is None else f"{rate / peak[STEP]:.0%}" for rate in rates]
        lines.append(f"| {run['pair']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_inner_loops(runs, peak[STEP])])


def _inner_loops(runs: Sequence[Results], peak: float) -> list[str]:
    """Steps a second of the inner loop alone, as a share of the peak."""
    lines = [f"The inner loop alone, as a share of {STEP}:", "", f"| pair | {' | '.join(PATTERNS)} |"]
    lines.append(f"|---|{'--:|' * len(PATTERNS)}")
    for run in runs:
        cells = []
        for pattern in PATTERNS:
            own = [row for name, row in run["rows"].items() if name.startswith(f"kernels {pattern} ")]
            points = sorted((row["steps_per_s"] * row["us"] / 1e6, row["us"] / 1e6) for row in own)
            seconds = points[-1][1] - points[0][1] if len(points) > 1 else 0.0
            cells.append(f"{(points[-1][0] - points[0][0]) / seconds / peak:.0%}" if seconds > 0 else "")
        lines.append(f"| {run['pair']} | {' | '.join(cells)} |")
    return lines


@click.command()
@click.option("--pair", "chosen", multiple=True, help="Only these, as the table names them.")
@click.option("--density", "densities", multiple=True, type=float, default=DENSITIES, show_default=True)
@click.option("--threads", "counts", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--rounds", default=12, show_default=True)
@click.option("--out", default=RESULTS, show_default=True, type=click.Path(path_type=Path))
@click.option("--prepare", "only_prepare", is_flag=True, help="Only write the files.")
@click.option("--markdown", is_flag=True, help="Only print the table of what is there.")
def main(
    chosen: tuple[str, ...],
    densities: tuple[float, ...],
    counts: tuple[int, ...],
    rounds: int,
    out: Path,
    only_prepare: bool,
    markdown: bool,
) -> None:
    """Measure what is not in the results yet, and print the tables."""
    found: Results = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    pairs = [pair for pair in PAIRS if not chosen or str(pair) in chosen]
    if only_prepare:
        for pair in pairs:
            prepare(pair, densities)
            click.echo(f"{pair}: written", err=True)
        return
    if not markdown:
        found.setdefault("environment", environment())
        found["peak"] = found.get("peak") or measure_peak()
        for threads, pair in product(counts, pairs):
            key = f"{pair} {threads}"
            if key not in found["runs"]:
                found["runs"][key] = measure_pair(pair, densities, threads=threads, rounds=rounds)
                _keep(found, out)
                click.echo(f"{key}: measured", err=True)
    for threads in counts:
        click.echo(table(found, threads))
    click.echo(roofline_table(found))


def _keep(found: Results, path: Path) -> None:
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    main()
