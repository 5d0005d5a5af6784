"""Probe files of one graph in every precision, and the worker that times them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from deploypruner.device.connection import Device
from deploypruner.errors import MeasureError, TraceError
from deploypruner.export import exporters
from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.graph.inputs import batch_size, noise_like, resized
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.dropping import Addition, marked, unmark
from deploypruner.latency.matching import Lengths
from deploypruner.latency.plans import dropping_plans, plans_needed, probe_plans, scattered_plans
from deploypruner.latency.template import Template, learn
from deploypruner.measure.process import Worker
from deploypruner.measure.profiling import from_lists
from deploypruner.onnx_file import write_onnx
from deploypruner.quantize.by_weight import layers_of
from deploypruner.quantize.placement import Placement
from deploypruner.quantize.static import quantize_static
from deploypruner.records import Artifact, Precision, Setting
from deploypruner.runtime import Array, NodeTime
from deploypruner.scratch import scratch

# Plans a template is tried on.
_TRIALS = 5


@dataclass(frozen=True)
class Profile:
    """One network timed from the inside.

    Virtual machines share cores with neighbours nobody sees: no process, no steal time, yet everything takes up to
    twice as long for a tenth of a second or for minutes. Calls of one reference network between the calls of every
    other one tell by how much each call was slowed down.

    Args:
        samples: `[calls, 2]` nanoseconds of single inferences without counters, and of the reference around each.
        nodes: Every executed operation; their times add up to about one inference.
    """

    samples: NDArray[np.float64]
    nodes: tuple[NodeTime, ...]

    def ms(self, reference_ns: float) -> float:
        """Latency when the reference takes `reference_ns`."""
        return float(np.median(self.samples[:, 0] / self.samples[:, 1])) * reference_ns / 1e6


def undisturbed_ns(profiles: Sequence[Profile]) -> float:
    """What the reference takes when nothing disturbs the core: the lowest fiftieth of all its calls."""
    return float(np.quantile(np.concatenate([profile.samples[:, 1] for profile in profiles]), 0.02))


class ProbeFiles:
    """Writes the exported form of a graph under any plan.

    Args:
        graph: The traced model.
        precisions: In which files will be asked for.
        folder: For temporary files.
        seed: Of the plans the template is learnt from.
        floats: Weights of layers that stay float in int8 files.
        placement: Of the pairs in int8 files.

    Attributes:
        lengths: Lengths of the graph's axes.
        learnt: Plans of the exports, the dense one first.

    Raises:
        MeasureError: The model cannot be written as ONNX, so that no runtime can tell what each layer takes.
    """

    def __init__(
        self,
        graph: Graph,
        precisions: Sequence[Precision],
        folder: Path,
        *,
        seed: int,
        floats: Collection[str] = (),
        placement: Placement = "openvino",
    ) -> None:
        self._graph, self._folder, self._floats, self._placement = graph, folder, floats, placement
        self.lengths = Lengths(graph)
        self.learnt: list[Keep] = [{}, *scattered_plans(graph, plans_needed(graph), seed=seed)]
        exported = [self._export(keep, folder / f"learn{i}.onnx") for i, keep in enumerate(self.learnt) if keep]
        dense, additions = self._export_dense(folder / "learn0.onnx")
        exported.insert(0, dense)
        self._templates: dict[Precision, Template | None] = {}
        for precision in dict.fromkeys(precisions):
            files = exported
            if precision == "int8":
                files = [self._quantize(file, file.with_name(f"{file.stem}.int8.onnx")) for file in exported]
            template = learn(files, self.counts(self.learnt), additions)
            self._templates[precision] = template if template is not None and self._sound(template) else None

    def write(self, keep: Keep, precision: Precision) -> Path:
        """The file of a plan; the next call overwrites it."""
        path = self._folder / f"probe.{precision}.onnx"
        template = self._templates[precision]
        if template is not None and (self.drops(precision) or not self._graph.dropped(keep)):
            template.write(self.lengths.of(keep), path)
            return path
        if precision == "fp32":
            return self._export(keep, path)
        return self._quantize(self._export(keep, self._folder / "probe.onnx"), path)

    def without(self, precision: Precision) -> list[Keep]:
        """Plans that tell by what they lack which operation belongs to which branch.

        None where branches cannot be left out of the template: operations of files that were exported anew with fewer
        branches have other names.
        """
        return dropping_plans(self._graph) if self.drops(precision) else []

    def drops(self, precision: Precision) -> bool:
        """Can files be written without some branches whose operations keep their names?"""
        template = self._templates[precision]
        return template is not None and len(template.additions) == len(self._graph.branches)

    def counts(self, plans: Sequence[Keep]) -> IntArray:
        """Lengths `[plans, axes]`, see `Lengths`."""
        return np.array([self.lengths.of(keep) for keep in plans])

    def _sound(self, template: Template) -> bool:
        """Do the sizes in a file it was not learnt from fit together? Two axes may have changed alike by chance."""
        path = self._folder / "trial.onnx"
        for keep in ({}, *probe_plans(self._graph, _TRIALS, step=1, seed=0)[1:]):
            template.write(self.lengths.of(keep), path)
            try:
                onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
            except onnx.shape_inference.InferenceError:
                # A domain of our own has no shapes to infer: what holds for the dense file says nothing then.
                return not keep
        return True

    def _export(self, keep: Keep, path: Path) -> Path:
        write_candidate(self._graph, keep, "fp32", path)
        return path

    def _export_dense(self, path: Path) -> tuple[Path, dict[int, Addition]]:
        """The dense file, and where in it each branch is added; nothing where that cannot be found out."""
        graph = self._graph
        if graph.branches:
            _write_onnx(graph, marked(graph), path)
            unmarked = unmark(onnx.load(path), len(graph.branches))
            if unmarked is not None:
                model, additions = unmarked
                write_onnx(model, path)
                axes = (self.lengths.branches.axes[branch.id] for branch in graph.branches)
                return path, dict(zip(axes, additions, strict=True))
        return self._export({}, path), {}

    def _quantize(self, fp32: Path, int8: Path) -> Path:
        return _quantize(self._graph, fp32, int8, self._floats, self._placement)


def _quantize(graph: Graph, fp32: Path, int8: Path, floats: Collection[str], placement: Placement) -> Path:
    kept = dict.fromkeys(layers_of(fp32, floats) if floats else (), "")
    quantize_static(fp32, int8, calibration=[one_sample(graph)], placement=placement, keep_float=kept)
    return int8


def write_candidate(
    graph: Graph,
    keep: Keep,
    precision: Precision,
    path: Path,
    *,
    floats: Collection[str] = (),
    placement: Placement = "openvino",
) -> None:
    """Write the network that is left under a plan, as a build would but for its weights and ranges, to be timed.

    Args:
        graph: The traced model.
        keep: Group id -> kept channels.
        precision: "int8" is quantized with ranges from one sample of noise.
        path: The .onnx file.
        floats: Weights of layers that stay float in it.
        placement: Of the pairs in it.

    Raises:
        MeasureError: The model cannot be written as ONNX.
    """
    module = graph.cut(graph.removed(keep)) if keep else graph.module
    fp32 = path if precision == "fp32" else path.with_name(f"{path.stem}.fp32.onnx")
    _write_onnx(graph, module, fp32)
    if precision == "int8":
        _quantize(graph, fp32, path, floats, placement)
        fp32.unlink()


def _write_onnx(graph: Graph, module: torch.nn.Module, path: Path) -> None:
    try:
        # A batch of one, written into the file: where every size is a number, an export takes a quarter of the time.
        inputs = resized(graph.example_inputs, 1) if graph.dynamic_batch else graph.example_inputs
        exporters.get("onnx")().write(module, inputs, path, dynamic_batch=False)
    except TraceError as error:
        raise MeasureError(
            f"predicting latency needs the model as ONNX, and that failed: {error.message}",
            hint="give a budget with --macs instead, or change the operation named above",
        ) from error


def profile(
    path: Path,
    setting: Setting,
    *,
    feeds: Sequence[Array] | None = None,
    seconds: float = 0.5,
    device: Device | None = None,
) -> Profile:
    """Time one file from the inside, in a worker of its own.

    Args:
        path: .onnx or .xml file.
        setting: Where it runs.
        feeds: One array per input; random ones where None.
        seconds: For each of the two timings.
        device: The machine; this one where None.

    Raises:
        MeasureError: As `Timer.profile`.
        DeviceError: The machine is lost.
    """
    with ProbeTimer(setting, feeds, device) as timer:
        return timer.profile(path, seconds=seconds)


class ProbeTimer:
    """A worker that times probe files of one setting; a context manager.

    Args:
        setting: Runtime, precision and threads.
        feeds: One array per input; random ones where None.
        device: The machine it runs on; this one where None.
    """

    def __init__(self, setting: Setting, feeds: Sequence[Array] | None, device: Device | None = None) -> None:
        self._setting, self._feeds, self._stack = setting, feeds, ExitStack()
        self._given = device

    def __enter__(self) -> ProbeTimer:
        with ExitStack() as stack:
            self._folder = stack.enter_context(scratch())
            self._saved: Path | None = None
            if self._feeds is not None:
                self._saved = self._folder / "feeds.npz"
                np.savez(self._saved, *self._feeds)
            self._device = self._given or stack.enter_context(Device())
            self._worker, self.version = self._device.lasting(lambda: self._hired(stack))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _hired(self, stack: ExitStack) -> tuple[Worker, str]:
        """A worker that has loaded its runtime, and the version of that."""
        setting = self._setting
        artifact = Artifact("probe", self._folder, "onnx", setting.precision, environment=setting.environment)
        worker = stack.enter_context(Worker(artifact, setting.runtime, threads=setting.threads, device=self._device))
        version = str(worker.ask(do="load", runtime=setting.runtime)["version"])
        cores, _ = self._device.pick_cores(setting.threads)
        if cores:
            worker.ask(do="pin", cores=cores)
        return worker, version

    def refer_to(self, path: Path) -> None:
        """Make a file the reference of all profiles that follow.

        Raises:
            MeasureError: It cannot be run.
            DeviceError: The machine is lost.
        """
        # Kept apart: it may be opened anew after the next probe has taken the place of the file.
        kept = self._folder / f"reference{path.suffix}"
        shutil.copyfile(path, kept)
        threads = self._setting.threads

        def refer() -> None:
            self._worker.ask(do="open", path=kept, threads=threads, seed=0, shapes={}, feeds=self._saved)
            self._worker.ask(do="warm", max_s=0.3, max_calls=300)

        self._device.lasting(refer, again=self._worker.revive)

    def profile(self, path: Path, *, seconds: float) -> Profile:
        """Time a file from the inside.

        Args:
            path: The file.
            seconds: For each of its two timings; 0 to learn its operations only, their times being rough.

        Raises:
            MeasureError: It cannot be run, or the runtime does not count the time of operations.
            DeviceError: The machine is lost.
        """

        def ask() -> dict[str, Any]:
            return self._worker.ask(
                do="profile", path=path, threads=self._setting.threads, feeds=self._saved, seconds=seconds
            )

        said = self._device.lasting(ask, again=self._worker.revive)
        samples = np.array([said["ns"], said["reference"]], dtype=np.float64).T
        return Profile(samples, from_lists(said["nodes"]))

    def drop(self, path: Path) -> None:
        """Let the machine forget a file, which is not timed again."""
        self._device.drop(path)

    def call_ms(self, path: Path, calls: int) -> float:
        """The shortest of a few calls, milliseconds.

        Raises:
            MeasureError: It cannot be run.
            DeviceError: The machine is lost.
        """
        threads = self._setting.threads

        def ask() -> list[int]:
            self._worker.ask(do="open", path=path, threads=threads, seed=0, shapes={}, feeds=self._saved)
            return self._worker.block(calls)

        return min(self._device.lasting(ask, again=self._worker.revive)) / 1e6


def one_sample(graph: Graph) -> list[Array]:
    """What a probe runs on: normal numbers for floating inputs, the example for others; one sample if it may."""
    size = 1 if graph.dynamic_batch else batch_size(graph.example_inputs)
    return noise_like(graph.example_inputs, size, torch.Generator().manual_seed(0))
