"""Does the pruned model keep what the dense one can do? A budget that ruins it is no budget met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploypruner.records import Row, Setting
from deploypruner.search.gaps import Gap, gaps

# Points that may be lost where the user did not say: of the metric, and of agreement where there are no labels. Two
# networks that are equally good differ in a few percent of their answers.
ACCURACY_DROP, AGREEMENT_DROP = 3.0, 10.0


@dataclass(frozen=True)
class Kept:
    """What became of the quality.

    Args:
        artifact: Name of the row it is about.
        runtime: Of that row.
        gap: What was lost.
        allowed: Points that may be lost.
        drop: Points that the user allowed, None where nobody said.
    """

    artifact: str
    runtime: str
    gap: Gap
    allowed: float
    drop: float | None = None

    @property
    def kind(self) -> str:
        """What is lost: of which metric, or of which kind of agreement."""
        return self.gap.kind

    @property
    def dense(self) -> float:
        """Of the dense model, in the unit of the metric."""
        return self.gap.dense

    @property
    def lost(self) -> float:
        """Points."""
        return self.gap.lost

    @property
    def kept(self) -> bool:
        """Is no more lost than allowed? Never where the quality is not a number."""
        return self.lost <= self.allowed

    def to_json(self) -> dict[str, Any]:
        """As report.json has it under `quality`."""
        gap = asdict(self.gap)
        return {
            "artifact": self.artifact,
            "runtime": self.runtime,
            **{"pruned" if name == "found" else name: value for name, value in gap.items()},
            "allowed": self.allowed,
            "drop": self.drop,
            "kept": self.kept,
        }


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
    pruned = [row for row in rows if row.pattern != "dense"]
    found = [judged for row in pruned if (judged := row_kept(row, rows, drop=drop)) is not None]
    if setting is not None:
        at = {(r.name, r.runtime) for r in rows if (r.runtime, r.precision) == (setting.runtime, setting.precision)}
        found = [judged for judged in found if (judged.artifact, judged.runtime) in at]
        found = [judged for judged in found if judged.artifact == artifact] or found[:1]
    return min(found, key=_excess, default=None)


def row_kept(row: Row, rows: Sequence[Row], *, drop: float | None) -> Kept | None:
    """Judge one row against the dense fp32 model on its runtime, by the output of it that loses most.

    Args:
        row: Any.
        rows: Of the same build.
        drop: As for `quality_kept`.

    Returns:
        None where nothing is known of its quality.
    """
    dense = next((r for r in rows if (r.pattern, r.precision, r.runtime) == ("dense", "fp32", row.runtime)), None)
    found = [Kept(row.name, row.runtime, gap, allowed_points(gap, drop), drop) for gap in gaps(row, dense)]
    return max(found, key=_excess, default=None)


def allowed_points(gap: Gap, drop: float | None) -> float:
    """What may be lost: what the user said, else `ACCURACY_DROP` or, of agreement, `AGREEMENT_DROP`."""
    if drop is not None:
        return drop
    return ACCURACY_DROP if gap.labelled else AGREEMENT_DROP


def _excess(judged: Kept) -> float:
    """Points beyond what is allowed; what is not a number is beyond everything."""
    over = judged.lost - judged.allowed
    return over if over == over else float("inf")
