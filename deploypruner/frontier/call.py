"""The frontier from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from deploypruner.build.state import Given, named_sources
from deploypruner.frontier.asked import asked_points
from deploypruner.frontier.run import FrontierRequest, run_frontier
from deploypruner.latency.clock import timed_on
from deploypruner.notebook import html_table
from deploypruner.progress import Progress, logged, shown
from deploypruner.recipe import Recipe
from deploypruner.recipe.option import with_help_of
from deploypruner.recipe.overrides import overrides
from deploypruner.recipe.reading import resolved
from deploypruner.report import units
from deploypruner.report.frontier import Frontier, FrontierPoint, FrontierRow


@dataclass(frozen=True)
class FrontierResult:
    """Result of `frontier`.

    Args:
        folder: With frontier.json, frontier.html and the builds.
        found: Everything that frontier.json holds.
    """

    folder: Path
    found: Frontier

    @property
    def points(self) -> tuple[FrontierPoint, ...]:
        """What became of every budget."""
        return self.found.points

    @property
    def rows(self) -> tuple[FrontierRow, ...]:
        """Every artifact of the interleaved run, and what dominates it."""
        return self.found.rows

    def __repr__(self) -> str:
        kept = sum(point.status == "kept" for point in self.points)
        return f"FrontierResult({str(self.folder)!r}: {kept} of {len(self.points)} points kept)"

    def _repr_html_(self) -> str:
        """In a notebook: every artifact."""
        heads = ("artifact", "runtime", "accuracy", "median, ms", "dominated by")
        rows = [
            (r.row.name, r.row.runtime, units.quality_cell(r.row), units.significant(r.row.median_ms), r.dominated_by)
            for r in self.rows
        ]
        return html_table(f"{self!r}. {self.folder / 'frontier.html'} has the picture.", heads, rows)


@with_help_of(Recipe)
def frontier(
    model: nn.Module | ExportedProgram | str,
    example_inputs: Any = None,
    *,
    speedups: Iterable[float] = (),
    latencies: Iterable[float | str] = (),
    out: str | Path = "frontier",
    data: object = None,
    target: str | None = None,
    accuracy_drop: float | None = None,
    criterion: str | None = None,
    epochs: int | None = None,
    train: Callable[..., None] | None = None,
    runtimes: tuple[str, ...] | None = None,
    threads: int | str | None = None,
    seed: int | None = None,
    recipe: str | Path | Recipe | None = None,
    resume: bool = False,
    progress: Progress | bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> FrontierResult:
    """Build a model for several budgets; time all artifacts in one interleaved run.

    Loading, tracing, scores, measured worths, the dense files and the table of layers are shared. A budget out of
    reach, or a build that breaks its promise, is a point of the result and no exception.

    Args:
        model: As `compile` takes it.
        example_inputs: As `compile` takes them.
        speedups: Factors over the dense model's speed, at least 1 each.
        latencies: Times of one inference, as `latency` of `compile`, in place of speed-ups.
        out: Folder: frontier.json, frontier.html, and a build folder for each point under builds/.
        data: As `compile` takes it.
        target: --target
        accuracy_drop: --accuracy-drop
        criterion: --criterion
        epochs: --epochs
        train: Function `train(student, teacher, data)` in place of the built-in fine-tuning.
        runtimes: --runtime
        threads: --threads
        seed: --seed
        recipe: Recipe, or a TOML file with the rest, its budget aside; arguments that are given win.
        resume: Whether the frontier in `out` is gone on with, or gets more points.
        progress: As `compile` takes it.
        say: As `compile` takes it.

    Raises:
        DeployPrunerError: Bad input, or what the points share cannot be done.
    """
    points = asked_points(speedups, latencies)
    given = Given.of(model, example_inputs, data, train=train)
    given.require_inputs("frontier")
    options = {
        **named_sources(model, data),
        **{"target": target, "accuracy_drop": accuracy_drop, "criterion": criterion, "epochs": epochs},
        **{"runtime": runtimes, "threads": threads, "seed": seed},
    }
    asked = overrides(options)
    chosen, origins = resolved(recipe, asked)
    with ExitStack() as stack:
        listener, said = stack.enter_context(shown(progress, say))
        log, told = stack.enter_context(logged(listener, said))
        stack.enter_context(origins.speaking())
        stack.enter_context(timed_on(chosen.target, runtimes=chosen.measure.runtimes, say=told))
        request = FrontierRequest(
            recipe=chosen,
            points=points,
            out=Path(out),
            command="deploypruner.frontier(...)",
            given=given,
            resume=resume,
            progress=listener,
            log=log,
            say=told,
        )
        found, _ = run_frontier(request)
    return FrontierResult(Path(out), found)
