"""Tasks: what an output of a model is, how well it does with labels, and how far it agrees with the dense model's.

Adding one is one file here. Only numpy is imported: a timing worker and the command line read this too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray

from deploypruner.records import Metric
from deploypruner.registries import tasks

Array = NDArray[Any]

LossKind = Literal["classes", "decisions", "direction", "values"]
"""What an output is trained by, with labels and towards the dense model's answer: see `deploypruner.losses`.

Classes exclude each other, a decision is yes or no, the length of a direction does not matter; values are the rest.
"""


class Task(ABC):
    """One kind of output.

    Attributes:
        order: Tasks are asked in this order whether an output is theirs; the first that says yes has it.
        metric: What its accuracy is counted in; None where labels say nothing about it.
        agreement_kind: What its agreement with the dense model is.
        loss: What it is trained by.
        class_axis: Where its classes lie, if it has any.
    """

    order: ClassVar[int]
    metric: ClassVar[Metric | None] = None
    agreement_kind: ClassVar[str]
    loss: ClassVar[LossKind] = "values"
    class_axis: ClassVar[int] = 1

    def probabilities(self, output: Array) -> bool:
        """Are the dense model's answers probabilities already, and not scores or logits?"""
        return False

    @abstractmethod
    def takes(self, output: Array) -> bool:
        """Can an output `[N, ...]` of this shape and type be of this task at all?"""

    def fits(self, output: Array, labels: Array) -> bool:
        """Do these labels, one per sample, belong to such an output?"""
        return False

    def resembles(self, output: Array) -> bool:
        """Do the dense model's answers look like this task, where there are no labels?"""
        return False

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """Metric -> value on labels that fit; the one that budgets are about first.

        Args:
            output: `[N, ...]`.
            labels: As `fits` wants them.
            dense: The dense model's answers, where they say how to read these (as logits or as probabilities).
        """
        raise NotImplementedError("a task without a metric has no scores")

    def right(self, output: Array, labels: Array, dense: Array | None = None) -> Array | None:
        """`[N]` bool, which samples are right; None where the metric is not the share of these.

        Args:
            output: As for `scores`.
            labels: As for `scores`.
            dense: As for `scores`.
        """
        return None

    def same(self, output: Array, reference: Array) -> Array | None:
        """`[N]` bool, which samples have the dense model's answer; None where agreement is not the share of these."""
        return None

    @abstractmethod
    def agreement(self, output: Array, reference: Array) -> float:
        """Agreement with the dense model's answers of the same shape: 1 for the same, 0 for a useless answer."""

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """More about the difference from the dense model: name -> value."""
        return {}

    def by_chance(self, output: Array, labels: Array) -> str:
        """Why the dense model's answers are no better than chance, "" where they are."""
        return ""


def in_order() -> Mapping[str, Task]:
    """Every task by name, those that are asked first in front."""
    found = {name: tasks.get(name)() for name in tasks}
    return dict(sorted(found.items(), key=lambda item: item[1].order))
