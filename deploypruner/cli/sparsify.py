"""The command `sparsify`: an ONNX model of any origin with zeros in its weights, made to skip them."""

from __future__ import annotations

from pathlib import Path

import click

from deploypruner.cli.forms import refused_form, show_forms
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import BATCH, OVERWRITE, SEED, console, require_place, shows_progress
from deploypruner.cli.recipe_options import command_option, recipe_option
from deploypruner.reading import check_present
from deploypruner.recipe.option import MEASURING
from deploypruner.registries import tasks


@click.command(
    "sparsify", cls=GroupedCommand, examples={"deploypruner sparsify model.onnx --data photos/ --out sparse/": ""}
)
@click.argument("model", type=click.Path(path_type=Path))
@recipe_option("data")
@recipe_option("mean")
@recipe_option("std")
@recipe_option("threads")
@BATCH
@recipe_option("seconds")
@command_option(
    "--accuracy-drop",
    group=MEASURING,
    type=click.FloatRange(0),
    metavar="POINTS",
    help="Points that int8 may cost against MODEL; without labels of agreement.  [default: 3, of agreement 10]",
)
@recipe_option("task")
@recipe_option("metric")
@recipe_option("classes")
@command_option("--out", default="sparse", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@OVERWRITE
@shows_progress
@SEED
def sparsify_command(
    model: Path,
    data: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    threads: int | None,
    batch: int | None,
    seconds: float | None,
    accuracy_drop: float | None,
    task: tuple[str, ...],
    metric: str | None,
    classes: Path | None,
    out: Path,
    overwrite: bool,
    seed: int,
) -> None:
    """Convert MODEL, an .onnx file with zeros in its weights, so that OpenVINO skips them.

    An int8 QDQ model is converted directly; an fp32 one is quantized first. The layers are timed dense and sparse,
    and the result is measured beside the dense int8 model and MODEL itself, which both are judged against: an int8
    form that loses more than --accuracy-drop is refused (exit code 3). Writes model.sparse.onnx and the library that
    runs it.
    """
    check_present(model, what="model", hint="give an .onnx file", native=True)
    require_place(out, "sparsify", overwrite=overwrite)
    for name in task:
        tasks.check(name.rpartition("=")[2])
    with console() as shown:
        from deploypruner.build.given_file import FileRequest
        from deploypruner.build.sparsified import sparsified

        request = FileRequest(
            model,
            out,
            overwrite=overwrite,
            progress=shown,
            data=data,
            mean=mean,
            std=std,
            threads=threads or 1,
            batch=batch,
            seconds=seconds or 20.0,
            seed=seed,
            drop=accuracy_drop,
            tasks=task,
            metric=metric or "",
            classes=classes,
        )
        found = sparsified(request, say=shown.step)
    from deploypruner.report.sparse import sparse_sentence

    sparse = "" if found.refused else sparse_sentence(found.document)
    show_forms(
        found.rows,
        [("sparse: ", sparse), ("quality: ", found.quality)],
        found.warnings,
        read_on=f"{out / 'sparsify.json'} has every layer",
    )
    if found.refused:
        raise refused_form(model, found.quality)
