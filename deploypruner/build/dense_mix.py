"""The dense model in int8 with the layers in float that its accuracy needs: what a budget of time may be for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploypruner.build.artifacts import MIXED, calibrated_for, write_mixed
from deploypruner.build.evaluate import form_judge
from deploypruner.build.mixing import mix_request
from deploypruner.build.state import Build
from deploypruner.measure.profiling import can_profile
from deploypruner.quantize.by_weight import layers_of, weights_of
from deploypruner.quantize.static import Calibrated
from deploypruner.records import Artifact
from deploypruner.scratch import scratch
from deploypruner.search.certify import DENSE_MIXED
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
    mixed = Artifact(DENSE_MIXED, build.folder.path(MIXED), "onnx", "int8", "dense", build.traced.cost())
    return replace(mixed, environment=build.environments.get(runtime, ())), weights


def _needed(
    build: Build, calibrated: Calibrated, files: tuple[Path, Path], folder: Path, *, runtime: str, allowed: float
) -> set[str]:
    """Layers that have to be float; none where no mix keeps the accuracy."""
    judge = form_judge(build, files[0], runtime)
    request = replace(
        mix_request(build, files, calibrated, folder),
        timed=(runtime,) if can_profile(runtime) else (),
        judged=runtime,
        lost=judge.lost,
        allowed=allowed,
    )
    _, forced, _ = needed(request)
    return set(forced)
