"""Sparse int8 networks end to end: ours in OpenVINO, beside dense int8 in OpenVINO and ONNX Runtime, and DeepSparse.

    python -m benchmarks.sparse_networks --prepare             # write the files; also measures layers
    python -m benchmarks.sparse_networks                       # measure what is missing, then the tables
    python -m benchmarks.sparse_networks --net resnet50 --setting latency-1 --seconds 5
    python -m benchmarks.sparse_networks --markdown            # only the tables
    python -m benchmarks.sparse_networks --pattern 4x4 --sparsity 0.9 --kind openvino --kind every --out here.json

torchvision's architectures at 224 x 224, random but lively weights (`sparse_models`): these are times, nothing is
said of accuracy. Every engine and file has a process of its own, all alive, and they take turns block by block; a
ratio is the median over rounds, with a 95 % interval. DeepSparse gets unstructured zeros, which is what it was made
for, and every row of it says what share of the operations it computes itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.engine_runtimes import REQUESTS_PER_CALL
from benchmarks.engines import Engines, File, ratio, time_files
from benchmarks.sparse_models import NETS, WORK, Variant, prepare
from deploypruner.errors import MeasureError
from deploypruner.measure import environment

RESULTS = Path(__file__).parent / "results" / "sparse_networks.json"
PATTERNS = ("4x4", "2x4", "nm64", "1x4", "unstructured")
SPARSITIES = (0.8, 0.9)
KINDS = ("openvino", "sparse", "every", "onnxruntime", "deepsparse")
_BASE = "OpenVINO dense"

Results = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How networks are called.

    Args:
        title: What a table is headed with.
        threads: Of every engine.
        batch: Images in a call.
        streams: Are eight requests in flight at once?
        patterns: Which patterns.
    """

    title: str
    threads: int = 1
    batch: int = 1
    streams: bool = False
    patterns: tuple[str, ...] = PATTERNS


SETTINGS = {
    "latency-1": Setting("batch 1, one thread"),
    "latency-2": Setting("batch 1, two threads", threads=2),
    "batch-8": Setting("batch 8, one thread", batch=8, patterns=("1x4",)),
    "streams": Setting("two streams, eight requests in flight", threads=2, streams=True, patterns=("1x4",)),
}


@dataclass(frozen=True)
class Job:
    """One file on one engine."""

    name: str
    engine: str
    kind: str
    variant: Variant


def jobs(net: str, setting: Setting, sparsities: Sequence[float] = SPARSITIES) -> list[Job]:
    """What is timed side by side; the first is what the others are compared with."""
    dense = Variant(net, batch=setting.batch)
    own = "openvino-streams" if setting.streams else "openvino"
    found = [Job(_BASE, own, "openvino", dense)]
    threads = 1 if setting.streams else setting.threads  # two streams have one each
    sparse = [Variant(net, p, s, setting.batch, threads) for p, s in product(setting.patterns, sparsities)]
    found += [Job(f"ours {variant.label}", own, "sparse", variant) for variant in sparse]
    found += [Job(f"ours {variant.label}, every layer", own, "every", variant) for variant in sparse]
    if setting.batch == 1 and not setting.streams:
        found.append(Job("ONNX Runtime dense", "onnxruntime", "onnxruntime", dense))
        zeros = [variant for variant in sparse if variant.pattern == "unstructured"]
        found += [Job(f"DeepSparse {v.label}", "deepsparse", "deepsparse", v) for v in (dense, *zeros)]
    return found


def measure_net(net: str, setting: Setting, todo: Sequence[Job], *, rounds: int, seconds: float) -> Results:
    """One run."""
    with Engines(WORK / "logs", setting.threads) as engines:
        opened: dict[str, tuple[Job, File]] = {}
        for job in todo:
            file = _open(engines, job)
            if file is not None:
                opened[job.name] = (job, file)
        samples = time_files([file for _, file in opened.values()], rounds=rounds, seconds=seconds)
        peaks = {name: opened[name][1].worker.ask(do="memory")["peak_rss_bytes"] for name in samples}
        failures = dict(engines.failures)
    images = setting.batch * (REQUESTS_PER_CALL if setting.streams else 1)
    rows = {}
    for name, taken in samples.items():
        job, file = opened[name]
        rows[name] = {
            "ms_an_image": float(np.median(taken)) / 1e6 / images,
            **ratio(taken, samples[_BASE]),
            "bytes": job.variant.file(job.kind).stat().st_size,
            "peak_rss_bytes": peaks[name],
            "load_s": file.load_s,
            "rounds": len(taken),
            "settings": dict(file.settings),
        }
    return {"net": net, "setting": setting.title, "rows": rows, "failures": failures}


