"""The sweep from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from deploypruner.build.state import Given, named_sources
from deploypruner.notebook import html_table
from deploypruner.progress import Progress, logged, shown
from deploypruner.recipe import Recipe
from deploypruner.recipe.option import with_help_of
from deploypruner.recipe.overrides import overrides
from deploypruner.recipe.reading import resolved
from deploypruner.sweep.folder import WINNER
from deploypruner.sweep.records import HERE, SweepFound, SweepSettings
from deploypruner.sweep.request import SweepRequest
from deploypruner.sweep.run import run_sweep


@dataclass(frozen=True)
class SweepResult:
    """Result of `sweep`.

    Args:
        folder: With sweep.json, sweep.html, sweep.sqlite and winner.toml.
        found: Everything that sweep.json holds.
    """

    folder: Path
    found: SweepFound

    @property
    def recipe(self) -> Path:
        """Of the winner, for `compile(recipe=...)`."""
        return self.folder / WINNER

    def __repr__(self) -> str:
        best = self.found.best
        return (
            f"SweepResult({str(self.folder)!r}: {len(self.found.samples)} recipes at {self.found.budget}, the best "
            f"loses "
            f"{best.expected:.2f} points of {self.found.quality})"
        )

    def _repr_html_(self) -> str:
        """In a notebook: the conjectures."""
        rows = [(c.number, c.claim, c.verdict, c.evidence) for c in self.found.conjectures]
        heads = ("", "statement", "here", "evidence")
        return html_table(f"{self!r}. {self.folder / 'sweep.html'} has the pictures.", heads, rows)


@with_help_of(Recipe)
def sweep(
    model: nn.Module | ExportedProgram | str,
    example_inputs: Any = None,
    *,
    data: object = None,
    macs: float | None = None,
    speedup: float | None = None,
    samples: int = 64,
    std: tuple[float, float] = (0.0, 0.3),
    candidates: int = 64,
    finalists: int = 4,
    again: int = 2,
    workers: int = 1,
    ray: str | bool = False,
    out: str | Path = "sweep",
    beside: Iterable[str | Path] = (),
    criterion: str | None = None,
    step: int | None = None,
    epochs: int | None = None,
    train: Callable[..., None] | None = None,
    runtimes: tuple[str, ...] | None = None,
    threads: int | None = None,
    seed: int | None = None,
    recipe: str | Path | Recipe | None = None,
    resume: bool = False,
    progress: Progress | bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> SweepResult:
    """Train a population of recipes of equal cost, say what it teaches, and search where it does best.

    Args:
        model: As `compile` takes it.
        example_inputs: As `compile` takes them.
        data: As `compile` takes it; without labels agreement with the dense model takes the place of accuracy.
        macs: --macs
        speedup: Factor over the dense model's speed, as predicted from a table of its layers, in place of `macs`.
        samples: Recipes of the population, at least 1.
        std: Least and greatest standard deviation of the ratios, 0 to 1.
        candidates: Recipes that the refined search looks at, at least 0.
        finalists: The best of them, which are trained, at least 1.
        again: New seeds that each winner is trained with, at least 0.
        workers: Processes at a time, of one thread each.
        ray: Whether trials are tasks of Ray, started here with so many workers; or the address of a cluster.
        out: Folder: sweep.json, sweep.html, sweep.sqlite, winner.toml.
        beside: Folders of sweeps of the same model at other costs, for the conjectures about several.
        criterion: --criterion
        step: --step
        epochs: --epochs
        train: Function `train(student, teacher, data)` in place of the built-in fine-tuning.
        runtimes: --runtime
        threads: --threads
        seed: --seed
        recipe: Recipe, or a TOML file with the rest; arguments that are given win.
        resume: Whether the sweep in `out` is gone on with, or gets more samples.
        progress: As `compile` takes it.
        say: As `compile` takes it.

    Raises:
        DeployPrunerError: Bad input, or a cost that cannot be reached.
    """
    given = Given.of(model, example_inputs, data, train=train)
    given.require_inputs("sweep")
    where = ray if isinstance(ray, str) else HERE if ray else ""
    settings = SweepSettings(samples, std, candidates, finalists, again, workers, where)
    options = {
        **named_sources(model, data),
        **{"macs": macs, "speedup": speedup, "criterion": criterion, "step": step, "epochs": epochs},
        **{"runtime": runtimes, "threads": threads, "seed": seed},
    }
    asked = overrides(options)
    chosen, origins = resolved(recipe, asked)
    with shown(progress, say) as (listener, said), logged(listener, said) as (log, told), origins.speaking():
        found = run_sweep(
            SweepRequest(
                recipe=chosen,
                settings=settings,
                out=Path(out),
                command="deploypruner.sweep(...)",
                given=given,
                beside=tuple(map(Path, beside)),
                resume=resume,
                progress=listener,
                log=log,
                say=told,
            )
        )
    return SweepResult(Path(out), found)
