"""The command `criteria-check`: which criterion ranks the channels of this model best."""

from __future__ import annotations

from pathlib import Path

import click

from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import console, shows_progress
from deploypruner.cli.recipe_options import command_option, recipe_option
from deploypruner.ranges import MOST
from deploypruner.recipe.option import CHANNELS, MODEL
from deploypruner.recipe.overrides import overrides
from deploypruner.recipe.reading import read_recipe
from deploypruner.registries import criteria
from deploypruner.sources.named import check_named
from deploypruner.terminal import escaped_lines


@click.command(
    "criteria-check", cls=GroupedCommand, examples={"deploypruner criteria-check model.pt2 --data photos/": ""}
)
@click.argument("model")
@recipe_option("data", required=True)
@recipe_option("weights")
@recipe_option("trust_pickle")
@command_option(
    "--recipe", group=MODEL, type=click.Path(path_type=Path), help="TOML file with any option of compile."
)
@command_option(
    "--criterion", group=CHANNELS, multiple=True, metavar="NAME", help="Repeat for several.  [default: all]"
)
@command_option(
    "--samples",
    group=CHANNELS,
    type=click.IntRange(1, MOST),
    default=128,
    show_default=True,
    help="Training samples to look at.",
)
@recipe_option("seed")
@shows_progress
def check_command(
    model: str,
    data: str,
    weights: Path | None,
    trust_pickle: bool | None,
    recipe: Path | None,
    criterion: tuple[str, ...],
    samples: int,
    seed: int | None,
) -> None:
    """Rank correlation of each criterion with the true loss change of removing each channel.

    The truth takes one pass over the samples per channel of MODEL: minutes for a small network, far too long for a
    large one.
    """
    for name in criterion:
        criteria.check(name)
    with console() as shown:
        given = {"model": model, "data": data, "weights": weights, "trust_pickle": trust_pickle, "seed": seed}
        chosen = read_recipe(recipe, overrides(given))
        check_named(chosen.model.source, chosen.model.weights, data)
        from deploypruner.build.criterion import make_criterion
        from deploypruner.build.feeds import training_batches
        from deploypruner.channels.rank_agreement import agreements, table
        from deploypruner.cli.plan import loaded

        made = {name: make_criterion(name, {}) for name in criterion or criteria}
        if not criterion:
            # The oracle is the yardstick, and learned criteria have no scores of their own before training.
            made = {name: one for name, one in made.items() if name != "oracle" and not one.learned}
        build, graph = loaded(chosen, "deploypruner criteria-check")
        size = min(chosen.prune.batch_size, samples)
        batches = list(training_batches(build, batch_size=size, count=max(1, samples // size)))
        shown.start(len(made) + 1, "criteria-check")
        found = agreements(graph, made, batches, seed=chosen.seed, on_done=lambda name: shown.advance())
    click.echo(escaped_lines(table(found)), nl=False)
