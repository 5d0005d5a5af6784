"""Which layers must not be int8: found by their errors at the outputs, confirmed on the metric."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from deploypruner.quantize.sensitivity import sensitivities
from deploypruner.search.gaps import points_of
from deploypruner.search.mixes import MixRequest, write_mix
from deploypruner.search.precision import LayerCosts, Mix, by_worth, fewest


class MixAccuracy:
    """Judges files, and finds the layers that must not be int8."""

    def __init__(self, request: MixRequest) -> None:
        self._request = request
        self.errors: dict[str, float] = {}
        self.document: dict[str, Any] = {}
        self.remarks: tuple[str, ...] = ()

    def lost(self, path: Path, runtime: str | None = None) -> float:
        """Points; what is not a number is everything."""
        assert self._request.lost is not None, "nobody judges"
        gap = self._request.lost(path, runtime or self._request.judged)
        return 0.0 if gap is None else gap.lost if gap.lost == gap.lost else math.inf

    def keeps(self, path: Path, runtime: str) -> bool:
        """Does a file lose no more than allowed, or, where that is out of reach, than the all-int8 one?"""
        if self._request.lost is None or self._request.allowed is None or not self.document:
            return True
        most = self._request.allowed
        if self.document["needed"] is not None:
            most = max(most, self.lost(self._request.int8))
        return self.lost(path, runtime) <= most

    def forced(self, costs: LayerCosts | None) -> Mix:
        """Layers that have to stay float for the accuracy; none where int8 keeps it, or where no mix can."""
        request = self._request
        if request.lost is None or request.allowed is None:
            return frozenset()
        gap = request.lost(request.int8, request.judged)
        if gap is None:
            return frozenset()
        all_int8 = self.lost(request.int8)
        self.document = {
            "runtime": request.judged,
            "kind": gap.kind,
            "labelled": gap.labelled,
            "allowed": request.allowed,
            "int8": _finite(all_int8),
            "float": None,
            "mixed": _finite(all_int8),
            "needed": None,
            "trials": [],
        }
        if all_int8 <= request.allowed:
            return frozenset()
        as_float = self.lost(request.fp32)
        self.document["float"] = _finite(as_float)
        if as_float > request.allowed:
            self._out_of_reach(as_float, f"the pruned model in float already loses {as_float:.3g}")
            return frozenset()
        return self._found(costs, all_int8)

    def _found(self, costs: LayerCosts | None, all_int8: float) -> Mix:
        request = self._request
        layers = request.calibrated.layers
        request.say(
            f"int8 everywhere loses {all_int8:.3g} "
            f"{points_of(self.document['kind'], labelled=self.document['labelled'])}, {request.allowed:.3g} allowed: "
            f"looking at what each of {len(layers)} layers costs"
        )
        request.progress.start(len(layers), "sensitivity")
        try:
            self.errors = sensitivities(
                request.fp32,
                request.calibrated,
                request.samples,
                classes=request.classes,
                reduce_range=request.reduce_range,
                each=lambda layer: request.progress.advance(),
            )
        finally:
            request.progress.close()
        order = by_worth(layers, self.errors, costs)
        losses: dict[int, float] = {}

        def keeps(count: int) -> bool:
            path = write_mix(request, request.placement, order[:count])
            losses[count] = self.lost(path)
            predicted = None if costs is None else costs.ms(order[:count])
            tried = {"float_layers": count, "lost": _finite(losses[count]), "layers": order[:count]}
            self.document["trials"].append({**tried, "predicted_ms": predicted})
            request.say(f"{count} of {len(layers)} layers float: loses {losses[count]:.3g} points")
            return losses[count] <= (request.allowed or 0.0)

        count = fewest(len(order), keeps)
        if count is None:
            self._out_of_reach(min([all_int8, *losses.values()]), "no mix with an int8 layer keeps it")
            return frozenset()
        self.document["mixed"] = losses[count]
        return frozenset(order[:count])

    def _out_of_reach(self, needed: float, why: str) -> None:
        self.document["needed"] = _finite(needed)
        allowed = self._request.allowed
        more = f"; --accuracy-drop {math.ceil(10 * needed) / 10:g} is needed" if math.isfinite(needed) else ""
        points = points_of(self.document["kind"], labelled=self.document["labelled"])
        self.remarks = (f"no int8 file loses at most {allowed:g} {points}: {why}{more}",)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
