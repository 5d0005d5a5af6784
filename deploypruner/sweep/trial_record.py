"""What a trial is to try, and what became of it, as they are kept on disk; reading them takes no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class SweepTrial:
    """What is to be tried.

    Args:
        phase: "space": one of the population; "look": judged before any training; "refined": of the refined search,
            trained; "again": a winner with another seed.
        number: Within its phase.
        widths: Group id -> channels that stay.
        seed: Of training.
        epochs: Of training; 0 for none, which leaves out the user's own training, too.
        std: Standard deviation of the ratios.
    """

    phase: str
    number: int
    widths: Mapping[str, int]
    seed: int
    epochs: int
    std: float


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial.

    Args:
        quality: What `dense` and `found` count, in words.
        dense: Of the dense model.
        found: Of the pruned one.
        drop: Points lost, see `search.gaps.Gap`; smaller is better.
        macs: Multiply-adds of one sample.
        params: Parameters of the inference graph.
        seconds: That it took.
        why: What went wrong, "" for nothing; all numbers are 0 then.
    """

    quality: str
    dense: float
    found: float
    drop: float
    macs: int
    params: int
    seconds: float
    why: str = ""

    @staticmethod
    def failed(why: str, seconds: float = 0.0) -> TrialResult:
        """Of a trial that came to nothing."""
        return TrialResult("", 0.0, 0.0, 0.0, 0, 0, seconds, why)


def result_json(trial: SweepTrial, result: TrialResult) -> dict[str, Any]:
    """Both as one document."""
    return {"format": FORMAT, "trial": asdict(trial), "result": asdict(result)}


def result_of(document: Mapping[str, Any]) -> TrialResult:
    """What `result_json` wrote.

    Raises:
        KeyError: It is no such document.
        TypeError: As well.
    """
    return TrialResult(**document["result"])
