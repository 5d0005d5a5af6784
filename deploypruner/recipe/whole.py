"""Everything that decides a build, in one record: what a recipe file holds and what the command line sets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from deploypruner.device.described import described
from deploypruner.errors import RecipeError
from deploypruner.ranges import SEEDS, check_number
from deploypruner.recipe.option import (
    MODEL,
    check_names,
    documented,
    keyed,
    option,
    section,
)
from deploypruner.recipe.prune import PruneRecipe
from deploypruner.recipe.sections import (
    DataRecipe,
    LearnRecipe,
    MeasureRecipe,
    ModelRecipe,
    QuantizeRecipe,
    RecoverRecipe,
    SearchRecipe,
)
from deploypruner.recipe.sparse import SparseSettings

BUDGETS = ("latency", "speedup", "macs")

# Keys of the nested settings that another key decides -> that key; they are not part of a recipe file.
DERIVED = {
    "recover.settings.epochs": "recover.epochs",
    "recover.settings.seed": "seed",
    "learn.settings.epochs": "learn.epochs",
    "learn.settings.seed": "seed",
}
# No clipping is an infinite norm.
_MAY_BE_INFINITE = ("recover.settings.clip_norm", "learn.settings.clip_norm")


@documented
@dataclass(frozen=True)
class Recipe:
    """A whole build; sections of a recipe file have these names."""

    model: ModelRecipe = section(ModelRecipe)
    data: DataRecipe = section(DataRecipe)
    prune: PruneRecipe = section(PruneRecipe)
    search: SearchRecipe = section(SearchRecipe)
    learn: LearnRecipe = section(LearnRecipe)
    sparse: SparseSettings = section(SparseSettings)
    recover: RecoverRecipe = section(RecoverRecipe)
    quantize: QuantizeRecipe = section(QuantizeRecipe)
    measure: MeasureRecipe = section(MeasureRecipe)
    target: str = option(
        "cpu",
        "Machine to compile for and to measure on: cpu (here), ssh://user@host[:port], or a name of `target list`.",
        flag="--target",
        metavar="NAME",
        group=MODEL,
    )
    seed: int = option(
        0,
        "Number that decides every random choice, 0 to 4294967295.",
        flag="--seed",
        metavar="N",
        group=MODEL,
    )

    def __post_init__(self) -> None:
        check_names(self)
        with keyed("target"):
            described(self.target)
        for name, seed in (("--seed", self.seed), ("data.settings.seed", self.data.settings.seed)):
            check_number(name, seed, least=0, most=SEEDS, hint="0 is the default")
        for place, value in _numbers(asdict(self), ""):
            if place not in _MAY_BE_INFINITE:
                if isinstance(value, float) and not math.isfinite(value):
                    raise RecipeError(f"{place} must be finite, got {value:g}", hint="leave it out for its default")
                if isinstance(value, int):
                    check_number(place, value, least=-SEEDS, most=SEEDS, hint="leave it out for its default")


def resolved_toml(recipe: Recipe) -> str:
    """The recipe with every default spelled out; what is not set is left out, as TOML has no null."""
    document = _plain(asdict(recipe))
    for name in DERIVED:
        *sections, key = name.split(".")
        section = document
        for part in sections:
            section = section[part]
        del section[key]
    return tomli_w.dumps(document)


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every number in it, with the key it stands under."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _numbers(held, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _numbers(held, place)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str | Path):
        # TOML cannot say bytes that are no UTF-8; they are readable at least.
        return str(value).encode(errors="backslashreplace").decode()
    return value
