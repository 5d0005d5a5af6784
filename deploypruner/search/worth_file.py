"""Measured batches on disk, so that an interrupted measurement goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from deploypruner.graph.inputs import Inputs
from deploypruner.losses import Labels
from deploypruner.search.saved import Saved, batch_hash, identity_of

if TYPE_CHECKING:
    from deploypruner.graph import Keep

_FORMAT = 2


@dataclass(frozen=True)
class MeasuredCuts:
    """All cuts on one batch.

    Args:
        kind: See `MeasuredWorth`.
        samples: In the batch.
        seconds: It took.
        moments: Id of the cut -> sum and sum of squares of the changes of its samples' losses.
    """

    kind: str
    samples: int
    seconds: float
    moments: Mapping[str, tuple[float, float]]


class WorthFile:
    """What was measured already of the same weights, cuts and numbers.

    Args:
        path: Of the JSON file; None for no file.
        module: The dense one.
        cuts: Id -> what each leaves.
        how: Everything else that the numbers depend on.
    """

    def __init__(self, path: Path | None, module: nn.Module, cuts: Mapping[str, Keep], how: str) -> None:
        said = [(name, [(key, kept.tolist()) for key, kept in keep.items()]) for name, keep in cuts.items()]
        self._saved = Saved(path, "" if path is None else identity_of(module, _FORMAT, how, said))

    def find(self, inputs: Inputs, labels: Labels) -> MeasuredCuts | None:
        """What was measured on this batch."""
        entries = self._saved.entries
        return _measured(entries.get(batch_hash(inputs, labels))) if entries else None

    def add(self, inputs: Inputs, labels: Labels, measured: MeasuredCuts) -> None:
        """Remember a batch."""
        if self._saved.path is not None:
            self._saved.add(batch_hash(inputs, labels), asdict(measured))


def _measured(saved: Any) -> MeasuredCuts | None:
    if saved is None:
        return None
    moments = {name: (float(total), float(squares)) for name, (total, squares) in saved["moments"].items()}
    return MeasuredCuts(saved["kind"], saved["samples"], saved["seconds"], moments)
