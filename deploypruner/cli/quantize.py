"""The command `quantize`: int8 alone, within an accuracy budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploypruner.cli.forms import check_tasks, file_request, refused_form, show_forms
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import BATCH, OVERWRITE, SEED, THREADS, console, require_place, shows_progress
from deploypruner.cli.recipe_options import command_option, recipe_option
from deploypruner.reading import check_present
from deploypruner.recipe.option import MEASURING
from deploypruner.sources.named import check_named, data_kind


@click.command(
    "quantize",
    cls=GroupedCommand,
    examples={
        "deploypruner quantize model.onnx --data photos/ --accuracy-drop 0.5": "an ONNX file",
        "deploypruner quantize timm:resnet18 --data photos/ --out int8/": "what compile takes",
    },
)
@click.argument("model", type=click.Path(path_type=Path))
@recipe_option("data", required=True)
@recipe_option("weights")
@recipe_option("input_shape")
@recipe_option("trust_pickle")
@recipe_option("mean")
@recipe_option("std")
@recipe_option("task")
@recipe_option("metric")
@recipe_option("classes")
@recipe_option("quantize_repair")
@recipe_option("weight_bits")
@recipe_option("allow_bf16")
@THREADS
@BATCH
@recipe_option("seconds")
@command_option(
    "--accuracy-drop",
    group=MEASURING,
    type=click.FloatRange(0),
    metavar="POINTS",
    help="Points that int8 may cost; without labels of agreement.  [default: 1, of agreement 5]",
)
@command_option("--out", default="int8", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@OVERWRITE
@shows_progress
@SEED
def quantize_command(
    model: Path,
    weights: Path | None,
    input_shape: tuple[tuple[int, ...], ...],
    trust_pickle: bool | None,
    quantize_repair: bool | None,
    out: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Quantize MODEL to int8 without training, and repair what that costs.

    MODEL is an .onnx file, or what `compile` takes. A few hundred unlabelled samples suffice. Channels are equalized,
    ranges chosen, weights rounded for what layers compute and biases corrected, each where it helps. Where int8
    still loses more than --accuracy-drop, the layers that cost most stay float; a file that loses more all the same
    is refused (exit code 3). Writes model.int8.onnx and quantize.json.
    """
    if model.suffix == ".onnx":
        check_present(model, what="model", hint="give an .onnx file", native=True)
        data_kind(options["data"])
    else:
        check_named(str(model), weights, options["data"])
    require_place(out, "quantize", overwrite=overwrite)
    check_tasks(options["task"])
    with console() as shown:
        from deploypruner.build.int8_file import Int8Request, int8_file

        file = file_request({"model": model, "out": out, "overwrite": overwrite, **options}, shown)
        request = Int8Request(file, weights, input_shape, bool(trust_pickle), quantize_repair is not False)
        found = int8_file(request, say=shown.step)
    show_forms(
        found.rows,
        [
            ("weights: ", found.weights),
            ("repair: ", found.repaired),
            ("quality: ", found.sentence),
            ("bf16: ", found.in_bf16),
        ],
        found.warnings,
        read_on=f"{out / 'quantize.json'} has every step",
    )
    if found.refused:
        raise refused_form(model, found.sentence)
