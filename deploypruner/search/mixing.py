"""Which layers of an int8 file stay float: those that would cost too much accuracy, and those that int8 slows down.

Nothing is taken on a prediction alone: accuracy is judged on files, and a mix that is to be faster is timed beside
the all-int8 and the float file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deploypruner.errors import MeasureError
from deploypruner.measure import compare, median_ms
from deploypruner.quantize.placement import OWN_PLACEMENT, Placement, placement_in
from deploypruner.records import Comparison
from deploypruner.runtime import runtimes
from deploypruner.search.mix_accuracy import MixAccuracy
from deploypruner.search.mixes import (
    Mixed,
    MixedFile,
    MixRequest,
    layer_borders,
    layer_costs,
    race,
    run_layers,
    write_mix,
)
from deploypruner.search.precision import Mix, fastest_mix, without_losing_islands

# A runtime gets a file of its own where the shared one costs it more than this.
_OWN = 1.10
# What a mix has to be faster at least than the file with fewer float layers, by the lower end of the interval.
_FASTER = 1.01
_SHARED = "openvino"


def mix(request: MixRequest) -> Mixed:
    """Choose the layers that stay float; the all-int8 file stays as it is where that keeps accuracy and time.

    Raises:
        InputError: A file cannot be run.
    """
    found, forced, accuracy = needed(request)
    found = replace(found, errors=accuracy.errors, accuracy=accuracy.document, remarks=accuracy.remarks)
    found = _shared(request, found, forced, accuracy)
    for runtime in request.timed:
        if runtime in OWN_PLACEMENT and runtime in found.as_int8:
            found = _own(request, found, runtime, forced, accuracy=accuracy)
    return found


def needed(request: MixRequest) -> tuple[Mixed, Mix, MixAccuracy]:
    """The layers that the accuracy needs in float, with what every layer takes both ways, and what was judged."""
    found = _timed(request)
    accuracy = MixAccuracy(request)
    return found, accuracy.forced(None if not found.as_int8 else layer_costs(request, found, _first(found))), accuracy


def _timed(request: MixRequest) -> Mixed:
    """What every layer takes both ways, in every runtime that tells."""
    plain = MixedFile(request.placement, {}, "every layer that can be is int8")
    found = Mixed(plain)
    for runtime in request.timed:
        own = OWN_PLACEMENT.get(runtime, request.placement)
        int8 = request.int8 if own == request.placement else write_mix(request, own, {})
        try:
            as_float, as_int8 = run_layers(request, runtime, [request.fp32, int8])
        except MeasureError as error:
            found = replace(found, remarks=(*found.remarks, f"no layer was timed in {runtime}: {error.message}"))
            continue
        if not as_float:
            continue
        found = replace(
            found,
            as_float={**found.as_float, runtime: as_float},
            as_int8={**found.as_int8, runtime: as_int8},
        )
    shared = {name: runs for name, runs in found.as_int8.items() if name not in OWN_PLACEMENT}
    return replace(found, shared=replace(plain, runs=shared))


def _first(found: Mixed) -> str:
    """The runtime whose times count for the shared file."""
    return _SHARED if _SHARED in found.as_int8 else next(iter(found.as_int8))


def _shared(request: MixRequest, found: Mixed, forced: Mix, accuracy: MixAccuracy) -> Mixed:
    """The file for every runtime: what accuracy forces, and what is faster where OpenVINO runs it."""
    runtime = _SHARED if _SHARED in found.as_int8 else ""
    if not runtime:
        why = _for_accuracy(forced) if forced else found.shared.why
        return replace(
            found, shared=MixedFile(request.placement, _reasons(found, forced, forced, ""), why, found.shared.runs)
        )
    file = _best(request, found, runtime, forced, placement=request.placement)
    if not accuracy.keeps(write_mix(request, file.placement, file.keep_float), request.judged):
        kept = _reasons(found, forced, forced, runtime)
        file = replace(file, keep_float=kept, why=_for_accuracy(forced) if forced else found.shared.why)
    return replace(found, shared=file)


def _own(request: MixRequest, found: Mixed, runtime: str, forced: Mix, *, accuracy: MixAccuracy) -> Mixed:
    """A runtime's own file: where the shared one costs it more than a tenth, or anything if it alone is timed."""
    placement = OWN_PLACEMENT[runtime]
    shared = write_mix(request, found.shared.placement, found.shared.keep_float)
    runs = {**found.shared.runs, runtime: run_layers(request, runtime, [shared])[0]}
    found = replace(found, shared=replace(found.shared, runs=runs))
    kept = float_elsewhere(request, forced, accuracy, runtime=runtime)
    if kept is None:
        return found
    file = _best(request, found, runtime, kept, placement=placement, shared=shared)
    against = file.against[runtime]["shared"]
    least = _OWN if len(request.timed) > 1 else _FASTER
    if against.ratio_ci[0] > least and accuracy.keeps(write_mix(request, placement, file.keep_float), runtime):
        label = runtimes.get(runtime).label
        why = f"the shared file takes {label} {against.ratio:.2f} times as long; {file.why}"
        return replace(found, own={**found.own, runtime: replace(file, why=why)})
    return found


