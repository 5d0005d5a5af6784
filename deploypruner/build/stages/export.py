"""export: the files that load without this project."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn

from deploypruner.build.artifacts import write_state
from deploypruner.build.register import stages
from deploypruner.build.stage import Stage
from deploypruner.build.state import Build
from deploypruner.export import Exporter, from_module
from deploypruner.export.to_openvino import write_ir
from deploypruner.records import Artifact
from deploypruner.report import units
from deploypruner.report.gains import EAGER
from deploypruner.runtime import runtimes


def _pruned(exporter: type[Exporter]) -> str:
    return f"model{exporter.suffix}"


def _dense(exporter: type[Exporter]) -> str:
    return f"dense{exporter.suffix}"


@stages.register("export")
class Export(Stage):
    """Write OpenVINO IR, every format that is written from the module, and the plain weights."""

    name: ClassVar[str] = "export"
    needs: ClassVar[tuple[str, ...]] = ("quantize",)
    reads: ClassVar[tuple[str, ...]] = ("measure.runtimes", "prune.patterns")
    saves: ClassVar[tuple[str, ...]] = (
        "model.int8.xml",
        "model.int8.bin",
        *(name(exporter) for exporter in from_module() for name in (_pruned, _dense)),
        "weights.safetensors",
    )

    def run(self, build: Build) -> Build:
        """Write the files and give the IR as an artifact."""
        folder, graph = build.folder, build.traced
        with folder.writing("model.int8.xml", siblings=(".bin",)) as path:
            write_ir(folder.path("model.int8.onnx"), path)
        if graph.front_end == "torch.export":  # what no export could trace has no program either
            for exporter in from_module():
                _write(build, exporter, build.compiled, _pruned(exporter))
                if _is_timed(build, exporter) or _is_compared(build, exporter):
                    _write(build, exporter, graph.module, _dense(exporter))
        write_state(folder, "weights.safetensors", build.compiled)
        return self.restore(build)

    def restore(self, build: Build) -> Build:
        """The files are there."""
        ir = Artifact(
            "pruned int8", build.folder.path("model.int8.xml"), "openvino", "int8", build.pattern, build.pruned
        )
        others = (artifact for exporter in from_module() for artifact in _artifacts(build, exporter))
        return replace(build, artifacts=(*build.artifacts, ir, *others))

    def document(self, build: Build) -> str:
        """Sizes of what was written."""
        names = ("model.fp32.onnx", "model.int8.onnx", "model.int8.bin", *map(_pruned, from_module()))
        written = [name for name in names if build.folder.has(name)]
        return ", ".join(f"{name} {units.scaled(build.folder.path(name).stat().st_size, 'B')}" for name in written)


def _is_timed(build: Build, exporter: type[Exporter]) -> bool:
    """Did the user name a runtime that opens such files?"""
    return any(exporter.suffix in runtimes.get(name).suffixes for name in build.recipe.measure.runtimes)


def _is_compared(build: Build, exporter: type[Exporter]) -> bool:
    """Is the dense model timed as the user runs it today?"""
    return not build.recipe.measure.runtimes and exporter.suffix in runtimes.get(EAGER).suffixes


def _write(build: Build, exporter: type[Exporter], module: nn.Module, name: str) -> None:
    graph = build.traced
    with build.folder.writing(name) as path:
        exporter().write(
            module, graph.example_inputs, path, dynamic_batch=graph.dynamic_batch, open_axes=graph.open_axes
        )


def _artifacts(build: Build, exporter: type[Exporter]) -> tuple[Artifact, ...]:
    """What such a runtime measures: the pruned model beside the dense one."""
    folder, made_as = build.folder, exporter.format
    if not (_is_timed(build, exporter) and folder.has(_dense(exporter))):
        return ()
    return (
        Artifact("dense fp32", folder.path(_dense(exporter)), made_as, "fp32", "dense", build.traced.cost()),
        Artifact("pruned fp32", folder.path(_pruned(exporter)), made_as, "fp32", build.pattern, build.pruned),
    )
