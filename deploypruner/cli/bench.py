"""The command `bench`: artifacts of any origin, measured side by side."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

import click

from deploypruner.atomic import os_errors, replacing
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import SEED, THREADS, Real, colour, console, shape_of, shows_progress, width
from deploypruner.cli.recipe_options import command_option, recipe_option
from deploypruner.command_line import with_option
from deploypruner.device.described import HERE, described
from deploypruner.errors import InputError, MeasureError, RecipeError
from deploypruner.figures import scaled
from deploypruner.progress import percent
from deploypruner.ranges import MOST
from deploypruner.reading import status
from deploypruner.recipe.option import MEASURING, MODEL
from deploypruner.recipe.overrides import chosen_runtimes
from deploypruner.registries import runtimes
from deploypruner.sources.named import data_kind

if TYPE_CHECKING:
    import numpy as np

    from deploypruner.measure import Bench, Job
    from deploypruner.recipe.data import DataSettings
    from deploypruner.records import Quality
    from deploypruner.runtime import Session

    Judged = Callable[[Sequence[Job]], Sequence[Quality | None]]

_BUILD_FILES = (
    "dense.fp32.onnx",
    "dense.int8.onnx",
    "dense.int8.onnxruntime.onnx",
    "model.fp32.onnx",
    "model.int8.onnx",
    "model.int8.onnxruntime.onnx",
    "model.int8.openvino-bf16.onnx",
    "model.int8.xml",
)


@click.command(
    "bench",
    cls=GroupedCommand,
    examples={
        "deploypruner bench build/": "every model of a build",
        "deploypruner bench mine.onnx other.onnx --data photos/": "files of any origin, with their accuracy",
    },
)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@recipe_option("runtime")
@THREADS
@recipe_option("seconds")
@command_option(
    "--interval",
    group=MEASURING,
    type=Real(0, MOST, min_open=True),
    default=2.0,
    show_default=True,
    metavar="PERCENT",
    help="Stop when every ratio is known to ± this.",
)
@command_option(
    "--input-shape",
    group=MODEL,
    multiple=True,
    metavar="NAME=1,3,224,224",
    help="Sizes of an input that the file leaves open.",
)
@command_option(
    "--data",
    group=MODEL,
    metavar="FILE",
    help="Real inputs: an .npz with one array per input name, or what `compile` takes.",
)
@command_option(
    "--target",
    group=MEASURING,
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Machine to measure on: cpu (here), ssh://user@host[:port], or a name of `target list`.",
)
@recipe_option("mean")
@recipe_option("std")
@recipe_option("task")
@command_option("--json", "document", metavar="FILE", help="Everything as JSON, raw samples too; - for stdout.")
@SEED
@shows_progress
def bench_command(
    artifacts: tuple[Path, ...],
    runtime: tuple[str, ...],
    threads: int | None,
    seconds: float | None,
    interval: float,
    input_shape: tuple[str, ...],
    data: str | None,
    target: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    task: tuple[str, ...],
    document: str | None,
    seed: int,
) -> None:
    """Measure artifacts side by side; the first one is the baseline.

    An artifact is an .onnx, .xml or .pt2 file, or a build folder, which stands for all its models. Inputs may have
    other names in each file; sizes that one leaves open are taken from another. With --data every file is judged,
    too: on labels where there are any, and against the first file; that is done here, whatever the target is.
    """
    asked = _named_shapes(input_shape)
    names = chosen_runtimes(runtime)
    for name in names or ():
        runtimes.check(name)
    for path in artifacts:
        _check_there(path)
    if document not in (None, "-"):
        _check_writable(Path(str(document)), artifacts)
    if data is not None:
        data_kind(data)
    where = described(target)
    with console() as shown:
        shown.doing("loading")
        from deploypruner.measure import bench, openers

        opened = openers(names)
        files = [file for path in artifacts for file in _artifact_files(path, opened)]
        examples = {name: shape for name, shape in _example_shapes(files).items() if name not in asked}
        shapes = {**examples, **asked}
        if examples:
            sizes = ", ".join(f"{name}={','.join(map(str, shape))}" for name, shape in examples.items())
            shown.say(f"sizes are open: timed at the build's example, --input-shape {sizes}")
        settings = partial(_settings, mean, std, seed)
        feeds, judged = (None, None) if data is None else _with_data(files[0], data, shapes, settings(), task)
        shown.doing("starting a worker for each file")
        with percent(shown, "measure") as progress:
            found = bench(
                files,
                runtimes=names,
                threads=threads or where.threads or 1,
                budget_s=seconds or 20.0,
                narrow=interval / 100,
                input_shapes=shapes,
                feeds=feeds,
                judged=judged,
                seed=seed,
                longer=_longer(seconds or 20.0),
                progress=progress,
                target=target,
            )
        if target != HERE:
            shown.say(_measured_there(found, target))
    text = json.dumps(found.as_json()) if document is not None else ""
    if document == "-":
        click.echo(text)
    click.echo(_as_text(found), err=document == "-")
    if document not in (None, "-"):  # after the table: what was measured is shown where the disk is full
        _write(Path(str(document)), text + "\n")
    _report_failures(found)


def _measured_there(found: Bench, target: str) -> str:
    """Which machine it was, and what it was sent."""
    machine = found.environment
    libraries = [name for name in ("openvino", "onnxruntime") if machine["versions"][name]]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in libraries)
    sent = f"{scaled(found.sent_bytes, 'B')} sent" if found.sent_bytes else "nothing sent, it was there already"
    return f"measured on {target}: {machine['cpu']}, {machine['cores']} cores, {versions}; {sent}"


def _longer(seconds: float) -> str:
    """What was typed, with more time."""
    command = with_option(["deploypruner", *sys.argv[1:]], "--seconds", f"{max(60.0, 3 * seconds):.0f}")
    return f"`{shlex.join(command)}`"


def _settings(mean: tuple[float, ...] | None, std: tuple[float, ...] | None, seed: int) -> DataSettings:
    from deploypruner.recipe.data import DataSettings

    return DataSettings(mean=mean, std=std, augment=False, seed=seed)


def _opened(file: Path, runtime: str) -> Session:
    from deploypruner.runtime import runtimes

    return runtimes.get(runtime)().open(file)


def _with_data(
    file: Path, data: str, shapes: dict[str, tuple[int, ...]], settings: DataSettings, tasks: tuple[str, ...]
) -> tuple[list[np.ndarray], Judged | None]:
    """One batch as the first file takes it, and what judges files; None for named arrays and for sizes left open."""
    from deploypruner.build.fitting import Said
    from deploypruner.build.form_judge import FormJudge
    from deploypruner.build.sparsify_inputs import named_arrays, one_batch, sparsify_inputs
    from deploypruner.measure.bench import pair_up
    from deploypruner.tasks.recognise import parse_tasks

    ((_, runtime), *_) = pair_up([file])
    session = _opened(file, runtime)
    specs = [replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in session.inputs]
    named = named_arrays(Path(data), specs)
    if named is not None:
        return named, None
    batch = one_batch(specs, data, settings)
    if any(None in spec.shape[1:] for spec in session.inputs):
        return batch, None
    inputs = sparsify_inputs(session, data, settings, batch=None, said=Said(parse_tasks(tasks)))
    judge = FormJudge(file, runtime, inputs.judged, opened=_opened, tasks=inputs.tasks, metric=None)

    def judged(jobs: Sequence[Job]) -> list[Quality | None]:
        return [
            judge.reference if (artifact.path, name) == (file, runtime) else judge.quality(artifact.path, name)
            for artifact, name in jobs
        ]

    return batch, judged


def _as_text(found: Bench) -> str:
    """The table, then what failed, what casts doubt, and how large the noise is."""
    from deploypruner.report import table_rows
    from deploypruner.report.outputs import outputs_text
    from deploypruner.report.terminal import wrap

    failed = [wrap("failed: ", str(failure.message), width()) for failure in found.measured.failures]
    doubts = [wrap("warning: ", text, width()) for text in found.warnings if text not in found.noise]
    by_output = outputs_text(found.rows)
    table = [table_rows(found.rows, colour=colour(), width=width()), *([by_output] if by_output else [])]
    return "\n".join([*table, *failed, *doubts, wrap("noise: ", _noise(found), width())])


def _noise(found: Bench) -> str:
    """One line for all rows: the floor, each cause in a few words, and what to try; --json has the rest."""
    from deploypruner.measure.statistics import SMALLEST_FLOOR

    causes = [re.split(r"[:;(]| so |, as when", text, maxsplit=1)[0].strip(" ,") for text in found.noise]
    commands = [command for text in found.noise for command in re.findall(r"`[^`]+`", text)]
    said = [
        f"differences below {100 * max(found.measured.floor, SMALLEST_FLOOR):.1f} % are not called",
        *dict.fromkeys(causes),
    ]
    return "; ".join([*said, *(f"longer: {command}" for command in commands[:1])])


def _report_failures(found: Bench) -> None:
    failures = found.measured.failures
    if failures:
        total = len(failures) + len(found.rows)
        raise MeasureError(f"{len(failures)} of {total} artifacts could not be measured", hint=_without_failed(found))


def _without_failed(found: Bench) -> str:
    """What to do about the first failure; where every file ran on another runtime, that one can be asked for."""
    failures = found.measured.failures
    failed = {failure.runtime for failure in failures}
    able = {t.runtime for t in found.measured.timings} - failed
    ran = {t.artifact.path for t in found.measured.timings if t.runtime in able}
    if not able or not {failure.artifact.path for failure in failures} <= ran:
        return failures[0].hint
    options = " ".join(f"--runtime {name}" for name in sorted(able))
    return f"{options} leaves out what cannot run it; {failures[0].hint}".rstrip("; ")


def _artifact_files(path: Path, opened: frozenset[str]) -> list[Path]:
    """The file itself, or the models of a build folder that end in one of the suffixes `opened`."""
    if not S_ISDIR(_check_there(path).st_mode):
        return [path]
    others = sorted(opened - {Path(name).suffix for name in _BUILD_FILES})
    names = (*_BUILD_FILES, *(f"model{suffix}" for suffix in others))
    files = [path / name for name in names if (path / name).is_file() and Path(name).suffix in opened]
    if not files:
        raise InputError(f"{path} holds no artifact", hint="name a build folder, or .onnx, .xml and .pt2 files")
    return files


def _check_there(path: Path) -> os.stat_result:
    found = status(path, what="artifact")
    if found is None:
        raise InputError(f"there is no file or folder '{path}'", hint=f"looked in {path.absolute().parent}")
    return found


def _example_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Input name -> shape of the example, for inputs that files of a build leave open; the first build's."""
    from deploypruner.build.folder import BuildFolder

    found: dict[str, tuple[int, ...]] = {}
    for root in dict.fromkeys(folder for file in files for folder in (file.parent, file.parent.parent)):
        try:
            inputs = BuildFolder(root).manifest().get("inputs") or ()
        except InputError:  # no build's
            continue
        for given in inputs if isinstance(inputs, list) else ():
            if isinstance(given, dict) and given.get("open_axes") and _is_shape(given.get("example")):
                found.setdefault(str(given.get("name")), tuple(given["example"]))
    return found


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int for size in value)


