"""export: the files that load without this project."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn

from deploypruner.build.artifacts import write_state
from deploypruner.build.register import stages
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.export import exporters
from deploypruner.export.to_openvino import write_ir
from deploypruner.records import Artifact
from deploypruner.runtime import runtimes

_PRUNED_PROGRAM, _DENSE_PROGRAM = "model.pt2", stage_file("dense.pt2")


@stages.register("export")
class Export(Stage):
    """Write OpenVINO IR, the torch program and the plain weights."""

    name: ClassVar[str] = "export"
    needs: ClassVar[tuple[str, ...]] = ("quantize",)
    reads: ClassVar[tuple[str, ...]] = ("measure.runtimes", "prune.patterns")
    saves: ClassVar[tuple[str, ...]] = (
        "model.int8.xml",
        "model.int8.bin",
        _PRUNED_PROGRAM,
        _DENSE_PROGRAM,
        "weights.safetensors",
    )

    def run(self, build: Build) -> Build:
        """Write the files and give the IR as an artifact."""
        folder, graph = build.folder, build.traced
        with folder.writing("model.int8.xml", siblings=(".bin",)) as path:
            write_ir(folder.path("model.int8.onnx"), path)
        if graph.front_end == "torch.export":  # what no export could trace has no program either
            _write_program(build, build.compiled, _PRUNED_PROGRAM)
            if _runs_programs(build):
                _write_program(build, graph.module, _DENSE_PROGRAM)
        write_state(folder, "weights.safetensors", build.compiled)
        return self.restore(build)

    def restore(self, build: Build) -> Build:
        """The files are there."""
        ir = Artifact(
            "pruned int8", build.folder.path("model.int8.xml"), "openvino", "int8", build.pattern, build.pruned
        )
        return replace(build, artifacts=(*build.artifacts, ir, *_programs(build)))

    def document(self, build: Build) -> str:
        """Sizes of what was written."""
        names = ("model.fp32.onnx", "model.int8.onnx", "model.int8.bin", "model.pt2")
        written = [name for name in names if build.folder.has(name)]
        return ", ".join(f"{name} {build.folder.path(name).stat().st_size / 1e6:.2f} MB" for name in written)


def _runs_programs(build: Build) -> bool:
    """Did the user name a runtime that executes torch programs?"""
    return any(".pt2" in runtimes.get(name).suffixes for name in build.recipe.measure.runtimes)


def _write_program(build: Build, module: nn.Module, name: str) -> None:
    graph = build.traced
    with build.folder.writing(name) as path:
        exporters.get("pt2")().write(
            module, graph.example_inputs, path, dynamic_batch=graph.dynamic_batch, open_axes=graph.open_axes
        )


def _programs(build: Build) -> tuple[Artifact, ...]:
    """What such a runtime measures: the pruned model beside the dense one."""
    folder = build.folder
    if not (_runs_programs(build) and folder.has(_DENSE_PROGRAM)):
        return ()
    return (
        Artifact("dense fp32", folder.path(_DENSE_PROGRAM), "pt2", "fp32", "dense", build.traced.cost()),
        Artifact("pruned fp32", folder.path(_PRUNED_PROGRAM), "pt2", "fp32", build.pattern, build.pruned),
    )
