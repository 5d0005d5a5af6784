"""verify: torch against every exported file, in the runtimes that will be measured, on real inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from deploypruner.build.feeds import verification_feeds
from deploypruner.build.mixing import own_file
from deploypruner.build.register import stages
from deploypruner.build.results import check_document
from deploypruner.build.sparsity import sparse_weights
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.export import from_module
from deploypruner.quantize.placement import OWN_PLACEMENT
from deploypruner.records import Check
from deploypruner.sparsity.zeros_check import verify_zeros
from deploypruner.verify.exported import verify_exports

_FILES = (
    *("model.fp32.onnx", "model.int8.onnx", *map(own_file, OWN_PLACEMENT), "model.int8.xml", "model.sparse.onnx"),
    *(f"model{exporter.suffix}" for exporter in from_module()),
)


@stages.register("verify")
class Verify(Stage):
    """Compare the pruned module with each file made from it."""

    name: ClassVar[str] = "verify"
    needs: ClassVar[tuple[str, ...]] = ("sparse",)
    reads: ClassVar[tuple[str, ...]] = ("seed", "measure.runtimes", "measure.allow_bf16")
    saves: ClassVar[tuple[str, ...]] = (stage_file("verify.json"),)

    def run(self, build: Build) -> Build:
        """Give one check per file and runtime."""
        files = {name: build.folder.path(name) for name in _FILES if build.folder.has(name)}
        checks = verify_exports(
            build.compiled,
            files,
            verification_feeds(build),
            dynamic_batch=build.traced.dynamic_batch,
            measured=build.measured_runtimes,
            example_inputs=build.traced.example_inputs,
            open_axes=build.traced.open_axes,
        )
        weights = sparse_weights(build)
        if weights:
            checks += verify_zeros(weights, files["model.fp32.onnx"], files["model.int8.onnx"])
        build.folder.write_json(self.saves[0], [check_document(check) for check in checks])
        return replace(build, checks=(*build.checks, *checks))

    def restore(self, build: Build) -> Build:
        """Read the checks of an earlier run."""
        saved = tuple(
            Check(**{**c, "max_abs_diff": np.nan if c["max_abs_diff"] is None else c["max_abs_diff"]})
            for c in build.folder.read_json(self.saves[0])
        )
        return replace(build, checks=(*build.checks, *saved))

    def document(self, build: Build) -> str:
        """How many checks passed."""
        passed = sum(c.passed for c in build.checks)
        return f"{passed} of {len(build.checks)} checks passed"