def _named_shapes(values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in values:
        # Names of ONNX inputs may hold "=" themselves.
        name, _, sizes = value.rpartition("=")
        shape = shape_of(sizes)
        if not name or not shape:
            raise RecipeError(f"--input-shape '{value}' is not NAME=1,3,224,224", hint="give one option per input")
        shapes[name] = shape
    return shapes


def _check_writable(path: Path, artifacts: tuple[Path, ...]) -> None:
    """Before measuring, so that minutes of it are not lost to a mistyped folder; and no file but JSON is replaced."""
    found = status(path, what="--json")
    if found is not None and S_ISREG(found.st_mode):
        with path.open("rb") as file:
            is_document = file.read(64).lstrip()[:1] in (b"", b"{", b"[")
        if not is_document or any(path.samefile(artifact) for artifact in artifacts if artifact.exists()):
            raise InputError(
                f"'{path}' is there and is no JSON", hint="--json takes a new file, or one it wrote before"
            )
    if (found is not None and S_ISDIR(found.st_mode)) or not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write '{path}'", hint="--json takes a file in a folder that exists, or -")


def _write(path: Path, text: str) -> None:
    """Whole or not at all; what is no file, such as /dev/stdout, is written to."""
    instead = "--json takes a file, or -"
    found = status(path, what="--json")
    if found is not None and not S_ISREG(found.st_mode):
        with os_errors(path, instead):
            path.write_text(text, encoding="utf-8")
        return
    with replacing(path.resolve(), instead=instead) as temporary:
        temporary.write_text(text, encoding="utf-8")
