"""Can the measuring be trusted? A model with its copy, a slowdown of 5 %, and OpenVINO's own benchmark_app.

    python -m benchmarks.measuring                # what is missing in results/measuring.json, then the table
    python -m benchmarks.measuring --minutes 3.5  # for at most so long; run it again to go on
    python -m benchmarks.measuring --markdown     # only print the table of what is there

On an idle machine. The model is a chain of equal convolutions; its copy is the same file again, and the slow one has
42 of them where the model has 40: 5 % more of the same work. That this takes 5 % longer is not assumed but measured,
by runs that are several times longer than those that are to find it. benchmark_app is called with the same threads,
precision and hint, one call after another, and in turns with ours, since this machine's speed changes by the minute.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measuring_models import MODELS, app_median_ms, save_chain, save_model
from deploypruner.measure import Measured, environment, make_rows, median_ms, pair_up, time_artifacts

RESULTS = Path(__file__).parent / "results" / "measuring.json"
REPEATS = 40
LONG_RUNS = 2
APP_PAIRS = 6
_BUDGET_S = 8.0
_LONG_S = 45.0
_APP_S = 2.0
_FILES = {"model": 40, "copy": 40, "slow": 42}

Results = dict[str, Any]


@click.command()
@click.option("--minutes", default=60.0, show_default=True, help="Start nothing new after these.")
@click.option("--folder", default="/tmp/deploypruner-measuring", show_default=True, type=click.Path(path_type=Path))
@click.option("--prepare", is_flag=True, help="Only write the models, which needs no idle machine.")
@click.option("--markdown", is_flag=True, help="Only print the table of what is there.")
def main(minutes: float, folder: Path, prepare: bool, markdown: bool) -> None:
    """Measure what is missing and print the table."""
    found: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not markdown:
        _prepare(folder)
        if not prepare:
            _go_on(found, folder, until=time.monotonic() + 60 * minutes)
    if not prepare:
        click.echo(table(found))


def _prepare(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, layers in _FILES.items():
        save_chain(folder / f"{name}.onnx", layers)
    for name in MODELS:
        if not (folder / f"{name}.onnx").exists():
            save_model(name, folder / f"{name}.onnx")


def _go_on(found: Results, folder: Path, *, until: float) -> None:
    found.setdefault("environment", environment())
    for name in MODELS:
        pairs = found.setdefault("app", {}).setdefault(name, [])
        while len(pairs) < APP_PAIRS and time.monotonic() < until:
            pairs.append(_against_app(folder / f"{name}.onnx", seed=len(pairs)))
            _keep(found)
    for what, count, run in (("long", LONG_RUNS, _long_run), ("repeats", REPEATS, _repeat)):
        rows = found.setdefault(what, [])
        while len(rows) < count and time.monotonic() < until:
            rows.append(run(folder, len(rows)))
            _keep(found)


def _repeat(folder: Path, seed: int) -> Results:
    """The model, its copy and the slow one in one run: ratio, interval and verdict of both comparisons."""
    jobs = pair_up([folder / f"{name}.onnx" for name in _FILES], ["openvino"])
    begun = time.monotonic()
    measured = time_artifacts(jobs, budget_s=_BUDGET_S, seed=seed)
    rows = make_rows(measured.timings, [None] * len(jobs), floor=measured.floor, seed=seed)
    return {
        "copy": [rows[1].verdict, rows[1].ratio, *rows[1].ratio_ci],
        "slow": [rows[2].verdict, rows[2].ratio, *rows[2].ratio_ci],
        **_about(measured),
        "seconds": time.monotonic() - begun,
    }


def _long_run(folder: Path, seed: int) -> Results:
    """Only the model and the slow one, for a long time."""
    jobs = pair_up([folder / "model.onnx", folder / "slow.onnx"], ["openvino"])
    measured = time_artifacts(jobs, budget_s=_LONG_S, narrow=1e-6, seed=1000 + seed)
    slow = make_rows(measured.timings, [None, None], floor=measured.floor, seed=seed)[1]
    return {"slow": [slow.verdict, slow.ratio, *slow.ratio_ci], **_about(measured)}


def _about(measured: Measured) -> Results:
    return {
        "floor": measured.floor,
        "rounds": len(measured.twin.samples_ns),
        "median_ms": median_ms(measured.timings[0].samples_ns),
        "certifiable": measured.certifiable,
    }


def _against_app(path: Path, *, seed: int) -> list[float]:
    """Median milliseconds of benchmark_app and of ours; which is first changes from pair to pair."""

    def ours() -> float:
        measured = time_artifacts(pair_up([path], ["openvino"]), budget_s=_APP_S, narrow=1e-6, seed=seed)
        return median_ms(np.concatenate([t.samples_ns.ravel() for t in (*measured.timings, measured.twin)]))

    if seed % 2:
        return [ours(), app_median_ms(path, seconds=_APP_S)][::-1]
    return [app_median_ms(path, seconds=_APP_S), ours()]


def _keep(found: Results) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    part = RESULTS.with_suffix(".tmp")
    part.write_text(json.dumps(found, indent=1))
    part.replace(RESULTS)


def table(found: Results) -> str:
    """Markdown: one line a question."""
    rows, longs = found.get("repeats", []), found.get("long", [])
    same = sum(row["copy"][0] == "indistinguishable" for row in rows)
    slower = sum(row["slow"][0] == "slower" for row in rows)
    lines = [
        "| question | wanted | found |",
        "|---|---|---|",
        f"| a model and its copy: indistinguishable | 95 % of {REPEATS} | {same} of {len(rows)} |",
        f"| 5 % more work: slower | 90 % of {REPEATS} | {slower} of {len(rows)} |",
    ]
    if longs:
        true = sorted(1 / row["slow"][1] for row in longs)
        text = ", ".join(f"{ratio:.3f}" for ratio in true)
        lines.append(f"| 5 % more work, {_LONG_S:.0f} s each: time against the model's | 1.05 | {text} |")
    for name, pairs in found.get("app", {}).items():
        lines.append(_app_line(name, np.array(pairs)))
    if rows:
        floors = np.quantile([row["floor"] for row in rows], [0.5, 1.0])
        seconds = np.median([row["seconds"] for row in rows])
        lines += ["", f"Noise floor {floors[0]:.1%} (median), {floors[1]:.1%} (largest); {seconds:.0f} s a repeat."]
    return "\n".join(lines)


def _app_line(name: str, pairs: np.ndarray) -> str:
    ratios = pairs[:, 1] / pairs[:, 0]
    app, ours = np.median(pairs, axis=0)
    picks = np.random.default_rng(0).integers(0, len(ratios), size=(4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    said = f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}]; {ours:.2f} ms, app {app:.2f} ms, {len(pairs)} pairs"
    return f"| {name}: ours / benchmark_app | within 5 % | {said} |"


if __name__ == "__main__":
    main()
