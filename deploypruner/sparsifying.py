"""The command `sparsify`: an ONNX model of any origin with zeros in its weights, made to skip them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from deploypruner.errors import BudgetError
from deploypruner.options import BATCH, SECONDS, SEED, THREADS, colour, width
from deploypruner.recipe_options import numbers
from deploypruner.terminal import write_line


@click.command("sparsify")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="DIR", help="Image folder, .npz or package.module:factory; ranges of fp32 models come from it."
)
@click.option("--mean", callback=numbers, metavar="R,G,B", help="Of images scaled to 0..1.  [default: ImageNet's]")
@click.option("--std", callback=numbers, metavar="R,G,B", help="Of images scaled to 0..1.  [default: ImageNet's]")
@THREADS
@BATCH
@SECONDS
@click.option(
    "--accuracy-drop",
    type=click.FloatRange(0),
    metavar="POINTS",
    help="Of the metric, that int8 may cost against MODEL; without labels of agreement.  [default: 3; 10]",
)
@click.option("--task", multiple=True, metavar="[OUTPUT=]TASK", help="What an output is. See `list tasks`; repeat.")
@click.option("--metric", metavar="MODULE:FUNCTION", help="Your own metric(outputs, labels) -> float.")
@click.option(
    "--classes", type=click.Path(path_type=Path), metavar="FILE", help="Names of MODEL's classes, in order."
)
@click.option("--out", default="sparse", show_default=True, type=click.Path(path_type=Path), help="Folder.")
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
    seed: int,
) -> None:
    """Convert MODEL, an .onnx file with zeros in its weights, so that OpenVINO skips them.

    An int8 QDQ model is converted directly; an fp32 one is quantized first. The layers are timed dense and sparse,
    and the result is measured beside the dense int8 model and MODEL itself, which both are judged against: an int8
    form that loses more than --accuracy-drop is refused (exit code 3). Writes model.sparse.onnx and the library that
    runs it.
    """
    from deploypruner.build.sparsified import Request, sparsified
    from deploypruner.report import table_rows
    from deploypruner.report.outputs import outputs_text
    from deploypruner.report.sparse import sparse_sentence
    from deploypruner.report.terminal import wrap

    request = Request(
        model,
        out,
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
    found = sparsified(request, say=partial(write_line, sys.stderr))
    if found.rows:
        click.echo(table_rows(found.rows, colour=colour(), width=width()) + "\n")
    by_output = outputs_text(found.rows)
    if by_output:
        click.echo(by_output + "\n")
    if not found.refused:
        click.echo(wrap("sparse: ", sparse_sentence(found.document), width()))
    if found.quality:
        click.echo(wrap("quality: ", found.quality, width()))
    for text in found.warnings:
        click.echo(wrap("warning: ", text, width()))
    write_line(sys.stderr, "")
    write_line(sys.stderr, f"{out / 'sparsify.json'} has every layer")
    if found.refused:
        raise BudgetError(
            f"the int8 form of {model} is refused: {found.quality}",
            hint=f"deploy {model} as it is, or allow more with --accuracy-drop",
            finished=True,
        )
