"""Widths, blocks and precision together: what one of them costs another, found out at the end of a pass.

The search chooses channels and blocks for the time that every layer takes in its own precision, and accuracy decides
which layers of the pruned model stay float. Where these are others than the search went by and the time is missed for
them, the search goes once more, with these layers float: it then prunes elsewhere what they cost.
"""

from __future__ import annotations

from deploypruner.build.bounds import float_for_accuracy
from deploypruner.build.points import earlier_points
from deploypruner.build.promise import kept_of
from deploypruner.build.stage import Again
from deploypruner.build.state import Build
from deploypruner.quantize.by_weight import weights_of
from deploypruner.sparsity.patterns import CHANNEL

# Times that are tried after the first.
_PACES = 2


def floats_unforeseen(build: Build) -> Again | None:
    """The search with the layers in float that the accuracy kept float, where the time was missed for them.

    Once: a second pass knows of float layers from the start, and whatever is missing then is said.
    """
    found, certificate = build.found, build.certificate
    if found is None or certificate is None or certificate.met is not False:
        return None
    if found.setting.precision != "int8" or found.setting.floats or CHANNEL not in build.recipe.prune.patterns:
        return None
    layers = float_for_accuracy(build)
    floats = weights_of(build.folder.path("model.fp32.onnx"), layers)
    if not floats or _missed_anyway(build):
        return None
    count = f"{len(layers)} layer{'s have' if len(layers) > 1 else ' has'}"
    budget = build.recipe.prune.budget
    why = f"{count} to be float for the accuracy, and {budget} is missed with that; the search now knows of it"
    remarks = (*build.remarks, f"searched twice: {why}")
    return Again("allocate", {"floats": floats, "earlier": earlier_points(build), "remarks": remarks}, why)


def _missed_anyway(build: Build) -> bool:
    """Would int8 everywhere have missed the time, too, so that float layers are not why?"""
    found, certificate = build.found, build.certificate
    assert found is not None, "there is a budget of time"
    assert certificate is not None, "it was measured"
    compared = build.precision["files"][0]["against"].get(found.setting.runtime, {}).get("int8")
    if compared is None or certificate.bound is None:
        return False
    asked = found.goal(build.recipe.prune.budget).requested
    # Times as fast as the all-int8 file, so that below one it is the mix that is slower.
    if build.recipe.prune.budget.speedup is not None:
        return bool(certificate.bound / compared["ratio"] < asked)
    return bool(certificate.bound * compared["ratio"] > asked)


def too_fast(build: Build) -> Again | None:
    """The search with a longer time, where the least that seemed to keep the accuracy does not keep it in the end.

    Twice at the most.
    """
    found, kept = build.found, kept_of(build)
    if found is None or not found.pace or kept is None or kept.kept or len(found.paces) >= _PACES:
        return None
    ms = found.goal(build.recipe.prune.budget).requested
    why = f"{ms:.3g} ms lost {kept.lost:.2g} points in the end, {kept.allowed:g} allowed; a longer time is tried"
    earlier = earlier_points(build)
    remarks = (*build.remarks, f"searched again: {why}")
    return Again("allocate", {"paces": (*found.paces, ms), "earlier": earlier, "remarks": remarks}, why)
