"""Six kinds of networks through `compile`, and every number of report.json once more, computed here.

What is computed again uses the files of the build, ONNX Runtime or OpenVINO, and numpy; of the package only `compile`
is called. A number that differs ends the run with an error. Dense networks are trained in seconds on drawn shapes.

    python -m benchmarks.tasks_through                    # all six, a few minutes on one core
    python -m benchmarks.tasks_through regression         # one of them
    python -m benchmarks.tasks_through --markdown         # the table of what was found; runs nothing
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

import deploypruner as dp
from benchmarks.kept import changing, read
from benchmarks.recomputed import Found, labels_of, recompute
from benchmarks.task_nets import CASES, Shapes, batches, names, shapes, trained
from deploypruner.recipe import MeasureRecipe, Recipe, RecoverRecipe

RESULTS = Path(__file__).parent / "results" / "tasks_through.json"
_TRAIN, _VAL, _EPOCHS, _MACS = 1000, 250, 10, 0.5


def through(name: str, splits: tuple[Shapes, Shapes], folder: Path, runtimes: tuple[str, ...]) -> dict[str, Any]:
    """Train, compile and compute again; gives the row for the table."""
    case, (train, val) = CASES[name], splits
    net = trained(case, train, epochs=_EPOCHS)
    recipe = Recipe(
        recover=RecoverRecipe(epochs=2), measure=MeasureRecipe(seconds=1.0, accuracy_drop=100.0, runtimes=runtimes)
    )
    said: list[str] = []
    dp.compile(
        net,
        (torch.zeros(2, *val.pictures.shape[1:]),),
        data=(batches(train, case), batches(val, case)),
        macs=_MACS,
        recipe=recipe,
        out=folder,
        say=said.append,
    )
    report = json.loads((folder / "report.json").read_text())
    (folder / "said.txt").write_text("\n".join(said) + "\n")
    found = recompute(folder, report, val.pictures.numpy(), labels_of(case.labels(val)))
    return {"loss": report["settings"].get("loss", ""), "checked": len(found), **_summary(report, found)}


def _summary(report: dict[str, Any], found: list[Found]) -> dict[str, Any]:
    wrong = [f"{f.where}: {f.reported} reported, {f.again} computed" for f in found if not f.same]
    outputs = {}
    for row in report["rows"]:
        if row["runtime"] != "onnxruntime":
            continue
        for output in row["outputs"]:
            about = {k: output[k] for k in ("task", "agreement_kind", "agreement", "accuracy")}
            about["metric"] = None if output["metric"] is None else output["metric"]["name"]
            about["again"] = {f.where.split(": ")[1]: f.again for f in found if f.where.startswith(_at(row, output))}
            outputs[f"{row['name']} {output['output']}"] = about
    return {"wrong": wrong, "outputs": outputs}


def _at(row: dict[str, Any], output: dict[str, Any]) -> str:
    return f"{row['name']} on {row['runtime']}, {output['output']}: "


def table(rows: dict[str, Any]) -> str:
    """As docs/results.md has it."""
    lines = ["| network | artifact, output | metric on labels, again | agreement, again | numbers | differ |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in rows.items():
        for at, output in row["outputs"].items():
            again = output["again"]
            metric = "-"
            if output["metric"] is not None:
                metric = f"{output['metric']} {output['accuracy']:.4f}, {again['accuracy']:.4f}"
            agreement = f"{output['agreement_kind']} {output['agreement']:.5f}, {again['agreement']:.5f}"
            counts = f"{row['checked']} | {len(row['wrong'])}"
            lines.append(f"| {name} | {at} | {metric} | {agreement} | {counts} |")
            name, row = "", {**row, "checked": "", "wrong": row["wrong"]}
    return "\n".join(lines)


@click.command()
@click.argument("asked", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Keep the builds here.")
@click.option("--runtime", multiple=True, default=("onnxruntime", "openvino"), help="Whose rows the reports have.")
@click.option("--markdown", is_flag=True, help="Print the table of what was found, and run nothing.")
def main(asked: tuple[str, ...], out: Path | None, runtime: tuple[str, ...], markdown: bool) -> None:
    """Build, compute again, and print what was found."""
    if markdown:
        click.echo(table(read(RESULTS)))
        return
    torch.set_num_threads(1)
    train, val = shapes(_TRAIN, seed=1), shapes(_VAL, seed=2)
    with tempfile.TemporaryDirectory() as scratch:
        for name in names(asked):
            row = through(name, (train, val), (out or Path(scratch)) / name.replace(" ", "-"), runtime)
            with changing(RESULTS) as rows:
                rows[name] = row
            click.echo(f"{name}: {row['checked']} numbers, {len(row['wrong'])} differ, trained by {row['loss']}")
            click.echo("\n".join(row["wrong"]), nl=bool(row["wrong"]))
    click.echo(table(read(RESULTS)))
    sys.exit(1 if any(row["wrong"] for row in read(RESULTS).values()) else 0)


if __name__ == "__main__":
    main()
