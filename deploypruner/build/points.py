"""Everything that was measured on the way to a result, as points of latency, quality and size.

Finished artifacts are points after recovery, timed side by side. The plans of the search are points before it: timed
alone, or only predicted, and judged repaired but not trained. Mixes of int8 and float are points of the finished
network. Each says which it is, and each can be exported later, see `build.exporting`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deploypruner.build.bounds import float_for_accuracy
from deploypruner.build.results import Point
from deploypruner.build.state import Build
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.quantize.placement import Placement, placement_in
from deploypruner.records import Artifact, Row
from deploypruner.search.candidates import Candidate, Look
from deploypruner.search.found import SearchResult
from deploypruner.search.kept import row_kept

_WEIGHT_BYTES = {"fp32": 4, "int8": 1}
REPAIRED = "repaired"
"""Weights that are made from the dense model's when the point is exported: what was judged was made likewise."""
FINISHED = "finished"
"""Weights of the finished build."""
DENSE = "dense"
"""Weights of the user's model."""


def points_of(build: Build) -> tuple[Point, ...]:
    """All points of a measured build, those of an earlier pass last."""
    found = [*_finished(build), *_mixes(build)]
    if build.found is not None:
        found += [_planned(build.found, n, c) for n, c in enumerate(build.found.candidates, 1)]
    return (*found, *build.earlier)


def earlier_points(build: Build) -> tuple[Point, ...]:
    """Those of a pass whose artifacts and weights the next one replaces."""
    plan = build.planned
    keep = {g.id: g.keep for g in plan.groups if len(g.keep) < g.size} | dict.fromkeys(plan.dropped, ())
    kept = []
    for point in points_of(build):
        document = {**point.document, "id": f"first-{point.document['id']}", "artifact": ""}
        if document["weights"] == FINISHED:
            document |= {"weights": REPAIRED, "plan": f"points/{document['id']}.json"}
            document["quality_basis"] += "; those weights are gone"
            point = replace(point, keep=keep)
        elif point.keep is not None:
            document["plan"] = f"points/{document['id']}.json"
        kept.append(replace(point, document=document))
    return tuple(point for point in kept if point.document["weights"] != DENSE)


def plans_of(build: Build, points: Sequence[Point]) -> dict[str, Plan]:
    """File -> plan, of every point that has one of its own."""
    return {
        point.plan_file: make_plan(
            build.traced,
            {name: np.array(kept, np.int64) for name, kept in point.keep.items()},
            criterion=build.criterion,
            scope="point",
            step=build.planned.step,
        )
        for point in points
        if point.keep is not None
    }


def fastest_keeping(points: Sequence[Mapping[str, Any]], allowed: float) -> Mapping[str, Any] | None:
    """The fastest measured point that loses no more than allowed; None without one.

    Args:
        points: Documents.
        allowed: Points of the metric, or of agreement.
    """
    keeping = [p for p in points if p["measured"] and p["lost"] is not None and p["lost"] <= allowed]
    return min(keeping, key=lambda p: float(p["latency_ms"]), default=None)


def point_sentence(point: Mapping[str, Any]) -> str:
    """ "dense int8 on openvino (point dense-int8.openvino): 1.31 ms, loses 0.2 points"."""
    return (
        f"{point['what']} on {point['runtime']} (point {point['id']}): {point['latency_ms']:.3g} ms "
        f"{point['latency_basis']}, loses {max(point['lost'], 0.0):.2g} points {point['quality_basis']}"
    )


def _finished(build: Build) -> Iterator[Point]:
    for row in build.rows:
        dense = row.pattern == "dense"
        found = next(
            (a for a in build.artifacts if (a.name, a.format) == (row.name, row.format) and a.runtime == row.runtime),
            next((a for a in build.artifacts if (a.name, a.format) == (row.name, row.format)), None),
        )
        yield Point(
            {
                **_what(f"{row.name}.{row.runtime}".replace(" ", "-"), row.name, row.runtime, row.precision),
                "kind": "finished",
                "pattern": row.pattern,
                "floats": list(build.found.setting.floats) if build.found and row.name.endswith("mixed") else [],
                "placement": _placement(build, found, dense=dense),
                **_latency(row.median_ms, "measured beside all others", measured=True),
                **_row_quality(build, row, dense=dense),
                **_size(row.bytes, "the file", row.macs, row.params),
                "weights": DENSE if dense else FINISHED,
                "artifact": "" if found is None else str(found.path.relative_to(build.folder.root)),
                "plan": "" if dense else "plan.json",
            }
        )


