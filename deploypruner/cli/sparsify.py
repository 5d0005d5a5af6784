"""The command `sparsify`: an ONNX model of any origin with zeros in its weights, made to skip them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploypruner.cli.forms import check_tasks, file_request, refused_form, show_forms
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import BATCH, OVERWRITE, SEED, console, require_place, shows_progress
from deploypruner.cli.recipe_options import command_option, recipe_option
from deploypruner.device.described import HERE, described
from deploypruner.reading import check_present
from deploypruner.recipe.option import MEASURING
from deploypruner.sources.named import data_kind


@click.command(
    "sparsify", cls=GroupedCommand, examples={"deploypruner sparsify model.onnx --data photos/ --out sparse/": ""}
)
@click.argument("model", type=click.Path(path_type=Path))
@recipe_option("data")
@recipe_option("mean")
@recipe_option("std")
@recipe_option("target")
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
def sparsify_command(model: Path, out: Path, overwrite: bool, target: str | None, **options: Any) -> None:
    """Convert MODEL, an .onnx file with zeros in its weights, so that OpenVINO skips them.

    An int8 QDQ model is converted directly; an fp32 one is quantized first. The layers are timed dense and sparse,
    and the result is measured beside the dense int8 model and MODEL itself, which both are judged against: an int8
    form that loses more than --accuracy-drop is refused (exit code 3). Writes model.sparse.onnx and the library that
    runs it. With --target layers and files are timed on that machine, which is sent the library; quality is judged
    here.
    """
    where = described(target or HERE)
    check_present(model, what="model", hint="give an .onnx file", native=True)
    if options["data"] is not None:
        data_kind(options["data"])
    require_place(out, "sparsify", overwrite=overwrite)
    check_tasks(options["task"])
    with console() as shown:
        from deploypruner.build.given_file import JUDGED_IN
        from deploypruner.build.sparsified import sparsified
        from deploypruner.latency.clock import timed_on

        with timed_on(where.name, runtimes=[JUDGED_IN], say=shown.say) as clock:
            given = {"threads": where.threads, **{name: v for name, v in options.items() if v is not None}}
            more = {"model": model, "out": out, "overwrite": overwrite, "clock": clock}
            found = sparsified(file_request(more | given, shown), say=shown.step)
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
