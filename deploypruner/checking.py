"""The command `criteria-check`: which criterion ranks the channels of this model best."""

from __future__ import annotations

from pathlib import Path

import click

from deploypruner.ranges import MOST
from deploypruner.terminal import escaped_lines


@click.command("criteria-check")
@click.argument("model")
@click.option(
    "--data", required=True, metavar="DIR", help="Image folder, .npz, or package.module:factory of loaders."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weights for package.module:factory.")
@click.option("--trust-pickle", is_flag=True, default=None, help="Let a pickled module run its code.")
@click.option("--recipe", type=click.Path(path_type=Path), help="TOML file with any option of compile.")
@click.option("--criterion", multiple=True, metavar="NAME", help="Repeat for several.  [default: all]")
@click.option(
    "--samples", type=click.IntRange(1, MOST), default=128, show_default=True, help="Training samples to look at."
)
@click.option("--seed", type=int, help="Decides every random choice.  [default: 0]")
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
    from deploypruner.build.criterion import make_criterion
    from deploypruner.build.feeds import training_batches
    from deploypruner.config import read_recipe
    from deploypruner.criteria import criteria
    from deploypruner.learn.learned import is_learned
    from deploypruner.planning import loaded
    from deploypruner.progress import progress_for
    from deploypruner.prune.agreement import agreements, table

    overrides = {
        "model": {"source": model, "weights": weights, "trust_pickle": trust_pickle},
        "data": {"source": data},
        "seed": seed,
    }
    chosen = read_recipe(recipe, overrides)
    made = {name: make_criterion(name, {}) for name in criterion or criteria}
    if not criterion:  # the oracle is the yardstick, and learned criteria have no scores of their own before training
        made = {name: one for name, one in made.items() if name != "oracle" and not is_learned(one)}
    build, graph = loaded(chosen, "deploypruner criteria-check")
    size = min(chosen.prune.batch_size, samples)
    batches = list(training_batches(build, batch_size=size, count=max(1, samples // size)))
    progress = progress_for()
    progress.start(len(made) + 1, "criteria-check")
    try:
        found = agreements(graph, made, batches, seed=chosen.seed, on_done=lambda name: progress.advance())
    finally:
        progress.close()
    click.echo(escaped_lines(table(found)), nl=False)
