"""Does a traced model train as the model does? Pruned by nothing beside the original, half beside its own class.

    python -m benchmarks.train_mode                         # what is missing in the results, then the table
    python -m benchmarks.train_mode timm:repvgg_a0          # these; run again if they are there
    python -m benchmarks.train_mode --markdown              # only print the table of what is there

Original and pruned-by-nothing run in training mode, three seeds and two steps each: outputs, gradients, buffers and
the random numbers drawn have to be the same, or `graph.trains_differently` has to say beforehand that they are not.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kept import changing, read
from benchmarks.train_mode_models import CASES, load
from deploypruner import plan as make_plan
from deploypruner.channels.remove import remove
from deploypruner.errors import BudgetError, DeployPrunerError
from deploypruner.graph import Graph, trace
from deploypruner.graph.inputs import Inputs, call, tensors
from deploypruner.recipe.budget import Budget

RESULTS = Path(__file__).parent / "results" / "train_mode.json"
_SEEDS, _STEPS = 3, 2
# Of the largest value: float32 through a deep network whose batch norms see four samples.
_ALIKE = 1e-3
# Of the MACs; the second where the narrowest network has more than half.
_HALF, _LITTLE = 0.5, 0.9


@click.command()
@click.argument("names", nargs=-1)
@click.option("--markdown", is_flag=True, help="print the table of what was run, run nothing")
def main(names: tuple[str, ...], markdown: bool) -> None:
    """Run the cases NAMES (all that are missing when none is named) and print the table."""
    for name in () if markdown else names or [n for n in CASES if n not in read(RESULTS)]:
        begun = time.process_time()
        try:
            row = measure(name)
        except Exception as error:  # noqa: BLE001 - a benchmark reports whatever stops it
            row = {"crashed": f"{type(error).__name__}: {str(error)[:300]}"}
        row["seconds"] = time.process_time() - begun
        click.echo(f"{name}: {verdict(row)} {row}", err=True)
        with changing(RESULTS) as rows:
            rows[name] = row
    rows = read(RESULTS)
    click.echo(table({name: rows[name] for name in (names or CASES) if name in rows}))


def measure(name: str) -> dict[str, Any]:
    """One row: what the tool says, and how far the pruned module is from the original."""
    torch.set_num_threads(1)
    model, inputs = load(name)
    try:
        graph = trace(model, inputs)
    except DeployPrunerError as error:
        return {"refused": error.message}
    row: dict[str, Any] = {"said": graph.trains_differently, "remarks": list(graph.remarks), "part": graph.part}
    if graph.part:
        return row
    row |= compared(model, graph.cut(graph.removed({})), inputs)
    if graph.dynamic_batch and not graph.trains_differently:
        row["half"] = halved(graph, model, inputs)
    return row


def compared(model: nn.Module, pruned: nn.Module, inputs: Inputs, *, scaled: bool = False) -> dict[str, Any]:
    """The largest differences over all seeds, of the largest value; "shapes" where they cannot be compared.

    With `scaled`, gradients are multiplied by their weights: a class that divides by the square root of its own head
    width has other weights than the graph, which divides by the old one, and gradients that differ by that factor.
    """
    worst: dict[str, Any] = {"outputs": 0.0, "gradients": 0.0, "buffers": 0.0, "drawn": True}
    for seed in range(_SEEDS):
        try:
            wanted, got = (steps(copy.deepcopy(module), inputs, seed) for module in (model, pruned))
        except Exception as error:  # noqa: BLE001 - a model may not run in training mode
            return {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
        if scaled:
            for found, module in ((wanted, model), (got, pruned)):
                weights = dict(module.named_parameters(remove_duplicate=False))
                found["gradients"] = {name: g * weights[name].detach() for name, g in found["gradients"].items()}
        for key in ("outputs", "gradients", "buffers"):
            worst[key] = max(worst[key], gap(wanted[key], got[key]))
        worst["drawn"] &= wanted["drawn"] == got["drawn"]
    return worst


def steps(module: nn.Module, inputs: Inputs, seed: int) -> dict[str, Any]:
    """Outputs, gradients, buffers that changed and random state of two steps in training mode."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    module.train()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    outputs: list[Tensor] = []
    for _ in range(_STEPS):
        found = [t for t in tensors(call(module, inputs)) if t.is_floating_point()]
        weights = torch.Generator().manual_seed(0)
        loss = sum((t * torch.randn(t.shape, generator=weights)).sum() for t in found if t.requires_grad)
        assert isinstance(loss, Tensor), "no output depends on a parameter"
        loss.backward()
        outputs += [t.detach() for t in found]
    return {
        "outputs": dict(enumerate(outputs)),
        "gradients": {n: p.grad for n, p in module.named_parameters(remove_duplicate=False) if p.grad is not None},
        "buffers": {n: b for n, b in module.named_buffers() if n in before and _changed(n, before[n], b)},
        "drawn": (torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())),
    }


