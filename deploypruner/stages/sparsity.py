"""What a sparse pattern adds to a build: the layers, the regime, and what it left. Used by several stages."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from deploypruner.errors import RecipeError
from deploypruner.graph.module import get_state
from deploypruner.patterns import sparse_pattern
from deploypruner.recipe import Recipe
from deploypruner.recover.sparse import SparseRegime, schedules
from deploypruner.recover.sparse.existing import ExistingZeros, weights_with_zeros
from deploypruner.recover.sparse.layers import SparseLayer, check_sizes, choose_layers, weighted_layers
from deploypruner.recover.sparse.settings import SparseSettings
from deploypruner.sparse.library import check_forced_target
from deploypruner.stages import GIVEN, Build

# Share of a layer's weights that somebody must have made zero for a purpose.
_ENOUGH = 0.3


def check_sparse(recipe: Recipe, *, trains: bool) -> None:
    """Refuse what makes no sense, before any work is done.

    Args:
        recipe: The whole recipe.
        trains: Whether the built-in fine-tuning will run.

    Raises:
        RecipeError: Unknown pattern or schedule, sparse settings without a sparse pattern, a sparsity the pattern
            contradicts, or a schedule that needs training without any.
        KernelError: DEPLOYPRUNER_TARGET names a target that this CPU does not run.
    """
    settings = recipe.sparse
    pattern = sparse_pattern(recipe.prune.patterns)
    if pattern is None:
        default = SparseSettings()
        given = [name for name in vars(default) if getattr(settings, name) != getattr(default, name)]
        if given:
            raise RecipeError(
                f"sparse.{given[0]} is set, but --pattern names no sparse pattern",
                hint="for example --pattern channel,nm64",
            )
        return
    if pattern.sparsity is not None and settings.sparsity not in (None, pattern.sparsity):
        raise RecipeError(
            f"pattern {pattern} makes {pattern.sparsity:.0%} of the weights zero, and --sparsity says "
            f"{settings.sparsity:.0%}",
            hint="leave out --sparsity, or choose other numbers such as 1:4",
        )
    name = schedule_name(settings, trains=trains)
    if schedules.get(name).trains and not trains:
        raise RecipeError(
            f"sparse schedule '{name}' works while fine-tuning, and there is none",
            hint="pass --data DIR and --epochs, without --train; or use --sparse-schedule one-shot",
        )
    check_forced_target()


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
    if sparse_pattern(build.recipe.prune.patterns) is not None:
        choose_layers(build.traced, build.recipe.sparse)


def check_widths(build: Build) -> None:
    """Refuse planned widths the pattern does not divide, before anything is trained.

    Raises:
        RecipeError: The layer is named.
    """
    pattern = sparse_pattern(build.recipe.prune.patterns)
    if pattern is not None:
        layers = choose_layers(build.traced, build.recipe.sparse)
        check_sizes(build.traced.cut(build.traced.removed(build.planned.keep)), layers, pattern)


def make_regime(build: Build, *, trains: bool) -> SparseRegime | None:
    """The regime that makes the pruned module sparse, None without a sparse pattern."""
    settings, pattern = build.recipe.sparse, sparse_pattern(build.recipe.prune.patterns)
    if pattern is None:
        return None
    schedule = schedules.get(schedule_name(settings, trains=trains))
    return schedule([layer.weight for layer in _layers(build)], pattern, settings)


def existing_zeros(build: Build) -> ExistingZeros | None:
    """The regime that keeps the zeros a model brought along, None where it has few or the recipe names a pattern."""
    if sparse_pattern(build.recipe.prune.patterns) is not None:
        return None
    names = weights_with_zeros(build.compiled, [layer.weight for layer in weighted_layers(build.traced)], _ENOUGH)
    return ExistingZeros(build.compiled, names) if names else None


def sparse_facts(build: Build, regime: SparseRegime) -> dict[str, Any]:
    """What became zero, or stayed so, layer by layer, for report.json."""
    given = isinstance(regime, ExistingZeros)
    chosen = [layer for layer in weighted_layers(build.traced) if layer.weight in regime.names]
    pattern, layers = regime.pattern, []
    for layer in chosen:
        weight = get_state(build.compiled, layer.weight)
        zeros = weight.numel() - int(torch.count_nonzero(weight))
        layers.append({"name": layer.name, "kind": layer.kind, "weights": weight.numel(), "zeros": zeros})
    return {
        "pattern": GIVEN if given else str(pattern),
        "schedule": "kept" if given else next(n for n in schedules if schedules.get(n) is type(regime)),
        "sparsity": regime.sparsity,
        "distribution": regime.settings.distribution,
        "zeros": sum(layer["zeros"] for layer in layers),
        "weights": sum(layer["weights"] for layer in layers),
        "remarks": check_sizes(build.compiled, chosen, pattern),
        "layers": layers,
    }


def sparse_weights(build: Build) -> dict[str, NDArray[Any]]:
    """Parameter name -> trained weight of every layer whose zeros count."""
    names = {layer["name"] for layer in build.facts.get("sparse", {}).get("layers", ())}
    chosen = [layer.weight for layer in weighted_layers(build.traced) if layer.name in names]
    return {weight: get_state(build.compiled, weight).detach().cpu().numpy() for weight in chosen}


def describe_sparse(facts: dict[str, Any]) -> str:
    """One line: how many weights are zero."""
    share, layers = facts["zeros"] / facts["weights"], len(facts["layers"])
    line = (
        f"{facts['pattern']} ({facts['schedule']}): {share:.1%} of the weights of {layers} "
        f"layer{'' if layers == 1 else 's'} are zero"
    )
    return line + (f" ({facts['remarks'][0]})" if facts["remarks"] else "")


def _layers(build: Build) -> tuple[SparseLayer, ...]:
    return choose_layers(build.traced, build.recipe.sparse)
