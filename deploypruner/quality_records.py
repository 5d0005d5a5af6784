"""The frozen records that say how well a model does its job; `records` has them beside all others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

AccuracyVerdict = Literal["better", "worse", "indistinguishable"]


@dataclass(frozen=True)
class Metric:
    """What an accuracy is counted in, and how much of it is lost.

    Args:
        name: As people call it: "accuracy", "mIoU", "R2", or the name of the user's own function.
        unit: "%" for shares in percent, "" for plain numbers.
        points: What one of its units is worth in points of `--accuracy-drop`: 1 for percent, 100 for R2; None where
            what is lost counts in percent of the dense model's value, as for a function of the user's.
        higher_is_better: False for errors.
    """

    name: str
    unit: str = "%"
    points: float | None = 1.0
    higher_is_better: bool = True

    def lost(self, dense: float, value: float) -> float:
        """Points that `value` is worse than `dense`; below 0 where it is better, NaN where it is not a number."""
        worse = dense - value if self.higher_is_better else value - dense
        if self.points is not None:
            return self.points * worse
        return 100 * worse / (abs(dense) or 1.0)


ACCURACY = Metric("accuracy")
"""Top-1, or the share of right decisions, in percent."""


RELATIVE_ERROR = "relative error"
"""How far answers are off, where agreement is no share of them: an error, and so nothing that is agreed in."""


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy compared with that of the dense fp32 model, sample by sample.

    Args:
        gained: Samples that are right here and wrong there.
        lost: Samples that are wrong here and right there.
        p: Two-sided exact probability that two equally good models differ at least this much.
        verdict: better or worse only where p < 0.05.
    """

    gained: int
    lost: int
    p: float
    verdict: AccuracyVerdict


@dataclass(frozen=True)
class OutputQuality:
    """How well one output of an artifact does its job on validation inputs.

    Args:
        output: Its name.
        task: Registered name of what it is: "classification", "regression", ...
        agreement: With the same output of the dense fp32 model, 1 for the same; None without a reference.
        agreement_kind: What agreement means: "top-1", "cosine", "mIoU", "relative error" (it is 1 minus that), ...
        details: More about the difference from the dense model: name -> value; "relative error" is the root relative
            squared error (`tasks.relative`).
        metric: What budgets count `accuracy` in, None where there are no labels for this output.
        accuracy: The metric on the labels.
        scores: All metrics on the labels: name -> value, for example {"R2": 0.45, "MAE": 43.1}.
        agreement_ci: 95 % interval of `agreement`, where it is a share of samples; else None.
        accuracy_ci: 95 % interval of `accuracy`, in its unit, where it is a share of samples; else None.
        change: Accuracy compared with the dense model's, where it is a share of samples; else None.
    """

    output: str
    task: str
    agreement: float | None
    agreement_kind: str
    details: dict[str, float | None] = field(default_factory=dict)
    metric: Metric | None = None
    accuracy: float | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    agreement_ci: tuple[float, float] | None = None
    accuracy_ci: tuple[float, float] | None = None
    change: AccuracyChange | None = None


@dataclass(frozen=True)
class Quality:
    """How well an artifact does its job on validation inputs.

    Args:
        accuracy: The metric on the labels, None without: top-1 in percent for classes.
        agreement: With the dense fp32 model: that of the output that agrees least, 1 for the same answers.
        agreement_kind: What that is: "top-1", "cosine", "relative error" (agreement is 1 minus it), ...
        samples: Number of inputs behind all numbers.
        metric: What `accuracy` is counted in.
        outputs: Each output by itself.
        agreement_ci: 95 % interval of `agreement`, None where it is no share of samples.
        accuracy_ci: 95 % interval of `accuracy`, None where it is no share of samples.
        change: `accuracy` compared with the dense model's, None where it is no share of samples.
    """

    accuracy: float | None
    agreement: float | None
    agreement_kind: str
    samples: int
    metric: Metric = ACCURACY
    outputs: tuple[OutputQuality, ...] = ()
    agreement_ci: tuple[float, float] | None = None
    accuracy_ci: tuple[float, float] | None = None
    change: AccuracyChange | None = None
