"""Int8 after training alone: how much of the float network's accuracy is left, by our quantizer and by others.

    python -m benchmarks.int8_accuracy run
    python -m benchmarks.int8_accuracy run --method qat        # CIFAR-10, whose images have labels
    python -m benchmarks.int8_accuracy run --method nncf       # in an environment with `pip install nncf`
    python -m benchmarks.int8_accuracy run --method quark      # in one with `pip install amd-quark`
    python -m benchmarks.int8_accuracy executed                # trained files, in torch and in both runtimes
    python -m benchmarks.int8_accuracy table

Forms: the trained weights; those pruned to 70 % of the MACs and solved by least squares, or (EfficientNet-Lite0) with
half of the weights of its 1x1 convolutions zero, in 1x4 blocks by magnitude; and each with ranges of its channels
hidden in the weights, up to 10^4 apart, while it computes the same: with every clip as it is, whose channels then
stay, or ("bounds rescaled", of networks with clips) with a bound of its own for every channel. Methods: "ours",
"ours-onnxruntime" (ours with its pairs where ONNX Runtime wants them), "min-max" (ours without repair), "qat" (the
file of "ours" trained on 10,000 labelled images, twice, the float network its teacher, the epoch chosen on test
images that do not judge), "onnxruntime" (quantize_static at its defaults, after its pre-processing), "nncf"
(nncf.quantize of the OpenVINO model at its defaults) and "quark" (amd-quark's A8W8 at its defaults). All get the same
unlabelled images and are judged in OpenVINO, on so many test images; "ours-onnxruntime", "onnxruntime" and "quark" in
ONNX Runtime: OpenVINO 2026.4 refuses its quantizer's file of a network that pads channels, as these ResNets do.
Agreement is with the same form in float32. What is there already is kept.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from benchmarks.cifar10 import cifar10
from benchmarks.imagenet import photographs
from benchmarks.int8_forms import FOLDER, FORMS, NETS, OF_PHOTOGRAPHS, float_file, forms_of
from benchmarks.kept import changing, read
from deploypruner.errors import InputError
from deploypruner.openvino_import import openvino_core
from deploypruner.qat import QdqModule, left_out, train_quantized
from deploypruner.quantize.placement import Placement
from deploypruner.quantize.static import quantize_static
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.sources.batches import Data
from deploypruner.target import detect

RESULTS = Path(__file__).parent / "results" / "int8_accuracy.zen4.json"
EXECUTED = RESULTS.with_name("int8_executed.zen4.json")
METHODS = ("float", "min-max", "ours", "ours-onnxruntime", "qat", "onnxruntime", "nncf", "quark")
_IN_ONNXRUNTIME = ("ours-onnxruntime", "onnxruntime", "quark")
_CALIBRATED = {OF_PHOTOGRAPHS: 500}
_BATCH = 8
# Images that quantization-aware training sees, as often as that.
_TRAINED, _EPOCHS = 10_000, 2

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Given:
    """What a method may use.

    Args:
        calibration: Feeds of unlabelled images, all methods' alike.
        labelled: For training, None where nobody gave labels.
        validating: Images with labels that do not judge.
    """

    calibration: list[list[Array]]
    labelled: Data | None
    validating: tuple[Array, Array]


@click.group()
def main() -> None:
    """Run, table."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)


