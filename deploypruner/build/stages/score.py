"""score: one number per removable channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.criteria import Criterion, Needs, criteria
from deploypruner.errors import RecipeError, nearest
from deploypruner.prune.evidence import score_groups
from deploypruner.recipe import PruneRecipe


class Score(Stage):
    """Ask the criterion how much every channel matters."""

    name: ClassVar[str] = "score"
    saves: ClassVar[tuple[str, ...]] = (stage_file("scores.safetensors"),)

    def run(self, build: Build) -> Build:
        """Give scores and save them."""
        recipe = build.recipe.prune
        name = criterion_name(recipe, has_data=build.data is not None)
        criterion = make_criterion(name, recipe.parameters)
        batches = None
        if build.data is not None and criterion.needs != Needs.WEIGHTS:
            steps = max(1, recipe.samples // recipe.batch_size)
            steps = min(steps, criterion.effort.batches or steps)
            batches = training_batches(build, batch_size=recipe.batch_size, count=steps)
            build.progress.start(steps, f"score ({name})")
        try:
            scores = score_groups(
                build.traced, criterion, batches, seed=build.recipe.seed, on_batch=build.progress.advance
            )
        finally:
            build.progress.close()
        with build.folder.writing(self.saves[0]) as path:
            save_file({group_id: score.contiguous() for group_id, score in scores.items()}, path)
        return replace(build, scores=scores, criterion=name)

    def restore(self, build: Build) -> Build:
        """Read the scores of an earlier run."""
        scores = load_file(build.folder.path(self.saves[0]))
        name = criterion_name(build.recipe.prune, has_data=build.data is not None)
        return replace(build, scores=scores, criterion=name)

    def document(self, build: Build) -> str:
        """The criterion."""
        return build.criterion


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


def training_batches(
    build: Build, *, batch_size: int, count: int, augment: bool = False
) -> Iterator[tuple[Any, ...]]:
    """The first `count` batches of one seeded pass over the training data."""
    assert build.data is not None, "there is no data"
    epoch = build.data.train.epoch(batch_size=batch_size, seed=build.recipe.seed, shuffle=True, augment=augment)
    return islice(epoch, count)
