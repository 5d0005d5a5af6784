"""Does the pruned model keep what the dense one can do? A budget that ruins it is no budget met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploypruner.records import Row, Setting

# Points that may be lost where the user did not say: of accuracy, and of agreement where there are no labels. Two
# networks that are equally good differ in a few percent of their answers.
ACCURACY_DROP, AGREEMENT_DROP = 3.0, 10.0


@dataclass(frozen=True)
class Kept:
    """What became of the quality.

    Args:
        artifact: Name of the row it is about.
        runtime: Of that row.
        kind: "accuracy", or what agreement with the dense model means: "top-1", "cosine".
        dense: Of the dense fp32 model, in percent.
        pruned: Of the row, in percent.
        allowed: Points that may be lost.
    """

    artifact: str
    runtime: str
    kind: str
    dense: float
    pruned: float
    allowed: float

    @property
    def lost(self) -> float:
        """Points."""
        return self.dense - self.pruned

    @property
    def kept(self) -> bool:
        """Is no more lost than allowed? Never where the quality is not a number."""
        return self.lost <= self.allowed

    def to_json(self) -> dict[str, Any]:
        """As report.json has it under `quality`."""
        return {**asdict(self), "lost": self.lost, "kept": self.kept}


def quality_kept(
    rows: Sequence[Row], *, drop: float | None, setting: Setting | None = None, artifact: str = ""
) -> Kept | None:
    """Judge the pruned artifact of a setting, without one the best of all pruned artifacts.

    Args:
        rows: Of one build.
        drop: Points that may be lost; None for `ACCURACY_DROP`, or `AGREEMENT_DROP` without labels.
        setting: What a budget of time is for.
        artifact: Name of the pruned one that is preferred to others, if it is among them.

    Returns:
        None where there is no such row, or nothing is known of its quality.
    """
    found = [judged for row in rows if row.pattern != "dense" and (judged := _of(row, rows, drop)) is not None]
    if setting is not None:
        at = {(r.name, r.runtime) for r in rows if (r.runtime, r.precision) == (setting.runtime, setting.precision)}
        found = [judged for judged in found if (judged.artifact, judged.runtime) in at]
        found = [judged for judged in found if judged.artifact == artifact] or found[:1]
    return min(found, key=lambda judged: judged.lost - judged.allowed, default=None)


def _of(row: Row, rows: Sequence[Row], drop: float | None) -> Kept | None:
    dense = next((r for r in rows if (r.pattern, r.precision, r.runtime) == ("dense", "fp32", row.runtime)), None)
    if row.accuracy is not None and dense is not None and dense.accuracy is not None:
        allowed = ACCURACY_DROP if drop is None else drop
        return Kept(row.name, row.runtime, "accuracy", dense.accuracy, row.accuracy, allowed)
    if row.agreement is not None:
        allowed = AGREEMENT_DROP if drop is None else drop
        return Kept(row.name, row.runtime, row.agreement_kind, 100.0, 100 * row.agreement, allowed)
    return None
