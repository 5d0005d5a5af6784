"""What a sparse pattern adds to a build: the layers, the regime, and what it left. Used by several stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from deploypruner.build.state import Build
from deploypruner.errors import InputError, RecipeError
from deploypruner.graph.execute.module import get_state
from deploypruner.recipe import Recipe
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.schedules import schedules, sparse_regime
from deploypruner.sparse.library import check_forced_target
from deploypruner.sparsity.patterns import AUTO, sparse_patterns
from deploypruner.sparsity.training import DEFAULT_SPARSITY, SparseRegime
from deploypruner.sparsity.training.existing import ExistingZeros, weights_with_zeros
from deploypruner.sparsity.training.layers import SparseLayer, check_sizes, choose_layers, weighted_layers
from deploypruner.sparsity.training.zeros import Zeros, count_zeros


def fewer_zeros(recipe: Recipe) -> str:
    """What keeps about twice as many weights where nothing but zeros was asked for: "--sparsity 0.6".

    "" where channels go as well, where time decides, and where the pattern itself says how many are zero.
    """
    patterns = sparse_patterns(recipe.prune.patterns)
    if not patterns or patterns[0].sparsity is not None or recipe.prune.budget.macs != 1:
        return ""
    share = recipe.sparse.sparsity or DEFAULT_SPARSITY
    return f"--sparsity {max(2 * share - 1, share / 2):.2g}"


def check_sparse(recipe: Recipe, *, trains: bool) -> None:
    """Refuse what makes no sense, before any work is done.

    Args:
        recipe: The whole recipe.
        trains: Whether the built-in fine-tuning will run.

    Raises:
        RecipeError: Unknown pattern or schedule, sparse settings without a sparse pattern, a sparsity or
            distribution the pattern contradicts, or a schedule that needs training without any.
        KernelError: DEPLOYPRUNER_TARGET names a target that this CPU does not run.
    """
    settings = recipe.sparse
    patterns = sparse_patterns(recipe.prune.patterns)
    if not patterns:
        default = SparseSettings()
        given = [name for name in vars(default) if getattr(settings, name) != getattr(default, name)]
        if given:
            raise RecipeError(
                f"sparse.{given[0]} is set, but --pattern names no sparse pattern",
                hint="for example --pattern channel,nm64",
            )
        return
    pattern = patterns[0]
    if pattern.sparsity is not None and settings.sparsity not in (None, pattern.sparsity):
        raise RecipeError(
            f"pattern {pattern} makes {100 * pattern.sparsity:.0f} % of the weights zero, and --sparsity says "
            f"{100 * settings.sparsity:.0f} %",
            hint="leave out --sparsity, or choose other numbers such as 1:4",
        )
    if AUTO in recipe.prune.patterns and settings.distribution != SparseSettings.distribution:
        raise RecipeError(
            f"--pattern {AUTO} gives every layer its own share of zeros, and sparse.distribution says "
            f"'{settings.distribution}'",
            hint="leave out sparse.distribution, or name a pattern",
        )
    _check_time(recipe)
    name = schedule_name(settings, trains=trains)
    if sparse_regime(name).trains and not trains:
        raise RecipeError(
            f"sparse schedule '{name}' works while fine-tuning, and there is none",
            hint="pass --data DIR and --epochs, without --train; or use --sparse-schedule one-shot",
        )
    check_forced_target()


def _check_time(recipe: Recipe) -> None:
    """Refuse what a budget of time cannot be combined with where zeros are to meet it.

    Raises:
        RecipeError: A sparsity, fp32, or no OpenVINO.
    """
    budget, measure = recipe.prune.budget, recipe.measure
    if AUTO not in recipe.prune.patterns or budget.kind == "macs":
        return
    if recipe.sparse.sparsity is not None:
        raise RecipeError(
            f"{budget} and --sparsity {recipe.sparse.sparsity:g} both say how many weights become zero",
            hint="leave out one of them",
        )
    if measure.precision == "fp32":
        raise RecipeError(f"{budget} is to be met by zeros, which are left out in int8 only", hint="--precision int8")
    if measure.runtimes and "openvino" not in measure.runtimes:
        raise RecipeError(
            f"{budget} is to be met by zeros, which are left out in OpenVINO only, not in "
            f"{', '.join(measure.runtimes)}",
            hint="name --runtime openvino as well",
        )


def schedule_name(settings: SparseSettings, *, trains: bool) -> str:
    """Resolve "auto": gradual where the built-in fine-tuning runs, one-shot where it does not."""
    if settings.schedule != "auto":
        return settings.schedule
    return "gradual" if trains else "one-shot"


def check_layers(build: Build) -> None:
    """Refuse a sparse pattern that no layer of the traced model can follow.

    Raises:
        RecipeError: A pattern of names that matches no layer.
        InputError: No layer is left.
    """
    if sparse_patterns(build.recipe.prune.patterns):
        choose_layers(build.traced, build.recipe.sparse)


def check_widths(build: Build) -> None:
    """Refuse planned widths the pattern does not divide, before anything is trained.

    Raises:
        RecipeError: The layer is named.
        InputError: The plan leaves no layer that the pattern is for.
    """
    for pattern in sparse_patterns(build.recipe.prune.patterns):
        chosen = choose_layers(build.traced, build.recipe.sparse)
        layers = remaining(build, chosen)
        if not layers:
            raise InputError(
                f"no layer is left for --pattern {pattern}: {', '.join(layer.name for layer in chosen)} went with "
                "residual branches of the plan",
                hint="name more kinds with --sparse-layers, or keep the branches with --depth keep",
            )
        check_sizes(build.traced.cut(build.traced.removed(build.planned.keep)), layers, pattern)


def make_regime(build: Build, *, trains: bool) -> SparseRegime | None:
    """The regime that makes the pruned module sparse, None where no layer becomes so."""
    settings, patterns = build.recipe.sparse, sparse_patterns(build.recipe.prune.patterns)
    if not patterns:
        return None
    schedule = sparse_regime(schedule_name(settings, trains=trains))
    if AUTO in build.recipe.prune.patterns:
        return schedule(list(build.assigned), build.assigned, settings) if build.assigned else None
    layers = remaining(build, choose_layers(build.traced, settings))
    return schedule([layer.weight for layer in layers], patterns[0], settings)


def remaining(build: Build, layers: Sequence[SparseLayer]) -> list[SparseLayer]:
    """Those that are not gone with their branch."""
    graph = build.traced
    gone = {name for branch in build.planned.dropped for name in graph.branch(branch).parameters}
    return [layer for layer in layers if layer.weight not in gone]


def existing_zeros(build: Build) -> ExistingZeros | None:
    """The regime that keeps the zeros a model brought along, None where it has few or the recipe names a pattern."""
    if sparse_patterns(build.recipe.prune.patterns):
        return None
    layers = remaining(build, weighted_layers(build.traced))
    names = weights_with_zeros(build.compiled, [layer.weight for layer in layers])
    return ExistingZeros(build.compiled, names) if names else None


def brought_zeros(build: Build) -> bool:
    """Did the user's model bring zeros along that are to stay?"""
    if sparse_patterns(build.recipe.prune.patterns):
        return False
    names = [layer.weight for layer in weighted_layers(build.traced)]
    return bool(weights_with_zeros(build.traced.module, names))


def find_zeros(build: Build, regime: SparseRegime) -> Zeros:
    """What became zero, or stayed so, layer by layer, for report.json."""
    named = [name for name in schedules if schedules.get(name).weights is type(regime)]
    auto = AUTO in build.recipe.prune.patterns
    return count_zeros(build.traced, build.compiled, regime, schedule=named[0] if named else "kept", auto=auto)


def sparse_weights(build: Build) -> dict[str, NDArray[Any]]:
    """Parameter name -> trained weight of every layer whose zeros count."""
    names = {layer.name for layer in build.zeros.layers} if build.zeros is not None else ()
    chosen = [layer.weight for layer in weighted_layers(build.traced) if layer.name in names]
    return {weight: get_state(build.compiled, weight).detach().cpu().numpy() for weight in chosen}
