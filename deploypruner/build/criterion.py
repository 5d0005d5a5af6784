"""The criterion and its normaliser, as the recipe names them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from deploypruner.channels.criteria import Criterion, criteria
from deploypruner.errors import RecipeError, nearest
from deploypruner.recipe import PruneRecipe


def criterion_name(recipe: PruneRecipe, *, has_data: bool) -> str:
    """Resolve "auto": Taylor looks at data, magnitude does without."""
    if recipe.criterion != "auto":
        return recipe.criterion
    return "taylor" if has_data else "magnitude"


def normalizer_name(recipe: PruneRecipe, criterion: str) -> str:
    """Resolve "auto": the criterion's own."""
    return criteria.get(criterion).normalizer if recipe.normalizer == "auto" else recipe.normalizer


def make_criterion(name: str, parameters: dict[str, Any]) -> Criterion:
    """Build the criterion called `name` from the recipe's parameters.

    Raises:
        RecipeError: Unknown name, unknown parameter, or a value of the wrong type.
    """
    cls = criteria.get(name)
    known = list(getattr(cls, "__dataclass_fields__", {}))
    for key in parameters:
        if key not in known:
            hint = nearest(key, known) if known else f"'{name}' has no parameters"
            raise RecipeError(f"criterion '{name}' has no parameter '{key}'", hint=hint)
    try:
        return TypeAdapter(cls).validate_python(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"criterion '{name}': {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}",
            hint=f"parameters: {', '.join(known)}",
        ) from error
