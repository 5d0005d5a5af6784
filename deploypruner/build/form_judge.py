"""Judges forms of one model on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deploypruner.measure import evaluate, outputs
from deploypruner.measure.own_metric import OwnMetric
from deploypruner.measure.quality import Batch, by_chance, joined, joined_labels, label_list
from deploypruner.records import Quality
from deploypruner.search.gaps import Gap, gaps, largest
from deploypruner.tasks.recognise import OutputTask

Opened = Callable[[Path, str], Any]


class FormJudge:
    """Judges files against one of them, which is run once.

    Args:
        file: What the others are judged against.
        runtime: That it runs in.
        samples: Inputs, with labels or without.
        opened: Gives a session for a file in a runtime.
        tasks: What the outputs are; not used where their number is another.
        metric: The user's own, None for those of the tasks.

    Attributes:
        reference: Quality of `file` itself.
        doubts: That `file` does no better than chance on the labels, where it does not.
    """

    def __init__(
        self,
        file: Path,
        runtime: str,
        samples: Sequence[Batch],
        *,
        opened: Opened,
        tasks: Sequence[OutputTask] | None,
        metric: OwnMetric | None,
    ) -> None:
        self._samples, self._opened, self._metric = samples, opened, metric
        session = opened(file, runtime)
        self._answers = outputs(session, samples)
        known = tasks is not None and bool(self._answers) and len(self._answers[0]) == len(tasks)
        self._tasks = tasks if known else None
        self._known: dict[tuple[Path, str], Gap | None] = {}
        self.reference = self._quality(session)
        self.doubts = () if metric is not None else tuple(self._by_chance())

    def quality(self, file: Path, runtime: str) -> Quality:
        """Of another form, as its file is now."""
        return self._quality(self._opened(file, runtime))

    def lost(self, file: Path, runtime: str) -> Gap | None:
        """What a form loses most; None where nothing is known. Found once for a file that is asked for again."""
        if (file, runtime) not in self._known:
            self._known[file, runtime] = largest(gaps(self.quality(file, runtime), self.reference))
        return self._known[file, runtime]

    def _by_chance(self) -> Iterator[str]:
        if self._tasks is None or all(output.label is None for output in self._tasks):
            return
        answers = joined(self._answers)
        given = label_list(joined_labels([labels for _, labels in self._samples]), len(answers[0]))
        for _, said in by_chance(self._tasks, answers, given):
            yield (
                f"the given model does no better than chance on the labels: {said}; check how inputs are prepared "
                "and the order of classes, for what is lost from there says nothing"
            )

    def _quality(self, session: Any) -> Quality:
        return evaluate(session, self._samples, reference=self._answers, tasks=self._tasks, metric=self._metric)
