"""One model of the table, measured in a process of its own: `python -m benchmarks.zoo_worker MODEL TOOL`.

Prints one JSON object; what failed is in it, so the exit code is 0 unless the process was killed. Seconds are CPU
seconds of one thread, so that a busy machine changes them little.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.lively import noisy
from benchmarks.peer import prune_by_torch_pruning
from benchmarks.zoo_models import load
from deploypruner import plan as make_plan
from deploypruner.channels.plan import Plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.errors import BudgetError, DeployPrunerError
from deploypruner.export import exporters
from deploypruner.graph import Graph, trace
from deploypruner.graph.inputs import Inputs, call, tensors
from deploypruner.recipe.budget import Budget
from deploypruner.runtime import runtimes

MACS = 0.5


def deploypruner(name: str) -> dict[str, Any]:
    """Every column of one model; stops at the first step that fails and says which."""
    model, inputs = load(name)
    row: dict[str, Any] = {"step": "trace"}
    try:
        graph = _traced(model, inputs, row)
        row["step"] = "plan"
        plan = _timed(row, "plan_s", lambda: _planned(graph, row))
        row["macs"] = plan.macs_after / plan.macs_before
        row["params"] = plan.params_after / plan.params_before
        row["step"] = "remove"
        module, checks = _timed(row, "remove_and_proof_s", lambda: remove_and_prove(graph, plan))
        row["proof"] = max(check.max_abs_diff for check in checks)
        row["proved"] = all(check.passed for check in checks)
        row["signal"] = _signal(checks[0].detail)
        row["checks"] = [f"{check.name}: {check.detail}" for check in checks]
        row["step"] = "own class"
        row["own_class"] = _timed(row, "own_class_s", lambda: _own_class(plan, model, inputs))
        row["step"] = "onnx"
        if not graph.part:
            row["onnx"] = _timed(row, "onnx_s", lambda: _onnx(module, inputs, dynamic=graph.dynamic_batch))
        row["step"] = ""
    except Exception as error:  # noqa: BLE001 - a benchmark reports whatever stops it
        row["failed"] = _said(error)
    return row


def torch_pruning(name: str) -> dict[str, Any]:
    """What torch-pruning makes of the same model."""
    model, inputs = load(name)
    row: dict[str, Any] = {}
    begun = time.process_time()
    try:
        row["macs"] = prune_by_torch_pruning(model, inputs, ratio=1 - MACS)
    except Exception as error:  # noqa: BLE001 - a benchmark reports whatever stops it
        row["failed"] = _said(error)
    return {**row, "seconds": time.process_time() - begun}


TOOLS: dict[str, Callable[[str], dict[str, Any]]] = {"deploypruner": deploypruner, "torch-pruning": torch_pruning}


def _timed(row: dict[str, Any], key: str, work: Callable[[], Any]) -> Any:
    begun = time.process_time()
    result = work()
    row[key] = time.process_time() - begun
    return result


def _traced(model: nn.Module, inputs: Inputs, row: dict[str, Any]) -> Graph:
    exporting, export = [0.0], torch.export.export

    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.process_time()
        try:
            return export(*arguments, **options)
        finally:
            exporting[0] += time.process_time() - begun

    with mock.patch("torch.export.export", timed):
        graph: Graph = _timed(row, "trace_s", lambda: trace(model, inputs))
    row["export_s"] = exporting[0]
    row["front_end"] = graph.front_end + (f", part {graph.part}" if graph.part else "")
    row["dynamic_batch"] = graph.dynamic_batch
    row["groups"] = len(graph.groups)
    row["statistics"] = sum(group.changes_statistics for group in graph.groups)
    row["prunable"], row["outputs"] = _prunable(graph)
    row["frozen"] = [[f.count, f.reason, f.where, f"{f.parameter}:{f.axis}"] for f in graph.frozen]
    row["remarks"] = list(graph.remarks)
    return graph


def _prunable(graph: Graph) -> tuple[int, int]:
    """Output channels of convolutions and linear layers that a group holds; all but the model's own outputs."""
    held: dict[tuple[str, int], set[int]] = {}
    for group in graph.groups:
        for member in group.members:
            held.setdefault((member.parameter, member.axis), set()).update(member.index.reshape(-1).tolist())
    prunable = outputs = 0
    for state in graph.labelling.state.values():
        for axis, role in state.roles.items():
            if role == "producer" and state.tensor.ndim > 1:
                place = (state.names[0], axis)
                own = [f for f in graph.frozen if (f.parameter, f.axis) == place and "output" in f.reason]
                prunable += len(held.get(place, ()))
                outputs += state.tensor.shape[axis] - sum(f.count for f in own)
    return prunable, outputs


def _planned(graph: Graph, row: dict[str, Any]) -> Plan:
    for step in (8, 1):
        try:
            row["width_step"] = step
            return make_plan(graph, budget=Budget(MACS), step=step)
        except BudgetError as error:
            out_of_reach = error
    least = re.search(r"--macs ([\d.]+)", out_of_reach.hint)
    if least is None:
        raise out_of_reach
    row["out_of_reach"] = out_of_reach.message
    return make_plan(graph, budget=Budget(float(least.group(1))), step=1)


def _own_class(plan: Plan, model: nn.Module, inputs: Inputs) -> str:
    try:
        plan.apply_to(model, inputs)
    except DeployPrunerError as error:
        return error.message
    return "identical"


def _onnx(module: nn.Module, inputs: Inputs, *, dynamic: bool) -> dict[str, float]:
    """Batch -> largest difference between torch and ONNX Runtime, relative to the largest output."""
    differences = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        exporters.get("onnx")().write(module, inputs, path, dynamic_batch=dynamic)
        session = runtimes.get("onnxruntime")().open(path, threads=1)
        for batch in (2, 1) if dynamic else (2,):
            generator = torch.Generator().manual_seed(batch)
            sized = pytree.tree_map_only(Tensor, lambda t, g=generator, b=batch: noisy(t, g, b), inputs)
            wanted = [t.numpy() for t in tensors(call(module, sized))]
            got = session.run([t.numpy() for t in tensors(sized)])
            differences[str(batch)] = max(
                float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in zip(wanted, got, strict=True)
            )
    return differences


def _signal(detail: str) -> float:
    found = re.search(r"differ by ([\d.e+-]+)", detail)
    return float(found.group(1)) if found else float("nan")


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(TOOLS[sys.argv[2]](sys.argv[1])))