@main.command()
@click.option("--net", type=click.Choice(NETS), multiple=True, help="only these; all by default")
@click.option("--form", type=click.Choice(FORMS), multiple=True, help="only these; all of the network by default")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    multiple=True,
    default=("float", "min-max", "ours", "onnxruntime"),
    show_default=True,
)
@click.option("--images", default=8000, show_default=True, help="test images that judge, at most")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def run(net: Sequence[str], form: Sequence[str], method: Sequence[str], images: int, results: Path) -> None:
    """Quantize and judge what has not been judged yet."""
    for name in net or NETS:
        data = photographs() if name in _CALIBRATED else cifar10()
        for kind in form or forms_of(name):
            fp32 = float_file(name, kind, data)
            x, labels, others = _judging(data, images)
            reference = _answers(fp32, x)
            for way in dict.fromkeys(("float", *method)):
                key = f"{name}, {kind}, {way}"
                if key in read(results):
                    continue
                given = Given(_calibration(name, data), None if name in _CALIBRATED else cifar10(_TRAINED), others)
                begun = time.perf_counter()
                file, about = (fp32, {}) if way == "float" else _int8(way, fp32, given)
                seconds = time.perf_counter() - begun
                answers = _answers(file, x, runtime="onnxruntime" if way in _IN_ONNXRUNTIME else "openvino")
                row = {
                    "top1": float((answers.argmax(axis=1) == labels).mean() * 100),
                    "agreement": float((answers.argmax(axis=1) == reference.argmax(axis=1)).mean() * 100),
                    "error": float(
                        np.linalg.norm(answers - reference) / np.linalg.norm(reference - reference.mean(0))
                    ),
                    "images": len(labels),
                    "seconds": seconds,
                    **about,
                }
                with changing(results) as rows:
                    rows[key] = row
                click.echo(f"{key}: {row['top1']:.2f} %, agreement {row['agreement']:.2f} %", err=True)


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def table(results: Path) -> None:
    """Top-1 and, for int8, agreement with the float network, as markdown.

    The last column has one standard error of the difference, at most: that of as many answers as differ, each of
    them right in one of the two.
    """
    rows = read(results)
    heads = (*METHODS, "qat less float")
    click.echo(f"| network | images | {' | '.join(heads)} |\n|---|--:|{'--:|' * len(heads)}")
    for net in NETS:
        for form in FORMS:
            cells = [rows.get(f"{net}, {form}, {method}") for method in METHODS]
            if any(cells):
                images = next(cell["images"] for cell in cells if cell)
                last = _difference(*(rows.get(f"{net}, {form}, {method}") for method in ("float", "qat")))
                click.echo(f"| {net}, {form} | {images} | {' | '.join([*map(_cell, cells), last])} |")


@main.command()
@click.option("--net", type=click.Choice(NETS), multiple=True, help="only these; all that were trained by default")
@click.option("--images", default=8000, show_default=True, help="test images that judge, at most")
@click.option("--results", type=click.Path(path_type=Path), default=EXECUTED, show_default=True)
def executed(net: Sequence[str], images: int, results: Path) -> None:
    """Top-1 of files that "qat" trained for OpenVINO: computed in torch both ways, and by both runtimes."""
    x, labels, _ = _judging(cifar10(), images)
    for path in sorted(FOLDER.glob("*-qat.onnx")):
        name, _, form = path.stem.removesuffix("-qat").partition("-")
        key = f"{name}, {form.replace('-', ' ')}"
        if key in read(results) or (net and name not in net):
            continue
        ways = {
            "openvino": left_out(path, "openvino", [x[:1]]),
            "onnxruntime": left_out(path, "onnxruntime", [x[:1]]),
        }
        row: dict[str, Any] = {"images": len(labels)}
        for runtime, unrounded in ways.items():
            trained = _classes(QdqModule(path, unrounded=unrounded).eval(), x)
            found = _answers(path, x, runtime=runtime).argmax(axis=1)
            row[runtime] = {
                "left out": len(unrounded),
                "in training": 100 * float((trained == labels).mean()),
                "exported": 100 * float((found == labels).mean()),
                "other classes": int((trained != found).sum()),
            }
        with changing(results) as rows:
            rows[key] = row
        click.echo(f"{key}: {row}", err=True)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['top1']:.2f}" + ("" if row["agreement"] == 100 else f" ({row['agreement']:.1f})")


