"""Int8 against float, and against other tools' int8, in both runtimes.

    nice python -m benchmarks.int8_latency files --nncf-python /path/to/an/environment/bin/python
    python -m benchmarks.int8_latency run
    python -m benchmarks.int8_latency run --net vit_tiny_patch16_224 --seconds 20 --results here.json
    python -m benchmarks.int8_latency table
    python -m benchmarks.int8_latency bf16            # fp32 and int8 with what is float in f32 and in bf16, OpenVINO
    python -m benchmarks.int8_latency bf16-table

Random weights at 224 x 224 and ranges from noise: what is compared is time. `files` writes, once, for each network:
fp32; ours (int8 where it pays in OpenVINO, and for ONNX Runtime a file of its own where that pays, and one more,
"alone", if that needs ONNX Runtime to be the only one); that of ONNX Runtime's `quantize_static` at its defaults,
after its pre-processing; those of `nncf.quantize` at its defaults, of the OpenVINO model for OpenVINO and of the
ONNX model for ONNX Runtime, by the python of an environment that has NNCF. `run` times all of a network in one
interleaved run, each in a process of its own, and keeps the result at once; what is there already is not run again
without --again. Six networks take 12 minutes. "Best fp32" is the faster runtime's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.cifar10 import WORK
from benchmarks.kept import changing, read
from benchmarks.zoo_models import untrained
from deploypruner.export import exporters
from deploypruner.measure import compare, environment, median_ms, time_artifacts
from deploypruner.quantize.static import calibrate, write_qdq
from deploypruner.records import Artifact, Timing
from deploypruner.search.mixes import MixRequest
from deploypruner.search.mixing import mix
from deploypruner.target import detect

NETS = (
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "regnety_004",
    "vit_tiny_patch16_224",
)
RESULTS = Path(__file__).parent / "results" / "int8_latency.zen4.json"
IN_BF16 = Path(__file__).parent / "results" / "int8_bf16.zen4.json"
FOLDER = WORK / "int8-latency"
RIVALS = ("ort", "nncf")
_RUNTIMES = ("openvino", "onnxruntime")
_BATCHES = 4
_ABOUT = "about.json"
_FORMS = (("fp32", ""), ("fp32", "-bf16"), ("int8", ""), ("int8", "-bf16"))

Array = np.ndarray[Any, Any]


@click.group()
def main() -> None:
    """Files, run, table."""


@main.command()
@click.option("--net", type=click.Choice(NETS), multiple=True, help="only these")
@click.option("--nncf-python", type=click.Path(path_type=Path), help="of an environment with NNCF; without, no nncf")
@click.option("--seconds", default=6.0, show_default=True, help="for each comparison that ours chooses its mix by")
def files(net: Sequence[str], nncf_python: Path | None, seconds: float) -> None:
    """Write what is not there yet."""
    for name in net or NETS:
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        noise = _noise()
        fp32 = _once(folder / "fp32.onnx", lambda path, name=name, noise=noise: _export(name, noise, path))
        if not (folder / _ABOUT).exists():
            about = _ours(fp32, noise, folder, seconds=seconds)
            (folder / _ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        _once(folder / "ort.onnx", lambda path, fp32=fp32, noise=noise: _onnxruntime(fp32, noise, path))
        if nncf_python is not None and not (folder / "nncf.onnx").exists():
            _nncf(nncf_python, fp32, noise, folder)
        click.echo(f"{name}: {', '.join(sorted(path.name for path in folder.iterdir()))}", err=True)


def _noise() -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 3, 224, 224), dtype=np.float32) for _ in range(_BATCHES)]


def _once(path: Path, write: Any) -> Path:
    if not path.exists():
        part = path.with_name(f"part-{path.name}")
        write(part)
        part.replace(path)
    return path


def _export(net: str, noise: Sequence[Array], path: Path) -> None:
    torch.manual_seed(0)
    module, _ = untrained(f"timm:{net}")
    exporters.get("onnx")().write(module.eval(), (torch.from_numpy(noise[0]),), path, dynamic_batch=False)


def _ours(fp32: Path, noise: Sequence[Array], folder: Path, *, seconds: float) -> dict[str, Any]:
    """The files, by time alone: nobody judges accuracy. What became float in them."""
    feeds, saturates = [[batch] for batch in noise], detect().saturates
    with tempfile.TemporaryDirectory() as apart:
        calibrated = calibrate(fp32, feeds, folder=Path(apart))
        int8 = Path(apart) / "int8.onnx"
        write_qdq(calibrated, int8, reduce_range=saturates)
        request = MixRequest(
            *(fp32, int8, calibrated, Path(apart)), timed=_RUNTIMES, feeds=feeds[0], seconds=seconds, say=click.echo
        )
        found = mix(request)
        written = {"ours": found.shared, **{f"ours-{name}": own for name, own in found.own.items()}}
        if "onnxruntime" not in found.own:
            alone = mix(replace(request, timed=("onnxruntime",)))
            written |= {f"alone-{name}": own for name, own in alone.own.items()}
    about: dict[str, Any] = {"layers": len(calibrated.layers), "float": {}, "why": {}}
    for which, file in written.items():
        write_qdq(
            calibrated,
            folder / f"{which}.onnx",
            placement=file.placement,
            reduce_range=saturates,
            keep_float=file.keep_float,
        )
        about["float"][which], about["why"][which] = len(file.keep_float), file.why
    return about


class _Reader(quantization.CalibrationDataReader):
    """The same noise in the form that ONNX Runtime's quantizer asks for."""

    def __init__(self, fp32: Path, noise: Sequence[Array]) -> None:
        name = onnx.load(fp32, load_external_data=False).graph.input[0].name
        self._left: Iterator[dict[str, Array]] = iter([{name: batch} for batch in noise])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def _onnxruntime(fp32: Path, noise: Sequence[Array], path: Path) -> None:
    with tempfile.TemporaryDirectory() as apart:
        ready = Path(apart) / "ready.onnx"
        quant_pre_process(fp32, ready)
        quantization.quantize_static(ready, path, _Reader(fp32, noise))


