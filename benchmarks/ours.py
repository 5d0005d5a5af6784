"""The pool of plans as `deploypruner compile --speedup` uses it, for the benchmarks that compare it with rivals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import click

from benchmarks.rivals import STEP, Keep, Subject
from benchmarks.tuning import dense_artifact
from deploypruner.budget import Budget
from deploypruner.prune.room import by_importance
from deploypruner.recover.batches import Batches
from deploypruner.search.judge import Judge
from deploypruner.search.losses import Losses
from deploypruner.search.measured import losses_from_worth
from deploypruner.search.meet import meet
from deploypruner.search.request import Request
from deploypruner.search.worth import measure_worth

_SOLVING = 256


def pool(
    train: Batches, folder: Path, *, batch: int, held_out: int, augment: bool
) -> Callable[[Subject, float], Keep]:
    """The plan that the pool and the closed loop decide on, for a subject and a speed-up.

    Args:
        train: Images for reconstruction, statistics and, other ones, for judging.
        folder: For the dense model and what was measured.
        batch: Images per batch.
        held_out: Images that judge.
        augment: Whether those for reconstruction are augmented.
    """

    def chosen(subject: Subject, speedup: float) -> Keep:
        graph, order = subject.graph, by_importance(subject.scores)

        def worth() -> Losses:
            measured = measure_worth(graph, order, subject.scoring, file=folder / "worth.json")
            return losses_from_worth(graph, measured, subject.scores, order)

        def judge() -> Judge:
            held = held_out // batch
            images = train.epoch(batch_size=batch, seed=1, shuffle=True, augment=False)
            # The same order again, so that what follows the held-out batches is other images.
            others = train.epoch(batch_size=batch, seed=1, shuffle=True, augment=augment)
            solving = list(islice(others, held, held + _SOLVING // batch))
            return Judge(graph, solving=solving, held_out=list(islice(images, held)))

        setting = subject.latency.setting
        keep, found = meet(
            Request(
                graph=graph,
                scores=subject.scores,
                budget=Budget(speedup=speedup),
                jobs=[(dense_artifact(subject, folder, setting.precision), setting.runtime)],
                step=STEP,
                worth=worth,
                judge=judge,
                say=lambda line: click.echo(line, err=True),
            )
        )
        click.echo(f"ours: by {found.objective}", err=True)
        return keep

    return chosen
