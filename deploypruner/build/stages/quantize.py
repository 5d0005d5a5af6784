"""quantize: fp32 ONNX of the dense and the pruned model, and QDQ int8 ONNX from each; for a runtime its own."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, ClassVar

import onnx

from deploypruner.build.artifacts import DENSE, DENSE_OWN, dense_artifacts, with_dense, write_mixable, write_state
from deploypruner.build.doubted import doubted_count, doubted_layers
from deploypruner.build.feeds import calibration_feeds
from deploypruner.build.mixing import judged_in, mix_precision, own_file
from deploypruner.build.quantized_training import qat_sentence, train_int8
from deploypruner.build.register import stages
from deploypruner.build.results import Quantized
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.qat import QatOutcome
from deploypruner.quantize.idle_layers import idle_layers
from deploypruner.quantize.placement import OWN_PLACEMENT, Placement
from deploypruner.records import Artifact
from deploypruner.report.repaired import repair_sentence, weights_sentence
from deploypruner.runtime import runtimes

_PRUNED = ("model.fp32.onnx", "model.int8.onnx")


@stages.register("quantize")
class Quantize(Stage):
    """Write both precisions of both models; the dense ones are what the pruned ones are compared with."""

    name: ClassVar[str] = "quantize"
    needs: ClassVar[tuple[str, ...]] = ("recover",)
    reads: ClassVar[tuple[str, ...]] = (
        *("quantize", "target", "prune.patterns", "seed"),
        *("measure.accuracy_drop", "measure.runtimes", "measure.allow_bf16", "measure.samples", "measure.threads"),
        "recover.settings",
    )
    saves: ClassVar[tuple[str, ...]] = (
        *(*DENSE, *DENSE_OWN, *_PRUNED, *map(own_file, OWN_PLACEMENT)),
        stage_file("quantize.json"),
    )

    def run(self, build: Build) -> Build:
        """Give the four ONNX artifacts."""
        if build.traced.front_end != "torch.export":  # ONNX may turn out to be impossible; the weights remain
            write_state(build.folder, "weights.safetensors", build.compiled)
        build = with_dense(build)
        placement: Placement = "openvino" if build.zeros is None else "sparse"
        pruned, calibrated = write_mixable(build, build.compiled, _PRUNED, placement)
        summary, precision = mix_precision(build, _PRUNED, calibrated, summary=pruned, placement=placement)
        if build.data is not None:
            dense = onnx.load(build.folder.path(DENSE[0]))
            precision["remarks"] += doubted_layers(idle_layers(dense, calibration_feeds(build)))
        trained = train_int8(build, _PRUNED, runtime=judged_in(build))
        if trained is not None:
            precision["qat"] = asdict(trained)
            precision["own_qat"] = self._train_own(build, precision["files"])
        document = {"quantization": replace(build.quantized, pruned=summary).to_json(), "precision": precision}
        build.folder.write_json(self.saves[-1], document)
        return self.restore(build)

    def _train_own(self, build: Build, files: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The same for the files that runtimes have of their own: runtime -> what came of it."""
        own = {
            file["runtime"]: train_int8(build, (_PRUNED[0], file["file"]), runtime=file["runtime"])
            for file in files
            if file["runtime"]
        }
        return {runtime: asdict(outcome) for runtime, outcome in own.items() if outcome is not None}

    def restore(self, build: Build) -> Build:
        """The files are there."""
        found = build.folder.read_json(self.saves[-1])
        quantized, precision = Quantized.from_json(found["quantization"]), found["precision"]
        few = () if build.data is None or quantized.pruned is None else doubted_count(quantized.pruned.samples)
        remarks = (*build.remarks, *precision["remarks"], *few)
        build = replace(build, quantized=quantized, precision=precision, remarks=remarks)
        return _with_pruned(dense_artifacts(build))

    def document(self, build: Build) -> str:
        """How much became int8."""
        summary = build.quantized.pruned
        assert summary is not None, "this stage gives it"
        samples = "random noise" if build.data is None else f"{summary.samples} samples"
        own = [file for file in build.precision["files"] if file["runtime"]]
        more = "".join(f"; {file['file']} for {runtimes.get(file['runtime']).label} alone" for file in own)
        counts = f"{summary.quantized} layers int8, {len(summary.left_float)} left float, ranges from {samples}"
        if summary.weight_bits == 7:
            counts += f"; weights have {weights_sentence(7)}"
        repaired = repair_sentence([asdict(step) for step in summary.repair])
        trained = "" if (found := build.precision.get("qat")) is None else qat_sentence(QatOutcome(**found))
        for runtime, found in build.precision.get("own_qat", {}).items():
            trained += f"; {own_file(runtime)}: {qat_sentence(QatOutcome(**found))}"
        return "; ".join(part for part in (counts, repaired, f"{build.precision['note']}{more}", trained) if part)


def _with_pruned(build: Build) -> Build:
    folder = build.folder
    artifacts: tuple[Artifact, ...] = (
        Artifact("pruned fp32", folder.path(_PRUNED[0]), "onnx", "fp32", build.pattern, build.pruned),
        Artifact("pruned int8", folder.path(_PRUNED[1]), "onnx", "int8", build.pattern, build.pruned),
    )
    artifacts += tuple(
        replace(artifacts[1], path=folder.path(own_file(name)), runtime=name)
        for name in OWN_PLACEMENT
        if folder.has(own_file(name))
    )
    return replace(build, artifacts=(*build.artifacts, *artifacts))