def _nncf(python: Path, fp32: Path, noise: Sequence[Array], folder: Path) -> None:
    """Both files, in a folder apart first: an IR is two files."""
    with tempfile.TemporaryDirectory(dir=folder) as apart:
        batches = Path(apart) / "noise.npz"
        np.savez(batches, *noise)
        names = [str(Path(apart) / name) for name in ("nncf.xml", "nncf.onnx")]
        worker = Path(__file__).parent / "nncf_worker.py"
        done = subprocess.run(
            [str(python), "-P", str(worker), str(fp32), str(batches), *names], check=True, stdout=subprocess.PIPE
        )
        (folder / "nncf.version").write_bytes(done.stdout)
        for name in ("nncf.bin", "nncf.xml", "nncf.onnx"):
            shutil.move(Path(apart) / name, folder / name)


@main.command()
@click.option("--net", type=click.Choice(NETS), multiple=True, help="only these")
@click.option("--seconds", default=90.0, show_default=True, help="of each network's run")
@click.option("--again", is_flag=True, help="also what is in the results already")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def run(net: Sequence[str], seconds: float, again: bool, results: Path) -> None:
    """Time what has files; each network's result is kept as soon as it is there."""
    for name in net or NETS:
        if not (FOLDER / name / _ABOUT).exists():
            click.echo(f"{name} has no files yet: python -m benchmarks.int8_latency files --net {name}", err=True)
        elif again or name not in read(results):
            found = measured(name, seconds=seconds)
            with changing(results) as rows:
                rows[name] = found
    click.echo(_table(read(results)))


def jobs_of(folder: Path) -> list[tuple[Artifact, str]]:
    """Every file of a network in the runtimes that it is for, the float one first."""
    jobs = []
    for runtime in _RUNTIMES:
        own = folder / f"ours-{runtime}.onnx"
        ours = own if own.exists() else folder / "ours.onnx"
        nncf = folder / ("nncf.xml" if runtime == "openvino" else "nncf.onnx")
        named = {"fp32": folder / "fp32.onnx", "ours": ours, "ort": folder / "ort.onnx", "nncf": nncf}
        named["alone"] = folder / f"alone-{runtime}.onnx"
        jobs += [
            (Artifact(name, path, path.suffix[1:], "fp32" if name == "fp32" else "int8"), runtime)
            for name, path in named.items()
            if path.exists()
        ]
    return jobs


def measured(net: str, *, seconds: float) -> dict[str, Any]:
    """One interleaved run of all files of a network."""
    folder = FOLDER / net
    found = time_artifacts(jobs_of(folder), budget_s=seconds, feeds=[_noise()[0]])
    timings = {(timing.runtime, timing.artifact.name): timing for timing in found.timings}
    best = min((timings[runtime, "fp32"] for runtime in _RUNTIMES), key=lambda t: median_ms(t.samples_ns))
    rows = []
    for (runtime, name), timing in timings.items():
        over = {"fp32": timings[runtime, "fp32"], "best fp32": best}
        over |= {rival: timings[runtime, rival] for rival in RIVALS if (runtime, rival) in timings}
        rows.append(
            {
                "runtime": runtime,
                "file": name,
                "ms": median_ms(timing.samples_ns),
                "over": {other: _ratio(timing, one, found.floor) for other, one in over.items() if one is not timing},
            }
        )
    version = folder / "nncf.version"
    return {
        "rows": rows,
        "failed": [[failure.runtime, failure.artifact.name, failure.message] for failure in found.failures],
        "about": json.loads((folder / _ABOUT).read_text()),
        "seconds": seconds,
        "noise_floor": found.floor,
        "busy": found.reason,
        "versions": {
            "onnxruntime": onnxruntime.__version__,
            "nncf": version.read_text().strip() if version.exists() else None,
        },
        "environment": environment(),
    }