def _changed(name: str, before: Tensor, after: Tensor) -> bool:
    """Was a buffer written to? The counter of batch norm is read by nothing but a momentum of None, which shows."""
    return not name.endswith("num_batches_tracked") and not torch.equal(before, after)


def gap(wanted: Mapping[Any, Tensor], got: Mapping[Any, Tensor]) -> float:
    """The largest difference of any pair, relative to its own size or a thousandth of the largest of all.

    A gradient or buffer that one side lacks counts as zero; another shape is infinitely far.
    """
    sizes = {key: float(value.abs().max()) if value.numel() else 0.0 for key, value in {**got, **wanted}.items()}
    floor = 1e-3 * max(sizes.values(), default=0.0)
    worst = 0.0
    for key, size in sizes.items():
        nothing = torch.zeros_like(wanted[key] if key in wanted else got[key])
        a, b = wanted.get(key, nothing), got.get(key, nothing)
        if a.shape != b.shape:
            return float("inf")
        difference = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        worst = max(worst, difference / max(size, floor, 1e-30))
    return worst


def halved(graph: Graph, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """At half the MACs: the pruned graph beside the user's own class, which has other code and the same widths."""
    try:
        plan = make_plan(graph, budget=Budget(_HALF), step=1)
    except BudgetError:
        plan = make_plan(graph, budget=Budget(_LITTLE), step=1)
    pruned = remove(graph, plan)
    row: dict[str, Any] = {"macs": plan.macs_after / plan.macs_before}
    try:
        own = plan.apply_to(model, inputs)
    except DeployPrunerError as error:
        # It has to train all the same.
        return {**row, "own_class": error.message, "finite": all_finite(steps(copy.deepcopy(pruned), inputs, 0))}
    return {**row, "own_class": "", **compared(own, pruned, inputs, scaled=True)}


def all_finite(step: Mapping[str, Any]) -> bool:
    """Are outputs, gradients and buffers all numbers?"""
    return all(bool(t.isfinite().all()) for key in ("outputs", "gradients", "buffers") for t in step[key].values())


def verdict(row: Mapping[str, Any]) -> str:
    """In a word or two: alike, said beforehand, or what a user would not have been told."""
    if "crashed" in row:
        return "**crashed**"
    if "refused" in row or row.get("said"):
        return "said beforehand"
    if row.get("part"):
        return "only a part is pruned"
    if "failed" in row:
        return "**does not run, unsaid**"
    alike = max(row[key] for key in ("outputs", "gradients", "buffers")) <= _ALIKE and row["drawn"]
    return "alike" if alike else "**differs, unsaid**"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one line a case, then totals."""
    lines = [
        "| model | in training | outputs | gradients | buffers | verdict | at half width, own class |",
        "|---|---|--:|--:|--:|---|---|",
        *(_line(name, row) for name, row in rows.items()),
    ]
    verdicts = [verdict(row) for row in rows.values()]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    return "\n".join([*lines, "", f"{len(rows)} models: {counts}.", "", *_said(rows)])


def _line(name: str, row: Mapping[str, Any]) -> str:
    numbers = [f"{row[key]:.0e}" if key in row else "-" for key in ("outputs", "gradients", "buffers")]
    half = row.get("half", {})
    own = "-" if not half else half["own_class"] or f"{verdict(half)}, {half['macs']:.2f} of the MACs"
    unusual = CASES[name].unusual if name in CASES else ""
    return f"| {' | '.join((name, unusual, *numbers, verdict(row), own[:90]))} |"


def _said(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    told = {name: row.get("said") or row.get("refused") or row.get("crashed") for name, row in rows.items()}
    return [f"- {name}: {text}" for name, text in told.items() if text]


if __name__ == "__main__":
    main()
