"""export: the files that load without this project."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from deploypruner.export import exporters
from deploypruner.export.to_openvino import write_ir
from deploypruner.records import Artifact
from deploypruner.stages import Build, Stage
from deploypruner.stages.recover import write_state


class Export(Stage):
    """Write OpenVINO IR, the torch program and the plain weights."""

    name: ClassVar[str] = "export"
    saves: ClassVar[tuple[str, ...]] = ("model.int8.xml", "model.int8.bin", "model.pt2", "weights.safetensors")

    def run(self, build: Build) -> Build:
        """Write the files and give the IR as an artifact."""
        folder, graph = build.folder, build.traced
        with folder.writing("model.int8.xml", siblings=(".bin",)) as path:
            write_ir(folder.path("model.int8.onnx"), path)
        if graph.front_end == "torch.export":  # what no export could trace has no program either
            with folder.writing("model.pt2") as path:
                exporters.get("pt2")().write(
                    build.compiled, graph.example_inputs, path, dynamic_batch=graph.dynamic_batch
                )
        write_state(folder, "weights.safetensors", build.compiled)
        return self.restore(build)

    def restore(self, build: Build) -> Build:
        """The files are there."""
        ir = Artifact("pruned int8", build.folder.path("model.int8.xml"), "openvino", "int8", "channel", build.pruned)
        return replace(build, artifacts=(*build.artifacts, ir))

    def document(self, build: Build) -> str:
        """Sizes of what was written."""
        names = ("model.fp32.onnx", "model.int8.onnx", "model.int8.bin", "model.pt2")
        written = [name for name in names if build.folder.has(name)]
        return ", ".join(f"{name} {build.folder.path(name).stat().st_size / 1e6:.2f} MB" for name in written)
