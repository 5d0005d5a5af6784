"""sparse: the int8 model whose zeros cost nothing, beside the dense one; layer by layer what is faster."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from typing import ClassVar

import onnx

from deploypruner.build.feeds import timing_feeds, verification_feeds
from deploypruner.build.register import stages
from deploypruner.build.sparse_model import MODEL, make_sparse
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.build.timed import SPARSE
from deploypruner.onnx_file import write_onnx
from deploypruner.records import Artifact, Check
from deploypruner.scratch import scratch
from deploypruner.sparse.fixing import fixed_at
from deploypruner.sparse.library import EXTENSION, extension_path


@stages.register("sparse")
class Sparse(Stage):
    """Write model.sparse.onnx and the library that runs it, where weights are zero and that is faster."""

    name: ClassVar[str] = "sparse"
    needs: ClassVar[tuple[str, ...]] = ("export",)
    reads: ClassVar[tuple[str, ...]] = ("measure.threads", "prune.patterns", "seed")
    saves: ClassVar[tuple[str, ...]] = (MODEL, EXTENSION, stage_file("sparse.json"))

    def run(self, build: Build) -> Build:
        """Give the artifact, its proof, and what was decided about each layer."""
        if build.zeros is None:  # no zeros, neither asked for nor brought along
            return build
        dense, lengths = build.folder.path("model.int8.onnx"), _lengths(build)
        with scratch() as folder:
            if lengths:
                fixed = fixed_at(onnx.load(dense), lengths)
                dense = folder / "model.int8.onnx"
                write_onnx(fixed, dense)
            made = make_sparse(
                dense,
                folder / MODEL,
                feeds=verification_feeds(build),
                timed=timing_feeds(build),
                threads=build.threads,
                counts=build.thread_counts,
                environments=build.environments_to_race,
                say=build.say,
                clock=build.clock,
            )
            if made.check is not None:
                with build.folder.writing(MODEL) as path:
                    shutil.copyfile(folder / MODEL, path)
                with build.folder.writing(EXTENSION) as path:
                    shutil.copyfile(extension_path(), path)
        document = {"check": made.check and asdict(made.check), **made.document, "pattern": build.zeros.pattern}
        build.folder.write_json(self.saves[-1], document)
        return self.restore(build)

    def restore(self, build: Build) -> Build:
        """Read what was decided."""
        if not build.folder.has(self.saves[-1]):
            return build
        document = build.folder.read_json(self.saves[-1])
        found = document.pop("check")
        build = replace(build, sparse=document)
        if found is None:
            return replace(build, remarks=(*build.remarks, f"no sparse model: {document['reason']}"))
        artifact = Artifact(SPARSE, build.folder.path(MODEL), "onnx", "int8", build.pattern, build.pruned)
        # Each form as it was fastest: the dense one, too, see `Build.environments`.
        artifact = replace(artifact, environment=tuple(document.get("environment", {}).items()))
        if lengths := _lengths(build):
            only = ", ".join(f"{name} {length}" for name, length in lengths.items())
            remark = f"{MODEL} is for {only} only: sparse kernels are made for one size; the other files stay open"
            build = replace(build, remarks=(*build.remarks, remark))
        return replace(build, artifacts=(*build.artifacts, artifact), checks=(*build.checks, Check(**found)))

    def document(self, build: Build) -> str | None:
        """How many layers went sparse, or why none; nothing where there are no zeros."""
        found = build.sparse
        if not found:
            return None
        if not found["chosen"]:
            return f"stays dense: {found['reason']}"
        return f"{found['chosen']} of {len(found['layers'])} layers in sparse kernels ({found['target']})"


def _lengths(build: Build) -> dict[str, int]:
    """Name of each open axis -> the example's length."""
    return {axis.name: axis.length for axis in build.traced.open_axes}