def _open(engines: Engines, job: Job) -> File | None:
    """A process of its own, so that its peak memory is the file's."""
    try:
        worker = engines.start(job.engine, job.name)
    except MeasureError as error:
        engines.failures[job.name] = error.message
        return None
    return engines.open(worker, job.variant.file(job.kind), job.name)


def table(found: Results, setting: Setting) -> str:
    """Markdown: engines and patterns down, networks across."""
    runs = {run["net"]: run["rows"] for run in found["runs"].values() if run["setting"] == setting.title}
    if not runs:
        return ""
    names = list(dict.fromkeys(name for rows in runs.values() for name in rows))
    lines = [f"{setting.title}: ms an image, (speed-up over OpenVINO's dense int8 [95 %])", ""]
    lines += [f"| | {' | '.join(runs)} |", f"|---|{'--:|' * len(runs)}"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(_cell(rows.get(name)) for rows in runs.values())} |")
    return "\n".join([*lines, ""])


def _cell(row: Results | None) -> str:
    if row is None:
        return ""
    low, high = row["interval"]
    share = row["settings"].get("fraction_of_supported_ops")
    said = f", {float(share):.0%} its own" if share else ""
    return f"{row['ms_an_image']:.2f} ({row['ratio']:.2f} [{low:.2f}, {high:.2f}]{said})"


def size_table(found: Results) -> str:
    """Markdown: file and peak memory at batch 1, one thread."""
    runs = [run for run in found["runs"].values() if run["setting"] == SETTINGS["latency-1"].title]
    lines = ["Size on disk and peak resident memory of a process that loads and runs the file, MB", ""]
    lines += [f"| | {' | '.join(run['net'] for run in runs)} |", f"|---|{'--:|' * len(runs)}"]
    for name in dict.fromkeys(name for run in runs for name in run["rows"]):
        rows = [run["rows"].get(name) for run in runs]
        cells = ["" if r is None else f"{r['bytes'] / 1e6:.1f} / {r['peak_rss_bytes'] / 1e6:.0f}" for r in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--net", "nets", multiple=True, default=NETS, show_default=True)
@click.option("--setting", "settings", multiple=True, type=click.Choice(list(SETTINGS)), default=tuple(SETTINGS))
@click.option("--pattern", "patterns", multiple=True, type=click.Choice(PATTERNS), help="Only these.")
@click.option("--sparsity", "sparsities", multiple=True, type=float, default=SPARSITIES, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, show_default=True)
@click.option("--rounds", default=10, show_default=True, help="At least so many.")
@click.option("--seconds", default=6.0, show_default=True, help="At least for so long, each network and setting.")
@click.option("--out", default=RESULTS, show_default=True, type=click.Path(path_type=Path))
@click.option("--prepare", "only_prepare", is_flag=True, help="Only write the files.")
@click.option("--markdown", is_flag=True, help="Only print the tables of what is there.")
def main(
    nets: tuple[str, ...],
    settings: tuple[str, ...],
    patterns: tuple[str, ...],
    sparsities: tuple[float, ...],
    kinds: tuple[str, ...],
    rounds: int,
    seconds: float,
    out: Path,
    only_prepare: bool,
    markdown: bool,
) -> None:
    """Measure what is not in the results yet, and print the tables."""
    found: Results = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    wanted = list(product(settings, nets))
    for name, net in [] if markdown else wanted:
        key = f"{net} {name}"
        if key in found["runs"]:
            continue
        setting = SETTINGS[name]
        setting = replace(setting, patterns=tuple(p for p in setting.patterns if not patterns or p in patterns))
        todo = [job for job in jobs(net, setting, sparsities) if job.kind in kinds]
        for job in todo:
            prepare(job.variant, (job.kind,))
        if only_prepare:
            click.echo(f"{key}: written", err=True)
            continue
        found.setdefault("environment", environment())
        found["runs"][key] = measure_net(net, setting, todo, rounds=rounds, seconds=seconds)
        part = out.with_suffix(".tmp")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(out)
        click.echo(f"{key}: measured", err=True)
    if not only_prepare:
        for name in settings:
            click.echo(table(found, SETTINGS[name]))
        click.echo(size_table(found))


if __name__ == "__main__":
    main()