def _ratio(timing: Timing, baseline: Timing, floor: float) -> list[Any]:
    found = compare(timing, baseline, floor=floor)
    return [found.ratio, *found.ratio_ci, found.verdict]


@main.command()
@click.option("--net", type=click.Choice(NETS), multiple=True, help="only these")
@click.option("--seconds", default=40.0, show_default=True, help="of each network's run")
@click.option("--results", type=click.Path(path_type=Path), default=IN_BF16, show_default=True)
def bf16(net: Sequence[str], seconds: float, results: Path) -> None:
    """Time OpenVINO with what is float in f32 and in bf16, interleaved, of what has files and no result yet."""
    for name in net or NETS:
        folder = FOLDER / name
        if not (folder / _ABOUT).exists() or name in read(results):
            continue
        fp32, int8 = folder / "fp32.onnx", folder / "ours.onnx"
        forms = (Artifact("fp32", fp32, "onnx", "fp32"), Artifact("int8", int8, "onnx", "int8"))
        jobs = [(form, runtime) for form in forms for runtime in ("openvino", "openvino-bf16")]
        found = time_artifacts(jobs, budget_s=seconds, feeds=[_noise()[0]])
        first = found.timings[0]
        row = {
            f"{timing.artifact.name} {timing.runtime}": {
                "ms": median_ms(timing.samples_ns),
                "over fp32": [1.0, 1.0, 1.0, "baseline"] if timing is first else _ratio(timing, first, found.floor),
            }
            for timing in found.timings
        }
        about = json.loads((folder / _ABOUT).read_text())
        with changing(results) as rows:
            rows[name] = {
                **{"times": row, "float": about["float"]["ours"], "layers": about["layers"], "seconds": seconds},
                **{"noise_floor": found.floor, "busy": found.reason, "environment": environment()},
            }
    click.echo(_bf16_table(read(results)))


@main.command("bf16-table")
@click.option("--results", type=click.Path(path_type=Path), default=IN_BF16, show_default=True)
def bf16_table(results: Path) -> None:
    """Print it."""
    click.echo(_bf16_table(read(results)))


def _bf16_table(kept: dict[str, Any]) -> str:
    """Markdown: how many times as fast as fp32 in f32."""
    lines = [
        "| network | fp32 | bf16 | int8, float layers in f32 | in bf16 | float layers |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for net in (name for name in NETS if name in kept):
        times, floats = kept[net]["times"], f"{kept[net]['float']} of {kept[net]['layers']}"
        cells = [_times(times[f"{precision} openvino{more}"]["over fp32"]) for precision, more in _FORMS[1:]]
        lines.append(f"| {net} | {times['fp32 openvino']['ms']:.2f} ms | {' | '.join(cells)} | {floats} |")
    return "\n".join(lines)


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def table(results: Path) -> None:
    """Print what there is."""
    click.echo(_table(read(results)))


def _table(kept: dict[str, Any]) -> str:
    """Markdown, one line per network and runtime: ratios above one say that our file is faster."""
    lines = [
        "| network | runtime | fp32, ms | ours, ms | float layers | over fp32 | over the best fp32 "
        "| over ONNX Runtime's | over NNCF's |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for net in (name for name in NETS if name in kept):
        document = kept[net]
        rows = {(row["runtime"], row["file"]): row for row in document["rows"]}
        failed = {(runtime, name) for runtime, name, _ in document["failed"]}
        for runtime in _RUNTIMES:
            ours, own = rows[runtime, "ours"], f"ours-{runtime}" in document["about"]["float"]
            count = document["about"]["float"][f"ours-{runtime}" if own else "ours"]
            cells = [_times(ours["over"].get(other)) for other in ("fp32", "best fp32")]
            cells += [
                "refused" if (runtime, rival) in failed else _times(ours["over"].get(rival)) for rival in RIVALS
            ]
            lines.append(
                f"| {net} | {runtime} | {rows[runtime, 'fp32']['ms']:.2f} | {ours['ms']:.2f} "
                f"| {count} of {document['about']['layers']}{', own file' if own else ''} | {' | '.join(cells)} |"
            )
            if (runtime, "alone") in rows:
                alone = rows[runtime, "alone"]
                cells = [_times(alone["over"].get(other)) for other in ("fp32", "best fp32", *RIVALS)]
                lines.append(
                    f"| | {runtime} alone | | {alone['ms']:.2f} | {document['about']['float'][f'alone-{runtime}']} "
                    f"of {document['about']['layers']} | {' | '.join(cells)} |"
                )
        if document["busy"]:
            lines.append(f"| | *{document['busy'].split(':')[0]}; noise floor {document['noise_floor']:.0%}* |")
    return "\n".join(lines)


def _times(ratio: list[Any] | None) -> str:
    return "-" if ratio is None else f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
