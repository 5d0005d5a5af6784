"""The dense model in int8 with the layers in float that its accuracy needs: what a budget of time may be for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deploypruner.build.artifacts import calibrated_for, dense_mixed, write_mixed
from deploypruner.build.evaluate import form_judge
from deploypruner.build.mixing import mix_request
from deploypruner.build.state import Build
from deploypruner.measure.profiling import can_profile
from deploypruner.quantize.by_weight import layers_of, weights_of
from deploypruner.quantize.placement import Placement, placement_in
from deploypruner.quantize.static import Calibrated
from deploypruner.records import Artifact
from deploypruner.scratch import scratch
from deploypruner.search.mixes import MixRequest
from deploypruner.search.mixing import float_elsewhere, needed

_SHARED: Placement = "openvino"


def dense_mix(
    build: Build, runtime: str, floats: tuple[str, ...], *, allowed: float
) -> tuple[Artifact, tuple[str, ...]] | None:
    """Find the layers, and write the file.

    Args:
        build: With data, and the dense model's files.
        runtime: Where accuracy is judged; pairs stand as it wants them, where that keeps the accuracy.
        floats: Weights of layers that are to be float whatever the dense model needs.
        allowed: Points that int8 alone may cost.

    Returns:
        The file, and the weights of its float layers; None where every layer may be int8, or no mix keeps the
        accuracy.
    """
    files = {artifact.name: artifact.path for artifact in build.artifacts if not artifact.runtime}
    with scratch() as folder:
        calibrated = calibrated_for(build, files["dense fp32"], (_SHARED, placement_in(runtime)), folder=folder)
        request = _request(build, files, calibrated, folder, runtime=runtime, allowed=allowed)
        _, forced, accuracy = needed(request)
        forced |= set(layers_of(request.fp32, floats))
        elsewhere = float_elsewhere(request, forced, accuracy, runtime=runtime)
        layers = forced if elsewhere is None else elsewhere
        # Names that no export of a smaller network would have are of no use to the search.
        own = build.traced.module.state_dict().keys()
        weights = tuple(name for name in weights_of(request.fp32, layers) if name in own)
        if not weights:
            return None
        reasons = dict.fromkeys(layers, "for the accuracy of the dense model, or of an earlier pass")
        mixed = dense_mixed(build, "" if elsewhere is None else runtime)
        placement = _SHARED if elsewhere is None else placement_in(runtime)
        with build.folder.writing(str(mixed.path.relative_to(build.folder.root))) as path:
            write_mixed(build, calibrated, path, placement=placement, keep_float=reasons)
    return replace(mixed, environment=build.environments.get(runtime, ())), weights


def _request(
    build: Build,
    files: Mapping[str, Path],
    calibrated: Calibrated,
    folder: Path,
    *,
    runtime: str,
    allowed: float,
) -> MixRequest:
    fp32, int8 = files["dense fp32"], files["dense int8"]
    return replace(
        mix_request(build, (fp32, int8), calibrated, folder),
        timed=(runtime,) if can_profile(runtime) else (),
        judged=runtime,
        lost=form_judge(build, fp32, runtime).lost,
        allowed=allowed,
        placement=_SHARED,
    )
