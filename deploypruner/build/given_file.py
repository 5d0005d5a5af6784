"""An ONNX file that the user gave, and forms of it: read, fed, judged against it, measured beside it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploypruner.build.fitting import Said
from deploypruner.build.folder import BuildFolder
from deploypruner.build.form_judge import FormJudge
from deploypruner.build.metric import own_metric
from deploypruner.build.place import place_for
from deploypruner.build.sparsify_inputs import Inputs, sparsify_inputs
from deploypruner.build.state import Feeds
from deploypruner.errors import InputError
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.measure import find_doubts, make_rows
from deploypruner.measure.files import check_external
from deploypruner.onnx_file import read_onnx, write_onnx
from deploypruner.progress import Progress, SilentProgress, percent
from deploypruner.quantize.placement import Placement
from deploypruner.quantize.preparing import prepared
from deploypruner.quantize.static import Calibrated, QuantizationSummary, calibrate, write_qdq
from deploypruner.reading import check_present
from deploypruner.recipe.data import DataSettings
from deploypruner.records import Artifact, Quality, Row, Timing
from deploypruner.runtime import runtimes
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.scratch import scratch
from deploypruner.search.gaps import Gap, gaps, largest
from deploypruner.search.kept import ACCURACY_DROP, AGREEMENT_DROP, Kept
from deploypruner.sources.classes import read_classes
from deploypruner.sources.preprocessing import Preprocessing
from deploypruner.target import Target, WeightBits, detect, reduces_range
from deploypruner.tasks.recognise import parse_tasks

JUDGED_IN, IN_BF16 = "openvino", OpenVino.in_bf16
"""Runtime that forms of a given file are judged and timed in, and the same in bf16, where the user allows it."""


@dataclass(frozen=True)
class FileRequest:
    """What `sparsify` or `quantize` was asked for.

    Args:
        model: The .onnx file.
        out: Folder to write to.
        overwrite: Whether something finished in it may be replaced.
        progress: Told how far it is.
        data: Image folder, .npz or factory; None for random inputs.
        mean: Per channel, of pixels scaled to 0..1; None for the usual ones.
        std: As `mean`.
        threads: That the model is to run with.
        open_threads: Whether the fastest number is to be found in place of that.
        batch: Images at a time that it is to run with; None: as many as the file takes, 1 where that is open.
        seconds: For measuring.
        drop: Points that int8 may cost against the given file, see `search.kept`; None for its defaults.
        tasks: What outputs are, as `--task` says it.
        metric: `package.module:function`, "" for none.
        classes: File with the names of the model's classes.
        weight_bits: Of int8 weights; "auto" goes by this machine.
        seed: Of random inputs and of the order of measuring.
        allow_bf16: Permission to compute in bf16 what is float.
        clock: Says how long things take.
    """

    model: Path
    out: Path
    overwrite: bool = False
    progress: Progress = field(default_factory=SilentProgress)
    data: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    threads: int = 1
    open_threads: bool = False
    batch: int | None = None
    seconds: float = 20.0
    seed: int = 0
    drop: float | None = None
    tasks: tuple[str, ...] = ()
    metric: str = ""
    classes: Path | None = None
    weight_bits: WeightBits = "auto"
    allow_bf16: bool = False
    clock: Clock = field(default_factory=current_clock)

    def place(self, kind: str, names: Collection[str]) -> BuildFolder:
        """The folder, or the one beside it in which what replaces a finished one is made.

        Args:
            kind: Name of the command.
            names: Of all that it writes.

        Raises:
            InputError: Something finished in it may not be replaced.
        """
        folder = BuildFolder(self.out, kind, names=names)
        return place_for(folder, overwrite=self.overwrite, offer=lambda free: f"{free} is free")


def read_given(path: Path) -> onnx.ModelProto:
    """The model, weights included.

    Raises:
        InputError: It cannot be read, or a weight is not finite.
    """
    check_present(path, what="model", hint="give an .onnx file", native=True)
    check_external(path)
    model = read_onnx(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(
                f"'{tensor.name}' of '{path}' holds NaN or Inf", hint="use an earlier checkpoint of the model"
            )
    return model


def calibrated_form(
    model: onnx.ModelProto,
    folder: Path,
    calibration: Sequence[Feeds],
    *,
    placement: Placement,
    repair: bool,
    reduce_range: bool,
    progress: Progress | None = None,
) -> tuple[Path, Calibrated]:
    """A model of any origin ready for int8: its float32 file, and what any mix of int8 and float is written from.

    Args:
        model: As `read_given` gives it, of any precision but int8.
        folder: For the file.
        calibration: Batches.
        placement: For which runtime.
        repair: Whether to repair what int8 costs.
        reduce_range: 7-bit weights.
        progress: Told about every step.

    Raises:
        InputError: Nothing of it can be quantized.
    """
    fp32 = folder / "float32.onnx"
    write_onnx(prepared(model), fp32)
    return fp32, calibrate(
        fp32,
        calibration,
        folder=folder,
        method="auto",
        placements=(placement,),
        reduce_range=reduce_range,
        repair=repair,
        progress=progress,
    )


def write_int8(
    model: onnx.ModelProto,
    path: Path,
    calibration: Sequence[Feeds],
    *,
    placement: Placement,
    repair: bool,
    progress: Progress | None = None,
    target: Target | None = None,
) -> QuantizationSummary:
    """Quantize a model of any origin to `path`; the rest as `calibrated_form`.

    Args:
        model: See there.
        path: Of the file.
        calibration: See there.
        placement: See there.
        repair: See there.
        progress: See there.
        target: The processor that weights are to suit; that of this machine where None.

    Raises:
        InputError: Nothing of it can be quantized.
    """
    reduce_range = reduces_range("auto", target or detect())
    with scratch() as apart:
        _, calibrated = calibrated_form(
            model,
            apart,
            calibration,
            placement=placement,
            repair=repair,
            reduce_range=reduce_range,
            progress=progress,
        )
        return write_qdq(calibrated, path, placement=placement, reduce_range=reduce_range)


def inputs_of(request: FileRequest, preprocessing: Preprocessing | None = None) -> Inputs:
    """The samples that the file is calibrated, judged and timed with.

    Args:
        request: Whose data; what it says about its preparation comes first.
        preprocessing: What the model's source says.

    Raises:
        InputError: The data does not fit.
    """
    settings = DataSettings(mean=request.mean, std=request.std, augment=False, seed=request.seed)
    if preprocessing is not None:
        settings = replace(
            settings,
            mean=settings.mean or preprocessing.mean,
            std=settings.std or preprocessing.std,
            resize=preprocessing.resize,
            interpolation=preprocessing.interpolation,
        )
    session = OnnxRuntime().open(request.model)
    said = Said(
        parse_tasks(request.tasks), classes=read_classes(request.classes) if request.classes is not None else ()
    )
    return sparsify_inputs(session, request.data, settings, batch=request.batch, said=said)


def file_judge(request: FileRequest, inputs: Inputs, given: Path) -> FormJudge:
    """Judges forms of the file that the user gave in OpenVINO.

    Args:
        request: What to do.
        inputs: With samples to judge on, and what the outputs are.
        given: The file.
    """
    return FormJudge(
        given,
        JUDGED_IN,
        inputs.judged,
        opened=lambda path, runtime: runtimes.get(runtime)().open(path, threads=request.threads),
        tasks=inputs.tasks,
        metric=own_metric(request.metric),
    )


def judged(
    request: FileRequest, files: Mapping[str, Path], inputs: Inputs
) -> tuple[dict[str, Quality], tuple[str, ...]]:
    """The quality of every form, each against the file that the user gave, which is the first; and what is doubted.

    Args:
        request: What to do.
        files: Name of the row -> file.
        inputs: As for `file_judge`.
    """
    first, *others = files
    judge = file_judge(request, inputs, files[first])
    return {first: judge.reference, **{name: judge.quality(files[name], JUDGED_IN) for name in others}}, judge.doubts


def quality_of(
    qualities: Mapping[str, Quality],
    request: FileRequest,
    *,
    drops: tuple[float, float] = (ACCURACY_DROP, AGREEMENT_DROP),
) -> dict[str, Any]:
    """The int8 form that loses most against the given model, as a report has it; empty where nothing is known.

    Args:
        qualities: Name of the form -> how good it is; the given model is the first.
        request: With what may be lost.
        drops: Points of the metric, and of agreement without labels, that may be lost where the request does not say.
    """
    given, *forms = qualities

    def allowed(gap: Gap) -> float:
        return drops[0 if gap.labelled else 1] if request.drop is None else request.drop

    found = [
        Kept(name, JUDGED_IN, gap, allowed(gap), request.drop)
        for name in forms
        for gap in gaps(qualities[name], qualities[given])
    ]
    worst = max(found, key=lambda kept: kept.lost - kept.allowed, default=None)
    return {} if worst is None else worst.to_json()


def doubtful(qualities: Mapping[str, Quality]) -> list[str]:
    """A form that disagrees with the given model on random inputs, which is no verdict."""
    given, *forms = qualities
    found = [(name, largest(gaps(qualities[name], qualities[given]))) for name in forms]
    return [
        f"on random inputs {name} differs from the given model by {gap.lost:.1f} points ({gap.kind}); --data tells "
        "whether it is worth anything"
        for name, gap in found
        if gap is not None and not gap.lost <= AGREEMENT_DROP
    ]


@dataclass(frozen=True)
class MeasuredFiles:
    """Forms of one model, timed side by side.

    Args:
        rows: One per form.
        timings: Name of the form -> its times.
        floor: Ratio below which differences are noise.
        doubts: What casts doubt on the times.
    """

    rows: tuple[Row, ...]
    timings: Mapping[str, Timing]
    floor: float
    doubts: tuple[str, ...]


def measured_files(
    request: FileRequest,
    artifacts: Sequence[Artifact],
    qualities: Mapping[str, Quality],
    inputs: Inputs,
    *,
    root: Path,
    in_bf16: Mapping[str, Quality] | None = None,
) -> MeasuredFiles:
    """Time all forms in OpenVINO, interleaved.

    Args:
        request: With threads, seconds and seed.
        artifacts: The forms; the first is what the others are compared with.
        qualities: Name of the form -> how good it is.
        inputs: With what to time on.
        root: Folder that is written to, which will be `request.out`.
        in_bf16: Name of the form -> how good it is there, where the forms are timed in bf16 as well.
    """
    known = {(artifact, JUDGED_IN): qualities[artifact.name] for artifact in artifacts}
    if in_bf16:
        known |= {(artifact, IN_BF16): in_bf16[artifact.name] for artifact in artifacts}
    machine = request.clock.machine.environment()
    with percent(request.progress, "measure") as progress:
        measured = request.clock.artifacts(
            list(known),
            threads=request.threads,
            budget_s=request.seconds,
            seed=request.seed,
            feeds=inputs.timed,
            progress=progress,
        )
    rows = make_rows(measured.complete(), list(known.values()), floor=measured.floor, seed=request.seed)
    doubts = find_doubts(measured, machine, longer=_longer(request, [artifact.path for artifact in artifacts], root))
    timings = {timing.artifact.name: timing for timing in measured.timings if timing.runtime == JUDGED_IN}
    return MeasuredFiles(tuple(rows), timings, measured.floor, tuple(doubts))


def _longer(request: FileRequest, paths: Sequence[Path], root: Path) -> str:
    """The command that times the same files for longer."""
    files = [str(request.out / path.relative_to(root) if path.is_relative_to(root) else path) for path in paths]
    options = ["--runtime", JUDGED_IN, "--threads", str(request.threads)]
    machine = request.clock.machine
    options += ["--target", machine.name] if machine.elsewhere else []
    seconds = f"{max(60.0, 3 * request.seconds):.0f}"
    return f"`{shlex.join(['deploypruner', 'bench', *files, *options, '--seconds', seconds])}`"