def _placement(build: Build, artifact: Artifact | None = None, *, dense: bool = False) -> Placement:
    """Of the pairs in a finished file: the runtime's that has it alone, else the one that all share."""
    if artifact is not None and artifact.runtime:
        return placement_in(artifact.runtime)
    return "openvino" if dense or build.zeros is None else "sparse"


def _row_quality(build: Build, row: Row, *, dense: bool) -> dict[str, Any]:
    judged = row_kept(row, build.rows, drop=build.recipe.measure.accuracy_drop)
    if judged is None:
        return _quality("", None, None, basis="not judged", samples=0)
    basis = "as it is" if dense else "after recovery"
    return _quality(
        judged.kind,
        judged.gap.found,
        judged.lost,
        basis=f"{basis}, on validation samples",
        samples=build.recipe.measure.samples
        if build.data is None or build.data.val.samples is None
        else min(build.recipe.measure.samples, build.data.val.samples),
        labelled=judged.gap.labelled,
    )


def _mixes(build: Build) -> Iterator[Point]:
    """Int8 files with other layers in float that were judged, but for the one that became the artifact."""
    judged = build.precision.get("accuracy") or {}
    taken, seen = float_for_accuracy(build), set[int]()
    for trial in judged.get("trials", ()):
        count = int(trial["float_layers"])
        if tuple(trial["layers"]) == taken or count in seen:
            continue
        seen.add(count)
        predicted = trial.get("predicted_ms")
        yield Point(
            {
                **_what(f"mix-{count}", f"int8 with {count} layers float", judged["runtime"], "int8"),
                "kind": "mix",
                "pattern": build.pattern,
                "floats": [],
                "placement": _placement(build),
                "layers": list(trial["layers"]),
                **_latency(predicted, "predicted from its layers' times" if predicted else "unknown", measured=False),
                **_quality(
                    judged["kind"],
                    None,
                    trial["lost"],
                    basis="after recovery, on validation samples",
                    samples=0,
                    labelled=judged["labelled"],
                ),
                **_size(None, "", build.planned.macs_after, build.planned.params_after),
                "weights": FINISHED,
                "artifact": "",
                "plan": "plan.json",
            }
        )


def _planned(found: SearchResult, number: int, candidate: Candidate) -> Point:
    setting, name = found.setting, f"plan-{number}"
    measured = candidate.measured_ms is not None
    return Point(
        {
            **_what(name, f"plan by {candidate.by}", setting.runtime, setting.precision),
            "kind": "plan",
            "pattern": "channel",
            "floats": list(setting.floats),
            "placement": placement_in(setting.runtime),
            **_latency(
                candidate.measured_ms if measured else candidate.predicted_ms,
                "measured on the way" if measured else "predicted",
                measured=measured,
            ),
            **_look_quality(candidate.look),
            **_size(
                _WEIGHT_BYTES[setting.precision] * candidate.params, "its weights", candidate.macs, candidate.params
            ),
            "weights": REPAIRED,
            "artifact": "",
            "plan": f"points/{name}.json" if candidate.keep else "",
        },
        candidate.keep if candidate.keep else None,
    )


def _look_quality(look: Look | None) -> dict[str, Any]:
    if look is None:
        return _quality("", None, None, basis="not judged", samples=0)
    return _quality(
        look.metric or look.kind,
        look.value if look.metric else look.loss,
        look.lost,
        basis="in float, repaired and not trained, on training samples held out",
        samples=look.samples,
        labelled=look.labelled,
    )


def _what(name: str, what: str, runtime: str, precision: str) -> dict[str, Any]:
    return {"id": name, "what": what, "runtime": runtime, "precision": precision}


def _latency(ms: float | None, basis: str, *, measured: bool) -> dict[str, Any]:
    return {"latency_ms": ms, "latency_basis": basis, "measured": measured}


def _quality(
    metric: str, value: float | None, lost: float | None, *, basis: str, samples: int, labelled: bool = False
) -> dict[str, Any]:
    return {
        "metric": metric,
        "value": value if value is None or value == value else None,
        "lost": lost if lost is None or lost == lost else None,
        "labelled": labelled,
        "quality_basis": basis,
        "samples": samples,
    }


def _size(count: int | None, of: str, macs: int | None, params: int | None) -> dict[str, Any]:
    return {"bytes": count, "bytes_of": of, "macs": macs, "params": params}
