"""quantize: fp32 ONNX of the dense and the pruned model, and one QDQ int8 ONNX from each."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import ClassVar

from deploypruner.build.artifacts import DENSE, dense_artifacts, with_dense, write_both, write_state
from deploypruner.build.register import stages
from deploypruner.build.results import Quantized
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.records import Artifact
from deploypruner.report.repaired import repair_sentence

_PRUNED = ("model.fp32.onnx", "model.int8.onnx")


@stages.register("quantize")
class Quantize(Stage):
    """Write both precisions of both models; the dense ones are what the pruned ones are compared with."""

    name: ClassVar[str] = "quantize"
    needs: ClassVar[tuple[str, ...]] = ("recover",)
    reads: ClassVar[tuple[str, ...]] = ("quantize", "target", "prune.patterns", "seed")
    saves: ClassVar[tuple[str, ...]] = (*DENSE, *_PRUNED, stage_file("quantize.json"))

    def run(self, build: Build) -> Build:
        """Give the four ONNX artifacts."""
        if build.traced.front_end != "torch.export":  # ONNX may turn out to be impossible; the weights remain
            write_state(build.folder, "weights.safetensors", build.compiled)
        build = with_dense(build)
        pruned = write_both(build, build.compiled, _PRUNED, "openvino" if build.zeros is None else "sparse")
        quantized = replace(build.quantized, pruned=pruned)
        build.folder.write_json(self.saves[-1], {"quantization": quantized.to_json()})
        return _with_pruned(replace(build, quantized=quantized))

    def restore(self, build: Build) -> Build:
        """The files are there."""
        quantized = Quantized.from_json(build.folder.read_json(self.saves[-1])["quantization"])
        return _with_pruned(dense_artifacts(replace(build, quantized=quantized)))

    def document(self, build: Build) -> str:
        """How much became int8."""
        summary = build.quantized.pruned
        assert summary is not None, "this stage gives it"
        samples = "random noise" if build.data is None else f"{summary.samples} samples"
        said = f"{summary.quantized} layers int8, {len(summary.left_float)} left float, ranges from {samples}"
        repaired = repair_sentence([asdict(step) for step in summary.repair])
        return f"{said}; {repaired}" if repaired else said


def _with_pruned(build: Build) -> Build:
    folder = build.folder
    artifacts = (
        Artifact("pruned fp32", folder.path(_PRUNED[0]), "onnx", "fp32", build.pattern, build.pruned),
        Artifact("pruned int8", folder.path(_PRUNED[1]), "onnx", "int8", build.pattern, build.pruned),
    )
    return replace(build, artifacts=(*build.artifacts, *artifacts))
