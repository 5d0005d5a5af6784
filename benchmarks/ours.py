"""The pool of plans as `deploypruner compile --speedup` uses it, for the benchmarks that compare it with rivals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import click

from benchmarks.rivals import STEP, Keep, Subject
from benchmarks.tuning import dense_artifact
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.recipe.budget import Budget
from deploypruner.search.found import SearchResult
from deploypruner.search.judge import Judge
from deploypruner.search.latency_search import meet
from deploypruner.search.losses import Losses
from deploypruner.search.measured import losses_from_worth
from deploypruner.search.request import SearchRequest
from deploypruner.search.worth import measure_worth
from deploypruner.train.batches import TrainingBatches

_SOLVING = 256


def pool(
    train: TrainingBatches, folder: Path, *, batch: int, held_out: int, augment: bool
) -> Callable[[Subject, float], Keep]:
    """The plan that the pool and the closed loop decide on, for a subject and a speed-up; see `searched`."""

    def chosen(subject: Subject, speedup: float) -> Keep:
        keep, found = searched(subject, speedup, train, folder, batch=batch, held_out=held_out, augment=augment)
        click.echo(f"ours: by {found.objective}", err=True)
        return keep

    return chosen


def measured_losses(
    subject: Subject, folder: Path, enough: Callable[[float], bool] = lambda seconds: False
) -> Losses:
    """What was measured of single widths and branches, in a file once it is; `enough` as `measure_worth` asks it."""
    graph, order = subject.graph, by_importance(subject.scores)
    measured = measure_worth(graph, order, subject.scoring, file=folder / "worth.json", enough=enough)
    return losses_from_worth(graph, measured, subject.scores, order)


def searched(
    subject: Subject,
    speedup: float,
    train: TrainingBatches,
    folder: Path,
    *,
    held_out: int,
    batch: int = 32,
    augment: bool = True,
    plans: int = 16,
) -> tuple[Keep, SearchResult]:
    """The plan that the pool and the closed loop decide on, and how.

    Args:
        subject: What is pruned.
        speedup: Over the dense model.
        train: Images for reconstruction, statistics and, other ones, for judging.
        folder: For the dense model and what was measured.
        held_out: Images that judge.
        batch: Images per batch.
        augment: Whether those for reconstruction are augmented.
        plans: Size of the pool.
    """

    def judge() -> Judge:
        held = held_out // batch
        images = train.epoch(batch_size=batch, seed=1, shuffle=True, augment=False)
        # The same order again, so that what follows the held-out batches is other images.
        others = train.epoch(batch_size=batch, seed=1, shuffle=True, augment=augment)
        solving = list(islice(others, held, held + _SOLVING // batch))
        return Judge(subject.graph, solving=solving, held_out=list(islice(images, held)))

    setting = subject.latency.setting
    return meet(
        SearchRequest(
            graph=subject.graph,
            scores=subject.scores,
            budget=Budget(speedup=speedup),
            jobs=[(dense_artifact(subject, folder, setting.precision), setting.runtime)],
            step=STEP,
            worth=lambda enough: measured_losses(subject, folder, enough),
            judge=judge,
            plans=plans,
            say=lambda line: click.echo(line, err=True),
        )
    )
