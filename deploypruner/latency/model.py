"""Predicted milliseconds of any plan of one model in one setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.cost_surface import Floats, Surface
from deploypruner.latency.matching import Follows, Lengths
from deploypruner.latency.nodes import Node, shared
from deploypruner.latency.overhead import KEY as OVERHEAD
from deploypruner.latency.overhead import Overhead
from deploypruner.latency.points import Points
from deploypruner.latency.probes import Profile
from deploypruner.latency.quality import LatencyQuality
from deploypruner.latency.tally import LatencyTally
from deploypruner.latency.terms import Term
from deploypruner.records import Setting

_REMEMBERED = 200_000


@dataclass(frozen=True)
class LayerTime:
    """Predicted time of one executed operation.

    Args:
        name: The runtime's, usually that of the layer's ONNX node.
        kind: What it computes, with what is fused into it.
        ms: Of one inference.
    """

    name: str
    kind: str
    ms: float


class LatencyModel:
    """Predicts the median latency of any plan of a traced model, at batch 1 on an undisturbed machine.

    Args:
        graph: The traced model.
        setting: Runtime, precision and threads.
        nodes: Its operations, bound to the axes of the graph.
        points: What operations of every kind took.
        quality: How far to trust it.
        scale: What measured rounds say about the whole.

    Attributes:
        setting: As given.
        quality: As given.
        error: Same as `quality.error`.
        lengths: Lengths of the graph's axes.
        terms: Operations that depend on the plan, or not; the prediction is their sum.
    """

    def __init__(
        self,
        graph: Graph,
        setting: Setting,
        *,
        nodes: Sequence[Node],
        points: Points,
        quality: LatencyQuality,
        scale: float = 1.0,
    ) -> None:
        self.graph, self.setting, self.quality, self.scale = graph, setting, quality, scale
        self.error = quality.error
        self._nodes, self._points = tuple(nodes), points
        self.lengths = Lengths(graph)
        self._surfaces: list[Surface] = []
        self.terms: list[Term] = []
        for key, members in shared(self._nodes).items():
            self._add(key, members)
        call = points.of(OVERHEAD)[1] if points.has(OVERHEAD) else np.zeros(1)
        self._overhead = Overhead(call_ns=float(np.median(call)))
        self._known: dict[tuple[int, bytes], Floats] = {}

    def ms(self, keep: Keep) -> float:
        """Predicted median milliseconds when only `keep` is kept; what it does not name stays whole."""
        return sum(layer.ms for layer in self.layers(keep))

    def layers(self, keep: Keep) -> list[LayerTime]:
        """What every operation takes under a plan, nothing in a dropped branch; the sum is `ms(keep)`."""
        lengths = self.lengths.of(keep)[None]
        return [
            LayerTime(term.node.name, term.node.kind, float(self.term_ms(term, term.sizes(lengths))[0]))
            if term.runs(lengths[0])
            else LayerTime(term.node.name, term.node.kind, 0.0)
            for term in self.terms
        ]

    def savings(self, widths: Mapping[str, Sequence[int]]) -> dict[str, Floats]:
        """Milliseconds that disappear when one group alone gets each of the given widths; by group."""
        tally = self.tally({group.id: np.arange(group.size) for group in self.graph.groups})
        return {group: tally.ms - tally.sweep(group, np.asarray(chosen)) for group, chosen in widths.items()}

    def to_json(self) -> dict[str, Any]:
        """All that predictions follow from besides the graph; times are rounded to tenths of nanoseconds."""
        return {
            "nodes": [asdict(node) for node in self._nodes],
            "points": self._points.to_json(),
            "quality": asdict(self.quality),
            "scale": self.scale,
        }

    @staticmethod
    def from_json(document: dict[str, Any], graph: Graph, setting: Setting) -> LatencyModel:
        """The opposite of `to_json`.

        Args:
            document: What it gave.
            graph: The same traced model.
            setting: The same.
        """
        return LatencyModel(
            graph,
            setting,
            nodes=tuple(map(Node.from_json, document["nodes"])),
            points=Points.from_json(document["points"]),
            quality=LatencyQuality.from_json(document["quality"]),
            scale=document["scale"],
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says about the model, JSON-able."""
        return {
            "setting": str(self.setting),
            "probes": self.quality.probes,
            "error": self.quality.error,
            "guessed": self.quality.guessed,
            "scale": self.scale,
            "operations": len(self.terms),
            "remarks": list(self.quality.remarks),
        }

    def tally(self, order: Keep) -> LatencyTally:
        """A running prediction for plans that change group by group and branch by branch; all is whole at first.

        Args:
            order: Group id -> all its channels, the ones that stay longest first; a branch has one channel.
        """
        return LatencyTally(self, order)

    def calibrated(self, keep: Keep, measured_ms: float, profile: Profile | None = None) -> LatencyModel:
        """The model after `keep` was measured.

        Args:
            keep: The plan.
            measured_ms: Its median.
            profile: Its operations' times, where known, see `learned`.
        """
        better = self if profile is None else self.learned(keep, profile)
        return better._changed(scale=better.scale * measured_ms / better.ms(keep))

    def learned(self, keep: Keep, profile: Profile) -> LatencyModel:
        """The model with the times of a plan's operations among its points, so that nearby plans profit.

        Args:
            keep: The plan.
            profile: Its operations' times.
        """
        points = self._points.copy()
        points.add_fitting(self._nodes, self._overhead.shared_out(profile, self.ms(keep) / self.scale))
        return self._changed(points=points)

    def _changed(self, *, points: Points | None = None, scale: float | None = None) -> LatencyModel:
        return LatencyModel(
            self.graph,
            self.setting,
            nodes=self._nodes,
            points=self._points if points is None else points,
            quality=self.quality,
            scale=self.scale if scale is None else scale,
        )

    def judged(self, plans: Sequence[Keep], ms: Sequence[float]) -> LatencyQuality:
        """How well the probes it was made of are predicted, each without its own points.

        Args:
            plans: Of the probes; none where all points are of other models.
            ms: What each took.
        """
        errors = []
        for keep, true in zip(plans, ms, strict=True):
            lengths = self.lengths.of(keep)[None]
            parts = [
                self._surfaces[t.surface].left_out(t.sizes(lengths))[0] * t.node.presence / 1e6
                for t in self.terms
                if t.runs(lengths[0])
            ]
            errors.append(abs(sum(parts) * self.scale / true - 1))
        whole = self.layers({})
        guessed = sum(layer.ms for layer, t in zip(whole, self.terms, strict=True) if not t.node.understood)
        total = sum(layer.ms for layer in whole)
        return LatencyQuality(float(np.median(errors)) if errors else None, len(errors), guessed / total)

    def term_ms(self, term: Term, sizes: IntArray) -> Floats:
        """Milliseconds `[m]` of an operation at sizes `[m, k]`; remembered."""
        key = (term.surface, sizes.tobytes())
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._surfaces[term.surface].ns(sizes) / 1e6
            self._known[key] = found
        return found * (term.node.presence * self.scale)

    def _add(self, key: str, members: Sequence[Node]) -> None:
        """One surface for a kind of operation, over the sizes that are explained in all its members."""
        explained = [i for i in range(len(members[0].sizes)) if all(node.sizes[i] is not None for node in members)]
        sizes, ns = self._points.of(key)
        surface = Surface(sizes[:, explained], ns)
        used = [explained[i] for i in surface.columns]
        for node in members:
            follows = [follow for i in used if (follow := node.sizes[i]) is not None]
            self.terms.append(_term(node, len(self._surfaces), follows))
        self._surfaces.append(surface)


def _term(node: Node, surface: int, follows: Sequence[Follows]) -> Term:
    axes = tuple(f.axis for f in follows)
    times, per = np.array([f.times for f in follows], np.int64), np.array([f.per for f in follows], np.int64)
    plain = bool((times == 1).all() and (per == 1).all())
    return Term(node, surface, np.array(axes, np.int64), times, per, axes, plain)
