"""The Python API: every step of a build as a function, and the whole build as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from deploypruner.build import exporting, pipeline
from deploypruner.build.answering import Runner
from deploypruner.build.choices import check_choices
from deploypruner.build.criterion import make_criterion
from deploypruner.build.exporting import ExportedPoint
from deploypruner.build.fitting import fit
from deploypruner.build.folder import BuildFolder
from deploypruner.build.place import place_for
from deploypruner.build.resume import begun
from deploypruner.build.state import Build, Given, named_sources
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import Needs, criteria
from deploypruner.channels.plan import Plan
from deploypruner.channels.remove import remove
from deploypruner.channels.statistics import Batch, score_groups
from deploypruner.compiled import CompiledBuild
from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.graph.capture.asked_axes import requested
from deploypruner.latency.clock import timed_on
from deploypruner.progress import Progress, SilentProgress, logged, shown
from deploypruner.recipe import Recipe
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints
from deploypruner.recipe.option import with_help_of
from deploypruner.recipe.overrides import overrides
from deploypruner.recipe.reading import resolved
from deploypruner.report import read_report
from deploypruner.sources.data import as_data
from deploypruner.sources.matched import input_names, matched

# Scoring minibatches; a gate criterion averages over them.
_BATCH, _STEPS = 32, 16


@dataclass(frozen=True)
class Pruned:
    """Result of `prune`.

    Args:
        module: Smaller module, in eval mode.
        plan: Plan that was carried out: what was kept; `macs_before`, `macs_after`, `params_before`, `params_after`.
        graph: Graph of the dense model.
    """

    module: nn.Module
    plan: Plan
    graph: Graph


def plan(
    graph: Graph,
    *,
    criterion: str = "magnitude",
    budget: Budget | None = None,
    data: object = None,
    scope: str = "global",
    normalizer: str | None = None,
    step: int = 8,
    constraints: Constraints | None = None,
    widths: Mapping[str, int] | None = None,
    seed: int = 0,
    parameters: dict[str, Any] | None = None,
) -> Plan:
    """Choose the channels that stay.

    Args:
        graph: Graph of the dense model, from `trace`.
        criterion: Name of what scores channels: "magnitude", "taylor", ...; `deploypruner list criteria`.
        budget: Share of the multiply-adds that may remain, `Budget(macs=0.5)`; may be left out where `widths` say
            it all.
        data: Samples for criteria that look at gradients: a loader or iterable of (x, y) or x batches, x [B, ...] and
            y class indices [B] int64; a pair of such tensors; or a path. At most 512 samples are used of tensors and
            paths, 16 batches of a loader.
        scope: Name of the scope within which channels compete: "global", "uniform", "isomorphic" or "recipe".
        normalizer: Name of the normalizer that makes scores comparable across groups, the criterion's own where None.
        step: Number of channels that widths become multiples of, at least 1.
        constraints: Limits of what may be cut, and how far.
        widths: Widths by group id, 1 to the group's size: that many of its channels stay, the most important ones;
            the budget and the constraints then decide about the other groups only. To say which channels stay, use
            `make_plan`.
        seed: Number that decides which samples are scored, 0 to 4294967295.
        parameters: Fields of the criterion, by name.

    Raises:
        RecipeError: Unknown name, value out of range, or data that is needed and missing.
        BudgetError: The budget cannot be reached; the message says what can.
        InputError: Nothing can be pruned.
        PlanError: `widths` names no group, or a width it cannot have.
    """
    if budget is None and not widths:
        raise RecipeError("plan needs a budget", hint="pass budget=Budget(macs=0.5), or widths")
    budget = budget or Budget(macs=1.0)
    chosen = make_criterion(criterion, parameters or {})
    batches: Iterable[Batch] | None = None
    loss = None
    if data is not None and chosen.needs != Needs.WEIGHTS:
        inputs = graph.example_inputs
        given, _ = matched(as_data(data), inputs, input_names(graph.module, inputs))
        fitted = fit(given, Runner(graph.module, inputs))
        loss, epoch = fitted.loss, fitted.data.train.epoch(batch_size=_BATCH, seed=seed, shuffle=True)
        batches = (batch for batch, _ in zip(epoch, range(_STEPS), strict=False))
    scores = score_groups(graph, chosen, batches, seed=seed, loss=loss)
    return allocate(
        graph,
        scores,
        budget,
        criterion=criterion,
        scope=scope,
        normalizer=normalizer or criteria.get(criterion).normalizer,
        step=step,
        constraints=constraints,
        widths=widths,
    )


def prune(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    *,
    criterion: str = "magnitude",
    macs: float,
    data: object = None,
    scope: str = "global",
    normalizer: str | None = None,
    step: int = 8,
    constraints: Constraints | None = None,
    seed: int = 0,
    dynamic_shapes: Any = None,
) -> Pruned:
    """Trace, plan and remove in one call.

    Args:
        model: Module in any mode, or a program from torch.export; it is not changed.
        example_inputs: Inputs the model can run on, batch on axis 0, as `trace` takes them.
        criterion: Name of the criterion that scores channels, as `plan` takes it.
        macs: Fraction of the dense model's multiply-adds that may remain, 0 < macs <= 1.
        data: Samples for criteria that look at gradients, as `plan` takes them.
        scope: Name of the scope within which channels compete.
        normalizer: Name of the normalizer that makes scores comparable across groups, the criterion's own where None.
        step: Number of channels that widths become multiples of, at least 1.
        constraints: Limits of what may be cut, and how far.
        seed: Number that decides which samples are scored, 0 to 4294967295.
        dynamic_shapes: Axes that stay open beside the batch, as `trace` takes them.

    Raises:
        DeployPrunerError: What `trace`, `plan` and `remove` raise.
    """
    graph = trace(model, example_inputs, dynamic_shapes=dynamic_shapes)
    chosen = plan(
        graph,
        criterion=criterion,
        budget=Budget(macs=macs),
        data=data,
        scope=scope,
        normalizer=normalizer,
        step=step,
        constraints=constraints,
        seed=seed,
    )
    return Pruned(remove(graph, chosen), chosen, graph)


@with_help_of(Recipe)
def compile(
    model: nn.Module | ExportedProgram | str,
    example_inputs: Any = None,
    *,
    out: str | Path = "build",
    data: object = None,
    target: str | None = None,
    latency: float | str | None = None,
    speedup: float | None = None,
    macs: float | None = None,
    accuracy_drop: float | None = None,
    criterion: str | None = None,
    scope: str | None = None,
    normalizer: str | None = None,
    step: int | None = None,
    constraints: Constraints | None = None,
    pattern: str | tuple[str, ...] | None = None,
    sparsity: float | None = None,
    sparse_schedule: str | None = None,
    epochs: int | None = None,
    train: Callable[..., None] | None = None,
    runtimes: tuple[str, ...] | None = None,
    precision: str | None = None,
    allow_bf16: bool | None = None,
    threads: int | str | None = None,
    seed: int | None = None,
    task: str | Mapping[str | int, str] | None = None,
    metric: str | Callable[..., float] | None = None,
    classes: str | Path | None = None,
    allow_chance: bool | None = None,
    dynamic_shapes: Any = None,
    recipe: str | Path | Recipe | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> CompiledBuild:
    """Prune, recover, quantize, export, verify and measure a model; leave everything in one folder.

    Args:
        model: Model: a module, a program from torch.export, or MODEL as on the command line.
        example_inputs: Inputs the model can run on, batch on axis 0: one tensor, a tuple of them, or a dict of
            keyword inputs; not needed where `model` is a string.
        out: Build folder; a finished build in it is kept, and refused, unless `overwrite` or `resume`.
        data: Path, loader, pair of loaders or pair of tensors; None prunes by weights and recovers nothing.
        target: --target
        latency: --latency
        speedup: --speedup
        macs: --macs
        accuracy_drop: --accuracy-drop
        criterion: --criterion
        scope: --scope
        normalizer: --normalizer
        step: --step
        constraints: Limits of what may be cut, and how far.
        pattern: --pattern
        sparsity: --sparsity
        sparse_schedule: --sparse-schedule
        epochs: --epochs
        train: Function `train(student, teacher, data)` in place of the built-in fine-tuning.
        runtimes: --runtime
        precision: --precision
        allow_bf16: --allow-bf16
        threads: --threads
        seed: --seed
        task: Task of all outputs ("regression"), or tasks by name or number of the output, where labels and answers
            do not say it. `deploypruner list tasks` has them.
        metric: Function `metric(outputs, labels) -> float` in place of the tasks' own, or "module:function"; see
            `measure.own_metric`.
        classes: --classes
        allow_chance: --allow-chance
        dynamic_shapes: Axes that stay open beside the batch, in every artifact, as `trace` takes them.
        recipe: Recipe, or a TOML file with the rest; arguments that are given win.
        resume: Whether the build in `out` is continued.
        overwrite: Whether a finished build in `out` may be replaced; it is once the new one is finished.
        progress: Whether a live line on stderr says how far it is, plain lines every 30 s where that is no terminal;
            or a listener that is told.
        say: Function that is called with one line per stage, and what they say on the way.

    Raises:
        DeployPrunerError: Bad input, an unreachable budget, or a failed verification.
    """
    if not isinstance(model, str | nn.Module | ExportedProgram):
        raise InputError(
            f"compile was given a {type(model).__name__}, not a model", hint="pass an nn.Module, a program or MODEL"
        )
    given = Given.of(model, example_inputs, data, train=train, metric=metric)
    given.require_inputs("compile")
    options = {
        **named_sources(model, data),
        "dynamic": _dynamic(dynamic_shapes, given),
        "pattern": (pattern,) if isinstance(pattern, str) else pattern,
        "runtime": runtimes,
        "task": _tasks(task),
        **{"metric": metric if isinstance(metric, str) else None, "allow_bf16": allow_bf16},
        **{"latency": latency, "speedup": speedup, "macs": macs, "accuracy_drop": accuracy_drop},
        **{"criterion": criterion, "scope": scope, "normalizer": normalizer, "step": step},
        **{"sparsity": sparsity, "sparse_schedule": sparse_schedule, "epochs": epochs, "classes": classes},
        **{"target": target, "precision": precision, "threads": threads, "seed": seed, "allow_chance": allow_chance},
    }
    asked = overrides(options)
    if constraints is not None:
        asked["prune"] |= asdict(constraints)
    chosen, origins = resolved(recipe, asked)
    if not resume:  # a build that goes on is asked for by its own recipe
        BuildFolder(Path(out)).require_apart(None if isinstance(recipe, Recipe) else recipe)
    with shown(progress, say) as (listener, told), origins.speaking():
        return run_recipe(
            chosen,
            Path(out),
            given=given,
            command="deploypruner.compile(...)",
            resume=resume,
            overwrite=overwrite,
            progress=listener,
            say=told,
        )


def _dynamic(dynamic_shapes: Any, given: Given) -> tuple[str, ...] | None:
    """Open axes as a recipe has them."""
    request = requested(dynamic_shapes, given.model, given.example_inputs)
    if request is None or isinstance(request, str):
        return None if request is None else (request,)
    return tuple(map(str, request))


def _tasks(task: str | Mapping[str | int, str] | None) -> tuple[str, ...] | None:
    if task is None or isinstance(task, str):
        return None if task is None else (task,)
    return tuple(f"{output}={name}" for output, name in task.items())


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    given: Given | None = None,
    command: str,
    resume: bool = False,
    overwrite: bool = False,
    offer: Callable[[Path], str] = lambda free: f'pass out="{free}", which is free, or overwrite=True',
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
    detail: Callable[[str], None] | None = None,
) -> CompiledBuild:
    """Run a resolved recipe; `compile` and the command line both end here."""
    given = given or Given()
    with logged(progress, say) as (log, told), timed_on(recipe.target, runtimes=recipe.measure.runtimes, say=told):
        folder = place_for(BuildFolder(out), overwrite=overwrite, resume=resume, offer=offer)
        if resume and not begun(folder):
            told(f"there is nothing to resume in {out}: this build starts at the beginning")
        check_choices(recipe, given)
        build = Build(
            recipe=recipe,
            folder=folder,
            command=command,
            given=given,
            progress=progress or SilentProgress(),
            log=log,
            say=detail or told,
        )
        done = pipeline.run(build, resume=resume, overwrite=overwrite, say=told)
    return CompiledBuild(out, read_report(out), done.compiled, done.planned)


def export_point(
    folder: str | Path,
    point: str,
    *,
    out: str | Path,
    model: nn.Module | ExportedProgram | str | None = None,
    example_inputs: Any = None,
    data: object = None,
    say: Callable[[str], None] = lambda line: None,
) -> ExportedPoint:
    """Make the files of one point of a finished build; nothing is searched or trained again.

    Args:
        folder: Build folder.
        point: Id of the point, as in `points` of report.json.
        out: New folder for the files.
        model: Model that the build was made from, where its recipe does not name it: as `compile` takes it.
        example_inputs: Inputs of it, as `compile` takes them.
        data: Data, where the recipe does not name it: as `compile` takes it.
        say: Function that is called with a line for each step.

    Raises:
        DeployPrunerError: No such point, a build of another version, another model, or a failed verification.
    """
    given, changes = Given.of(model, example_inputs, data), overrides(named_sources(model, data))
    return exporting.export_point(folder, point, out, given=given, changes=changes, say=say)