def _difference(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if one is None or other is None:
        return "-"
    error = 100 * float(np.sqrt((1 - other["agreement"] / 100) / other["images"]))
    return f"{other['top1'] - one['top1']:+.2f} ± {error:.2f}"


def _calibration(net: str, data: Data) -> list[list[Array]]:
    batches = data.train.epoch(batch_size=_BATCH, seed=0, shuffle=True, augment=False)
    count = _CALIBRATED.get(net, 256) // _BATCH
    return [[np.ascontiguousarray(x.numpy()) for x in inputs] for inputs, _ in islice(batches, count)]


def _judging(data: Data, most: int) -> tuple[Array, Array, tuple[Array, Array]]:
    """Images and labels that judge, and the others."""
    shuffled = data.val.with_targets(batch_size=100, seed=0, shuffle=True)  # they lie by class
    parts = [(np.asarray(inputs[0]), np.asarray(labels)) for inputs, labels in shuffled]
    x, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x[:most], labels[:most], (x[most:], labels[most:])


def _answers(path: Path, x: Array, *, runtime: str = "openvino") -> Array:
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(str(path))
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: x[at : at + 50]})[0] for at in range(0, len(x), 50)])
    compiled = openvino_core().compile_model(
        str(path), "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.concatenate([compiled(x[at : at + 50])[0] for at in range(0, len(x), 50)])


def _int8(method: str, fp32: Path, given: Given) -> tuple[Path, dict[str, Any]]:
    """An int8 file by one of the methods, and what is to be said about it."""
    return _WAYS[method](fp32, FOLDER / f"{fp32.stem}-{method}", given)


def _ours(
    fp32: Path, path: Path, given: Given, *, repair: bool = True, placement: Placement = "openvino"
) -> tuple[Path, dict[str, Any]]:
    path = path.with_suffix(".onnx")
    summary = quantize_static(
        *(fp32, path),
        calibration=given.calibration,
        method="auto",
        placement=placement,
        reduce_range=detect().saturates,
        repair=repair,
    )
    return path, {"repair": [asdict(step) for step in summary.repair]}


def _plain(fp32: Path, path: Path, given: Given) -> tuple[Path, dict[str, Any]]:
    return _ours(fp32, path, given, repair=False)


def _trained(fp32: Path, path: Path, given: Given) -> tuple[Path, dict[str, Any]]:
    """What "ours" wrote, trained; the float file is the teacher."""
    data = given.labelled
    if data is None:
        raise InputError("quantization-aware training is compared where images have labels", hint="leave it out here")
    begun = FOLDER / f"{fp32.stem}-ours.onnx"
    if not begun.exists():
        _ours(fp32, begun.with_suffix(""), given)
    path = path.with_suffix(".onnx")
    outcome = train_quantized(
        *(begun, path),
        teacher=QdqModule(fp32).eval(),
        batches=data.train,
        settings=FinetuneSettings(epochs=_EPOCHS, channels_last=True),
        validate=lambda module: _percent(module, *given.validating),
        fp32=fp32,
        unrounded=left_out(begun, "openvino", [x[:1] for x in given.calibration[0]]),
    )
    x, labels = given.validating
    exported = {
        runtime: 100 * float((_answers(path, x, runtime=runtime).argmax(axis=1) == labels).mean())
        for runtime in ("openvino", "onnxruntime")
    }
    return path, {"in training": outcome.after, "exported": exported, "before": outcome.before}


@torch.no_grad()
def _classes(module: nn.Module, x: Array) -> Array:
    parts = [module(torch.from_numpy(x[at : at + 100])).argmax(dim=1).numpy() for at in range(0, len(x), 100)]
    return np.concatenate(parts)


def _percent(module: nn.Module, x: Array, labels: Array) -> float:
    return 100 * float((_classes(module, x) == labels).mean())


class _Reader(quantization.CalibrationDataReader):
    """The images in the form that ONNX Runtime's quantizer and those after it ask for."""

    def __init__(self, fp32: Path, given: Given) -> None:
        name = onnx.load(fp32).graph.input[0].name
        self._left: Iterator[dict[str, Array]] = iter([{name: feeds[0]} for feeds in given.calibration])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def _onnxruntime(fp32: Path, path: Path, given: Given) -> tuple[Path, dict[str, Any]]:
    path = path.with_suffix(".onnx")
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(fp32, ready)
        quantization.quantize_static(ready, path, _Reader(fp32, given))
    return path, {"version": onnxruntime.__version__}


def _nncf(fp32: Path, path: Path, given: Given) -> tuple[Path, dict[str, Any]]:
    import nncf
    import openvino

    model = openvino_core().read_model(str(fp32))
    dataset = nncf.Dataset([image[None] for feeds in given.calibration for image in feeds[0]])
    openvino.save_model(nncf.quantize(model, dataset), path.with_suffix(".xml"))
    return path.with_suffix(".xml"), {"version": nncf.__version__}


def _quark(fp32: Path, path: Path, given: Given) -> tuple[Path, dict[str, Any]]:
    from quark.onnx import ModelQuantizer, QConfig

    path = path.with_suffix(".onnx")
    settings = QConfig.get_default_config("A8W8")
    ModelQuantizer(settings).quantize_model(str(fp32), str(path), _Reader(fp32, given))
    return path, {"version": version("amd-quark")}


_WAYS: dict[str, Callable[[Path, Path, Given], tuple[Path, dict[str, Any]]]] = {
    "min-max": _plain,
    "ours": _ours,
    "ours-onnxruntime": partial(_ours, placement="onnxruntime"),
    "qat": _trained,
    "onnxruntime": _onnxruntime,
    "nncf": _nncf,
    "quark": _quark,
}


if __name__ == "__main__":
    main()
