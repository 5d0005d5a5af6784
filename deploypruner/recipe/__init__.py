"""The recipe: everything that decides a build, as dataclasses whose fields carry their help and their flag.

Nothing heavy is imported here, so that the command line can read and check a recipe before torch is loaded.
"""

from __future__ import annotations

from deploypruner.recipe.prune import DEFAULT_MACS, PruneRecipe
from deploypruner.recipe.sections import (
    DataRecipe,
    LearnRecipe,
    MeasureRecipe,
    ModelRecipe,
    QuantizeRecipe,
    RecoverRecipe,
    SearchRecipe,
)
from deploypruner.recipe.whole import BUDGETS, DERIVED, Recipe, resolved_toml

__all__ = [
    "BUDGETS",
    "DEFAULT_MACS",
    "DERIVED",
    "DataRecipe",
    "LearnRecipe",
    "MeasureRecipe",
    "ModelRecipe",
    "PruneRecipe",
    "QuantizeRecipe",
    "Recipe",
    "RecoverRecipe",
    "SearchRecipe",
    "resolved_toml",
]