def float_elsewhere(request: MixRequest, forced: Mix, accuracy: MixAccuracy, *, runtime: str) -> Mix | None:
    """The layers to be float where pairs stand as a runtime wants them; None where that does not keep the accuracy.

    Its pairs may stand behind layers: a layer that gives what a float layer is to read in full may have to be float.

    Args:
        request: What is mixed.
        forced: Layers that are float for the accuracy where pairs stand as in the shared file.
        accuracy: Judges.
        runtime: In which that is judged.
    """
    placement = placement_in(runtime)
    before = {layer for layer, after in layer_borders(request) if after in forced}
    for layers in dict.fromkeys((forced, forced | before)):
        if accuracy.keeps(write_mix(request, placement, layers), runtime):
            return layers
    return None


def _best(
    request: MixRequest,
    found: Mixed,
    runtime: str,
    forced: Mix,
    *,
    placement: Placement,
    shared: Path | None = None,
) -> MixedFile:
    """The fastest mix that was measured in a runtime: with only what is forced float, and two with more."""
    costs = layer_costs(request, found, runtime)
    first = fastest_mix(costs, request.calibrated.layers, forced)
    mixes = {forced: write_mix(request, placement, forced)}
    if first != forced:
        mixes[first] = write_mix(request, placement, first)
        took = {layer: run.ms for layer, run in run_layers(request, runtime, [mixes[first]])[0].items()}
        second = without_losing_islands(first, costs, took, forced=forced)
        if second not in mixes:
            mixes[second] = write_mix(request, placement, second)
    if len(mixes) == 1 and shared is None and not forced:
        return MixedFile(placement, {}, found.shared.why, {runtime: found.as_int8[runtime]})
    files = {"float": request.fp32, **({} if shared is None else {"shared": shared}), "int8": request.int8}
    timings, floor = race(request, runtime, {**files, **{str(n): path for n, path in enumerate(mixes.values())}})
    chosen, best = forced, "0"
    for number, layers in enumerate(mixes):
        # Predicted to be faster, and measured so; the floor would leave it undecided wherever a machine is busy.
        surely = compare(timings[str(number)], timings["0"], floor=0.0, seed=request.seed).ratio_ci[0]
        if surely > _FASTER and median_ms(timings[str(number)].samples_ns) < median_ms(timings[best].samples_ns):
            chosen, best = layers, str(number)
    against = {name: compare(timings[best], timings[name], floor=floor, seed=request.seed) for name in files}
    runs = run_layers(request, runtime, [mixes[chosen]])[0]
    return MixedFile(
        placement,
        _reasons(found, chosen, forced, runtime),
        _why(chosen, forced, against, runtime),
        {runtime: runs},
        {runtime: against},
    )


def _why(chosen: Mix, forced: Mix, against: Mapping[str, Comparison], runtime: str) -> str:
    parts = [_for_accuracy(forced)] if forced else []
    if more := len(chosen) - len(forced):
        parts.append(f"{more} stay{'s' if more == 1 else ''} float because int8 is not faster there")
    label, compared = runtimes.get(runtime).label, against["float"]
    parts.append(f"{compared.ratio:.2f} times as fast as float in {label}")
    if compared.verdict == "slower":
        parts.append("int8 gives nothing here, the float file is the one to deploy")
    return "; ".join(parts)


def _for_accuracy(forced: Mix) -> str:
    return f"{len(forced)} layer{'s stay' if len(forced) != 1 else ' stays'} float for the accuracy"


def _reasons(found: Mixed, chosen: Mix, forced: Mix, runtime: str) -> dict[str, str]:
    """Why each layer stays float."""
    total = sum(found.errors.values())
    reasons = {}
    for layer in sorted(chosen):
        if layer in forced:
            share = found.errors.get(layer, 0.0) / total if total else 0.0
            reasons[layer] = f"for the accuracy: {100 * share:.1f} % of the error that int8 makes at the outputs"
            continue
        label = runtimes.get(runtime).label
        ours, theirs = (runs[runtime].get(layer) for runs in (found.as_int8, found.as_float))
        if ours is not None and theirs is not None and ours.ms >= theirs.ms:
            reasons[layer] = f"int8 is not faster here: {ours.ms:.3g} against {theirs.ms:.3g} ms in {label}"
        else:
            reasons[layer] = f"between float layers: converting would cost more than int8 gives in {label}"
    return reasons
