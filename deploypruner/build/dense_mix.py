"""The dense model in int8 with the layers in float that its accuracy needs: what a budget of time may be for."""

from __future__ import annotations

from pathlib import Path

from deploypruner.build.artifacts import MIXED, calibrated_for, reduces_range, write_mixed
from deploypruner.build.evaluate import open_artifact, validation_samples
from deploypruner.build.feeds import calibration_feeds, timing_feeds, verification_feeds
from deploypruner.build.form_judge import FormJudge
from deploypruner.build.state import Build
from deploypruner.quantize.by_weight import layers_of, weights_of
from deploypruner.quantize.sensitivity import class_outputs, first_samples
from deploypruner.quantize.static import Calibrated
from deploypruner.records import Artifact
from deploypruner.runtime import Profiler, runtimes
from deploypruner.scratch import scratch
from deploypruner.search.certify import DENSE_MIXED
from deploypruner.search.mixes import MixRequest
from deploypruner.search.mixing import needed


def dense_mix(
    build: Build, runtime: str, floats: tuple[str, ...], *, allowed: float
) -> tuple[Artifact, tuple[str, ...]] | None:
    """Find the layers, and write the file.

    Args:
        build: With data, and the dense model's files.
        runtime: Where accuracy is judged.
        floats: Weights of layers that are to be float whatever the dense model needs.
        allowed: Points that int8 alone may cost.

    Returns:
        The file, and the weights of its float layers; None where every layer may be int8, or no mix keeps the
        accuracy.
    """
    fp32, int8 = (artifact.path for artifact in build.artifacts[:2])
    with scratch() as folder:
        calibrated = calibrated_for(build, fp32, ("openvino",), folder=folder)
        layers = set(layers_of(fp32, floats)) | _needed(
            build, calibrated, (fp32, int8), folder, runtime=runtime, allowed=allowed
        )
        # Names that no export of a smaller network would have are of no use to the search.
        own = build.traced.module.state_dict().keys()
        weights = tuple(name for name in weights_of(fp32, layers) if name in own)
        if not weights:
            return None
        reasons = dict.fromkeys(layers, "for the accuracy of the dense model, or of an earlier pass")
        with build.folder.writing(MIXED) as path:
            write_mixed(build, calibrated, path, placement="openvino", keep_float=reasons)
    return Artifact(DENSE_MIXED, build.folder.path(MIXED), "onnx", "int8", "dense", build.traced.cost()), weights


def _needed(
    build: Build, calibrated: Calibrated, files: tuple[Path, Path], folder: Path, *, runtime: str, allowed: float
) -> set[str]:
    """Layers that have to be float; none where no mix keeps the accuracy."""
    judge = FormJudge(
        files[0],
        runtime,
        validation_samples(build),
        opened=lambda path, name: open_artifact(Artifact("mix", path, "onnx", "int8"), name),
        tasks=build.tasks,
        metric=build.metric,
    )
    _, forced, _ = needed(
        MixRequest(
            fp32=files[0],
            int8=files[1],
            calibrated=calibrated,
            folder=folder,
            timed=(runtime,) if issubclass(runtimes.get(runtime), Profiler) else (),
            judged=runtime,
            lost=judge.lost,
            allowed=allowed,
            classes=class_outputs(build.tasks),
            samples=first_samples(calibration_feeds(build)),
            reduce_range=reduces_range(build),
            threads=build.recipe.measure.threads,
            feeds=timing_feeds(build) or verification_feeds(build)[0],
            seed=build.recipe.seed,
            clock=build.clock,
            say=build.say,
            progress=build.progress,
        )
    )
    return set(forced)
